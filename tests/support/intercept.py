"""A server whose system calls on layers pass through the test: counted, recorded, refused, or its last ones.

By seccomp's user notification (seccomp_unotify(2)): the server installs a filter that asks us about each
call of some kinds, and waits for the answer. So nothing it does to a layer escapes, in whatever language, by
whatever library. Calls on anything else (the FUSE device, its log, /proc) always pass.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

#: Can be had: the numbers below are of this architecture.
AVAILABLE = platform.machine() == "x86_64"

#: How a call names what it is about: a descriptor, a directory's descriptor and a name, or a path.
_FD, _AT, _PATH = "fd", "at", "path"

#: Name: number, the way it names its object, which argument that is.
_CHANGING = {
    "pwrite64": (18, _FD, 0),
    "pwritev": (296, _FD, 0),
    "pwritev2": (328, _FD, 0),
    "copy_file_range": (326, _FD, 2),
    "ftruncate": (77, _FD, 0),
    "fallocate": (285, _FD, 0),
    "ioctl": (16, _FD, 0),
    "fsync": (74, _FD, 0),
    "fdatasync": (75, _FD, 0),
    "fchmod": (91, _FD, 0),
    "fchown": (93, _FD, 0),
    "fsetxattr": (190, _FD, 0),
    "fremovexattr": (199, _FD, 0),
    "truncate": (76, _PATH, 0),
    "chmod": (90, _PATH, 0),
    "setxattr": (188, _PATH, 0),
    "lsetxattr": (189, _PATH, 0),
    "removexattr": (197, _PATH, 0),
    "lremovexattr": (198, _PATH, 0),
    "mkdirat": (258, _AT, 0),
    "mknodat": (259, _AT, 0),
    "fchownat": (260, _AT, 0),
    "unlinkat": (263, _AT, 0),
    "renameat": (264, _AT, 2),
    "linkat": (265, _AT, 2),
    "symlinkat": (266, _AT, 1),
    "fchmodat": (268, _AT, 0),
    "utimensat": (280, _AT, 0),
    "renameat2": (316, _AT, 2),
    "fchmodat2": (452, _AT, 0),
    "setxattrat": (463, _AT, 0),
    "removexattrat": (466, _AT, 0),
}
_READING = {
    "pread64": (17, _FD, 0),
    "preadv": (295, _FD, 0),
    "getdents64": (217, _FD, 0),
    "fgetxattr": (193, _FD, 0),
    "flistxattr": (196, _FD, 0),
    "open": (2, _PATH, 0),
    "getxattr": (191, _PATH, 0),
    "lgetxattr": (192, _PATH, 0),
    "listxattr": (194, _PATH, 0),
    "llistxattr": (195, _PATH, 0),
    "openat": (257, _AT, 0),
    "openat2": (437, _AT, 0),
    "newfstatat": (262, _AT, 0),
    "statx": (332, _AT, 0),
    "readlinkat": (267, _AT, 0),
    "getxattrat": (464, _AT, 0),
    "listxattrat": (465, _AT, 0),
}
_CALLS = {number: (name, way, at) for name, (number, way, at) in (_CHANGING | _READING).items()}

#: Calls of two names; the old one is in the first two arguments.
_OF_TWO_NAMES = ("renameat", "renameat2", "linkat")

_AT_FDCWD = 0xFFFFFF9C
_AT_EMPTY_PATH = 0x1000
_FICLONE = 0x40049409

_SYS_SECCOMP = 317
_SECCOMP_SET_MODE_FILTER = 1
_NEW_LISTENER = 1 << 3
_RET_ALLOW = 0x7FFF0000
_RET_USER_NOTIF = 0x7FC00000
_AUDIT_ARCH_X86_64 = 0xC000003E
_NOTIF_RECV = 0xC0502100
_NOTIF_SEND = 0xC0182101
#: Wake the server on this processor when it is answered, and us when it asks (Linux 6.6).
_NOTIF_SET_FLAGS = 0x40082104
_SYNC_WAKE_UP = 1
_NOTIFICATION = struct.Struct("=QII iIQ 6Q")
_ANSWER = struct.Struct("=QqiI")
_CONTINUE = 1


@dataclass(frozen=True)
class Call:
    """A system call on a layer, before it is made."""

    name: str
    #: Whether it changes something.
    changes: bool
    #: The path of what it is about, as the server sees it, and for renames and links the old one.
    target: str
    source: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.source} {self.target}".replace("  ", " ")


#: What to do with a call: None lets it pass, a number is the errno it fails with, KILL is the server's end.
Verdict = int | None
KILL = -1


def install(address: str) -> None:
    """In the server, before anything else: install the filter and hand its listener to the `Gate`."""
    listener = _install_filter()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [b"."], [listener])
        connection.recv(1)  # from now on somebody answers
    os.close(listener)


def _install_filter() -> int:
    numbers = sorted(_CALLS)
    lines = [
        (0x20, 0, 0, 4),  # load the architecture
        (0x15, 0, len(numbers) + 1, _AUDIT_ARCH_X86_64),
        (0x20, 0, 0, 0),  # load the number
        *((0x15, len(numbers) - at, 0, number) for at, number in enumerate(numbers)),
        (0x06, 0, 0, _RET_ALLOW),
        (0x06, 0, 0, _RET_USER_NOTIF),
    ]
    program = array.array("B", b"".join(struct.pack("=HBBI", *line) for line in lines))
    address, _ = program.buffer_info()

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("lines", ctypes.c_void_p)]

    libc = ctypes.CDLL(None, use_errno=True)
    wanted = Program(len(lines), address)
    listener = libc.syscall(_SYS_SECCOMP, _SECCOMP_SET_MODE_FILTER, _NEW_LISTENER, ctypes.byref(wanted))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return int(listener)


class Gate:
    """What a server's calls pass through: one thread that answers for one server after another."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self.address = f"\0unionfs-gate-{os.getpid()}-{id(self)}"
        self._socket.bind(self.address)
        self._socket.listen()
        self._decide: Callable[[Call], Verdict] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let no more servers in."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    @contextmanager
    def deciding(self, decide: Callable[[Call], Verdict]) -> Iterator[None]:
        """Ask `decide` about each call on a layer. It must not touch the mount."""
        self._decide = decide
        try:
            yield
        finally:
            self._decide = None

    @contextmanager
    def recording(self) -> Iterator[list[Call]]:
        """Keep the calls in a list."""
        calls: list[Call] = []
        with self.deciding(calls.append):
            yield calls

    @contextmanager
    def at(self, number: int, verdict: int, *, changing: bool = False) -> Iterator[list[Call]]:
        """Let the call of that number (from 0; of the `changing` ones) end so. Yields the calls up to it."""
        calls: list[Call] = []

        def decide(call: Call) -> Verdict:
            if len(calls) > number or (changing and not call.changes):
                return None
            calls.append(call)
            return verdict if len(calls) > number else None

        with self.deciding(decide):
            yield calls

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                _, fds, _, _ = socket.recv_fds(connection, 1, 1)
                threading.Thread(target=self._answer_all, args=(fds[0],), daemon=True).start()
                connection.send(b".")

    def _answer_all(self, listener: int) -> None:
        with suppress(OSError):
            fcntl.ioctl(listener, _NOTIF_SET_FLAGS, _SYNC_WAKE_UP)
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        try:
            while True:
                events = poll.poll()
                if not events[0][1] & select.POLLIN:
                    return  # the server is gone
                buffer = bytearray(_NOTIFICATION.size)
                try:
                    fcntl.ioctl(listener, _NOTIF_RECV, buffer)
                    self._answer(listener, buffer)
                except FileNotFoundError:
                    continue  # the caller was killed meanwhile
        finally:
            os.close(listener)

    def _answer(self, listener: int, buffer: bytearray) -> None:
        unique, pid, _, number, _, _, *arguments = _NOTIFICATION.unpack(buffer)
        verdict = None
        decide = self._decide
        if decide is not None:
            call = _describe(pid, number, arguments)
            if call is not None:
                verdict = decide(call)
        if verdict == KILL:
            os.kill(_process_of(pid), signal.SIGKILL)
            return
        error, flags = (0, _CONTINUE) if verdict is None else (-verdict, 0)
        fcntl.ioctl(listener, _NOTIF_SEND, bytearray(_ANSWER.pack(unique, 0, error, flags)))


