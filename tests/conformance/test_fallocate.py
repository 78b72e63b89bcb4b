"""fallocate(2), and SEEK_HOLE and SEEK_DATA of lseek(2)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.layers import File
from support.union import errno_of

from conformance.system import (
    ALICE,
    BOB,
    COLLAPSE_RANGE,
    INSERT_RANGE,
    KEEP_SIZE,
    PUNCH_HOLE,
    ZERO_RANGE,
    as_user,
    fallocate,
    opened,
    permissions,
    times_changed,
)

BLOCK = 4096
SPARSE = {
    "file": File(content=b"x" * (4 * BLOCK), mode=0o644),
    "sparse": File(content=b"end", holes=1 << 20),
    "program": File(content=b"x" * BLOCK, mode=0o6777, owner=(ALICE, ALICE)),
}
pytestmark = pytest.mark.tree(SPARSE)


def extents(fd: int) -> list[tuple[int, int]]:
    """The stretches of data."""
    found = []
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:
            return found
        end = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, end))


def test_allocates_and_extends(here: Path) -> None:
    with opened(here / "file", os.O_RDWR) as fd:
        fallocate(fd, 0, 0, 100 * BLOCK)
        status = os.fstat(fd)
        assert (status.st_size, status.st_blocks >= 800) == (100 * BLOCK, True)
        assert os.pread(fd, 2, 4 * BLOCK - 1) == b"x\0"
    assert os.stat(here / "file").st_size == 100 * BLOCK


def test_allocates_beyond_the_end_and_keeps_the_size(here: Path) -> None:
    with opened(here / "file", os.O_RDWR) as fd:
        before = os.fstat(fd).st_blocks
        fallocate(fd, KEEP_SIZE, 0, 100 * BLOCK)
        assert os.fstat(fd).st_size == 4 * BLOCK
        assert os.fstat(fd).st_blocks > before


def test_posix_fallocate(here: Path) -> None:
    with opened(here / "new", os.O_RDWR | os.O_CREAT) as fd:
        os.posix_fallocate(fd, 10, 100)
        assert os.fstat(fd).st_size == 110


def test_punches_holes(here: Path) -> None:
    with opened(here / "file", os.O_RDWR) as fd:
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, BLOCK, BLOCK)
        assert os.pread(fd, 4 * BLOCK, 0) == b"x" * BLOCK + bytes(BLOCK) + b"x" * (2 * BLOCK)
        assert extents(fd) == [(0, BLOCK), (2 * BLOCK, 4 * BLOCK)]
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 10, 10)
        assert os.pread(fd, 22, 9) == b"x" + bytes(10) + b"x" * 11


def test_zeroes_ranges(here: Path) -> None:
    with opened(here / "file", os.O_RDWR) as fd:
        fallocate(fd, ZERO_RANGE, BLOCK, BLOCK)
        assert os.pread(fd, 4 * BLOCK, 0) == b"x" * BLOCK + bytes(BLOCK) + b"x" * (2 * BLOCK)
        fallocate(fd, ZERO_RANGE, 0, 8 * BLOCK)
        assert os.fstat(fd).st_size == 8 * BLOCK
        fallocate(fd, ZERO_RANGE | KEEP_SIZE, 0, 16 * BLOCK)
        assert os.fstat(fd).st_size == 8 * BLOCK


def test_cached_pages_are_not_read_again(here: Path) -> None:
    with opened(here / "file", os.O_RDWR) as fd, opened(here / "file", os.O_RDONLY) as reader:
        assert os.pread(reader, 1, BLOCK) == b"x"
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, BLOCK, BLOCK)
        assert os.pread(reader, 1, BLOCK) == b"\0"


def test_collapses_and_inserts(here: Path) -> None:
    with opened(here / "file", os.O_RDWR) as fd:
        os.pwrite(fd, b"head", 0)
        fallocate(fd, INSERT_RANGE, 0, BLOCK)
        assert os.fstat(fd).st_size == 5 * BLOCK
        assert os.pread(fd, 4, BLOCK) == b"head"
        assert errno_of(fallocate, fd, COLLAPSE_RANGE, 0, 10) == "EINVAL"
        fallocate(fd, COLLAPSE_RANGE, 0, BLOCK)
        assert os.pread(fd, 4, 0) == b"head"
        assert os.fstat(fd).st_size == 4 * BLOCK


@pytest.mark.parametrize("mode", [0, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE])
def test_times(here: Path, mode: int) -> None:
    with opened(here / "file", os.O_RDWR) as fd:
        assert times_changed(lambda: fallocate(fd, mode, 0, 8 * BLOCK), here / "file", here) == ["mc", ""]


@pytest.mark.parametrize("mode", [0, PUNCH_HOLE | KEEP_SIZE])
def test_clears_setuid_and_setgid_for_users(here: Path, mode: int) -> None:
    def action() -> None:
        with opened(here / "program", os.O_RDWR) as fd:
            fallocate(fd, mode, 0, 2 * BLOCK)

    assert as_user(BOB, action) is None
    assert permissions(here / "program") == 0o777


def test_errors(here: Path) -> None:
    with opened(here / "file", os.O_RDONLY) as fd:
        assert errno_of(fallocate, fd, 0, 0, 10) == "EBADF"
    with opened(here / "file", os.O_RDWR) as fd:
        assert errno_of(fallocate, fd, 0, 0, 0) == "EINVAL"
        assert errno_of(fallocate, fd, 0, -1, 10) == "EINVAL"
        assert errno_of(fallocate, fd, PUNCH_HOLE, 0, 10) == "ENOTSUP"
        assert errno_of(fallocate, fd, 0, 1 << 62, 1 << 62) == "EFBIG"
        assert os.fstat(fd).st_size == 4 * BLOCK


def test_holes_made_before_are_kept(here: Path) -> None:
    blocks = os.stat(here / "sparse").st_blocks
    assert blocks < 100
    with opened(here / "sparse", os.O_RDONLY) as fd:
        before = extents(fd)
        assert before == [(1 << 20, (1 << 20) + 3)]
    os.chmod(here / "sparse", 0o600)
    with opened(here / "sparse", os.O_RDWR) as fd:
        assert os.fstat(fd).st_blocks < 100
        assert extents(fd) == before
        os.pwrite(fd, b"x", 10 * BLOCK)
        assert extents(fd)[0] == (10 * BLOCK, 11 * BLOCK)


def test_seeking(here: Path) -> None:
    with opened(here / "sparse", os.O_RDONLY) as fd:
        end = (1 << 20) + 3
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
        assert os.lseek(fd, 0, os.SEEK_DATA) == 1 << 20
        assert os.lseek(fd, 1 << 20, os.SEEK_HOLE) == end
        assert os.lseek(fd, 1 << 20, os.SEEK_DATA) == 1 << 20
        assert os.lseek(fd, 0, os.SEEK_END) == end
        assert os.lseek(fd, 1 << 40, os.SEEK_SET) == 1 << 40
        assert errno_of(os.lseek, fd, end, os.SEEK_DATA) == "ENXIO"
        assert errno_of(os.lseek, fd, end, os.SEEK_HOLE) == "ENXIO"
        assert errno_of(os.lseek, fd, -1, os.SEEK_SET) == "EINVAL"
        assert errno_of(os.lseek, fd, 0, 9) == "EINVAL"
