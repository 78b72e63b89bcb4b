"""What a container changed: its upper directory read against the layers beneath it.

The upper layer already is the list of changes, so nothing of the image is walked but what was touched.
The answer is docker's: a directory counts as changed when something in it did; a name that was copied up and
then left as it was does not count.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.containers.layers import Found, Layers
from unionfs import whiteout


@dataclass(frozen=True)
class Change:
    """One line of docker diff."""

    kind: str  # A added, C changed, D deleted
    path: bytes

    def __str__(self) -> str:
        return f"{self.kind} {os.fsdecode(self.path)}"


def changes(upper: Path, layers: Layers) -> list[Change]:
    """The changes that the directory `upper` makes to `layers`, parents before children, else by name."""
    fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY)
    return list(_directory(fd, b"/", layers.root, layers))


def _directory(fd: int, path: bytes, lower: Found | None, layers: Layers) -> Iterator[Change]:
    """The changes in the upper directory open as `fd` (closed here), which lies over `lower` if given.

    Entries are reached from the fd and never through a symlink: the container may run and move them.
    """
    try:
        names = {os.fsencode(name) for name in os.listdir(fd)}
        gone = {marked for name in names if (marked := whiteout.marked_name(name)) is not None}
        opaque = whiteout.OPAQUE_MARKER in names or _opaque_by_xattr(fd)
        present = {name for name in names if not whiteout.is_reserved(name)}
        hidden = set(layers.names(lower)) - present if opaque and lower is not None else set()
        for name in sorted(present | gone | hidden):
            below = layers.child(lower, name) if lower is not None else None
            child = os.path.join(path, name)
            if name in present:
                yield from _entry(fd, name, child, below, layers)
            elif below is not None:
                yield Change("D", child)
    finally:
        os.close(fd)


def _entry(fd: int, name: bytes, path: bytes, below: Found | None, layers: Layers) -> Iterator[Change]:
    try:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if whiteout.is_device_whiteout(status.st_mode, status.st_rdev):
            if below is not None:
                yield Change("D", path)
            return
        child = -1
        if stat.S_ISDIR(status.st_mode):
            child = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
    except FileNotFoundError:
        return
    same_kind = below is not None and stat.S_IFMT(below.stat.st_mode) == stat.S_IFMT(status.st_mode)
    inner = list(_directory(child, path, below if same_kind else None, layers)) if child >= 0 else []
    if below is None:
        yield Change("A", path)
    elif inner or not _same(status, below.stat):
        yield Change("C", path)
    yield from inner


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether two files are the same to docker: attributes, and for all but directories size and mtime."""
    if (one.st_mode, one.st_uid, one.st_gid) != (other.st_mode, other.st_uid, other.st_gid):
        return False
    if stat.S_ISDIR(one.st_mode):
        return True
    return (one.st_rdev, one.st_size, one.st_mtime_ns) == (other.st_rdev, other.st_size, other.st_mtime_ns)


def _opaque_by_xattr(fd: int) -> bool:
    return whiteout.opaque_state(b"/proc/self/fd/%d/." % fd) is whiteout.Opaque.YES
