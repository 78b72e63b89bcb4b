"""Layers from a description: a dict of names, in which text is a file's content and a dict a directory.

build(path, {"etc": {"passwd": "root", "shadow": File(b"", mode=0o600)}, "gone": Whiteout()})
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Long ago and with nanoseconds, so that a time that was not kept is seen.
PAST_NS = 1_234_567_890_123_456_789


@dataclass(frozen=True)
class _Common:
    mode: int | None = None
    owner: tuple[int, int] = (0, 0)
    mtime_ns: int = PAST_NS
    atime_ns: int = PAST_NS
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class File(_Common):
    """A regular file. `holes` makes it sparse: that many bytes before the content."""

    content: bytes | str = b""
    holes: int = 0


@dataclass(frozen=True)
class Dir(_Common):
    """A directory with attributes of its own."""

    names: Mapping[str | bytes, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Symlink(_Common):
    """A symbolic link."""

    target: str | bytes = ""


@dataclass(frozen=True)
class HardLink:
    """One more name of a file described before: its path from the layer's root."""

    path: str


@dataclass(frozen=True)
class Node(_Common):
    """A device, FIFO or socket: its S_IFMT, and major and minor number."""

    kind: int = stat.S_IFIFO
    device: tuple[int, int] = (0, 0)


def whiteout() -> Node:
    """Kernel overlayfs's whiteout, a character device 0:0."""
    return Node(kind=stat.S_IFCHR, device=(0, 0), mode=0)


def opaque(
    names: Mapping[str | bytes, Any], xattr: str = "trusted.overlay.opaque", value: bytes = b"y"
) -> Dir:
    """A directory with an opaque xattr."""
    return Dir(names=names, xattrs={xattr: value})


def build(root: Path | bytes, names: Mapping[str | bytes, Any]) -> None:
    """Make a layer; `root` may be there."""
    place = os.fsencode(root)
    os.makedirs(place, exist_ok=True)
    _fill(place, place, names)
    os.utime(place, ns=(PAST_NS, PAST_NS))


def _fill(root: bytes, directory: bytes, names: Mapping[str | bytes, Any]) -> None:
    for name, thing in names.items():
        _make(root, directory + b"/" + os.fsencode(name), thing)


def _make(root: bytes, path: bytes, thing: Any) -> None:
    if isinstance(thing, HardLink):
        os.link(root + b"/" + os.fsencode(thing.path), path, follow_symlinks=False)
        return
    if isinstance(thing, str | bytes):
        thing = File(content=thing)
    elif isinstance(thing, Mapping):
        thing = Dir(names=thing)
    if isinstance(thing, File):
        content = thing.content.encode() if isinstance(thing.content, str) else thing.content
        with open(path, "wb") as file:
            file.seek(thing.holes)
            file.write(content)
            file.truncate(thing.holes + len(content))
        default = 0o644
    elif isinstance(thing, Dir):
        os.mkdir(path)
        _fill(root, path, thing.names)
        default = 0o755
    elif isinstance(thing, Symlink):
        os.symlink(os.fsencode(thing.target), path)
        default = 0
    elif thing.kind == stat.S_IFSOCK:
        _make_socket(path)
        default = 0o644
    else:
        os.mknod(path, thing.kind | 0o600, os.makedev(*thing.device))
        default = 0o644
    os.chown(path, *thing.owner, follow_symlinks=False)
    if not isinstance(thing, Symlink):
        os.chmod(path, default if thing.mode is None else thing.mode)
    for name, value in thing.xattrs.items():
        os.setxattr(path, name, value, follow_symlinks=False)
    os.utime(path, ns=(thing.atime_ns, thing.mtime_ns), follow_symlinks=False)


def _make_socket(path: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        fd = os.open(os.path.dirname(path), os.O_PATH)
        try:
            made.bind(f"/proc/self/fd/{fd}/{os.fsdecode(os.path.basename(path))}")
        finally:
            os.close(fd)
