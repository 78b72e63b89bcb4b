"""Layers made smaller, so that the same bytes in are the same bytes out: no time, no name, no number of CPUs.

gzip is compressed in parallel, as pigz does it: blocks of a fixed size, each deflated on its own and ended
on a byte boundary (Z_SYNC_FLUSH), make one stream that any reader takes (RFC 1951, RFC 1952).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import BinaryIO, Protocol

from runtime.errors import RuntimeFailure

SUFFIXES = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}

_BLOCK = 1 << 20
_GZIP_LEVEL = 4
_ZSTD_LEVEL = 3
#: No flags, mtime 0, no extra flags, Unix (RFC 1952, 2.3).
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"


class Writable(Protocol):
    """Where bytes go."""

    def write(self, data: bytes, /) -> object:
        """Take all of `data`."""
        ...


class _ParallelGzip:
    def __init__(self, target: BinaryIO, pool: ThreadPoolExecutor, ahead: int) -> None:
        self._target = target
        self._pool = pool
        self._ahead = ahead
        self._running: deque[Future[bytes]] = deque()
        self._block = bytearray()
        self._crc = 0
        self._size = 0
        target.write(_GZIP_HEADER)

    def write(self, data: bytes, /) -> None:
        self._crc = zlib.crc32(data, self._crc)
        self._size += len(data)
        self._block += data
        while len(self._block) >= _BLOCK:
            self._submit(bytes(self._block[:_BLOCK]), last=False)
            del self._block[:_BLOCK]

    def _submit(self, block: bytes, last: bool) -> None:
        self._running.append(self._pool.submit(_deflate, block, last))
        while len(self._running) > self._ahead:
            self._target.write(self._running.popleft().result())

    def finish(self) -> None:
        self._submit(bytes(self._block), last=True)
        while self._running:
            self._target.write(self._running.popleft().result())
        self._target.write(struct.pack("<II", self._crc, self._size & 0xFFFFFFFF))


def _deflate(block: bytes, last: bool) -> bytes:
    compressor = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(block) + compressor.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)


@contextmanager
def compressed(target: BinaryIO, how: str) -> Iterator[Writable]:
    """What is written in the block goes to `target`, compressed by `how`: gzip, zstd or none.

    Raises RuntimeFailure when there is no such compression.
    """
    if how == "none":
        yield target
    elif how == "gzip":
        workers = os.cpu_count() or 1
        with ThreadPoolExecutor(workers) as pool:
            stream = _ParallelGzip(target, pool, workers * 2)
            yield stream
            stream.finish()
    elif how == "zstd":
        import zstandard  # slow to import

        # With threads the frame does not depend on how many there are.
        compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, threads=os.cpu_count() or 1)
        with compressor.stream_writer(target, closefd=False) as writer:
            yield writer
    else:
        raise RuntimeFailure(f"unknown compression {how!r}: there are {', '.join(SUFFIXES)}")