def _process_of(thread: int) -> int:
    with open(f"/proc/{thread}/status", encoding="utf-8") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Tgid:"))


def _describe(pid: int, number: int, arguments: list[int]) -> Call | None:
    """The call, None when it is not about a layer."""
    name, way, at = _CALLS[number]
    source = ""
    try:
        if way == _FD:
            if name == "ioctl" and arguments[1] & 0xFFFFFFFF != _FICLONE:
                return None
            target = _of_descriptor(pid, arguments[at])
        elif way == _PATH:
            target = _resolve(pid, _text(pid, arguments[at]))
        else:
            target = _of_name(pid, arguments[at], arguments[at + 1])
            if name in _OF_TWO_NAMES:
                source = _of_name(pid, arguments[0], arguments[1])
    except OSError:
        return None
    if not target.startswith("/") or target.startswith(("/dev/", "/proc/", "/sys/")):
        return None
    changes = name in _CHANGING or (name == "openat" and bool(arguments[2] & (os.O_CREAT | os.O_TRUNC)))
    return Call(name, changes, target, source)


def _of_name(pid: int, directory: int, pointer: int) -> str:
    name = _text(pid, pointer)
    if directory & 0xFFFFFFFF == _AT_FDCWD or name.startswith("/"):
        return _resolve(pid, name)
    return os.path.join(_of_descriptor(pid, directory), name) if name else _of_descriptor(pid, directory)


def _resolve(pid: int, path: str) -> str:
    """What a path by way of a descriptor leads to; other paths are not about layers."""
    for prefix in ("/proc/self/fd/", "/dev/fd/"):
        if path.startswith(prefix):
            descriptor, _, rest = path.removeprefix(prefix).partition("/")
            found = _of_descriptor(pid, int(descriptor))
            return os.path.join(found, rest) if rest else found
    return ""


def _of_descriptor(pid: int, descriptor: int) -> str:
    return os.readlink(f"/proc/{pid}/fd/{ctypes.c_int(descriptor).value}")


def _text(pid: int, pointer: int) -> str:
    """A string of the server's memory."""
    if not pointer:
        return ""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(pointer)
        page = 4096 - pointer % 4096
        text = memory.read(page)
        if b"\0" not in text:
            text += memory.read(4096)
    return os.fsdecode(text.partition(b"\0")[0])
