"""Files of the disk become entries of a tar, with all that a layer can hold of them.

The format is PAX (pax(1)): times to the nanosecond where they have it, xattrs as `SCHILY.xattr.NAME`, the
holes of sparse files left out (GNU tar's format 1.0). Nothing of the machine goes in: no user names, no
atime or ctime.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from dataclasses import dataclass

from runtime.errors import RuntimeFailure
from runtime.images.compress import Writable
from runtime.images.streams import CHUNK
from runtime.images.unpack import XATTR_RECORD, is_layer_xattr

_BLOCK = tarfile.BLOCKSIZE
#: Holes of less than this are not worth the map, which some readers are slow with.
_HOLES_MIN = 1 << 20
_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}


@dataclass(frozen=True)
class Clamp:
    """No time later than `seconds` since the epoch (SOURCE_DATE_EPOCH's rule); None lets all be."""

    seconds: int | None = None

    def apply(self, nanoseconds: int) -> int:
        """The time `nanoseconds`, or the latest that is allowed."""
        return nanoseconds if self.seconds is None else min(nanoseconds, self.seconds * 10**9)


NO_CLAMP = Clamp()


class TarWriter:
    """Writes a tar to `out`; `close` ends it."""

    def __init__(self, out: Writable, clamp: Clamp = NO_CLAMP) -> None:
        self._out = out
        self._clamp = clamp
        self.size = 0  # the bytes of files that were written
        self._links: dict[tuple[int, int], bytes] = {}

    def add(self, parent: int, name: bytes, path: bytes) -> None:
        """Write `name` of the directory `parent` as the entry `path`; a socket, which no tar has, is left
        out.

        The second name of a file becomes a hard link to the first. Raises FileNotFoundError when it has
        gone, and RuntimeFailure when a file gets shorter while it is read.
        """
        state = os.lstat(name, dir_fd=parent)
        if stat.S_ISREG(state.st_mode):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
            try:
                self._file(fd, path)
            finally:
                os.close(fd)
        elif stat.S_ISDIR(state.st_mode):
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                self.add_directory(fd, path)
            finally:
                os.close(fd)
        elif not stat.S_ISSOCK(state.st_mode):
            self._special(parent, name, path, state)

    def add_directory(self, fd: int, path: bytes) -> None:
        """Write the directory open as `fd`."""
        info = self._info(path + b"/", os.fstat(fd))
        self._header(info, _xattrs(fd))

    def add_empty(self, path: bytes) -> None:
        """Write an empty file that is of nobody and no time: a whiteout."""
        info = tarfile.TarInfo(os.fsdecode(path))
        info.mode = 0
        self._header(info, {})

    def close(self) -> None:
        """Write the end mark."""
        self._out.write(bytes(2 * _BLOCK))

    def _file(self, fd: int, path: bytes) -> None:
        state = os.fstat(fd)
        info = self._info(path, state)
        if state.st_nlink > 1:
            first = self._links.setdefault((state.st_dev, state.st_ino), path)
            if first != path:
                info.type = tarfile.LNKTYPE
                info.linkname = os.fsdecode(first)
                return self._header(info, {})
        segments = _segments(fd, state)
        head = b""
        records = _xattrs(fd)
        if segments is None:
            segments = [(0, state.st_size)]
        else:
            numbers = [len(segments), *(number for segment in segments for number in segment)]
            head = _padded(b"".join(b"%d\n" % number for number in numbers))
            records |= {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
            records |= {"GNU.sparse.name": info.name, "GNU.sparse.realsize": str(state.st_size)}
            info.name = f"GNUSparseFile.0/{info.name}"[:100]
        info.size = len(head) + sum(length for _, length in segments)
        self._header(info, records)
        self._out.write(head)
        for offset, length in segments:
            self._copy(fd, offset, length, path)
            self.size += length
        self._out.write(bytes(-info.size % _BLOCK))

    def _copy(self, fd: int, offset: int, length: int, path: bytes) -> None:
        end = offset + length
        while offset < end:
            data = os.pread(fd, min(end - offset, CHUNK), offset)
            if not data:
                raise RuntimeFailure(f"{os.fsdecode(path)} became shorter while it was read")
            self._out.write(data)
            offset += len(data)

    def _special(self, parent: int, name: bytes, path: bytes, state: os.stat_result) -> None:
        info = self._info(path, state)
        if info.issym():
            info.linkname = os.fsdecode(os.readlink(name, dir_fd=parent))
            info.mode = 0o777
        else:
            info.devmajor, info.devminor = os.major(state.st_rdev), os.minor(state.st_rdev)
        self._header(info, _xattrs(b"/proc/self/fd/%d/%s" % (parent, name)))

    def _info(self, path: bytes, state: os.stat_result) -> tarfile.TarInfo:
        info = tarfile.TarInfo(os.fsdecode(path))
        info.type = _TYPES[stat.S_IFMT(state.st_mode)]
        info.mode = stat.S_IMODE(state.st_mode)
        info.uid, info.gid = state.st_uid, state.st_gid
        seconds, nanoseconds = divmod(self._clamp.apply(state.st_mtime_ns), 10**9)
        info.mtime = seconds
        if nanoseconds or seconds < 0:
            info.pax_headers = {"mtime": _decimal(seconds, nanoseconds)}
        return info

    def _header(self, info: tarfile.TarInfo, records: dict[str, str]) -> None:
        info.pax_headers = {**info.pax_headers, **records}
        self._out.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))


def _decimal(seconds: int, nanoseconds: int) -> str:
    if seconds < 0 and nanoseconds:  # -1 s and 250 ms is -0.75
        seconds, nanoseconds = seconds + 1, 10**9 - nanoseconds
        return f"-{-seconds}.{nanoseconds:09d}"
    return f"{seconds}.{nanoseconds:09d}" if nanoseconds else str(seconds)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _BLOCK)


def _segments(fd: int, state: os.stat_result) -> list[tuple[int, int]] | None:
    """Where the file has data, as (offset, length); None when it has too few holes to be called sparse."""
    if state.st_size - state.st_blocks * 512 < _HOLES_MIN:
        return None
    segments = []
    position = 0
    while position < state.st_size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # no data beyond
                raise
            break
        position = min(os.lseek(fd, start, os.SEEK_HOLE), state.st_size)
        segments.append((start, position - start))
    # A hole at the end is told by an empty segment, as GNU tar does it.
    return [*segments, (state.st_size, 0)] if position < state.st_size or not segments else segments


def _xattrs(place: int | bytes) -> dict[str, str]:
    try:
        names = _listxattr(place)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise
    return {
        XATTR_RECORD + name: _getxattr(place, name).decode("utf-8", "surrogateescape")
        for name in sorted(names)
        if is_layer_xattr(name)
    }


def _listxattr(place: int | bytes) -> list[str]:
    return os.listxattr(place) if isinstance(place, int) else os.listxattr(place, follow_symlinks=False)


def _getxattr(place: int | bytes, name: str) -> bytes:
    if isinstance(place, int):
        return os.getxattr(place, name)
    return os.getxattr(place, name, follow_symlinks=False)
