"""An upper directory becomes a layer tar: the changes that were made, and nothing else is looked at.

The way back is `unpack`. The upper directory of a union already is the list of what was changed, so no
image is walked and no two trees are compared. Its whiteouts, in any of the three forms (unionfs.whiteout),
become `.wh.NAME` and `.wh..wh..opq` (image-spec, layer.md). Names are sorted, so that a tree gives one tar
and not two.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from runtime.errors import RuntimeFailure
from runtime.images.compress import Writable
from runtime.images.tarwriter import NO_CLAMP, Clamp, TarWriter
from unionfs.whiteout import (
    MARKER_PREFIX,
    OPAQUE_MARKER,
    OVERLAY_PREFIXES,
    WHITEOUT_XATTRS,
    Opaque,
    is_device_whiteout,
    is_reserved,
    marked_name,
    opaque_state,
)

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: With these, what a directory or a file holds stands somewhere else.
_ELSEWHERE = {prefix + word for prefix in OVERLAY_PREFIXES for word in ("redirect", "metacopy")}


def pack(upper: Path, out: Writable, clamp: Clamp = NO_CLAMP) -> int:
    """Write the layer tar of the directory `upper` to `out`; give the number of its entries.

    What goes while it is read (the container may run) is left out. Raises RuntimeFailure for an upper
    directory of a union with redirect_dir or metacopy.
    """
    fd = os.open(upper, _DIRECTORY)
    try:
        return _Packer(out, clamp).run(fd)
    finally:
        os.close(fd)


def pack_tree(tree: int, out: Writable) -> None:
    """Write a tar of all that is in the directory open as `tree`, which is no layer but a plain tree."""
    writer = TarWriter(out)
    _add_tree(writer, tree, b"")
    writer.close()


def _add_tree(writer: TarWriter, fd: int, prefix: bytes) -> None:
    for name in sorted(map(os.fsencode, os.listdir(fd))):
        try:
            writer.add(fd, name, prefix + name)
            if not stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode):
                continue
            child = os.open(name, _DIRECTORY, dir_fd=fd)
        except (FileNotFoundError, NotADirectoryError):
            continue  # it has gone meanwhile
        try:
            _add_tree(writer, child, prefix + name + b"/")
        finally:
            os.close(child)


class _Packer:
    def __init__(self, out: Writable, clamp: Clamp) -> None:
        self._writer = TarWriter(out, clamp)
        self._entries = 0

    def run(self, root: int) -> int:
        self._directory(root, b"")
        self._writer.close()
        return self._entries

    def _directory(self, fd: int, prefix: bytes) -> None:
        names = sorted(map(os.fsencode, os.listdir(fd)))
        there = set(names)
        state = opaque_state(b"/proc/self/fd/%d/." % fd)
        if prefix and (state is Opaque.YES or OPAQUE_MARKER in there):
            self._marker(prefix + OPAQUE_MARKER)
        for name in names:
            if is_reserved(name):
                marked = marked_name(name)
                # A name is stronger than its marker (on-disk-format.md).
                if marked is not None and marked not in there:
                    self._marker(prefix + name)
                continue
            try:
                self._name(fd, name, prefix, state)
            except (FileNotFoundError, NotADirectoryError):
                continue  # it has gone meanwhile

    def _name(self, fd: int, name: bytes, prefix: bytes, state: Opaque) -> None:
        status = os.lstat(name, dir_fd=fd)
        if is_device_whiteout(status.st_mode, status.st_rdev) or (
            state is Opaque.HOLDS_XATTR_WHITEOUTS and _is_xattr_whiteout(fd, name, status)
        ):
            return self._marker(prefix + MARKER_PREFIX + name)
        path = prefix + name
        if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            _refuse_elsewhere(fd, name, path)
        self._writer.add(fd, name, path)
        self._entries += 1
        if stat.S_ISDIR(status.st_mode):
            child = os.open(name, _DIRECTORY, dir_fd=fd)
            try:
                self._directory(child, path + b"/")
            finally:
                os.close(child)

    def _marker(self, path: bytes) -> None:
        self._writer.add_empty(path)
        self._entries += 1


def _is_xattr_whiteout(fd: int, name: bytes, status: os.stat_result) -> bool:
    if not stat.S_ISREG(status.st_mode) or status.st_size:
        return False
    present = os.listxattr(b"/proc/self/fd/%d/%s" % (fd, name), follow_symlinks=False)
    return any(xattr in present for xattr in WHITEOUT_XATTRS)


def _refuse_elsewhere(fd: int, name: bytes, path: bytes) -> None:
    for xattr in os.listxattr(b"/proc/self/fd/%d/%s" % (fd, name), follow_symlinks=False):
        if xattr in _ELSEWHERE:
            raise RuntimeFailure(f"{os.fsdecode(path)} cannot be put into a layer: it has {xattr}")
