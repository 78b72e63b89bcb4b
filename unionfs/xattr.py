"""Extended attributes: which are the layers' own affairs, and how a file's go with it.

Attributes by which layers talk to each other (whiteouts, opaque marks, origins) are hidden from users of
the union: not listed, not read, not set.
"""

from __future__ import annotations

import errno
import os

#: Names that begin so belong to layers.
PRIVATE_PREFIXES = (
    b"trusted.overlay.",
    b"user.overlay.",
    b"user.fuseoverlayfs.",
    b"trusted.unionfs.",
    b"user.unionfs.",
)

#: Attributes that are part of what a file permits: a copy without them would be another file.
_MUST_COPY = (b"security.", b"system.posix_acl_")


def is_private(name: bytes) -> bool:
    """Whether users of the union must not see the attribute."""
    return name.startswith(PRIVATE_PREFIXES)


def visible(names: list[str]) -> list[bytes]:
    """Those of os.listxattr's names that users see."""
    return [name for name in map(os.fsencode, names) if not is_private(name)]


def copy(source: bytes, target: bytes) -> None:
    """Copy all visible attributes of one path to another, following neither if it is a symlink.

    What the target's filesystem cannot hold is left, as overlayfs does, unless it limits access.
    Raises OSError otherwise.
    """
    try:
        names = visible(os.listxattr(source, follow_symlinks=False))
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return
        raise
    for name in names:
        value = os.getxattr(source, name, follow_symlinks=False)
        try:
            os.setxattr(target, name, value, follow_symlinks=False)
        except OSError as error:
            refused = error.errno == errno.ENOTSUP or (error.errno == errno.EPERM and os.geteuid() != 0)
            if not refused or (name.startswith(_MUST_COPY) and error.errno == errno.ENOTSUP):
                raise
