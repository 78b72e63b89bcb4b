"""A process that has imported everything and forks for each mount: a start takes milliseconds (start.py).

It listens in a directory of its user's own, serves processes of the same user alone, and only such as are
its like in all that a program cannot choose by itself: namespaces, root directory, capabilities, groups,
security label. The fork then takes over what an exec would have handed down: descriptors, directory,
environment, umask, limits, priority, control group; so who called gets what it would have got.

It ends by itself when nobody came for a while: soon where it lives in a namespace that others may wait to
see the end of.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import resource
import select
import signal
import socket
import struct
import sys

import trio

from unionfs import cli, daemon, inspection_cli, logs  # noqa: F401  (what forks are not to import again)
from unionfs.start import TAKEN, identity, namespaces

#: Seconds without a mount after which it ends: in the machine's own mount namespace, and in others.
PATIENCE = 600.0
PATIENCE_ELSEWHERE = 20.0

#: Seconds that a message may take.
_MESSAGE_TIME = 5.0

_MESSAGE_AT_MOST = 16 << 20

#: Lines of /proc/PID/status that must be the same (proc(5)).
_ALIKE = ("Uid:", "Gid:", "Groups:", "NoNewPrivs:", "Seccomp:", "Cap")


class _NotOurs(Exception):
    """Who asked has to start by itself."""


def main(address: str) -> None:
    """Serve until nobody comes any more. Returns at once where another starter is there."""
    lock = os.open(f"{address}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(address)
    mine = identity()
    _warm_up()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        listener.bind(address)
        try:
            listener.listen(128)
            _name_process([b"unionfs: ready to start mounts"])
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            # Collected once, then left alone: forks share these pages for as long as nobody writes to them.
            gc.collect()
            gc.freeze()
            _serve(listener, mine, lock)
        finally:
            os.unlink(address)
            os.unlink(f"{address}.lock")


def _warm_up() -> None:
    """Do once what imports and remembers something the first time."""
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(None):
        cli.main(["--help"])
    trio.run(trio.sleep, 0)


def _serve(listener: socket.socket, mine: str, lock: int) -> None:
    ready = select.poll()
    ready.register(listener, select.POLLIN)
    patience = PATIENCE if _is_in_first_namespace() else PATIENCE_ELSEWHERE
    while ready.poll(patience * 1000):
        asker, _ = listener.accept()
        if os.fork() == 0:
            status = 1
            try:
                listener.close()
                os.close(lock)
                status = _start(asker, mine)
            finally:
                os._exit(status)
        asker.close()


def _is_in_first_namespace() -> bool:
    try:
        return os.readlink("/proc/1/ns/mnt") == os.readlink("/proc/self/ns/mnt")
    except OSError:
        return False


def _start(asker: socket.socket, mine: str) -> int:
    """In a fork: be the command that the asker was called as."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        command = _become(asker, mine)
    except (_NotOurs, OSError, ValueError):
        return 0  # without a word: the asker starts by itself
    asker.sendall(TAKEN)
    try:
        status = cli.COMMANDS[command](sys.argv[1:])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(OSError):
        asker.sendall(bytes([status & 0xFF]))
    return status


