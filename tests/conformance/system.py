"""Calls that Python's os module lacks, and measures that the tests share."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from support.union import errno_of, run_as, tick

_libc = ctypes.CDLL(None, use_errno=True)

ALICE = 1001
BOB = 1002
STAFF = 2001

NAME_MAX = 255
#: With the NUL at its end.
PATH_MAX = 4096

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

KEEP_SIZE = 1
PUNCH_HOLE = 2
COLLAPSE_RANGE = 8
ZERO_RANGE = 16
INSERT_RANGE = 32

F_OFD_GETLK, F_OFD_SETLK = 36, 37
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_SYMLINK_FOLLOW = 0x400


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def renameat2(old: Path | bytes, new: Path | bytes, flags: int) -> None:
    """renameat2(2) with absolute paths."""
    _check(_libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), ctypes.c_uint(flags)))


def linkat(fd: int, new: Path, *, old: bytes = b"", flags: int = AT_EMPTY_PATH) -> None:
    """linkat(2), of a descriptor if nothing else is said."""
    _check(_libc.linkat(fd, old, AT_FDCWD, os.fsencode(new), flags))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    _check(_libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def utimensat(path: Path, atime: tuple[int, int], mtime: tuple[int, int], *, flags: int = 0) -> None:
    """utimensat(2) with raw seconds and nanoseconds, so with UTIME_NOW and UTIME_OMIT."""
    times = (ctypes.c_int64 * 4)(*atime, *mtime)
    _check(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, flags))


UTIME_NOW = (0, (1 << 30) - 1)
UTIME_OMIT = (0, (1 << 30) - 2)
AT_SYMLINK_NOFOLLOW = 0x100


def times_changed(action: Callable[[], Any], *paths: Path) -> list[str]:
    """Which times of each path an action changes: letters of "amc"."""
    before = [os.lstat(path) for path in paths]
    tick()
    action()
    answer = []
    for path, old in zip(paths, before, strict=True):
        new = os.lstat(path)
        letters = (letter for letter in "amc" if _time(old, letter) != _time(new, letter))
        answer.append("".join(letters))
    return answer


def _time(status: os.stat_result, letter: str) -> int:
    return int(getattr(status, f"st_{letter}time_ns"))


def as_user(
    uid: int, action: Callable[..., Any], *arguments: Any, groups: tuple[int, ...] = (), gid: int = 0
) -> Any:
    """What an action returns when another user does it, or the name of its errno.

    The user's group is that of the same number if not given.
    """

    def attempt() -> Any:
        answer = None

        def call() -> None:
            nonlocal answer
            answer = action(*arguments)

        return errno_of(call) or answer

    return run_as(uid, gid or uid, attempt, groups=groups)


@contextlib.contextmanager
def opened(path: Path | bytes, flags: int, mode: int = 0o666) -> Iterator[int]:
    """A descriptor, closed in the end."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def create(path: Path | bytes, mode: int = 0o666, content: bytes = b"") -> None:
    """Make a new file."""
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode) as fd:
        os.write(fd, content)


def permissions(path: Path) -> int:
    """The mode bits of a path, not following it."""
    return os.lstat(path).st_mode & 0o7777


@contextlib.contextmanager
def aligned(size: int, fill: bytes = b"") -> Iterator[mmap.mmap]:
    """Memory that begins a page, as O_DIRECT wants."""
    with mmap.mmap(-1, size) as memory:
        memory[: len(fill)] = fill
        yield memory


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reclen", ctypes.c_uint16),
        ("kind", ctypes.c_uint8),
        ("name", ctypes.c_char * 256),
    )


_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.restype = ctypes.POINTER(_Dirent)
_libc.telldir.restype = ctypes.c_long
for _name in ("readdir", "telldir", "closedir", "rewinddir", "dirfd"):
    getattr(_libc, _name).argtypes = [ctypes.c_void_p]
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


class Directory:
    """A directory stream."""

    def __init__(self, path: Path) -> None:
        self._stream = _libc.opendir(os.fsencode(path))
        if not self._stream:
            _check(-1)

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *_: object) -> None:
        _libc.closedir(self._stream)

    def read(self) -> tuple[bytes, int, int] | None:
        """The next name, its inode number and its type; None at the end."""
        ctypes.set_errno(0)
        entry = _libc.readdir(self._stream)
        if entry:
            return entry.contents.name, entry.contents.ino, entry.contents.kind
        if ctypes.get_errno():
            _check(-1)
        return None

    def names(self) -> list[bytes]:
        """The names from here to the end."""
        found = []
        while (entry := self.read()) is not None:
            found.append(entry[0])
        return found

    def tell(self) -> int:
        """telldir(3)."""
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        """seekdir(3)."""
        _libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        """rewinddir(3)."""
        _libc.rewinddir(self._stream)


class Handle(ctypes.Structure):
    """struct file_handle."""

    _fields_ = (("bytes", ctypes.c_uint), ("kind", ctypes.c_int), ("data", ctypes.c_ubyte * 128))


def name_to_handle(path: Path) -> tuple[Handle, int]:
    """name_to_handle_at(2): the handle and the mount id."""
    handle, mount = Handle(bytes=128), ctypes.c_int()
    _check(_libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), 0))
    return handle, mount.value


def open_by_handle(mount_fd: int, handle: Handle, flags: int) -> int:
    """open_by_handle_at(2)."""
    return _check(_libc.open_by_handle_at(mount_fd, ctypes.byref(handle), flags))
