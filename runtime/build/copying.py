"""Files are copied into a mounted root filesystem, as COPY and ADD do it.

The rootfs is an image's, and so hostile: its paths are resolved within it (openat2(2), RESOLVE_IN_ROOT),
and what is at the end of a path is made anew and never written through.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.build.ignore import Patterns
from runtime.build.trees import NOTHING, Entry, Tree
from runtime.containers.scoped import open_in_root
from runtime.errors import RuntimeFailure

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LINKS_MAX = 40


@dataclass(frozen=True)
class Look:
    """How copies look where they do not look like their source: None leaves it."""

    owner: tuple[int, int] | None = None
    mode: int | None = None
    time_ns: int | None = None


@dataclass(frozen=True)
class Source:
    """One path of a tree, and where its name is kept below the destination (--parents)."""

    tree: Tree
    path: str
    below: str = ""


class Target:
    """The root filesystem mounted at `root`."""

    def __init__(self, root: Path) -> None:
        self._root = os.open(root, _DIRECTORY)
        self._links: dict[tuple[int, int], tuple[int, str]] = {}
        self._kept: list[int] = []

    def close(self) -> None:
        """Let go of the mount."""
        for fd in (*self._kept, self._root):
            os.close(fd)

    def make_directories(self, path: str, look: Look) -> int:
        """A descriptor of the directory `path`, made with its parents where they are missing.

        Raises RuntimeFailure when something else is in the way.
        """
        fd = os.dup(self._root)
        walked = ""
        pending = [part for part in path.split("/") if part not in ("", ".")]
        links = 0
        while pending:
            part = pending.pop(0)
            if part == "..":
                walked = posixpath.dirname(walked)
                os.close(fd)
                fd = open_in_root(self._root, walked, os.O_RDONLY | os.O_DIRECTORY)
                continue
            try:
                child = os.open(part, _DIRECTORY, dir_fd=fd)
            except FileNotFoundError:
                os.mkdir(part, 0o755, dir_fd=fd)
                child = os.open(part, _DIRECTORY, dir_fd=fd)
                os.fchmod(child, 0o755)
                self._own(child, look.owner or (0, 0))
                if look.time_ns is not None:
                    os.utime(child, ns=(look.time_ns, look.time_ns))
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                links += 1
                target = self._link(fd, part)
                if target is None or links > _LINKS_MAX:
                    os.close(fd)
                    raise RuntimeFailure(f"/{walked}/{part} is not a directory".replace("//", "/")) from error
                pending[:0] = [word for word in target.split("/") if word not in ("", ".")]
                if target.startswith("/"):
                    os.close(fd)
                    fd, walked = os.dup(self._root), ""
                continue
            os.close(fd)
            fd, walked = child, f"{walked}/{part}" if walked else part
        return fd

    @staticmethod
    def _link(fd: int, name: str) -> str | None:
        try:
            return os.readlink(name, dir_fd=fd)
        except OSError:
            return None

    def is_directory(self, path: str) -> bool:
        """Whether `path` is a directory, or a symlink to one."""
        try:
            fd = open_in_root(self._root, path.lstrip("/"), os.O_PATH)
        except OSError:
            return False
        try:
            return stat.S_ISDIR(os.fstat(fd).st_mode)
        finally:
            os.close(fd)

    def copy(
        self, sources: Sequence[Source], destination: str, look: Look, exclude: Patterns = NOTHING
    ) -> None:
        """Copy `sources` to the absolute `destination`: into it if it ends with a slash or is a directory.

        Of a directory the content is copied. Raises RuntimeFailure when a file is in the way of a directory.
        """
        times: list[tuple[str, int]] = []
        for source in sources:
            into = destination.endswith("/") or self.is_directory(destination)
            place = posixpath.join(destination, source.below) if source.below else destination
            for entry in source.tree.walk(source.path, exclude):
                if entry.path == "" and not stat.S_ISDIR(entry.state.st_mode):
                    name = posixpath.basename(source.path)
                    target = posixpath.join(place, name) if into or source.below else place
                    self._file(entry, target, look)
                elif entry.path == "":
                    # Its content is copied, and the directory that it goes to is not made like it.
                    os.close(self.make_directories(place, look))
                elif stat.S_ISDIR(entry.state.st_mode):
                    path = posixpath.join(place, entry.path)
                    if self._directory(entry, path, look):
                        times.append((path, _time(entry, look)))
                else:
                    self._file(entry, posixpath.join(place, entry.path), look)
        for path, time_ns in reversed(times):  # what is made in a directory changes its time
            fd = self.make_directories(path, look)
            os.utime(fd, ns=(time_ns, time_ns))
            os.close(fd)

    def _directory(self, entry: Entry, path: str, look: Look) -> bool:
        """Make a directory like the entry; False when there was one, which stays as it is."""
        parent = self.make_directories(posixpath.dirname(path), look)
        try:
            name = posixpath.basename(path)
            try:
                os.mkdir(name, 0o700, dir_fd=parent)
            except FileExistsError:
                if self._is_directory_at(parent, name):
                    return False
                os.unlink(name, dir_fd=parent)
                os.mkdir(name, 0o700, dir_fd=parent)
            fd = os.open(name, _DIRECTORY, dir_fd=parent)
            try:
                self._dress(fd, entry, look)
            finally:
                os.close(fd)
            return True
        finally:
            os.close(parent)

    @staticmethod
    def _is_directory_at(parent: int, name: str) -> bool:
        try:
            fd = open_in_root(parent, name, os.O_PATH)
        except OSError:
            return False
        try:
            return stat.S_ISDIR(os.fstat(fd).st_mode)
        finally:
            os.close(fd)

    def _file(self, entry: Entry, path: str, look: Look) -> None:
        parent = self.make_directories(posixpath.dirname(path), look)
        keep = False
        try:
            name = posixpath.basename(path)
            if self._is_real_directory(parent, name):
                raise RuntimeFailure(f"cannot copy a file over the directory {path}")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=parent)
            state = entry.state
            key = (state.st_dev, state.st_ino)
            if state.st_nlink > 1 and key in self._links:
                first, first_name = self._links[key]
                os.link(first_name, name, src_dir_fd=first, dst_dir_fd=parent, follow_symlinks=False)
                return
            self._make(entry, parent, name, look)
            if state.st_nlink > 1 and stat.S_ISREG(state.st_mode):
                self._links[key] = (parent, name)
                self._kept.append(parent)
                keep = True
        finally:
            if not keep:
                os.close(parent)

    @staticmethod
    def _is_real_directory(parent: int, name: str) -> bool:
        try:
            return stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode)
        except FileNotFoundError:
            return False

    def _make(self, entry: Entry, parent: int, name: str, look: Look) -> None:
        mode = entry.state.st_mode
        if stat.S_ISREG(mode):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with (
                open(entry.open(), "rb") as file,
                open(os.open(name, flags, 0o600, dir_fd=parent), "wb") as new,
            ):
                shutil.copyfileobj(file, new, 1 << 20)
                new.flush()
                self._dress(new.fileno(), entry, look)
            return
        if stat.S_ISLNK(mode):
            os.symlink(entry.link, name, dir_fd=parent)
        elif stat.S_ISSOCK(mode):
            return  # no layer has one
        else:
            os.mknod(name, mode, entry.state.st_rdev, dir_fd=parent)
        os.chown(name, *(look.owner or _owner(entry)), dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISLNK(mode):
            os.chmod(name, stat.S_IMODE(mode) if look.mode is None else look.mode, dir_fd=parent)
        time_ns = _time(entry, look)
        os.utime(name, ns=(time_ns, time_ns), dir_fd=parent, follow_symlinks=False)

    def _dress(self, fd: int, entry: Entry, look: Look) -> None:
        """Owner, mode, xattrs, times of a copy; chown clears setuid and capabilities, so it comes first."""
        self._own(fd, look.owner or _owner(entry))
        os.fchmod(fd, stat.S_IMODE(entry.state.st_mode) if look.mode is None else look.mode)
        for name, value in entry.xattrs.items():
            with contextlib.suppress(OSError):
                os.setxattr(fd, name, value)
        time_ns = _time(entry, look)
        os.utime(fd, ns=(time_ns, time_ns))

    @staticmethod
    def _own(fd: int, owner: tuple[int, int]) -> None:
        os.fchown(fd, *owner)


def _owner(entry: Entry) -> tuple[int, int]:
    return entry.state.st_uid, entry.state.st_gid


def _time(entry: Entry, look: Look) -> int:
    return entry.state.st_mtime_ns if look.time_ns is None else look.time_ns
