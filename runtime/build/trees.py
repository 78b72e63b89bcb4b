"""Where COPY, ADD and RUN --mount take files from: a build context, another stage, an image.

All are directories whose content may be hostile, and paths in them are resolved as if the directory were
`/`: no symlink and no `..` leads out of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.build.ignore import Patterns, translate
from runtime.containers.scoped import open_in_root
from runtime.errors import RuntimeFailure
from runtime.images.streams import CHUNK
from runtime.images.unpack import is_layer_xattr

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NOTHING = Patterns((), "")


@dataclass(frozen=True)
class Entry:
    """One file of a walk: `name` in the directory open as `parent`, at `path` from where the walk began."""

    parent: int
    name: str
    path: str
    state: os.stat_result

    def open(self) -> int:
        """A descriptor for reading a regular file."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(self.name, flags, dir_fd=self.parent)

    @property
    def link(self) -> str:
        """What a symlink says."""
        return os.readlink(self.name, dir_fd=self.parent)

    @property
    def xattrs(self) -> dict[str, bytes]:
        """The xattrs that are the file's own."""
        path = f"/proc/self/fd/{self.parent}/{self.name}"
        with contextlib.suppress(OSError):
            return {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in sorted(os.listxattr(path, follow_symlinks=False))
                if is_layer_xattr(name)
            }
        return {}


class Tree:
    """A directory to take files from. `own` says that owners count: in a context, all belong to root."""

    def __init__(self, root: Path, ignored: Patterns = NOTHING, own: bool = True) -> None:
        self.root = root
        self.ignored = ignored
        self.own = own

    @property
    def ignores(self) -> bool:
        """Whether there may be files in the directory that do not count."""
        return self.ignored is not NOTHING

    def match(self, pattern: str) -> list[str]:
        """The paths that a source of COPY means, sorted; it may have `*`, `?` and `[…]`."""
        parts = [part for part in _normal(pattern).split("/") if part]
        if not any(_is_pattern(part) for part in parts):
            path = "/".join(re.sub(r"\\(.)", r"\1", part) for part in parts)
            return [path] if self._counts(path) else []
        found = [""]
        for part in parts:
            found = [path for parent in found for path in self._children(parent, part)]
        return sorted(path for path in found if self._counts(path))

    def _children(self, parent: str, part: str) -> list[str]:
        join = f"{parent}/" if parent else ""
        if not _is_pattern(part):
            return [join + re.sub(r"\\(.)", r"\1", part)]
        try:
            fd = self._open(parent, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return []
        try:
            expression = re.compile(translate(part))
            return [join + name for name in os.listdir(fd) if expression.fullmatch(name)]
        except re.error as error:
            raise RuntimeFailure(f"{part!r} is not a pattern: {error}") from error
        finally:
            os.close(fd)

    def _counts(self, path: str) -> bool:
        """Whether there is such a file, and it is not ignored, or something in it was taken back."""
        try:
            fd = self._open(path, os.O_PATH)
        except OSError:
            return False
        try:
            is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        finally:
            os.close(fd)
        if not path or not self.ignored.match(path):
            return True
        return is_directory and self.ignored.take_back and any(entry.path for entry in self.walk(path))

    def _open(self, path: str, flags: int) -> int:
        fd = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return open_in_root(fd, path, flags)
        finally:
            os.close(fd)

    def real_path(self, path: str) -> Path:
        """Where `path` is on the disk, symlinks resolved within the tree.

        Raises FileNotFoundError and other OSErrors when it is nowhere.
        """
        fd = self._open(path, os.O_PATH)
        try:
            return Path(os.readlink(f"/proc/self/fd/{fd}"))
        finally:
            os.close(fd)

    def walk(self, path: str, exclude: Patterns = NOTHING) -> Iterator[Entry]:
        """The file `path`, or the directory and all in it, parents first, by name; what is ignored is left
        out.

        An entry is good until the next one is asked for. Symlinks are followed to `path` and not below.
        """
        fd = self._open(path, os.O_PATH)
        try:
            state = os.fstat(fd)
            if not stat.S_ISDIR(state.st_mode):
                real = os.readlink(f"/proc/self/fd/{fd}")
                parent = os.open(os.path.dirname(real), _DIRECTORY)
                try:
                    yield Entry(parent, os.path.basename(real), "", state)
                finally:
                    os.close(parent)
                return
            opened = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            os.close(fd)
        try:
            yield Entry(opened, ".", "", state)
            yield from self._inside(opened, _normal(path), "", exclude)
        finally:
            os.close(opened)

    def _inside(self, fd: int, place: str, path: str, exclude: Patterns) -> Iterator[Entry]:
        for name in sorted(os.listdir(fd)):
            inner = f"{path}/{name}" if path else name
            whole = f"{place}/{inner}" if place else inner
            left_out = self.ignored.match(whole) or exclude.match(inner)
            state = os.lstat(name, dir_fd=fd)
            if not stat.S_ISDIR(state.st_mode):
                if not left_out:
                    yield Entry(fd, name, inner, state)
                continue
            may_come_back = self.ignored.take_back or exclude.take_back
            if left_out and not may_come_back:
                continue
            child = os.open(name, _DIRECTORY, dir_fd=fd)
            try:
                entries = self._inside(child, place, inner, exclude)
                if left_out:  # it is there for what the patterns took back in it
                    first = next(entries, None)
                    if first is None:
                        continue
                    yield Entry(fd, name, inner, state)
                    yield first
                else:
                    yield Entry(fd, name, inner, state)
                yield from entries
            finally:
                os.close(child)

    def digest(self, path: str, exclude: Patterns = NOTHING) -> str:
        """The sum of all that a copy of `path` depends on: names, kinds, modes, content, and owners if they
        count.

        Times do not count: a fresh checkout is the same context.
        """
        total = hashlib.sha256()
        for entry in self.walk(path, exclude):
            owner = (entry.state.st_uid, entry.state.st_gid) if self.own else ()
            kind, mode = stat.S_IFMT(entry.state.st_mode), stat.S_IMODE(entry.state.st_mode)
            fields = [entry.path, kind, mode, owner, sorted(entry.xattrs.items())]
            if kind == stat.S_IFREG:
                fields.append(_content_sum(entry))
            elif kind == stat.S_IFLNK:
                fields.append(entry.link)
            elif kind in (stat.S_IFCHR, stat.S_IFBLK):
                fields.append(entry.state.st_rdev)
            total.update(f"{fields!r}\n".encode("utf-8", "surrogateescape"))
        return total.hexdigest()


def _content_sum(entry: Entry) -> str:
    content = hashlib.sha256()
    with open(entry.open(), "rb", buffering=0) as file:
        while data := file.read(CHUNK):
            content.update(data)
    return content.hexdigest()


def _normal(path: str) -> str:
    """`path` from the tree's root; `..` does not go above it."""
    return os.path.normpath("/" + path).lstrip("/")


def _is_pattern(part: str) -> bool:
    return re.search(r"(?<!\\)[*?[]", part) is not None
