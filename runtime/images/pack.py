"""An upper directory becomes a layer tar: the changes that were made, and nothing else is looked at.

The way back is `unpack`. The upper directory of a union already is the list of what was changed, so no
image is walked and no two trees are compared. Its whiteouts, in any of the three forms (unionfs.whiteout),
become `.wh.NAME` and `.wh..wh..opq` (image-spec, layer.md). Names are sorted, so that a tree gives one tar
and not two.
"""

from __future__ import annotations

import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import RuntimeFailure
from runtime.images.compress import Writable
from runtime.images.tarwriter import NO_CLAMP, Clamp, TarWriter
from runtime.images.unpack import DRIVER_XATTRS
from unionfs.whiteout import (
    MARKER_PREFIX,
    OPAQUE_MARKER,
    OPAQUE_XATTRS,
    OVERLAY_PREFIXES,
    WHITEOUT_XATTRS,
    Opaque,
    is_device_whiteout,
    is_reserved,
    marked_name,
    opaque_state,
)

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: xattrs that are a driver's, and of them those that say what the layer hides.
_UNIONS_OWN = ("trusted.", *DRIVER_XATTRS)
_MEANT = {*OPAQUE_XATTRS, *WHITEOUT_XATTRS}
#: With these, what a directory or a file holds stands somewhere else.
_ELSEWHERE = {prefix + word for prefix in OVERLAY_PREFIXES for word in ("redirect", "metacopy")}


@dataclass(frozen=True)
class Packed:
    """What went into a layer tar: the bytes of its files, and how many entries."""

    size: int
    entries: int


def pack(upper: Path, out: Writable, clamp: Clamp = NO_CLAMP) -> Packed:
    """Write the layer tar of the directory `upper` to `out`.

    What goes while it is read (the container may run) is left out. Raises RuntimeFailure for an upper
    directory of a union with redirect_dir or metacopy.
    """
    fd = os.open(upper, _DIRECTORY)
    try:
        return _Packer(out, clamp).run(fd)
    finally:
        os.close(fd)


def strip(upper: Path, clamp: Clamp = NO_CLAMP) -> None:
    """Take from the directory `upper` what its layer tar does not have, so that the directory is the layer.

    Those are sockets, xattrs that a union has left, and times later than `clamp`. A server that still holds
    the directory is waited for. Raises RuntimeFailure as `pack` does.
    """
    fd = os.open(upper, _DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        _strip_directory(fd, clamp)
    finally:
        os.close(fd)


def _strip_directory(fd: int, clamp: Clamp) -> None:
    for name in map(os.fsencode, os.listdir(fd)):
        state = os.lstat(name, dir_fd=fd)
        if stat.S_ISSOCK(state.st_mode):
            os.unlink(name, dir_fd=fd)
            continue
        _strip_xattrs(b"/proc/self/fd/%d/%s" % (fd, name), name)
        if stat.S_ISDIR(state.st_mode):
            child = os.open(name, _DIRECTORY, dir_fd=fd)
            try:
                _strip_directory(child, clamp)
            finally:
                os.close(child)
        # Last: what is taken from a directory changes its time.
        time_ns = clamp.apply(state.st_mtime_ns)
        if stat.S_ISDIR(state.st_mode) or time_ns != state.st_mtime_ns:
            os.utime(name, ns=(time_ns, time_ns), dir_fd=fd, follow_symlinks=False)
    _strip_xattrs(b"/proc/self/fd/%d/." % fd, b".")


def _strip_xattrs(path: bytes, shown: bytes) -> None:
    for name in os.listxattr(path, follow_symlinks=False):
        if name in _ELSEWHERE:
            raise _elsewhere(shown, name)
        if name.startswith(_UNIONS_OWN) and name not in _MEANT:
            os.removexattr(path, name, follow_symlinks=False)


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

    def run(self, root: int) -> Packed:
        self._directory(root, b"")
        self._writer.close()
        return Packed(self._writer.size, self._entries)

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
            raise _elsewhere(path, xattr)


def _elsewhere(path: bytes, xattr: str) -> RuntimeFailure:
    return RuntimeFailure(f"{os.fsdecode(path)} cannot be put into a layer: it has {xattr}")
