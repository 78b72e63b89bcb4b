"""Streams of untrusted bytes: measured, hashed, decompressed, stopped when they grow out of proportion."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from runtime.errors import RuntimeFailure

CHUNK = 1 << 20

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
FOREIGN_MAGICS = {b"\xfd7zXZ\x00": "xz", b"BZh": "bzip2"}

#: zlib: the largest window, with gzip's header and trailer, both checked.
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
_PACKED = 128 << 10

#: zstd's own limit for a decoder (--long=27): what a frame may make it keep in memory.
ZSTD_WINDOW_MAX = 1 << 27


class Readable(Protocol):
    """What tarfile and the decompressors need of a stream."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        ...


@dataclass(frozen=True)
class Limits:
    """How much an archive may make of its bytes before it counts as a bomb.

    Deflate reaches 1030:1 on zeros; real layers stay under 20:1. `slack` lets small images hold a large
    empty file. `reserve` is disk space that no image may take from the rest of the machine.
    """

    ratio: int = 200
    slack: int = 1 << 30
    reserve: int = 64 << 20
    entries: int = 1_000_000
    devices: int = 4096
    path: int = 4096
    name: int = 255
    depth: int = 256
    header: int = 8 << 20
    xattr: int = 64 << 10


class HashingReader:
    """A stream that knows the digest and the length of what was read of it."""

    def __init__(self, stream: Readable, advance: Callable[[int], None] = lambda count: None) -> None:
        self._stream = stream
        self._sum = hashlib.sha256()
        self._advance = advance
        self.size = 0

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        data = self._stream.read(size)
        self._sum.update(data)
        self.size += len(data)
        self._advance(len(data))
        return data

    def drain(self) -> None:
        """Read what is left."""
        while self.read(CHUNK):
            pass

    @property
    def digest(self) -> str:
        """The digest of what was read so far, as OCI writes it."""
        return f"sha256:{self._sum.hexdigest()}"


class _Prefixed:
    """A stream whose first bytes were read already to see what it is."""

    def __init__(self, head: bytes, stream: Readable) -> None:
        self._head = head
        self._stream = stream
        self.size = 0

    def read(self, size: int = CHUNK, /) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
        else:
            data = self._stream.read(size)
        self.size += len(data)
        return data


class _Gzip:
    """The plain bytes of a gzip stream (RFC 1952), of all its members.

    It reads larger pieces than the standard library's: layers are long, and a piece costs a turn of the GIL.
    """

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._member = zlib.decompressobj(_GZIP_WINDOW)
        self._ahead = b""

    def read(self, size: int, /) -> bytes:
        while size > 0:
            if self._member.eof and not self._next_member():
                return b""
            packed = self._ahead or self._stream.read(_PACKED)
            if not packed:
                raise EOFError("the end is missing")
            data = self._member.decompress(packed, size)
            self._ahead = self._member.unconsumed_tail or self._member.unused_data
            if data:
                return data
        return b""

    def _next_member(self) -> bool:
        # Zeros may follow a member, which a tape would have written.
        while not (ahead := self._ahead.lstrip(b"\0")):
            ahead = self._stream.read(_PACKED)
            if not ahead:
                return False
            self._ahead = ahead
        self._ahead = ahead
        self._member = zlib.decompressobj(_GZIP_WINDOW)
        return True


class DecompressingReader:
    """Plain bytes of a stream that is gzip, zstd or not compressed: its first bytes tell which.

    Raises RuntimeFailure for damaged data, and for more output than `limits` allow for the input.
    """

    def __init__(self, stream: Readable, where: str, limits: Limits) -> None:
        head = b""
        while len(head) < 6 and (more := stream.read(6 - len(head))):
            head += more
        self._input = _Prefixed(head, stream)
        self._where = where
        self._limits = limits
        self._size = 0
        self._plain: Readable = self._input
        self._errors: tuple[type[Exception], ...] = ()
        self.suffix = ""
        for magic, name in FOREIGN_MAGICS.items():
            if head.startswith(magic):
                raise RuntimeFailure(f"{where} is compressed with {name}; gzip and zstd are supported")
        if head.startswith(GZIP_MAGIC):
            self._plain = _Gzip(self._input)
            self._errors = (EOFError, zlib.error)
            self.suffix = "+gzip"
        elif head.startswith(ZSTD_MAGIC):
            import zstandard  # slow to import, and needed for few archives

            decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_MAX)
            self._plain = decompressor.stream_reader(cast(BinaryIO, self._input), read_across_frames=True)
            self._errors = (zstandard.ZstdError,)
            self.suffix = "+zstd"

    def read(self, size: int, /) -> bytes:
        """At most `size` plain bytes; none at the end."""
        try:
            data = self._plain.read(size)
        except self._errors as error:
            raise RuntimeFailure(f"{self._where} is damaged or cut short: {error}") from error
        self._size += len(data)
        if self._size > self._input.size * self._limits.ratio + self._limits.slack:
            raise RuntimeFailure(f"{self._where} looks like a decompression bomb: {self._size} bytes so far")
        return data


class DiskGuard:
    """Stops a writer before it takes the last of a filesystem from others."""

    def __init__(self, directory: Path, where: str, limits: Limits) -> None:
        self._directory = directory
        self._where = where
        self._limits = limits
        self._left = 0

    def take(self, size: int) -> None:
        """Count `size` bytes about to be written.

        Raises RuntimeFailure when the filesystem has no room for them beside the reserve.
        """
        self._left -= size
        if self._left >= 0:
            return
        state = os.statvfs(self._directory)
        room = state.f_bavail * state.f_frsize - self._limits.reserve
        if room < size:
            raise RuntimeFailure(f"{self._where} does not fit: {self._directory} has no space left for it")
        self._left = min(room - size, 16 * CHUNK)
