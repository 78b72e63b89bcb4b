"""Files into and out of containers, as tar streams: what docker cp and the API's archive do.

A container is hostile and may run meanwhile: any directory can become a symlink at any moment. So every path
is resolved by openat2(2) with RESOLVE_IN_ROOT from the container's own root (see scoped), and what is read or
made in a directory is named relative to its descriptor, without following a symlink.

The tree is the container's as it sees it, with its volumes and binds: of one that runs by /proc/PID/root, of
another by mounting its union and, on it, what can be mounted; that one cannot be started as long.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import secrets
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from runtime.containers import lifecycle, rootfs
from runtime.containers.container import Container, lock_descriptor, locked
from runtime.containers.create import lower_layers, prepare_init_layer
from runtime.containers.scoped import open_in_root
from runtime.errors import NotFound, RuntimeFailure
from runtime.images.compress import Writable
from runtime.images.tarwriter import TarWriter
from runtime.images.unpack import XATTR_RECORD, is_layer_xattr
from runtime.root import Root

_CHUNK = 1 << 20
_DIRECTORY = os.O_PATH | os.O_DIRECTORY


@dataclass(frozen=True)
class PathStat:
    """What a path in a container is; a symlink is not followed."""

    name: str
    size: int
    mode: int  # st_mode
    mtime_ns: int
    link_target: str  # of a symlink, as an absolute path; else ""

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)


@contextlib.contextmanager
def tree(root: Root, reference: str) -> Iterator[int]:
    """A descriptor of the container's root directory, with all that it has mounted.

    Raises RuntimeFailure when there is no such container, or it cannot be mounted.
    """
    container = lifecycle.inspect(root, reference)
    if container.state.status in ("running", "paused"):
        fd = os.open(f"/proc/{container.state.pid}/root", _DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)
        return
    with locked(container.directory) as container:
        if container.state.live:
            raise RuntimeFailure(f"container {container.name} was started meanwhile: try again")
        try:
            yield from _mounted(root, container)
        finally:
            rootfs.unmount_all(container.rootfs)


def _mounted(root: Root, container: Container) -> Iterator[int]:
    """The tree of a container that does not run, mounted; its lock is held."""
    prepare_init_layer(container)
    rootfs.unmount_all(container.rootfs)  # what a killed command left
    rootfs.mount(
        lower_layers(container),
        container.upper,
        container.directory / "work",
        container.rootfs,
        keeps=[lock_descriptor(container.directory)],
    )
    fd = os.open(container.rootfs, _DIRECTORY)
    try:
        for mount in container.mounts:
            if mount.kind != "tmpfs":
                volume = root.volumes / mount.source / "_data"
                source = Path(mount.source) if mount.kind == "bind" else volume
                # A target is made by the first start; before that there is nothing to be seen there.
                with contextlib.suppress(OSError):
                    target = open_in_root(fd, mount.target, os.O_PATH)
                    try:
                        rootfs.bind(source, target, mount.read_only)
                    finally:
                        os.close(target)
        yield fd
    finally:
        os.close(fd)


def clean(path: str) -> str:
    """`path` as an absolute one without `.` and `..`; a trailing `/` or `/.` becomes `/.`: what is in it."""
    inside = path.endswith(("/", "/.")) or path in ("", ".")
    absolute = posixpath.normpath("/" + path.lstrip("/"))
    return "/." if absolute == "/" else f"{absolute}/." if inside else absolute


def _parent(root_fd: int, path: str) -> tuple[int, str]:
    """The directory of a clean path, open, and the name in it."""
    directory, _, name = path.rpartition("/")
    return open_in_root(root_fd, directory or "/", _DIRECTORY), name


def look(root_fd: int, path: str) -> PathStat:
    """What `path` is, in the tree `root_fd`; with `/` at its end, what it leads to.

    Raises NotFound when there is nothing.
    """
    path = clean(path)
    try:
        parent, name = _parent(root_fd, path)
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            target = os.readlink(name, dir_fd=parent) if stat.S_ISLNK(status.st_mode) else ""
        finally:
            os.close(parent)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"Could not find the file {path.removesuffix('/.') or '/'} in container") from error
    if target:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    shown = posixpath.basename(path.removesuffix("/.")) or "/"
    return PathStat(shown, status.st_size, status.st_mode, status.st_mtime_ns, target)


def archive(root_fd: int, path: str, out: Writable, top: str | None = None) -> None:
    """Write a tar of `path` in the tree `root_fd` to `out`.

    Its first entry is called `top`, by default by the path's last name, or `.` for what is in a directory.

    Raises NotFound when there is nothing, RuntimeFailure when a file becomes shorter while it is read.
    """
    path = clean(path)
    try:
        parent, name = _parent(root_fd, path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"Could not find the file {path} in container") from error
    try:
        writer = TarWriter(out)
        _add(writer, parent, os.fsencode(name), os.fsencode(name if top is None else top))
        writer.close()
    except FileNotFoundError as error:
        raise NotFound(f"Could not find the file {path} in container") from error
    finally:
        os.close(parent)


def _add(writer: TarWriter, parent: int, name: bytes, path: bytes) -> None:
    """Write `name` of the open directory `parent`, and all below it, as `path`."""
    writer.add(parent, name, path)
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            return
        raise
    try:
        for child in sorted(os.listdir(fd)):
            with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                _add(writer, fd, os.fsencode(child), path + b"/" + os.fsencode(child))
    finally:
        os.close(fd)


Owner = Callable[[int, int], tuple[int, int]]


def extract(
    root_fd: int,
    path: str,
    stream: BinaryIO,
    owner: Owner = lambda uid, gid: (uid, gid),
    keep_kinds: bool = False,
) -> int:
    """Unpack a tar (plain, or compressed with gzip, bzip2 or xz) into the directory `path` of `root_fd`.

    Each file appears whole, in the place of the one that was there. `owner` says whose an entry of (uid, gid)
    becomes. With `keep_kinds` a directory is not replaced by a file, nor a file by a directory.

    Returns the number of bytes in files. Raises NotFound when there is no such directory, RuntimeFailure for
    a damaged tar or an entry that cannot be made; those before it stay.
    """
    try:
        directory = open_in_root(root_fd, clean(path), _DIRECTORY)
    except FileNotFoundError as error:
        raise NotFound(f"Could not find the file {path} in container") from error
    except NotADirectoryError as error:
        raise RuntimeFailure(f"extraction point is not a directory: {path}") from error
    os.close(directory)
    unpacking = _Unpacking(root_fd, clean(path), owner, keep_kinds)
    try:
        with tarfile.open(fileobj=stream, mode="r|*") as tar:
            for member in tar:
                unpacking.add(tar, member)
    except (tarfile.TarError, EOFError) as error:
        raise RuntimeFailure(f"invalid tar: {error}") from error
    unpacking.finish()
    return unpacking.bytes


class _Unpacking:
    """One tar that is unpacked."""

    def __init__(self, root_fd: int, path: str, owner: Owner, keep_kinds: bool) -> None:
        self._root = root_fd
        self._path = path
        self._owner = owner
        self._keep_kinds = keep_kinds
        self._times: list[tuple[str, int]] = []  # of directories: what is made in them changes theirs
        self.bytes = 0

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = posixpath.normpath("/" + member.name.lstrip("/")).lstrip("/")
        whole = f"{self._path}/{path}" if path else self._path
        try:
            if not path:
                return self._times.append((whole, _mtime(member)))
            parent, name = self._directory(posixpath.dirname(path)), posixpath.basename(path)
            try:
                self._make(tar, member, parent, name, whole)
            finally:
                os.close(parent)
        except OSError as error:
            raise RuntimeFailure(f"cannot make {member.name}: {error.strerror}") from error

    def finish(self) -> None:
        """Give directories their times, the innermost first."""
        for path, mtime in reversed(self._times):
            with contextlib.suppress(OSError):
                fd = open_in_root(self._root, path, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.utime(fd, ns=(mtime, mtime))
                finally:
                    os.close(fd)

    def _directory(self, path: str) -> int:
        """The directory `path` below the one that is unpacked into, made where it is missing."""
        with contextlib.suppress(FileNotFoundError):
            return open_in_root(self._root, f"{self._path}/{path}", _DIRECTORY)
        parent = self._directory(posixpath.dirname(path))
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(posixpath.basename(path), 0o755, dir_fd=parent)
        finally:
            os.close(parent)
        return open_in_root(self._root, f"{self._path}/{path}", _DIRECTORY)

    def _make(self, tar: tarfile.TarFile, member: tarfile.TarInfo, parent: int, name: str, path: str) -> None:
        there = _status(parent, name)
        if there is not None and self._keep_kinds and stat.S_ISDIR(there.st_mode) is not member.isdir():
            kinds = (
                ("directory", "non-directory")
                if stat.S_ISDIR(there.st_mode)
                else ("non-directory", "directory")
            )
            raise RuntimeFailure(f"cannot overwrite {kinds[0]} {path!r} with {kinds[1]}")
        uid, gid = self._owner(member.uid, member.gid)
        if member.isdir():
            if there is not None and not stat.S_ISDIR(there.st_mode):
                os.unlink(name, dir_fd=parent)
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=parent)
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                _dress(fd, member, uid, gid)
            finally:
                os.close(fd)
            self._times.append((path, _mtime(member)))
            return
        temporary = f".{secrets.token_hex(8)}"
        try:
            if member.isreg():
                self._file(tar, member, parent, temporary, uid, gid)
            else:
                self._special(member, parent, temporary, uid, gid)
            self._put(tar, member, parent, temporary, name)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=parent)
            raise

    def _file(
        self, tar: tarfile.TarFile, member: tarfile.TarInfo, parent: int, name: str, uid: int, gid: int
    ) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(name, flags, 0o600, dir_fd=parent), "wb") as file:
            content = tar.extractfile(member)
            assert content is not None
            while data := content.read(_CHUNK):
                file.write(data)
                self.bytes += len(data)
            file.flush()
            _dress(file.fileno(), member, uid, gid)
            os.utime(file.fileno(), ns=(_mtime(member), _mtime(member)))

    def _special(self, member: tarfile.TarInfo, parent: int, name: str, uid: int, gid: int) -> None:
        if member.islnk():
            target = open_in_root(self._root, f"{self._path}/{member.linkname}", os.O_PATH | os.O_NOFOLLOW)
            try:
                os.link(f"/proc/self/fd/{target}", name, dst_dir_fd=parent, follow_symlinks=True)
            finally:
                os.close(target)
            return
        if member.issym():
            os.symlink(member.linkname, name, dir_fd=parent)
        elif member.isfifo():
            os.mkfifo(name, 0o600, dir_fd=parent)
        elif member.ischr() or member.isblk():
            kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
            device = os.makedev(member.devmajor, member.devminor)
            os.mknod(name, kind | 0o600, device, dir_fd=parent)
        else:
            raise RuntimeFailure(
                f"cannot make {member.name}: tar entries of type {member.type!r} are not known"
            )
        os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        if not member.issym():
            _chmod(parent, name, stat.S_IMODE(member.mode))
        os.utime(name, ns=(_mtime(member), _mtime(member)), dir_fd=parent, follow_symlinks=False)

    @staticmethod
    def _put(tar: tarfile.TarFile, member: tarfile.TarInfo, parent: int, temporary: str, name: str) -> None:
        """Let the new file take its name."""
        try:
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except OSError as error:
            if error.errno != errno.EBUSY or not member.isreg():
                raise
            # A file is mounted there, as /etc/hosts is: only its content can be changed.
            source = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            target = os.open(name, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            with open(source, "rb") as reader, open(target, "wb") as writer:
                while data := reader.read(_CHUNK):
                    writer.write(data)
            os.unlink(temporary, dir_fd=parent)


def _dress(fd: int, member: tarfile.TarInfo, uid: int, gid: int) -> None:
    """Owner, mode and extended attributes of an open file; the mode last, since a new owner clears bits."""
    os.fchown(fd, uid, gid)
    for record, value in member.pax_headers.items():
        name = record.removeprefix(XATTR_RECORD)
        if name != record and is_layer_xattr(name):
            with contextlib.suppress(OSError):  # a filesystem without them
                os.setxattr(fd, name, value.encode("utf-8", "surrogateescape"))
    os.fchmod(fd, stat.S_IMODE(member.mode))


def _chmod(parent: int, name: str, mode: int) -> None:
    """Change a mode without following a symlink that somebody may have put there."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def _mtime(member: tarfile.TarInfo) -> int:
    return int(member.mtime * 10**9)


def _status(parent: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None
