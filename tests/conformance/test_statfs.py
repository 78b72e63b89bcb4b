"""statfs(2), and what stat(2) says of the filesystem as a whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.layers import Dir
from support.union import errno_of

from conformance.system import opened

pytestmark = pytest.mark.tree({"file": "x", "dir": Dir(names={"a": {"b": {"file": "x"}}})})


def test_names_and_blocks(here: Path) -> None:
    status = os.statvfs(here / "file")
    assert status.f_namemax == 255
    assert status.f_frsize > 0
    assert status.f_blocks >= status.f_bfree >= status.f_bavail
    assert status.f_files >= status.f_ffree
    assert status.f_bsize == os.stat(here / "file").st_blksize


def test_the_same_everywhere_in_it(here: Path) -> None:
    def kept(path: Path | int) -> tuple[int, ...]:
        status = os.statvfs(path)
        return (
            status.f_bsize,
            status.f_frsize,
            status.f_blocks,
            status.f_files,
            status.f_namemax,
            status.f_fsid,
        )

    with opened(here / "file", os.O_RDONLY) as fd:
        assert kept(here) == kept(here / "dir/a/b/file") == kept(fd)


def test_writable(here: Path) -> None:
    assert not os.statvfs(here).f_flag & os.ST_RDONLY


def test_space_is_taken_and_given_back(here: Path) -> None:
    size = 64 << 20
    with opened(here / "new", os.O_RDWR | os.O_CREAT) as fd:
        os.posix_fallocate(fd, 0, size)
        assert os.fstat(fd).st_blocks * 512 >= size


def test_one_device(here: Path) -> None:
    devices = {os.lstat(here).st_dev}
    for directory, directories, files in os.walk(here):
        devices |= {os.lstat(os.path.join(directory, name)).st_dev for name in directories + files}
    (here / "new").touch()
    os.chmod(here / "file", 0o600)
    devices |= {os.lstat(here / "new").st_dev, os.lstat(here / "file").st_dev}
    assert len(devices) == 1


def test_numbers_differ(here: Path) -> None:
    (here / "new").touch()
    numbers = [os.lstat(here).st_ino]
    for directory, directories, files in os.walk(here):
        numbers += [os.lstat(os.path.join(directory, name)).st_ino for name in directories + files]
    assert len(numbers) == len(set(numbers)) == 7


def test_errors(here: Path) -> None:
    assert errno_of(os.statvfs, here / "nothing") == "ENOENT"
    assert errno_of(os.statvfs, here / "file/below") == "ENOTDIR"
