"""Mounts of the driver, and of kernel overlayfs, that leave nothing behind."""

from __future__ import annotations

import ast
import contextlib
import ctypes
import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from support import intercept
from support.layers import build
from support.snapshot import Picture, differences, snapshot
from unionfs import syscalls
from unionfs.options import escape

#: Options that each mount gets beside its own.
EVERY_MOUNT: list[str] = []

#: A server that does not answer for so long is killed, so that a test fails instead of hanging.
PATIENCE = 120.0

#: Starts servers as forks of a process that has imported them: milliseconds instead of half a second.
_SERVERS = multiprocessing.get_context("forkserver")
_SERVERS.set_forkserver_preload(["pytest", "hypothesis", "support.union", "unionfs.cli", "unionfs.daemon"])


#: CLOCK_REALTIME_COARSE, the clock that filesystems stamp with.
_COARSE_CLOCK = 5


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Poll a condition that becomes true soon."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.002)


def tick() -> None:
    """Wait until a change is given another time than one made before the call."""
    before = time.clock_gettime_ns(_COARSE_CLOCK)
    while time.clock_gettime_ns(_COARSE_CLOCK) == before:
        time.sleep(0.001)


def mounts() -> list[tuple[str, str]]:
    """Where something is mounted and its type, the oldest first."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            head, _, tail = line.partition(" - ")
            point = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), head.split(" ")[4])
            found.append((point, tail.split(" ")[0]))
    return found


def mounts_at(place: Path) -> list[str]:
    """The types of what is mounted at a path, the oldest first."""
    return [kind for point, kind in mounts() if point == os.fspath(place)]


def detach(place: Path) -> bool:
    """Take away all that is mounted at a path and below it; says whether there was something."""
    below = os.fspath(place) + "/"
    left = [point for point, _ in mounts() if point == os.fspath(place) or point.startswith(below)]
    for point in reversed(left):
        syscalls.umount(os.fsencode(point), syscalls.MNT_DETACH)
    return bool(left)


def complaints(log: str) -> list[str]:
    """The lines of a server's log that tell of something wrong.

    An unmount drops a RELEASE that nobody waits for; answering it is then refused, which harms nothing.
    """
    harmless = re.compile(r"fuse_release\(\): fuse_reply_\* failed")
    wrong = re.compile(r"Traceback|ERROR|CRITICAL|WARNING|Exception")
    return [line for line in log.splitlines() if wrong.search(line) and not harmless.search(line)]


def _serve(arguments: list[str], log: str, gate: str) -> None:
    """In a process of its own: the command `unionfs`, its words to a file, its calls through a gate."""
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    if gate:
        intercept.install(gate)
    from unionfs.cli import main

    status = main(arguments)
    sys.stderr.flush()
    os._exit(status)


def _unmount_patiently(root: Path) -> None:
    """umount(2); who walks through the machine's files, or has just ended, may be in it for a moment."""
    deadline = time.monotonic() + 5
    while True:
        try:
            syscalls.umount(os.fsencode(root))
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.02)


