"""Redirects: a directory of one layer that goes on, in the layers below, under another name.

Renaming a directory that lower layers take part in is one step if the upper directory remembers where its
lower parts are: in kernel overlayfs's `overlay.redirect` xattr, an absolute path from the root of the layers
below, or a new name for the same parent (Documentation/filesystems/overlayfs.rst, "redirect_dir").
We write absolute ones and read both.

A redirect is a layer's word, and layers are hostile: it names a place in the layers below and never leads
out of them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from unionfs import whiteout, xattr
from unionfs.layer import Layer, join
from unionfs.whiteout import Opaque

XATTRS = ("trusted.overlay.redirect", "user.overlay.redirect")

Place = tuple[Layer, bytes]


def read(path: bytes, *, follow: bool = False) -> bytes | None:
    """The redirect of what is at `path`, None when it has none or one that makes no sense."""
    for name in XATTRS:
        value = xattr.first(path, (name,), follow=follow)
        if value is None:
            continue
        parts = value.removeprefix(b"/").split(b"/")
        absolute = value.startswith(b"/")
        if all(part not in (b"", b".", b"..") for part in parts) and (absolute or len(parts) == 1):
            return value
    return None


def write(path: bytes, target: bytes) -> None:
    """Let what is at `path` go on at `target` of the layers below, a path from their root.

    Raises OSError.
    """
    try:
        os.setxattr(path, XATTRS[0], b"/" + target, follow_symlinks=False)
    except PermissionError:
        os.setxattr(path, XATTRS[1], b"/" + target, follow_symlinks=False)


def follow_down(redirect: bytes, parents: Iterable[Place], below: Iterable[Layer]) -> list[Place]:
    """Where a redirected directory is in the layers below the one that says so, topmost first.

    `parents` are the places of its parent there, which a relative redirect means; `below` are the layers.
    """
    if redirect.startswith(b"/"):
        candidates: Iterable[Place] = ((layer, redirect[1:]) for layer in below)
    else:
        candidates = ((layer, join(path, redirect)) for layer, path in parents)
    places: list[Place] = []
    for layer, path in candidates:
        found, last = _look(layer, path)
        if found:
            places.append((layer, path))
        if last:
            break
    return places


def _look(layer: Layer, path: bytes) -> tuple[bool, bool]:
    """Whether a layer shows a directory at `path`, and whether the layers below it do not count there."""
    walked = b""
    last = False
    for name in path.split(b"/"):
        walked = join(walked, name)
        try:
            status = layer.stat(walked)
        except FileNotFoundError:
            return False, last
        if not stat.S_ISDIR(status.st_mode):
            return False, True  # a whiteout, or something else in its place
        last = last or whiteout.opaque_state(layer.proc_path(walked)) is Opaque.YES
    return True, last
