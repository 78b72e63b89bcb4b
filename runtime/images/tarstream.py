"""A tar read as a stream, strictly: what tarfile would take for a silent end is an error here."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from runtime.errors import RuntimeFailure
from runtime.images.streams import CHUNK, DiskGuard, Limits, Readable

_BLOCK = tarfile.BLOCKSIZE
#: What tarfile asks for at once. Each header costs a copy of what is left of it, each request a hash's start.
_BUFFER = 64 << 10


class _DamagedHeader(Exception):
    """Not a tarfile.HeaderError, which TarFile.next() would take for the end."""


class _StrictHeader(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> _StrictHeader:
        try:
            return super().frombuf(buf, encoding, errors)  # type: ignore[arg-type]
        except tarfile.HeaderError as error:
            if not buf or bytes(buf) == bytes(_BLOCK):
                raise  # the end of the tar
            raise _DamagedHeader(str(error)) from error


class _HeaderGuard:
    """Bounds what tarfile reads into memory for one header: it believes any size that a header claims."""

    def __init__(self, stream: Readable, limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._left = limit

    def read(self, size: int, /) -> bytes:
        if self._left <= 0:
            raise _DamagedHeader("a header is too large")
        data = self._stream.read(size)
        self._left -= len(data)
        return data

    def renew(self) -> None:
        self._left = self._limit


class TarStream:
    """The members of a tar, in its order; the data of each is to be read before the next one is asked for.

    `where` names the tar in messages. All that is wrong with it raises RuntimeFailure.
    """

    def __init__(self, stream: Readable, where: str, limits: Limits) -> None:
        self._guard = _HeaderGuard(stream, limits.header)
        self._where = where
        self._limits = limits
        self._stream = stream
        self._tar: Any = None  # typeshed knows neither `members` nor a member's sparse map

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        count = 0
        while (member := self._next()) is not None:
            count += 1
            if count > self._limits.entries:
                raise RuntimeFailure(f"{self._where} has more than {self._limits.entries} entries")
            yield member
        # What follows the end mark is padding, and part of the digest.
        while self._stream.read(CHUNK):
            pass

    def _next(self) -> tarfile.TarInfo | None:
        self._guard.renew()
        try:
            if self._tar is None:
                self._tar = tarfile.open(  # noqa: SIM115 - it owns nothing to close
                    fileobj=cast(BinaryIO, self._guard),
                    mode="r|",
                    bufsize=_BUFFER,
                    tarinfo=_StrictHeader,
                    encoding="utf-8",
                    errors="surrogateescape",
                )
            member: tarfile.TarInfo | None = self._tar.next()
        except RuntimeFailure:
            raise
        except (tarfile.TarError, _DamagedHeader, ValueError, OverflowError, IndexError, KeyError) as error:
            raise RuntimeFailure(f"{self._where} is not a tar, or damaged or cut short: {error}") from error
        self._tar.members.clear()  # else it keeps every header
        if member is not None and not 0 <= member.size < 1 << 63:
            raise RuntimeFailure(f"{self._where} is damaged: an entry of impossible size")
        return member

    def copy(self, member: tarfile.TarInfo, fd: int, disk: DiskGuard) -> int:
        """Write the data of `member` to the empty file `fd`, leaving its holes; give the bytes written."""
        written = 0
        for position, data in self.data(member):
            disk.take(len(data))
            view = memoryview(data)
            while view:
                count = os.pwrite(fd, view, position)
                position += count
                view = view[count:]
            written += len(data)
        if member.sparse is not None:
            os.ftruncate(fd, member.size)
        return written

    def data(self, member: tarfile.TarInfo) -> Iterator[tuple[int, bytes]]:
        """What `member` holds, in pieces with their offsets; the holes of a sparse file are left out."""
        # The parts of a sparse file follow one another in the tar. extractfile() wants one that seeks.
        stream = self._tar.fileobj
        stream.seek(member.offset_data)
        for offset, length in self._segments(member):
            end = offset + length
            while offset < end:
                self._guard.renew()
                try:
                    data = stream.read(min(end - offset, CHUNK))
                except (tarfile.TarError, ValueError) as error:
                    raise RuntimeFailure(f"{self._where} is cut short") from error
                if not data:
                    raise RuntimeFailure(f"{self._where} is cut short")
                yield offset, data
                offset += len(data)

    def _segments(self, member: tarfile.TarInfo) -> list[tuple[int, int]]:
        """Where the file has data, as (offset, length): one segment, or more in a sparse file."""
        sparse: Any = member.sparse
        if sparse is None:
            return [(0, member.size)]
        # Unused places of a header's map are (0, 0), and a hole at the end is (size, 0).
        segments = [segment for segment in sparse if segment[1]]
        position = 0
        for offset, length in segments:
            if offset < position or length < 0 or offset + length > member.size:
                raise RuntimeFailure(f"{self._where} is damaged: the map of a sparse file is not in order")
            position = offset + length
        return segments
