"""One layer: system calls relative to directory descriptors, never following a symlink.

A layer is hostile input. Every path is walked one component at a time from the layer's root with
O_NOFOLLOW, so a symlink planted in it leads nowhere; and as root the layer is held through a private
mount of its own (read-only for lower ones), so that nothing mounted below it is crossed into and no
system call made through it can write to an image.

Paths are bytes relative to the layer's root; b"" is the root itself. Nothing here knows of unions.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from unionfs import syscalls

#: How many directories of a layer are held open. One is a kernel dentry and a file: about 500 bytes.
DIRECTORY_CACHE = 256

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One name as getdents(2) gives it. `kind` is S_IFMT of its mode."""

    name: bytes
    kind: int


def split(path: bytes) -> tuple[bytes, bytes]:
    """The parent's path and the last name of a path that is not the root."""
    parent, _, name = path.rpartition(b"/")
    return parent, name


def join(parent: bytes, name: bytes) -> bytes:
    """The path of `name` in the directory `parent`."""
    return parent + b"/" + name if parent else name


def open_lower(path: str) -> Layer:
    """Open the layer at `path`, through a read-only private mount where the kernel allows it.

    Raises OSError when it is missing, not a directory, or not to be read.
    """
    try:
        fd = syscalls.clone_mount(os.fsencode(path), read_only=True)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS):
            raise
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        return Layer(path, os.open(path, flags), crosses_mounts=True)
    return Layer(path, fd, crosses_mounts=False)


class Layer:
    """A directory tree that is one layer of a union, read only here; see upper.py for the other kind."""

    def __init__(self, path: str, root_fd: int, *, crosses_mounts: bool) -> None:
        """Take over `root_fd`, an open directory. `crosses_mounts` says that mounts may lie below it."""
        self.path = path
        self.root_fd = root_fd
        self.device = os.fstat(root_fd).st_dev
        self._guard_device = crosses_mounts
        self._directories: OrderedDict[bytes, int] = OrderedDict()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}>"

    def close(self) -> None:
        """Give back every descriptor. The layer cannot be used after."""
        self.forget_directories(b"")
        os.close(self.root_fd)

    def directory_fd(self, path: bytes) -> int:
        """An O_PATH descriptor of a directory, owned by the layer and good until the next call.

        Raises OSError: ENOENT, ENOTDIR (also for a symlink), EXDEV where another filesystem is mounted.
        """
        if not path:
            return self.root_fd
        cached = self._directories.get(path)
        if cached is not None:
            self._directories.move_to_end(path)
            return cached
        fd = self._walk(path)
        self._directories[path] = fd
        if len(self._directories) > DIRECTORY_CACHE:
            os.close(self._directories.popitem(last=False)[1])
        return fd

    def _walk(self, path: bytes) -> int:
        """Open `path` from its nearest cached ancestor, one component at a time."""
        ancestor = path
        fd = self.root_fd
        while ancestor:
            ancestor = split(ancestor)[0]
            cached = self._directories.get(ancestor)
            if cached is not None:
                fd = cached
                break
        owned = False
        remaining = path[len(ancestor) + 1 :] if ancestor else path
        for name in remaining.split(b"/"):
            try:
                step = os.open(name, _DIRECTORY, dir_fd=fd)
            finally:
                if owned:
                    os.close(fd)
            fd, owned = step, True
            if self._guard_device and os.fstat(fd).st_dev != self.device:
                os.close(fd)
                raise OSError(errno.EXDEV, "another filesystem is mounted inside the layer")
        return fd

    def forget_directories(self, path: bytes) -> None:
        """Drop cached descriptors of `path` and of all below it: it moved, or is gone."""
        if not path:
            gone = list(self._directories)
        else:
            below = path + b"/"
            gone = [held for held in self._directories if held == path or held.startswith(below)]
        for held in gone:
            os.close(self._directories.pop(held))

    def _at(self, path: bytes) -> tuple[int, bytes]:
        """The directory descriptor and the name that a *at() system call wants for `path`."""
        if not path:
            return self.root_fd, b"."
        parent, name = split(path)
        return self.directory_fd(parent), name

    def proc_path(self, path: bytes) -> bytes:
        """A path for the calls that take no directory descriptor; only its last name is not followed.

        Good until the next call.
        """
        fd, name = self._at(path)
        return b"/proc/self/fd/%d/%s" % (fd, name)

    def stat(self, path: bytes) -> os.stat_result:
        """lstat(2)."""
        fd, name = self._at(path)
        return os.stat(name, dir_fd=fd, follow_symlinks=False)

    def open(self, path: bytes, flags: int) -> int:
        """openat(2) with O_NOFOLLOW and O_CLOEXEC; the caller owns the descriptor."""
        fd, name = self._at(path)
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)

    def readlink(self, path: bytes) -> bytes:
        """readlinkat(2)."""
        fd, name = self._at(path)
        return os.readlink(name, dir_fd=fd)

    def entries(self, path: bytes) -> list[DirectoryEntry]:
        """All entries of a directory, in the order the disk gives them, without `.` and `..`.

        Its atime is left alone where the process may: nobody has read the directory but we.
        """
        fd = open_noatime(lambda flags: self.open(path, flags), os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME)
        try:
            with os.scandir(fd) as found:
                # A descriptor makes scandir give str; fsencode gives back the very bytes.
                return [DirectoryEntry(os.fsencode(entry.name), _kind(entry)) for entry in found]
        finally:
            os.close(fd)

    def listxattr(self, path: bytes) -> list[str]:
        """llistxattr(2)."""
        return os.listxattr(self.proc_path(path), follow_symlinks=False)

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        """lgetxattr(2)."""
        return os.getxattr(self.proc_path(path), name, follow_symlinks=False)

    def statvfs(self) -> os.statvfs_result:
        """fstatvfs(2) of the layer's filesystem."""
        return os.fstatvfs(self.root_fd)

    def hard_links(self) -> dict[int, list[bytes]]:
        """Every inode with several names in this layer: st_ino to its paths. Walks the whole layer."""
        found: dict[int, list[bytes]] = {}
        for directory in self.walk():
            for entry in self.entries(directory):
                if entry.kind != stat.S_IFDIR:
                    path = join(directory, entry.name)
                    status = self.stat(path)
                    if status.st_nlink > 1:
                        found.setdefault(status.st_ino, []).append(path)
        return found

    def walk(self) -> Iterator[bytes]:
        """The paths of all directories of the layer, parents first."""
        pending = [b""]
        while pending:
            directory = pending.pop()
            yield directory
            for entry in self.entries(directory):
                if entry.kind == stat.S_IFDIR:
                    pending.append(join(directory, entry.name))


def open_noatime(opening: Callable[[int], int], flags: int) -> int:
    """Open with flags that may hold O_NOATIME, and without it where only the file's owner may (open(2))."""
    try:
        return opening(flags)
    except PermissionError:
        if not flags & os.O_NOATIME:
            raise
        return opening(flags & ~os.O_NOATIME)


def _kind(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return stat.S_IFLNK
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    return stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)
