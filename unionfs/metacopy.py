"""Metacopies: files of a layer that hold attributes alone, their content being in a layer below.

So kernel overlayfs copies a file up whose owner or mode is changed, when it is mounted with metacopy=on: an
empty `overlay.metacopy` xattr says that only the attributes count; the size is right, the content a hole.
The content is at the same name in the layers below, or where `overlay.redirect` says
(Documentation/filesystems/overlayfs.rst, "Metadata only copy up"). We write an absolute redirect always, so
that renaming and linking need no more.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable

from unionfs import redirect, xattr
from unionfs.layer import Layer
from unionfs.redirect import Place

XATTRS = ("trusted.overlay.metacopy", "user.overlay.metacopy")


def is_metacopy(path: bytes, *, follow: bool = False) -> bool:
    """Whether the regular file at `path` holds no content of its own."""
    return xattr.has(path, XATTRS, follow=follow)


def mark(path: bytes, content: bytes) -> None:
    """Make the file at `path` a metacopy of what the layers below have at `content`.

    Raises OSError.
    """
    redirect.write(path, content)
    try:
        os.setxattr(path, XATTRS[0], b"", follow_symlinks=False)
    except PermissionError:
        os.setxattr(path, XATTRS[1], b"", follow_symlinks=False)


def unmark(path: bytes, *, follow: bool = False) -> None:
    """The file at `path` has its content now. The mark goes first: without it a redirect means nothing."""
    for name in (*XATTRS, *redirect.XATTRS):
        try:
            os.removexattr(path, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in xattr.NONE:
                raise


def find_content(target: bytes | None, named: Iterable[Place], below: Iterable[Layer]) -> Place:
    """Where the content of a metacopy is.

    `target` is its redirect; `named` are the places of its name in the layers below, `below` those layers.
    Raises OSError (EIO) when no layer has it.
    """
    if target is not None and target.startswith(b"/"):
        candidates: Iterable[Place] = ((layer, target[1:]) for layer in below)
    else:
        candidates = named
    for layer, path in candidates:
        try:
            status = layer.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not stat.S_ISREG(status.st_mode):
            break  # a whiteout, or something else in its place
        if not is_metacopy(layer.proc_path(path)):
            return layer, path
    raise OSError(errno.EIO, "the content of a metacopy is nowhere")
