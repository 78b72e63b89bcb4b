"""Directories for what is being made, and how it becomes permanent.

A workspace is locked by flock as long as its process lives; the kernel drops the lock with the process,
however that ends. So a workspace whose lock can be had is a dead one's, and whoever comes next removes it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "images-"
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def locked(path: Path, shared: bool = False) -> Iterator[None]:
    """Hold the lock file `path`; waits for others to let it go."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextmanager
def workspace(tmp: Path, lock: Path) -> Iterator[Path]:
    """A new directory in `tmp`, removed at the end with all that is left in it.

    Workspaces that a dead process left are removed first. `lock` keeps a new one from being seen before it
    is locked itself.
    """
    with locked(lock):
        _remove_dead(tmp)
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=tmp))
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, onerror=_on_error)
        os.close(fd)


def _remove_dead(tmp: Path) -> None:
    for directory in tmp.glob(f"{_PREFIX}*"):
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # its owner has just ended
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            _unmount_beneath(directory)
            shutil.rmtree(directory, onerror=_on_error)
        finally:
            os.close(fd)


def is_alive(directory: Path) -> bool:
    """Whether the workspace `directory` is there and its process lives."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _unmount_beneath(directory: Path) -> None:
    """Unmount what a dead process left mounted in its workspace: it would be taken for files (proc(5))."""
    beneath = os.fsencode(os.path.realpath(directory)) + b"/"
    with open("/proc/self/mountinfo", "rb") as table:
        targets = [line.split()[4].decode("unicode_escape").encode("latin-1") for line in table]
    for target in reversed(targets):
        if target.startswith(beneath):
            _libc.umount2(target, _MNT_DETACH | _UMOUNT_NOFOLLOW)


def _on_error(function: object, path: str, error: tuple[type[BaseException], BaseException, object]) -> None:
    """What rmtree does where it fails.

    Without root, a directory of a layer may be closed to its owner: it is opened, and removed again.
    """
    if isinstance(error[1], FileNotFoundError):
        return
    if not isinstance(error[1], PermissionError) or os.geteuid() == 0:
        raise error[1]
    os.chmod(os.path.dirname(path), 0o700)
    if os.path.isdir(path) and not os.path.islink(path):
        os.chmod(path, 0o700)
        shutil.rmtree(path, onerror=_on_error)
    else:
        os.unlink(path)


def sync_filesystem(directory: Path) -> None:
    """Wait until all that was written to the filesystem of `directory` is on disk (syncfs(2))."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(directory))
    finally:
        os.close(fd)


def sync_directory(directory: Path) -> None:
    """Wait until the names in `directory` are on disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