class Union:
    """Layers in a directory, and a mount of them by our driver.

    `lower[0]` is the topmost lower layer. `close` always leaves nothing mounted and no process, and raises
    when the server was not well.
    """

    def __init__(
        self, place: Path, *lowers: Mapping[str | bytes, Any], upper: Mapping[str | bytes, Any] | None = None
    ) -> None:
        """Make the layers: the first of `lowers` is on top. Nothing is mounted yet."""
        self.place = place
        self.lowers = [place / f"lower{number}" for number in range(len(lowers))]
        for path, names in zip(self.lowers, lowers, strict=True):
            build(path, names)
        self.upper = place / "upper"
        self.work = place / "work"
        self.root = place / "merged"
        self.log = place / "log"
        build(self.upper, upper or {})
        self.work.mkdir(exist_ok=True)
        self.root.mkdir(exist_ok=True)
        self._before: dict[Path, dict[bytes, Picture]] = {}
        self.remember_lowers()
        self._server: Any = None
        self._watchdog: threading.Timer | None = None
        #: A complaint of the server with these words is what the test is about.
        self.expected_complaint = ""
        self._closed = False
        self.writable = True
        #: What the server's system calls on layers pass through (intercept.py).
        self.gate: intercept.Gate | None = None

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._server is not None
        return int(self._server.pid)

    def is_alive(self) -> bool:
        """Whether the server runs, or its keeper."""
        return self._server is not None and bool(self._server.is_alive())

    def options(self, *more: str) -> str:
        """The -o value."""
        parts = ["lowerdir=" + ":".join(escape(os.fspath(path)) for path in self.lowers)]
        if self.writable:
            parts.append(f"upperdir={escape(os.fspath(self.upper))},workdir={escape(os.fspath(self.work))}")
        return ",".join([*parts, *EVERY_MOUNT, *more])

    def mount(self, *options: str) -> Path:
        """Mount and wait for the first answer; returns the mountpoint."""
        assert self._server is None
        arguments = ["-f", "-o", self.options(*options), os.fspath(self.root)]
        gate = self.gate.address if self.gate else ""
        server = _SERVERS.Process(target=_serve, args=(arguments, os.fspath(self.log), gate), daemon=True)
        server.start()
        self._server = server
        self._watchdog = threading.Timer(PATIENCE, server.kill)
        self._watchdog.daemon = True
        self._watchdog.start()
        wait_until(lambda: bool(mounts_at(self.root)) or not server.is_alive(), "it is mounted")
        if not mounts_at(self.root):
            self._reap()
            raise AssertionError(f"not mounted: {self.words()}")
        os.statvfs(self.root)
        return self.root

    def words(self) -> str:
        """All that the server said so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def complaints(self) -> list[str]:
        """What the server said that it should not have."""
        lines = complaints(self.words())
        return [line for line in lines if not self.expected_complaint or self.expected_complaint not in line]

    def unmount(self) -> None:
        """Unmount, and see the server end well."""
        try:
            _unmount_patiently(self.root)
        except OSError as error:
            detach(self.root)
            self._reap()
            raise AssertionError(f"cannot be unmounted: {os.strerror(error.errno or 0)}") from None
        status = self._reap()
        assert status == 0, f"the server ended with {status}: {self.words()}"
        assert not self.complaints(), self.words()

    def remount(self, *options: str) -> Path:
        """Unmount and mount again."""
        self.unmount()
        return self.mount(*options)

    def kill(self) -> None:
        """The server dies of SIGKILL; what is mounted is taken away."""
        os.kill(self.pid, signal.SIGKILL)
        self._reap()
        detach(self.root)

    def wait(self) -> int:
        """Wait for the server's end; its exit status."""
        return self._reap()

    def _reap(self) -> int:
        server, self._server = self._server, None
        if self._watchdog is not None:
            self._watchdog.cancel()
        if server is None:
            return 0
        server.join(120)
        hung = server.is_alive()
        if hung:
            server.kill()
            server.join()
        status = server.exitcode
        server.close()
        assert not hung, f"the server did not end: {self.words()}"
        return int(status)

    def lowers_changed(self) -> list[str]:
        """What is not as it was in the lower layers, their mtimes and private xattrs included."""
        lines = []
        for path, before in self._before.items():
            lines += differences(before, snapshot(path, private=True))
        return lines

    def remember_lowers(self) -> None:
        """Take the lower layers as they are now: a test has prepared them."""
        self._before = {path: snapshot(path, private=True) for path in self.lowers}

    def share_lowers(self, other: Union) -> None:
        """Stand on the lower layers of another union."""
        self.lowers = other.lowers
        self.remember_lowers()

    def ignore_lowers(self) -> None:
        """The lower layers cannot be looked at by path."""
        self._before = {}

    def close(self) -> None:
        """End the mount if there is one; raises AssertionError when something was wrong."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._server is not None:
                self.unmount()
        finally:
            left = detach(self.root)
            self._reap()
        assert not left, "something was left mounted"
        assert not self.complaints(), self.words()
        assert not self.lowers_changed(), self.lowers_changed()

    # Kernel overlayfs on the same layers -------------------------------------------------------------

    @contextlib.contextmanager
    def kernel(self, *options: str, writable: bool = True) -> Iterator[Path]:
        """Kernel overlayfs on the same directories, while we do not serve them."""
        assert self._server is None
        with overlayfs(
            self.place / "kernel",
            self.lowers,
            self.upper if writable else None,
            self.work,
            *options,
        ) as root:
            yield root


@contextlib.contextmanager
def overlayfs(
    root: Path, lowers: list[Path], upper: Path | None, work: Path, *options: str
) -> Iterator[Path]:
    """A mount of kernel overlayfs."""
    root.mkdir(exist_ok=True)
    parts = ["lowerdir=" + ":".join(os.fspath(path) for path in lowers)]
    if upper is not None:
        work.mkdir(exist_ok=True)
        parts.append(f"upperdir={upper},workdir={work}")
    data = ",".join([*parts, *options])
    syscalls.mount(b"overlay", os.fsencode(root), b"overlay", 0, data.encode())
    try:
        yield root
    finally:
        try:
            syscalls.umount(os.fsencode(root))
        finally:
            detach(root)


def run_as(
    uid: int, gid: int, action: Callable[[], Any], *, groups: tuple[int, ...] = (), umask: int = 0o022
) -> Any:
    """Do something in a child that is another user; returns what it returns (if repr can hold it).

    An OSError of the child is raised here too.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.umask(umask)
            set_securebits(0)  # or the new user would keep root's capabilities
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            try:
                answer = ("value", action())
            except OSError as error:
                answer = ("errno", error.errno)
            except BaseException as error:
                answer = ("error", repr(error))
            os.write(writer, repr(answer).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    kind, value = ast.literal_eval(said.decode())
    if kind == "errno":
        raise OSError(value, os.strerror(value))
    assert kind == "value", value
    return value


def get_securebits() -> int:
    """PR_GET_SECUREBITS of this process; what it starts inherits them."""
    return int(ctypes.CDLL(None).prctl(27, 0, 0, 0, 0))


def set_securebits(bits: int) -> None:
    """PR_SET_SECUREBITS."""
    assert ctypes.CDLL(None).prctl(28, bits, 0, 0, 0) == 0


def errno_of(action: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """The name of the errno that a call fails with, "" when it does not."""
    try:
        action(*arguments, **options)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def command(*arguments: str | os.PathLike[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, its words kept."""
    return subprocess.run(
        list(arguments),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        **options,
    )
