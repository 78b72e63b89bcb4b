"""Open a path inside a directory as though that directory were `/`.

What an image or a container holds is hostile: `etc/passwd` may be a symlink to the host's shadow file, and a
container that runs may swap a directory for a symlink at any moment. openat2(2) with RESOLVE_IN_ROOT
resolves the whole path in the kernel and cannot be led out.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path

_SYS_OPENAT2 = 437  # the same number on every architecture
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def open_in_root(root_fd: int, path: str, flags: int) -> int:
    """Open `path` with `root_fd` as its root directory, symlinks included; returns a close-on-exec fd.

    Raises OSError as openat2(2) does, EAGAIN excepted: that one says that something was renamed meanwhile
    and is tried again.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    while True:
        fd = _libc.syscall(
            _SYS_OPENAT2, root_fd, os.fsencode(path) or b".", ctypes.byref(how), ctypes.sizeof(how)
        )
        if fd >= 0:
            return int(fd)
        code = ctypes.get_errno()
        if code not in (errno.EAGAIN, errno.EINTR):
            raise OSError(code, os.strerror(code), path)


def read_file(root: Path, path: str, limit: int = 1 << 20) -> str:
    """The first `limit` bytes of the regular file `path` in `root`, or "" when there is no such file."""
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        # O_NONBLOCK: the image may have a FIFO here, and nobody writes to it.
        fd = open_in_root(root_fd, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return ""
    finally:
        os.close(root_fd)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        return file.read(limit).decode("utf-8", "surrogateescape")
