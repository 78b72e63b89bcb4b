"""Extended attributes: which are the layers' own affairs, and how a file's go with it.

Attributes by which layers talk to each other (whiteouts, opaque marks, origins) are not the user's. A
user's attribute of such a name, as a union mounted on this one sets, is kept under an escaped one, as kernel
overlayfs does (Documentation/filesystems/overlayfs.rst, "nesting overlayfs mounts"):
`trusted.overlay.opaque` of the user is `trusted.overlay.overlay.opaque` in the layer.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

#: Errors that mean that there is no such attribute.
NONE = (errno.ENODATA, errno.ENOTSUP, errno.EPERM)

#: Names that begin so belong to layers, and what follows there for a user's attribute of such a name.
_PRIVATE = {
    b"trusted.overlay.": b"overlay.",
    b"user.overlay.": b"overlay.",
    b"user.fuseoverlayfs.": b"fuseoverlayfs.",
    b"trusted.unionfs.": b"unionfs.",
    b"user.unionfs.": b"unionfs.",
}

#: Attributes that are part of what a file permits: a copy without them would be another file.
_MUST_COPY = (b"security.", b"system.posix_acl_")


def stored(name: bytes) -> bytes:
    """The name in the layer of an attribute that users call `name`."""
    for prefix, escape in _PRIVATE.items():
        if name.startswith(prefix):
            return prefix + escape + name[len(prefix) :]
    return name


def shown(name: bytes) -> bytes | None:
    """What users call an attribute of the layer, None when it is the layer's own."""
    for prefix, escape in _PRIVATE.items():
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            return prefix + rest[len(escape) :] if rest.startswith(escape) else None
    return name


def first(path: bytes, names: Iterable[str], *, follow: bool = False) -> bytes | None:
    """The value of the first of some attributes that a path has, None when it has none of them.

    Raises OSError, but not for a disk without attributes, or one that must not be read.
    """
    for name in names:
        try:
            return os.getxattr(path, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in NONE:
                raise
    return None


def has(path: bytes, names: Iterable[str], *, follow: bool = False) -> bool:
    """Whether a path has one of some attributes.

    Raises OSError, but not for a disk without attributes, or one that must not be read.
    """
    try:
        listed = os.listxattr(path, follow_symlinks=follow)
    except OSError as error:
        if error.errno not in NONE:
            raise
        return False
    return not set(names).isdisjoint(listed)


def copy(source: bytes, target: bytes) -> None:
    """Copy all of a user's attributes of one path to another, following neither if it is a symlink.

    What the target's filesystem cannot hold is left, as overlayfs does, unless it limits access.
    Raises OSError otherwise.
    """
    try:
        names = [os.fsencode(name) for name in os.listxattr(source, follow_symlinks=False)]
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return
        raise
    for name in names:
        if shown(name) is None:
            continue
        value = os.getxattr(source, name, follow_symlinks=False)
        try:
            os.setxattr(target, name, value, follow_symlinks=False)
        except OSError as error:
            refused = error.errno == errno.ENOTSUP or (error.errno == errno.EPERM and os.geteuid() != 0)
            if not refused or (name.startswith(_MUST_COPY) and error.errno == errno.ENOTSUP):
                raise
