"""A layer tar becomes a directory in the form the driver reads.

The rules are those of the OCI image-spec (layer.md), with one difference in the way: a layer is unpacked
alone into an empty directory, never over its parents, so that images can share it. What a marker in the
tar says of lower layers is therefore written down in the driver's form, once the rest is in place:

* `.wh.NAME` hides NAME of the layers below, wherever it stands in the tar. Where this layer has a
  directory NAME of its own, that directory becomes opaque; any other entry hides NAME by itself.
* `.wh..wh..opq` makes its directory opaque. A whiteout beneath an opaque directory, or beneath a name that is
  whited out itself, would say nothing more, and kernel overlayfs does not want it there: none is written.
* Other `.wh..wh.` names are AUFS's own and say nothing.

A layer is hostile input. Every path is walked from the layer's root, one component at a time, without
following a symlink, and nothing outside of the root is ever opened. Refused: absolute paths, `..`, entries
beneath something that is not a directory, hard links to what the layer does not hold, device 0:0 (it would be
a whiteout that the tar does not show), unknown entry types, and more entries, devices or bytes than
`Limits` allow. Xattrs that the driver or the kernel reads as instructions are left out, like all
that a container could not set itself, except file capabilities.

Directories get their owner, mode, xattrs and times at the end: making an entry changes its parent's
mtime, and without root a directory of mode 0555 could not be filled.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from collections import Counter
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from runtime.errors import RuntimeFailure
from runtime.images.streams import DiskGuard, Limits, Readable
from runtime.images.tarstream import TarStream
from unionfs.whiteout import (
    MARKER_PREFIX,
    OPAQUE_MARKER,
    WHITEOUT_DEVICE,
    Convention,
    allow_xattr_whiteouts,
    convention_for,
    is_reserved,
    marked_name,
    write_opaque,
    write_whiteout,
)

XATTR_RECORD = "SCHILY.xattr."
#: user.* xattrs that a union driver takes as instructions.
DRIVER_XATTRS = ("user.overlay.", "user.fuseoverlayfs.", "user.unionfs.", "user.containers.")
_PLAIN_XATTRS = ("user.", "system.posix_acl_")
_CAPABILITY = "security.capability"

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Path_ = tuple[bytes, ...]


def is_layer_xattr(name: str) -> bool:
    """Whether the xattr `name` is a file's own, and not an instruction to a driver or the kernel."""
    if name == _CAPABILITY:
        return True
    return name.startswith(_PLAIN_XATTRS) and not name.startswith(DRIVER_XATTRS)


