"""What a directory looks like that a layer has entries in, but no entry for: as in the layers below."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from unionfs.whiteout import MARKER_PREFIX, OPAQUE_MARKER, Opaque, opaque_state

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def inherit(paths: Iterable[tuple[bytes, ...]], tree: Path, lowers: Sequence[Path]) -> None:
    """Give each directory of `paths` in `tree` the attributes it has in the union of `lowers`, the top first.

    One that the union does not have is left as it is.
    """
    # Deepest first: without root, a parent's new mode may close it to us.
    for path in sorted(paths, reverse=True):
        fd = _open(tree, path)
        if fd is None:
            continue
        try:
            source = _find(path, lowers)
            if source is not None:
                try:
                    _copy(source, fd)
                finally:
                    os.close(source)
        finally:
            os.close(fd)


def _open(tree: Path, path: tuple[bytes, ...]) -> int | None:
    fd = os.open(tree, _DIRECTORY)
    for part in path:
        try:
            child = os.open(part, _DIRECTORY, dir_fd=fd)
        except OSError:
            return None
        finally:
            os.close(fd)
        fd = child
    return fd


def _find(path: tuple[bytes, ...], lowers: Sequence[Path]) -> int | None:
    """A descriptor of the topmost directory that `path` is in the union of `lowers`."""
    for lower in lowers:
        fd = os.open(lower, _DIRECTORY)
        hides = False
        for part in path:
            hides = hides or _is_opaque(fd)
            child = _child(fd, part)
            os.close(fd)
            if isinstance(child, bool):
                hides = hides or child
                break
            fd = child
        else:
            return fd
        if hides:
            return None
    return None


def _child(fd: int, name: bytes) -> int | bool:
    """The directory `name` in `fd`; or whether there is something of that name that hides lower ones."""
    try:
        state = os.lstat(name, dir_fd=fd)
    except FileNotFoundError:
        try:
            os.lstat(MARKER_PREFIX + name, dir_fd=fd)
        except OSError:
            return False
        return True
    if not stat.S_ISDIR(state.st_mode):  # a whiteout device among others
        return True
    return os.open(name, _DIRECTORY, dir_fd=fd)


def _is_opaque(fd: int) -> bool:
    try:
        os.lstat(OPAQUE_MARKER, dir_fd=fd)
    except FileNotFoundError:
        return opaque_state(b"/proc/self/fd/%d/." % fd) is Opaque.YES
    return True


def _copy(source: int, target: int) -> None:
    state = os.fstat(source)
    if os.geteuid() == 0:
        os.fchown(target, state.st_uid, state.st_gid)
    os.fchmod(target, stat.S_IMODE(state.st_mode))
    for name in os.listxattr(source):
        # What an unpacked layer's own entry may have; overlay xattrs say nothing of another layer.
        if name.startswith("system.posix_acl_"):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(state.st_mtime_ns, state.st_mtime_ns))
