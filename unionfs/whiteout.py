"""The whiteout and opaque conventions: how a layer says "nothing below this counts".

Three writers of layers exist, and each has its own way:

* kernel overlayfs: a character device 0:0 in the place of the name, and ``overlay.opaque=y`` on a
  directory. Since Linux 6.7 also an empty regular file with an ``overlay.whiteout`` xattr, honoured
  only in a directory whose ``overlay.opaque`` is ``x``
  (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").
* AUFS, and OCI layer tars: an empty file ``.wh.NAME`` beside the name, ``.wh..wh..opq`` in the directory
  (image-spec, layer.md, "Whiteouts").
* fuse-overlayfs: both, and ``user.fuseoverlayfs.opaque``.

All are read. One is written: the device where mknod(2) allows it, else the marker, else (on a filesystem
that allows neither, such as another union of ours) the file with an xattr.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from collections.abc import Iterable

from unionfs import syscalls, xattr

MARKER_PREFIX = b".wh."
OPAQUE_MARKER = b".wh..wh..opq"

#: xattr namespaces a layer's overlay xattrs may live in: the first needs CAP_SYS_ADMIN.
OVERLAY_PREFIXES = ("trusted.overlay.", "user.overlay.")
OPAQUE_XATTRS = ("trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque")
WHITEOUT_XATTRS = ("trusted.overlay.whiteout", "user.overlay.whiteout")

WHITEOUT_DEVICE = os.makedev(0, 0)


class Convention(enum.Enum):
    """The form in which a layer is written."""

    DEVICE = "device"  # char 0:0 and an opaque xattr
    MARKER = "marker"  # .wh.NAME and .wh..wh..opq
    XATTR = "xattr"  # an empty file with overlay.whiteout, and an opaque xattr


class Opaque(enum.Enum):
    """What a directory's overlay xattrs say of it."""

    NO = "no"
    YES = "y"
    HOLDS_XATTR_WHITEOUTS = "x"  # not opaque, but its empty files may be whiteouts


def convention_for(dir_fd: int) -> Convention:
    """Which convention can be written in the filesystem of the directory `dir_fd`.

    Makes and removes one probe entry there. Linux lets anyone make a 0:0 device since 5.8
    (mknod(2)); an older kernel, or a filesystem without devices or xattrs, gets markers.

    Raises OSError when the directory cannot be written at all, or neither can be written there.
    """
    probe = b"probe"
    try:
        os.mknod(probe, stat.S_IFCHR, WHITEOUT_DEVICE, dir_fd=dir_fd)
        os.unlink(probe, dir_fd=dir_fd)
        if _holds_device_form(dir_fd, probe):
            return Convention.DEVICE
    except OSError as error:
        if error.errno in (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EACCES):
            raise
    try:
        write_whiteout(dir_fd, probe, Convention.MARKER)
        os.unlink(MARKER_PREFIX + probe, dir_fd=dir_fd)
    except PermissionError:
        write_whiteout(dir_fd, probe, Convention.XATTR)
        os.unlink(probe, dir_fd=dir_fd)
        return Convention.XATTR
    return Convention.MARKER


def _holds_device_form(dir_fd: int, probe: bytes) -> bool:
    """Whether a directory can be marked opaque by xattr, and a rename can leave a whiteout."""
    target = probe + b"-renamed"
    os.mkdir(probe, dir_fd=dir_fd)
    try:
        fd = os.open(probe, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
        try:
            write_opaque(fd, Convention.DEVICE)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in xattr.NONE:
            raise
        return False
    finally:
        os.rmdir(probe, dir_fd=dir_fd)
    os.mkdir(probe, dir_fd=dir_fd)
    try:
        syscalls.renameat2(dir_fd, probe, dir_fd, target, syscalls.RENAME_WHITEOUT)
    except OSError as error:
        os.rmdir(probe, dir_fd=dir_fd)
        if error.errno != errno.EINVAL:
            raise
        return False
    os.rmdir(target, dir_fd=dir_fd)
    os.unlink(probe, dir_fd=dir_fd)
    return True


def write_whiteout(dir_fd: int, name: bytes, convention: Convention) -> None:
    """Hide `name` of the layers below, by one entry in the directory `dir_fd`.

    In XATTR form that takes two calls, and the directory must be marked by `allow_xattr_whiteouts`.
    Raises FileExistsError when an entry of that name (the marker's, in MARKER form) is there.
    """
    if convention is Convention.DEVICE:
        os.mknod(name, stat.S_IFCHR, WHITEOUT_DEVICE, dir_fd=dir_fd)
    elif convention is Convention.XATTR:
        fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o000, dir_fd=dir_fd)
        try:
            _set_overlay_xattr(fd, "whiteout", b"y")
        finally:
            os.close(fd)
    else:
        marker = MARKER_PREFIX + name
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o000, dir_fd=dir_fd))


def write_opaque(fd: int, convention: Convention) -> None:
    """Make the directory open as `fd` (not O_PATH) hide all that lower layers have under its name."""
    if convention is Convention.MARKER:
        flags = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW
        os.close(os.open(OPAQUE_MARKER, flags, 0o000, dir_fd=fd))
        return
    _set_overlay_xattr(fd, "opaque", b"y")


def allow_xattr_whiteouts(fd: int) -> None:
    """Mark the directory open as `fd` as one whose empty files may be whiteouts."""
    _set_overlay_xattr(fd, "opaque", b"x")


def _set_overlay_xattr(fd: int, name: str, value: bytes) -> None:
    try:
        os.setxattr(fd, OVERLAY_PREFIXES[0] + name, value)
    except PermissionError:
        os.setxattr(fd, OVERLAY_PREFIXES[1] + name, value)


def is_device_whiteout(mode: int, rdev: int) -> bool:
    """Whether st_mode and st_rdev are those of an overlayfs whiteout."""
    return stat.S_ISCHR(mode) and rdev == WHITEOUT_DEVICE


def marked_name(name: bytes) -> bytes | None:
    """The name that the entry `name` whites out, or None when it is no marker."""
    if name.startswith(MARKER_PREFIX) and name != MARKER_PREFIX and not name.startswith(b".wh..wh."):
        return name[len(MARKER_PREFIX) :]
    return None


def is_reserved(name: bytes) -> bool:
    """Whether `name` belongs to the marker convention, so that no file can have it."""
    return name.startswith(MARKER_PREFIX)


def opaque_state(path: bytes, present: Iterable[str] | None = None) -> Opaque:
    """Read the opaque xattrs of the directory `path`, in the order kernel, rootless, fuse-overlayfs.

    `present` is os.listxattr's answer where the caller has it; else it is asked for.
    A filesystem without xattrs has no opaque directories by xattr.
    """
    if present is None:
        try:
            present = os.listxattr(path, follow_symlinks=False)
        except OSError as error:
            if error.errno in xattr.NONE:
                return Opaque.NO
            raise
    names = set(present)
    for name in OPAQUE_XATTRS:
        if name in names:
            value = os.getxattr(path, name, follow_symlinks=False)
            if value == b"y":
                return Opaque.YES
            if value == b"x":
                return Opaque.HOLDS_XATTR_WHITEOUTS
    return Opaque.NO
