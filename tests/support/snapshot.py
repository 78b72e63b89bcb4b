"""Pictures of trees, to be compared."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

#: xattrs by which layers talk to each other.
PRIVATE = ("trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.", "trusted.unionfs.", "user.unionfs.")


@dataclass(frozen=True)
class Picture:
    """All that a user sees of one file but its inode number; of a directory without size and link count."""

    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    content: str
    xattrs: tuple[tuple[str, bytes], ...]
    links: int
    device: int


def _without_atime(path: bytes, flags: int) -> int:
    return os.open(path, flags | (os.O_NOATIME if os.geteuid() == 0 else 0))


def picture(path: bytes | Path, *, private: bool = False) -> Picture:
    """The picture of one file. `private` shows the layers' own xattrs too."""
    place = os.fsencode(path)
    status = os.lstat(place)
    kind = stat.S_IFMT(status.st_mode)
    content = ""
    if kind == stat.S_IFREG:
        with open(place, "rb", opener=_without_atime) as file:
            content = f"{status.st_size} bytes {hashlib.file_digest(file, 'sha256').hexdigest()}"
    elif kind == stat.S_IFLNK:
        content = os.fsdecode(os.readlink(place))
    names = sorted(os.listxattr(place, follow_symlinks=False))
    if not private:
        names = [name for name in names if not name.startswith(PRIVATE)]
    return Picture(
        kind=stat.filemode(status.st_mode)[0],
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        content=content,
        xattrs=tuple((name, os.getxattr(place, name, follow_symlinks=False)) for name in names),
        links=0 if kind == stat.S_IFDIR else status.st_nlink,
        device=status.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
    )


def snapshot(root: bytes | Path, *, private: bool = False) -> dict[bytes, Picture]:
    """The pictures of all files of a tree, by path from its root, which is b"."."""
    base = os.fsencode(root)
    found = {b".": picture(base, private=private)}
    pending = [b""]
    while pending:
        directory = pending.pop()
        names = os.listdir(base + b"/" + directory)
        assert len(names) == len(set(names)), f"a name twice in {directory!r}"
        for name in names:
            path = directory + b"/" + name if directory else name
            found[path] = picture(base + b"/" + path, private=private)
            if found[path].kind == "d":
                pending.append(path)
    return found


def names_of(root: Path) -> set[str]:
    """The paths of all files of a tree, from its root."""
    return {os.fsdecode(path) for path in snapshot(root)} - {"."}


def differences(one: dict[bytes, Picture], other: dict[bytes, Picture]) -> list[str]:
    """What differs, a line each."""
    lines = []
    for path in sorted(one.keys() | other.keys()):
        if one.get(path) != other.get(path):
            lines.append(f"{path!r}: {one.get(path)} / {other.get(path)}")
    return lines
