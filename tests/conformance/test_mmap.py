"""mmap(2), shared and private, and msync(2)."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest
from support.layers import File
from support.union import errno_of

from conformance.system import opened, times_changed

LARGE = {
    "file": File(content=bytes(range(256)) * 64),
    "capable": File(content="x" * 100, mode=0o6755),
}


@pytest.mark.tree(LARGE)
def test_shared_changes_reach_the_file(here: Path) -> None:
    with opened(here / "file", os.O_RDWR) as fd, mmap.mmap(fd, 0) as memory:
        assert memory[255] == 255
        memory[0:4] = b"head"
        memory[8190:8196] = b"middle"
        assert os.pread(fd, 4, 0) == b"head"
        with opened(here / "file", os.O_RDONLY) as other:
            assert os.pread(other, 6, 8190) == b"middle"
        memory.flush()
    content = (here / "file").read_bytes()
    assert (content[:4], content[8190:8196], len(content)) == (b"head", b"middle", 16384)


@pytest.mark.tree(LARGE)
def test_writes_are_seen_in_shared_memory(here: Path) -> None:
    with opened(here / "file", os.O_RDWR) as fd, mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as memory:
        assert memory[0] == 0
        os.pwrite(fd, b"written", 0)
        assert memory[:7] == b"written"


@pytest.mark.tree(LARGE)
def test_a_read_only_map_made_before_a_write_sees_it(here: Path) -> None:
    with (
        opened(here / "file", os.O_RDONLY) as reader,
        mmap.mmap(reader, 0, access=mmap.ACCESS_READ) as memory,
    ):
        assert memory[:2] == b"\x00\x01"
        with opened(here / "file", os.O_RDWR) as writer:
            os.pwrite(writer, b"written", 0)
        assert memory[:7] == b"written"


@pytest.mark.tree(LARGE)
def test_two_shared_maps_are_one(here: Path) -> None:
    with (
        opened(here / "file", os.O_RDWR) as one,
        opened(here / "file", os.O_RDWR) as other,
        mmap.mmap(one, 0) as first,
        mmap.mmap(other, 0) as second,
    ):
        first[100:103] = b"abc"
        assert second[100:103] == b"abc"


@pytest.mark.tree(LARGE)
def test_private_changes_do_not_reach_the_file(here: Path) -> None:
    with opened(here / "file", os.O_RDONLY) as fd, mmap.mmap(fd, 0, access=mmap.ACCESS_COPY) as memory:
        memory[0:4] = b"head"
        assert memory[:4] == b"head"
    assert (here / "file").read_bytes()[:4] == bytes(range(4))


@pytest.mark.tree(LARGE)
def test_outlives_its_descriptor_and_its_name(here: Path) -> None:
    fd = os.open(here / "file", os.O_RDWR)
    memory = mmap.mmap(fd, 0)
    os.close(fd)
    os.unlink(here / "file")
    memory[0:4] = b"head"
    assert memory[:6] == b"head\x04\x05"
    memory.flush()
    memory.close()


@pytest.mark.tree(LARGE)
def test_extended_and_then_mapped(here: Path) -> None:
    with opened(here / "file", os.O_RDWR) as fd:
        os.ftruncate(fd, 20_000)
        with mmap.mmap(fd, 20_000) as memory:
            assert memory[16384:] == bytes(3616)
            memory[19_999] = 7
        assert os.pread(fd, 2, 19_998) == b"\x00\x07"


def test_times_of_a_shared_write(here: Path) -> None:
    with opened(here / "file", os.O_RDWR) as fd, mmap.mmap(fd, 0) as memory:

        def action() -> None:
            memory[0] = 65
            memory.flush()

        assert times_changed(action, here / "file", here)[0].replace("a", "") == "mc"


def test_errors(here: Path) -> None:
    with opened(here / "file", os.O_RDONLY) as fd:
        assert errno_of(mmap.mmap, fd, 10, access=mmap.ACCESS_WRITE) == "EACCES"
    with opened(here / "file", os.O_WRONLY) as fd:
        assert errno_of(mmap.mmap, fd, 10, access=mmap.ACCESS_READ) == "EACCES"
    with opened(here / "dir", os.O_RDONLY) as fd:
        assert errno_of(mmap.mmap, fd, 10, access=mmap.ACCESS_READ) == "ENODEV"


@pytest.mark.parametrize("flag", [mmap.MAP_SHARED, mmap.MAP_PRIVATE])
def test_programs_can_be_mapped_executable(here: Path, flag: int) -> None:
    prot = mmap.PROT_READ | mmap.PROT_EXEC
    with opened(here / "file", os.O_RDONLY) as fd, mmap.mmap(fd, 16, flags=flag, prot=prot) as memory:
        assert memory[:7] == b"content"