def _become(asker: socket.socket, mine: str) -> str:
    """Take over all that the asker has. Returns its command. Raises _NotOurs, OSError, ValueError."""
    pid, uid, _ = struct.unpack("3i", asker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid != os.geteuid() or not pid:
        raise _NotOurs
    body, received = _receive(asker)
    command, theirs, umask, numbers, count, *rest = body.split(b"\0")
    wanted = [int(number) for number in numbers.split()]
    if theirs.decode() != mine or len(received) != len(wanted) + 1 or command.decode() not in cli.COMMANDS:
        raise _NotOurs
    if _nature(str(pid)) != _nature("self"):
        raise _NotOurs
    _enter_control_groups(pid)
    _take_limits(pid)
    os.fchdir(received[0])
    os.close(received[0])
    _place(asker, received[1:], wanted)
    os.umask(int(umask))
    sys.argv[:] = [os.fsdecode(word) for word in rest[: int(count)]]
    os.environb.clear()
    for item in rest[int(count) :]:
        name, _, value = item.partition(b"=")
        os.environb[name] = value
    _name_process([os.fsencode(sys.executable), *rest[: int(count)]])
    with open("/proc/self/comm", "w", encoding="utf-8", errors="surrogateescape") as comm:
        comm.write(os.path.basename(sys.argv[0]))
    return command.decode()


def _receive(asker: socket.socket) -> tuple[bytes, list[int]]:
    """A message and its descriptors."""
    asker.settimeout(_MESSAGE_TIME)
    data, received, flags, _ = socket.recv_fds(asker, 65536, 253)
    if flags & socket.MSG_CTRUNC or len(data) < 4:
        raise _NotOurs
    length = int.from_bytes(data[:4], "big")
    if length > _MESSAGE_AT_MOST:
        raise _NotOurs
    body = data[4:]
    while len(body) < length:
        more = asker.recv(min(length - len(body), 1 << 20))
        if not more:
            raise _NotOurs
        body += more
    asker.settimeout(None)
    return body, received


def _nature(process: str) -> list[str]:
    """What a process cannot change about itself at will, and its children have from it."""
    with open(f"/proc/{process}/status", encoding="ascii", errors="replace") as lines:
        told = [line for line in lines if line.startswith(_ALIKE)]
    root = os.stat(f"/proc/{process}/root")
    told.append(f"{root.st_dev} {root.st_ino}")
    try:
        with open(f"/proc/{process}/attr/current", encoding="ascii", errors="replace") as label:
            told.append(label.read())
    except OSError:
        told.append("")  # no security module
    return told + namespaces(process)


def _place(asker: socket.socket, received: list[int], wanted: list[int]) -> None:
    """Give received descriptors the numbers they have with the asker. Ours move out of the way."""
    highest = max([*received, *wanted, asker.fileno()]) + 1
    moved = fcntl.fcntl(asker.fileno(), fcntl.F_DUPFD_CLOEXEC, highest)
    asker.close()
    asker.__init__(fileno=moved)  # type: ignore[misc]
    above = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, highest) for fd in received]
    for fd in received:
        os.close(fd)
    for fd, number in zip(above, wanted, strict=True):
        os.dup2(fd, number, inheritable=True)
        os.close(fd)


def _take_limits(pid: int) -> None:
    """Resource limits, priority, processors and the score for the out-of-memory killer."""
    for limit in range(16):
        resource.prlimit(0, limit, resource.prlimit(pid, limit))
    os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, pid))
    os.sched_setaffinity(0, os.sched_getaffinity(pid))
    with open(f"/proc/{pid}/oom_score_adj", "rb") as theirs, open("/proc/self/oom_score_adj", "r+b") as mine:
        score = theirs.read()
        if mine.read() != score:
            mine.seek(0)
            mine.write(score)


def _enter_control_groups(pid: int) -> None:
    """Be counted where the asker is (cgroups(7)). Raises OSError where that may not be."""
    theirs, ours = _control_groups(str(pid)), _control_groups("self")
    if theirs == ours:
        return
    mounted = _control_group_mounts()
    for controllers, path in theirs.items():
        if ours.get(controllers) != path and controllers in mounted:
            with open(f"{mounted[controllers]}{path}/cgroup.procs", "w", encoding="ascii") as group:
                group.write("0")
    if _control_groups("self") != theirs:
        raise _NotOurs


def _control_groups(process: str) -> dict[str, str]:
    with open(f"/proc/{process}/cgroup", encoding="utf-8", errors="surrogateescape") as lines:
        parts = [line.rstrip("\n").split(":", 2) for line in lines]
    return {controllers: path for _, controllers, path in parts}


def _control_group_mounts() -> dict[str, str]:
    """Controllers, as /proc/PID/cgroup names them, to where they are mounted."""
    found = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            head, _, tail = line.partition(" - ")
            kind, _, options = tail.rstrip("\n").split(" ", 2)
            point = head.split(" ")[4]
            if kind == "cgroup2":
                found[""] = point
            elif kind == "cgroup":
                for controllers in _control_groups("self"):
                    if controllers and set(controllers.split(",")) <= set(options.split(",")):
                        found[controllers] = point
    return found


def _name_process(words: list[bytes]) -> None:
    """Let ps(1) show these words, in the place of those that exec had left (proc(5), stat: arg_start)."""
    with open("/proc/self/stat", "rb") as stat:
        fields = stat.read().rpartition(b") ")[2].split()
    start, end = int(fields[45]), int(fields[46])
    if end > start:
        text = b"\0".join(words)[: end - start - 1]
        ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


if __name__ == "__main__":
    main(sys.argv[1])
