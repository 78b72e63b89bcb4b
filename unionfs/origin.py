"""The origin of a copied-up file: the number it had, and whether the disk has its content yet.

`NUMBER@INODE` in hexadecimal, in an xattr of the file: NUMBER is the st_ino it was seen by, so that it stays
the same (`Tree`), INODE the file's own inode number, so that a copy of the file with all its xattrs is not
taken for it. While the content may not be on the disk, ` BOOT` follows (settling.py). All this in one short
value: it fits into the inode of an ext4 disk, where another attribute would cost a block.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from unionfs import syscalls, xattr

XATTRS = ("trusted.unionfs.origin", "user.unionfs.origin")


@dataclass(frozen=True, slots=True)
class Origin:
    """What a file says of its origin. `boot` is empty once the disk has its content."""

    number: int
    inode: int
    boot: bytes

    def __bytes__(self) -> bytes:
        value = b"%x@%x" % (self.number, self.inode)
        return b"%b %b" % (value, self.boot) if self.boot else value


def this_boot() -> bytes:
    """What stands for this boot of the machine."""
    return syscalls.boot_id().replace(b"-", b"")[:16]


def read(path: bytes, *, follow: bool = False) -> Origin | None:
    """The origin of what is at `path`, None when it has none. Raises OSError."""
    value, _, boot = (xattr.first(path, XATTRS, follow=follow) or b"").partition(b" ")
    number, _, inode = value.partition(b"@")
    try:
        return Origin(int(number, 16), int(inode, 16), boot)
    except ValueError:
        return None


def write(path: bytes, origin: Origin, *, follow: bool = False) -> bool:
    """Give what is at `path` an origin. Returns False when the disk will not hold it."""
    for name in XATTRS:
        with contextlib.suppress(OSError):
            os.setxattr(path, name, bytes(origin), follow_symlinks=follow)
            return True
    return False


def settle(path: bytes, *, follow: bool = False) -> None:
    """The disk has the content of the file at `path`. Raises OSError."""
    for name in XATTRS:
        value = xattr.first(path, (name,), follow=follow)
        if value is not None and b" " in value:
            os.setxattr(path, name, value.partition(b" ")[0], follow_symlinks=follow)
