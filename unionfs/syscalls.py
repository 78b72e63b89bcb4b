"""The Linux system calls that Python's os module lacks, as plain functions that raise OSError.

Each wrapper states the man page it follows. Nothing here knows of unions.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

UTIME_OMIT = (1 << 30) - 2

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_DIRSYNC = 128
MS_NOSYMFOLLOW = 256
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_POSIXACL = 1 << 16
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25
MNT_DETACH = 2

FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2

FICLONE = 0x40049409

# x86-64, arm64, riscv and every architecture since Linux 5.1 share these numbers (unistd.h, generic).
_SYS_OPEN_TREE = 428
_SYS_MOUNT_SETATTR = 442
_SYS_FCHMODAT2 = 452

_OPEN_TREE_CLONE = 1
_MOUNT_ATTR_RDONLY = 1
_MOUNT_ATTR_NOATIME = 0x10
_MOUNT_ATTR__ATIME = 0x70  # the bits of which one atime mode is made

_PR_SET_SECUREBITS = 28
_SECBIT_NO_SETUID_FIXUP = 1 << 2


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns_fd")]


_libc.renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
_libc.utimensat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_Timespec * 2), ctypes.c_int]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.mount.argtypes = [
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.syncfs.argtypes = [ctypes.c_int]
_libc.setfsuid.argtypes = [ctypes.c_uint]
_libc.setfsgid.argtypes = [ctypes.c_uint]
_libc.syscall.restype = ctypes.c_long


def _check(result: int, name: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def renameat2(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int = 0) -> None:
    """renameat2(2): rename with RENAME_NOREPLACE, RENAME_EXCHANGE or RENAME_WHITEOUT."""
    _check(_libc.renameat2(old_fd, old, new_fd, new, flags), "renameat2")


def utimensat(dir_fd: int, name: bytes, atime_ns: int | None, mtime_ns: int | None) -> None:
    """utimensat(2) without following a symlink; None leaves that time as it is (UTIME_OMIT)."""
    times = (_Timespec * 2)()
    for slot, value in zip(times, (atime_ns, mtime_ns), strict=True):
        if value is None:
            slot.nanoseconds = UTIME_OMIT
        else:
            slot.seconds, slot.nanoseconds = divmod(value, 1_000_000_000)
    _check(_libc.utimensat(dir_fd, name, ctypes.byref(times), AT_SYMLINK_NOFOLLOW), "utimensat")


def fchmodat(dir_fd: int, name: bytes, mode: int) -> None:
    """fchmodat2(2) without following a symlink, or the same through /proc before Linux 6.6."""
    try:
        _check(_libc.syscall(_SYS_FCHMODAT2, dir_fd, name, mode, AT_SYMLINK_NOFOLLOW), "fchmodat2")
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=dir_fd)
        try:
            os.chmod(b"/proc/self/fd/%d" % fd, mode)
        finally:
            os.close(fd)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    _check(_libc.fallocate(fd, mode, offset, length), "fallocate")


def syncfs(fd: int) -> None:
    """syncfs(2): everything of the filesystem that `fd` is on reaches the disk."""
    _check(_libc.syncfs(fd), "syncfs")


def mount(source: bytes, target: bytes, fstype: bytes, flags: int, data: bytes) -> None:
    """mount(2)."""
    _check(_libc.mount(source, target, fstype, flags, data), "mount")


def umount(target: bytes, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(target, flags), "umount2")


def clone_mount(path: bytes, *, read_only: bool) -> int:
    """A private mount of the directory `path`, without what is mounted below it; returns its fd.

    The mount has no name and ends with the fd. `read_only` also stops atime updates.
    open_tree(2) with OPEN_TREE_CLONE, then mount_setattr(2) (Linux 5.12).

    Raises OSError (EPERM without CAP_SYS_ADMIN, ENOSYS on an older kernel).
    """
    fd = _check(_libc.syscall(_SYS_OPEN_TREE, AT_FDCWD, path, _OPEN_TREE_CLONE | os.O_CLOEXEC), "open_tree")
    if read_only:
        attr = _MountAttr(set=_MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOATIME, clear=_MOUNT_ATTR__ATIME)
        try:
            _check(
                _libc.syscall(
                    _SYS_MOUNT_SETATTR, fd, b"", AT_EMPTY_PATH, ctypes.byref(attr), ctypes.sizeof(attr)
                ),
                "mount_setattr",
            )
        except OSError:
            os.close(fd)
            raise
    return fd


def set_fs_ids(uid: int, gid: int) -> None:
    """setfsuid(2) and setfsgid(2) of this thread: who owns what is created next.

    Neither call reports an error; one that may not change its ids keeps them.
    """
    _libc.setfsgid(gid)
    _libc.setfsuid(uid)


def keep_capabilities_across_fs_ids() -> bool:
    """Stop setfsuid(2) from dropping file capabilities (capabilities(7), SECBIT_NO_SETUID_FIXUP).

    Returns whether it could be done: it needs CAP_SETPCAP.
    """
    return bool(_libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0) == 0)


@functools.cache
def boot_id() -> bytes:
    """What differs from one boot of the machine to the next (random(4)). Raises OSError."""
    return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
