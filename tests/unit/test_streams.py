"""Compressed streams: all members of them, and nothing that is damaged."""

from __future__ import annotations

import gzip
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import RuntimeFailure
from runtime.images.streams import DecompressingReader, Limits


class Dribble:
    """A stream that gives less than it is asked for."""

    def __init__(self, data: bytes, most: int) -> None:
        self._stream = io.BytesIO(data)
        self._most = most

    def read(self, size: int, /) -> bytes:
        return self._stream.read(min(size, self._most))


def plain(data: bytes, most: int = 1 << 20, size: int = 1000) -> bytes:
    reader = DecompressingReader(Dribble(data, most), "the stream", Limits())
    return b"".join(iter(lambda: reader.read(size), b""))


@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=4), st.integers(1, 400), st.integers(1, 5000))
def test_all_members_are_read(parts: list[bytes], most: int, size: int) -> None:
    assert plain(b"".join(map(gzip.compress, parts)), most, size) == b"".join(parts)


@pytest.mark.parametrize("most", [1, 7, 1 << 20])
def test_zeros_may_follow(most: int) -> None:
    packed = gzip.compress(b"one")
    assert plain(packed + bytes(1000), most) == b"one"
    assert plain(packed + bytes(1000) + packed, most) == b"oneone"


PACKED = gzip.compress(b"content" * 1000)


@pytest.mark.parametrize(
    "data",
    [
        PACKED[:-1],
        PACKED[:20],
        PACKED[:10],
        PACKED + b"rubbish",
        PACKED + PACKED[:-9],
        PACKED[:-8] + bytes(8),
        PACKED[:-4] + b"\1\2\3\4",
        PACKED[:30] + b"\xff" + PACKED[31:],
        b"\x1f\x8b" + bytes(30),
    ],
)
def test_damage_is_said(data: bytes) -> None:
    with pytest.raises(RuntimeFailure, match="the stream is damaged or cut short"):
        plain(data)


def test_asked_for_nothing_it_gives_nothing() -> None:
    reader = DecompressingReader(io.BytesIO(PACKED), "the stream", Limits())
    assert reader.read(0) == b"" and reader.read(7) == b"content"
