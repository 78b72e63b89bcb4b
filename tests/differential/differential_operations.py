"""What is done to a tree: operations as data, and their doing in a directory.

An operation's outcome is what a program would see of it: a value, or the name of an errno.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.layers import File, HardLink, Node, Symlink, opaque, whiteout

from unionfs import syscalls

#: Lower layers, topmost first. Names are few, so that operations meet.
LAYERS: tuple[dict[str | bytes, Any], ...] = (
    {
        "a": "top a",
        "d": {"a": "top d/a", "b": whiteout(), "e": opaque({"a": "opaque"})},
        "c": whiteout(),
    },
    {
        "a": {"b": "hidden", "d": {}},
        "b": File(content="b" * 5000, mode=0o640, owner=(1, 2), xattrs={"user.x": b"low"}),
        "c": "whited out",
        "d": {
            "b": "whited out",
            "c": HardLink("b"),
            "d": {"a": "deep", "b": {"c": Symlink(target="../a")}},
            "e": {"b": "under an opaque one", "d": {}},
        },
        "e": {"a": Node(), "b": Symlink(target="../b"), "c": {}, "d": {"c": HardLink("b")}},
    },
)

NAMES = ("a", "b", "c", "d", "e")

PAST_NS = 10**18


@dataclass(frozen=True)
class Operation:
    """`what` names a method of Hands; the rest are its arguments."""

    what: str
    arguments: tuple[Any, ...] = ()

    def __repr__(self) -> str:
        return f"Operation({self.what!r}, {self.arguments!r})"


@dataclass
class Hands:
    """Does operations in one directory, and keeps the descriptors they open."""

    root: Path
    held: dict[int, int] = field(default_factory=dict)

    def do(self, operation: Operation) -> Any:
        """The outcome of an operation."""
        try:
            return getattr(self, operation.what)(*operation.arguments)
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    def close(self) -> None:
        """Let go of all descriptors."""
        for fd in self.held.values():
            os.close(fd)
        self.held.clear()

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}"

    # Files

    def write(self, path: str, flags: int, mode: int, text: bytes) -> Any:
        fd = os.open(self._at(path), os.O_WRONLY | flags | os.O_NONBLOCK, mode)
        try:
            return os.write(fd, text)
        finally:
            os.close(fd)

    def read(self, path: str) -> Any:
        fd = os.open(self._at(path), os.O_RDONLY | os.O_NONBLOCK)
        try:
            return hashlib.sha256(os.read(fd, 1 << 20)).hexdigest()
        finally:
            os.close(fd)

    def truncate(self, path: str, size: int) -> None:
        os.truncate(self._at(path), size)

    # Descriptors

    def hold(self, slot: int, path: str, flags: int) -> Any:
        if slot in self.held:
            os.close(self.held.pop(slot))
        self.held[slot] = os.open(self._at(path), flags | os.O_NONBLOCK, 0o644)
        return None

    def use(self, slot: int, how: str) -> Any:
        """Outcomes of a descriptor from before, None when there is none."""
        fd = self.held.get(slot)
        if fd is None:
            return None
        kind = stat.S_IFMT(os.fstat(fd).st_mode)
        if how == "stat":
            return status(os.fstat(fd))
        if how == "list":
            return sorted(os.listdir(fd))
        if how == "chmod":
            return os.fchmod(fd, 0o604)
        if how == "utime":
            return os.utime(fd, ns=(3, 4))
        if kind != stat.S_IFREG:
            return None
        if how == "read":
            return os.pread(fd, 10000, 0)
        if how == "write":
            return os.pwrite(fd, b"held", 2)
        return os.ftruncate(fd, 3)

    def drop(self, slot: int) -> None:
        if slot in self.held:
            os.close(self.held.pop(slot))

    # Names

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self._at(path), mode)

    def mkfifo(self, path: str) -> None:
        os.mkfifo(self._at(path), 0o600)

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, self._at(path))

    def unlink(self, path: str) -> None:
        os.unlink(self._at(path))

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def remove_tree(self, path: str) -> None:
        """As rm -r does it; a file is removed too."""
        try:
            names = sorted(os.listdir(self._at(path)))
        except NotADirectoryError:
            return os.unlink(self._at(path))
        for name in names:
            self.remove_tree(f"{path}/{name}")
        os.rmdir(self._at(path))

    def link(self, old: str, new: str) -> None:
        os.link(self._at(old), self._at(new), follow_symlinks=False)

    def rename(self, old: str, new: str, flags: int) -> None:
        here = syscalls.AT_FDCWD
        syscalls.renameat2(here, self._at(old).encode(), here, self._at(new).encode(), flags)

    # Attributes

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        os.chown(self._at(path), uid, gid, follow_symlinks=False)

    def utime(self, path: str, atime_ns: int, mtime_ns: int) -> None:
        os.utime(self._at(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        os.setxattr(self._at(path), name, value, flags, follow_symlinks=False)

    def removexattr(self, path: str, name: str) -> None:
        os.removexattr(self._at(path), name, follow_symlinks=False)

    # Looking

    def stat(self, path: str) -> Any:
        return status(os.lstat(self._at(path)))

    def xattrs(self, path: str) -> Any:
        names = sorted(os.listxattr(self._at(path), follow_symlinks=False))
        return [
            (n, os.getxattr(self._at(path), n, follow_symlinks=False)) for n in names if ".origin" not in n
        ]

    def list(self, path: str) -> Any:
        return sorted(os.listdir(self._at(path)))

    def old(self, path: str) -> None:
        """Give a directory an old mtime, by which a later look tells whether it was changed."""
        os.utime(self._at(path), ns=(PAST_NS, PAST_NS), follow_symlinks=False)

    def changed(self, path: str) -> bool:
        return os.lstat(self._at(path)).st_mtime_ns != PAST_NS


def status(found: os.stat_result) -> tuple[Any, ...]:
    """What of stat(2) must be the same on every filesystem."""
    directory = stat.S_ISDIR(found.st_mode)
    return (
        stat.filemode(found.st_mode),
        found.st_uid,
        found.st_gid,
        None if directory else found.st_size,
        None if directory else found.st_nlink,
    )