@dataclass(frozen=True)
class Attributes:
    """What an entry has besides its content."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True)
class Unpacked:
    """What became of a layer; `notes` say what could not be applied, for the user.

    `implicit` are directories that have entries in the tar but none of their own: what they look like
    is for the layers below to say.
    """

    size: int
    entries: int
    notes: tuple[str, ...]
    implicit: frozenset[Path_]


def unpack(stream: Readable, directory: Path, where: str, limits: Limits | None = None) -> Unpacked:
    """Unpack the plain layer tar `stream` into the empty `directory`; `where` names it in messages.

    The stream is read to its end. Raises RuntimeFailure when the tar is damaged, refused or too large, and
    OSError when the filesystem cannot hold it; the directory is then the caller's to remove.
    """
    limits = limits or Limits()
    root = os.open(directory, _DIRECTORY)
    try:
        return _Unpacker(root, directory, where, limits).run(stream)
    finally:
        os.close(root)


class _Unpacker:
    def __init__(self, root: int, directory: Path, where: str, limits: Limits) -> None:
        self._root = root
        self._where = where
        self._limits = limits
        self._disk = DiskGuard(directory, where, limits)
        self._is_root = os.geteuid() == 0
        self._size = 0
        self._entries = 0
        self._devices = 0
        self._notes: Counter[str] = Counter()
        self._directories: dict[Path_, Attributes] = {}
        self._implicit: set[Path_] = set()
        self._whiteouts: set[Path_] = set()
        self._opaque: set[Path_] = set()
        # The directory of the last entry: a tar goes through a tree directory by directory.
        self._near: tuple[Path_, int] | None = None

    def run(self, stream: Readable) -> Unpacked:
        os.fchmod(self._root, 0o755)
        tar = TarStream(stream, self._where, self._limits)
        try:
            for member in tar:
                self._count()
                self._entry(tar, member)
            self._write_whiteouts()
            self._finish_directories()
        finally:
            self._forget_near()
        notes = tuple(f"{count} {what}" for what, count in sorted(self._notes.items()))
        return Unpacked(self._size, self._entries, notes, frozenset(self._implicit))

    # Names

    def _refuse(self, name: bytes, reason: str) -> RuntimeFailure:
        return RuntimeFailure(f"{self._where}: {name.decode(errors='backslashreplace')!r} {reason}")

    def _count(self) -> None:
        self._entries += 1
        if self._entries > self._limits.entries:
            raise RuntimeFailure(f"{self._where} has more than {self._limits.entries} entries")

    def _path(self, text: str) -> Path_:
        name = text.encode("utf-8", "surrogateescape")
        if name.startswith(b"/"):
            raise self._refuse(name, "is an absolute path")
        if len(name) > self._limits.path:
            raise self._refuse(name[:64] + b"...", "is too long a path")
        path = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
        if len(path) > self._limits.depth:
            raise self._refuse(name[:64] + b"...", "is too deep a path")
        for part in path:
            if part == b"..":
                raise self._refuse(name, "leads out of the layer")
            if len(part) > self._limits.name or b"\0" in part:
                raise self._refuse(name, "is not a name a file can have")
        return path

    def _target(self, path: Path_, text: str) -> bytes:
        target = text.encode("utf-8", "surrogateescape")
        if not 0 < len(target) < self._limits.path or b"\0" in target:
            raise self._refuse(b"/".join(path), "is a symlink to nothing a path can be")
        return target

    # Walking

    @contextmanager
    def _parent(self, path: Path_, make: bool = True) -> Iterator[int]:
        """A descriptor of the directory that holds `path`, valid inside of the block."""
        parent = path[:-1]
        if not parent:
            yield self._root
            return
        if self._near is None or self._near[0] != parent:
            fd = self._walk(parent, make)
            self._forget_near()
            self._near = (parent, fd)
        yield self._near[1]

    def _forget_near(self) -> None:
        if self._near is not None:
            os.close(self._near[1])
            self._near = None

    def _walk(self, path: Path_, make: bool) -> int:
        fd = os.dup(self._root)
        try:
            for depth, part in enumerate(path, 1):
                try:
                    child = os.open(part, _DIRECTORY, dir_fd=fd)
                except FileNotFoundError:
                    if not make:
                        raise
                    child = self._make_implicit(fd, path[:depth])
                except OSError as error:  # ENOTDIR or, of a symlink, ELOOP
                    place = b"/".join(path[:depth])
                    raise self._refuse(place, "holds entries but is not a directory") from error
                os.close(fd)
                fd = child
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _make_implicit(self, fd: int, path: Path_) -> int:
        if is_reserved(path[-1]):
            raise self._refuse(b"/".join(path), "holds entries but is a whiteout's name")
        self._count()
        self._disk.take(4096)
        self._implicit.add(path)
        self._directories.pop(path, None)  # of an earlier directory that was replaced since
        os.mkdir(path[-1], 0o700, dir_fd=fd)
        child = os.open(path[-1], _DIRECTORY, dir_fd=fd)
        os.fchmod(child, 0o755)
        return child

    # Entries

    def _entry(self, tar: TarStream, member: tarfile.TarInfo) -> None:
        path = self._path(member.name)
        if not path:
            if not member.isdir():
                raise self._refuse(member.name.encode(errors="replace"), "is the root, but no directory")
            self._directories[path] = self._attributes(member)
            return
        if any(part.startswith(b".wh..wh.") and part != OPAQUE_MARKER for part in path):
            return self._skip(tar, member)
        if is_reserved(path[-1]):
            self._marker(path)
            return self._skip(tar, member)
        attributes = self._attributes(member)
        if member.islnk():
            return self._hard_link(path, self._path(member.linkname))
        with self._parent(path) as parent:
            self._disk.take(4096)
            if member.isdir():
                return self._directory(parent, path, attributes)
            self._remove(parent, path)
            if member.isreg():
                self._file(tar, member, parent, path[-1], attributes)
            elif member.issym():
                os.symlink(self._target(path, member.linkname), path[-1], dir_fd=parent)
                self._apply_to_name(parent, path[-1], attributes)
            elif member.isfifo():
                os.mkfifo(path[-1], 0o600, dir_fd=parent)
                self._apply_to_name(parent, path[-1], attributes)
            elif member.ischr() or member.isblk():
                self._device(member, parent, path, attributes)
            else:
                raise self._refuse(b"/".join(path), f"has an unknown type, {member.type!r}")

    def _skip(self, tar: TarStream, member: tarfile.TarInfo) -> None:
        if member.isreg() and member.size:
            raise self._refuse(member.name.encode(errors="replace"), "is a whiteout's name but has data")

    def _marker(self, path: Path_) -> None:
        if path[-1] == OPAQUE_MARKER:
            self._opaque.add(path[:-1])
            return
        name = marked_name(path[-1])
        if name is None or name in (b".", b".."):
            raise self._refuse(b"/".join(path), "is a whiteout of nothing")
        self._whiteouts.add((*path[:-1], name))

    def _directory(self, parent: int, path: Path_, attributes: Attributes) -> None:
        try:
            os.mkdir(path[-1], 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path[-1], dir_fd=parent).st_mode):
                self._remove(parent, path)
                os.mkdir(path[-1], 0o700, dir_fd=parent)
                # What it replaces had already replaced a lower directory.
                self._opaque.add(path)
        self._implicit.discard(path)
        self._directories[path] = attributes

    def _file(
        self, tar: TarStream, member: tarfile.TarInfo, parent: int, name: bytes, attributes: Attributes
    ) -> None:
        fd = os.open(name, _NEW_FILE, 0o600, dir_fd=parent)
        try:
            self._size += tar.copy(member, fd, self._disk)
            self._apply(fd, attributes)
        finally:
            os.close(fd)

    def _hard_link(self, path: Path_, target: Path_) -> None:
        if path == target:
            return
        shown = b"/".join(path)
        other = b"/".join(target).decode(errors="backslashreplace")
        missing = self._refuse(shown, f"is a hard link to {other!r}, which its layer does not hold")
        if not target:
            raise missing
        try:
            source = self._walk(target[:-1], make=False)
        except FileNotFoundError:
            raise missing from None
        try:
            with self._parent(path) as parent:
                self._remove(parent, path)
                try:
                    if stat.S_ISDIR(os.lstat(target[-1], dir_fd=source).st_mode):
                        raise self._refuse(shown, "is a hard link to a directory")
                    os.link(target[-1], path[-1], src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
                except FileNotFoundError:
                    raise missing from None
        finally:
            os.close(source)

    def _device(self, member: tarfile.TarInfo, parent: int, path: Path_, attributes: Attributes) -> None:
        if not (0 <= member.devmajor < 1 << 12 and 0 <= member.devminor < 1 << 20):
            raise self._refuse(b"/".join(path), "is a device whose number cannot be")
        device = os.makedev(member.devmajor, member.devminor)
        if member.ischr() and device == WHITEOUT_DEVICE:
            raise self._refuse(b"/".join(path), "is the device 0:0, which means a whiteout")
        self._devices += 1
        if self._devices > self._limits.devices:
            raise RuntimeFailure(f"{self._where} has more than {self._limits.devices} devices")
        kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
        try:
            os.mknod(path[-1], kind | 0o600, device, dir_fd=parent)
        except PermissionError:
            self._notes["devices left out: only root can make them"] += 1
        else:
            self._apply_to_name(parent, path[-1], attributes)

    def _remove(self, parent: int, path: Path_) -> None:
        """Make room for an entry that takes the place of an earlier one."""
        name = path[-1]
        try:
            is_directory = stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode)
        except FileNotFoundError:
            return
        if not is_directory:
            os.unlink(name, dir_fd=parent)
            return
        shutil.rmtree(os.fsdecode(name), dir_fd=parent)

    # Attributes

    def _attributes(self, member: tarfile.TarInfo) -> Attributes:
        xattrs = []
        size = 0
        for record, value in member.pax_headers.items():
            if not record.startswith(XATTR_RECORD):
                continue
            name = record.removeprefix(XATTR_RECORD)
            content = value.encode("utf-8", "surrogateescape")
            size += len(content)
            if len(name) > self._limits.name or "\0" in name or size > self._limits.xattr:
                raise self._refuse(member.name.encode(errors="replace"), "has xattrs that no file can have")
            if self._may_have(name):
                xattrs.append((name, content))
        return Attributes(
            member.mode & 0o7777,
            self._identity(member, member.uid),
            self._identity(member, member.gid),
            self._mtime(member),
            tuple(xattrs),
        )

    def _may_have(self, xattr: str) -> bool:
        return is_layer_xattr(xattr) and (xattr != _CAPABILITY or self._is_root)

    def _identity(self, member: tarfile.TarInfo, number: int) -> int:
        # 2**32 - 1 is chown's "leave it", and nobody's ID.
        if not 0 <= number < (1 << 32) - 1:
            raise self._refuse(member.name.encode(errors="replace"), f"has an owner {number} that cannot be")
        return number

    def _mtime(self, member: tarfile.TarInfo) -> int:
        # tarfile rounds the decimal number of a PAX record to a float.
        try:
            exact = Decimal(member.pax_headers.get("mtime") or str(member.mtime)) * 10**9
            if abs(exact) < 1 << 63:
                return int(exact)
        except ArithmeticError:
            pass
        raise self._refuse(member.name.encode(errors="replace"), "has a time that cannot be")

    def _apply(self, fd: int, attributes: Attributes) -> None:
        # chown clears setuid, setgid and capabilities, so it comes first.
        if self._is_root:
            os.fchown(fd, attributes.uid, attributes.gid)
        os.fchmod(fd, attributes.mode)
        self._set_xattrs(fd, attributes)
        os.utime(fd, ns=(attributes.mtime_ns, attributes.mtime_ns))

    def _apply_to_name(self, parent: int, name: bytes, attributes: Attributes) -> None:
        """Set the attributes of what must not be opened: a symlink, a FIFO, a device."""
        if self._is_root:
            os.chown(name, attributes.uid, attributes.gid, dir_fd=parent, follow_symlinks=False)
        # It was made a moment ago in a directory no one else can reach; only a symlink can be followed.
        if not stat.S_ISLNK(os.lstat(name, dir_fd=parent).st_mode):
            os.chmod(name, attributes.mode, dir_fd=parent)
        self._set_xattrs(b"/proc/self/fd/%d/%s" % (parent, name), attributes)
        times = (attributes.mtime_ns, attributes.mtime_ns)
        os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)

    def _set_xattrs(self, target: int | bytes, attributes: Attributes) -> None:
        for name, value in attributes.xattrs:
            try:
                if isinstance(target, int):
                    os.setxattr(target, name, value)
                else:
                    os.setxattr(target, name, value, follow_symlinks=False)
            except OSError as error:
                self._notes[f"xattrs {name} left out: {error.strerror}"] += 1

    # The end

    def _write_whiteouts(self) -> None:
        convention = convention_for(self._root)
        for path in self._opaque:
            os.close(self._walk(path, make=True))
        opaque = {path for path in self._whiteouts if self._is_own_directory(path)} | self._opaque
        for path in sorted(opaque):
            fd = self._walk(path, make=False)
            try:
                write_opaque(fd, convention)
            finally:
                os.close(fd)
        hiding = opaque | self._whiteouts
        for path in sorted(self._whiteouts - opaque):
            if _is_beneath(path, hiding):
                continue
            with self._parent(path) as parent:
                if _exists(parent, path[-1]):
                    continue
                self._count()
                if len(path[-1]) > self._limits.name - len(MARKER_PREFIX):
                    raise self._refuse(path[-1], "is too long a name to be hidden")
                if convention is Convention.XATTR:
                    allow_xattr_whiteouts(parent)
                write_whiteout(parent, path[-1], convention)
        # What these look like, no lower layer says.
        self._implicit -= {path for path in self._implicit if _is_beneath(path, opaque)} | self._whiteouts

    def _is_own_directory(self, path: Path_) -> bool:
        try:
            os.close(self._walk(path, make=False))
        except (FileNotFoundError, RuntimeFailure):
            return False
        return True

    def _finish_directories(self) -> None:
        # Deepest first: a parent may be closed to us afterwards.
        for path in sorted(self._directories, reverse=True):
            try:
                fd = self._walk(path, make=False)
            except (FileNotFoundError, RuntimeFailure):
                continue  # a later entry took its place, or its parent's
            try:
                self._apply(fd, self._directories[path])
            finally:
                os.close(fd)


def _is_beneath(path: Path_, places: Set[Path_]) -> bool:
    return any(path[:depth] in places for depth in range(len(path)))


def _exists(parent: int, name: bytes) -> bool:
    try:
        os.lstat(name, dir_fd=parent)
    except FileNotFoundError:
        return False
    return True
