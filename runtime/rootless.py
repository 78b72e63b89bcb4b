"""Without root: namespaces of the user's own, in which unionctl is root.

A process that does nothing (sleep) holds a user namespace and a mount namespace for each state root; every
command joins them first. In the user namespace the user is root and has his subordinate ids (subuid(5)), so
images keep their owners; in the mount namespace he can mount the union.

When that process was killed, the namespaces live on in the containers that run: the next command finds them
there.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import RuntimeFailure

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000

#: What the kernel takes for a map of all ids: the one of the machine's own user namespace.
_ALL_IDS = 1 << 32

#: ioctl_ns(2).
_NS_GET_USERNS = 0xB701

_libc = ctypes.CDLL(None, use_errno=True)


def is_own_namespace() -> bool:
    """Whether this process is in a user namespace without all of the machine's ids: root is a user there."""
    with contextlib.suppress(OSError, ValueError):
        first, outside, count = map(int, Path("/proc/self/uid_map").read_text().splitlines()[0].split())
        return (first, outside) != (0, 0) or count < _ALL_IDS - 1
    return False


def owns_network() -> bool:
    """Whether the network this process is in belongs to its user namespace, so that bridges can be made."""
    network = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        owner = fcntl.ioctl(network, _NS_GET_USERNS)
    except PermissionError:  # it is one that we are not in
        return False
    finally:
        os.close(network)
    try:
        return os.path.samestat(os.fstat(owner), os.stat("/proc/self/ns/user"))
    finally:
        os.close(owner)


def last_gid() -> int:
    """The greatest group that there is in this user namespace, of those that the kernel takes for one."""
    lines = Path("/proc/self/gid_map").read_text().splitlines()
    return min(max(int(first) + int(count) - 1 for first, _, count in map(str.split, lines)), (1 << 31) - 1)


def hindrance() -> str:
    """Why this user can have no namespaces, or "" if he can."""
    missing = [name for name in ("newuidmap", "newgidmap") if shutil.which(name) is None]
    if missing:
        return f"{missing[0]} is not installed (Debian package uidmap)"
    for file in ("/etc/subuid", "/etc/subgid"):
        if not _subordinate(file):
            return (
                f"{file} has no line for user {_user_name()} (usermod --add-subuids --add-subgids gives one)"
            )
    return ""


def enter(state: Path) -> None:
    """Join the namespaces of the state root `state`, made if they are not there: then this process is root.

    Nothing but the ids, the capabilities and the mounts changes. To be called before threads are started.
    Raises RuntimeFailure when the machine does not let this user.
    """
    directory = os.getcwd()
    with _locked(state):
        holder = _holder(state) or _survivor(state)
        if holder is None:
            reason = hindrance()
            if reason:
                raise RuntimeFailure(f"without root, containers need subordinate ids: {reason}", 125)
            holder = _make(state)
    try:
        if _libc.setns(holder, _CLONE_NEWUSER | _CLONE_NEWNS) != 0:
            code = ctypes.get_errno()
            raise RuntimeFailure(f"cannot join the namespaces of {state}: {os.strerror(code)}", 125)
    finally:
        os.close(holder)
    try:
        os.chdir(directory)
    except OSError:
        os.chdir("/")


def runtime_directory() -> Path:
    """A directory for sockets: /run/unionctl for root, and for others one that ends with their session.

    Raises RuntimeFailure when somebody else has it.
    """
    if not is_own_namespace() or os.access("/run", os.W_OK):
        path = Path("/run/unionctl")
    elif base := os.environ.get("XDG_RUNTIME_DIR"):
        path = Path(base) / "unionctl"
    else:
        path = Path(tempfile.gettempdir()) / f"unionctl-{_outer_uid()}"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise RuntimeFailure(f"{path}: it is not a directory of this user's", 125)
    return path


# Who holds the namespaces -------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(state: Path) -> Iterator[None]:
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(state / "namespace.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise RuntimeFailure(f"cannot keep state in {state}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _holder(state: Path) -> int | None:
    """A descriptor of the process that was started for it, None when it is no more."""
    try:
        record = json.loads((state / "namespace").read_text())
        pid, began = int(record["pid"]), str(record["began"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return _process(pid) if _began(pid) == began else None


def _survivor(state: Path) -> int | None:
    """A descriptor of a process in the namespaces that a killed one held: a container's conmon."""
    for file in (state / "containers").glob("*/*/conmon.pid"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(file.read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            other = os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")
            if other and os.fsencode(file.parent.parent.name) in words:
                return _process(pid)
    return None


def _process(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _began(pid: int) -> str:
    """When a process began, in a form that no other process of any boot has; "" when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else f"{boot} {fields[19]}"


def _make(state: Path) -> int:
    """Make namespaces, and the process that holds them; a descriptor of it."""
    made_read, made_write = os.pipe()
    mapped_read, mapped_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os._exit(_hold(state, made_write, mapped_read))
    os.close(made_write)
    os.close(mapped_read)
    try:
        with os.fdopen(made_read, "rb") as said:
            # The process's own words; nothing when it waits for its ids.
            words = said.read(1)
            if words != b"\0":
                raise RuntimeFailure(
                    f"this machine gives users no namespaces: {(words + said.read()).decode()}", 125
                )
            _map(pid)
            began = _began(pid)
            holder = os.pidfd_open(pid)
            os.write(mapped_write, b"\0")
            # It closes its end when it executes sleep.
            if said.read():
                os.close(holder)
                raise RuntimeFailure("the process that holds the namespaces cannot be started", 125)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(mapped_write)
    record = state / "namespace.new"
    record.write_text(json.dumps({"pid": pid, "began": began}))
    record.rename(state / "namespace")
    return holder


def _hold(state: Path, made: int, mapped: int) -> int:
    """In the child: have namespaces, wait for ids, become sleep(1)."""
    try:
        os.setsid()
        os.chdir("/")
        if _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS) != 0:
            os.write(made, os.strerror(ctypes.get_errno()).encode())
            return 1
        os.write(made, b"\0")
        if not os.read(mapped, 1):
            return 1
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        # Whatever else the caller had open, to its last byte, is not ours to keep.
        limit = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
        for fd in range(3, limit):
            if fd != made:
                with contextlib.suppress(OSError):
                    os.close(fd)
        os.set_inheritable(made, False)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        # Its last word says whose it is, for whoever lists processes.
        os.execvp("sleep", ["sleep", "infinity"])
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(made, str(error).encode())
    return 1


# Ids ----------------------------------------------------------------------------------------------


def _map(pid: int) -> None:
    """Give a process's new user namespace the user as root, and his subordinate ids from 1."""
    for program, file, own in (
        ("newuidmap", "/etc/subuid", os.getuid()),
        ("newgidmap", "/etc/subgid", os.getgid()),
    ):
        ranges = [0, own, 1]
        inside = 1
        for first, count in _subordinate(file):
            ranges += [inside, first, count]
            inside += count
        done = subprocess.run([program, str(pid), *map(str, ranges)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeFailure(f"{program} refuses: {done.stderr.strip()}", 125)


def _subordinate(file: str) -> list[tuple[int, int]]:
    """The ranges of subuid(5) for this user, as (first, count)."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        owner, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if owner in (_user_name(), str(os.getuid())) and first.isdecimal() and count.isdecimal():
            found.append((int(first), int(count)))
    return found


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _outer_uid() -> int:
    """The user's number outside of the namespace."""
    return int(Path("/proc/self/uid_map").read_text().split()[1])
