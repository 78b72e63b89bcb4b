"""truncate(2), ftruncate(2), O_TRUNC."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from support.layers import Dir, File, Node
from support.union import errno_of

from conformance.system import ALICE, BOB, as_user, opened, permissions, times_changed
from conformance.test_chown import NET_RAW

MINE = {
    "file": File(content="x" * 10_000, mode=0o644, owner=(ALICE, ALICE)),
    "shared": File(content="x" * 100, mode=0o666),
    "program": File(content="x" * 100, mode=0o6777),
    "locking": File(content="x" * 100, mode=0o2666),
    "capable": File(content="x" * 100, mode=0o777, xattrs={"security.capability": NET_RAW}),
    "readonly": File(content="x" * 100, mode=0o444, owner=(ALICE, ALICE)),
    "fifo": Node(kind=stat.S_IFIFO),
    "dir": Dir(),
}


@pytest.mark.parametrize("size", [0, 1, 7, 16, 17, 4096, 1_000_000])
def test_cuts_and_extends_with_zeros(here: Path, size: int) -> None:
    content = b"content of file\n"
    os.truncate(here / "file", size)
    assert os.stat(here / "file").st_size == size
    assert (here / "file").read_bytes() == content[:size] + bytes(max(size - len(content), 0))


def test_what_was_cut_off_does_not_come_back(here: Path) -> None:
    os.truncate(here / "file", 3)
    os.truncate(here / "file", 16)
    assert (here / "file").read_bytes() == b"con" + bytes(13)


@pytest.mark.parametrize("size", [0, 5, 16, 100])
def test_changes_mtime_and_ctime(here: Path, size: int) -> None:
    assert times_changed(lambda: os.truncate(here / "file", size), here / "file", here) == ["mc", ""]


@pytest.mark.parametrize("size", [0, 5, 100])
def test_ftruncate_changes_mtime_and_ctime(here: Path, size: int) -> None:
    with opened(here / "file", os.O_RDWR) as fd:
        assert times_changed(lambda: os.ftruncate(fd, size), here / "file", here) == ["mc", ""]


def test_opening_with_truncation_changes_mtime_and_ctime(here: Path) -> None:
    def action() -> None:
        os.close(os.open(here / "file", os.O_WRONLY | os.O_TRUNC))

    assert times_changed(action, here / "file", here) == ["mc", ""]
    assert os.stat(here / "file").st_size == 0
    assert times_changed(action, here / "file", here) == ["mc", ""]


def test_the_position_of_descriptors_stays(here: Path) -> None:
    with opened(here / "file", os.O_RDWR) as fd:
        os.lseek(fd, 10, os.SEEK_SET)
        os.truncate(here / "file", 4)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 10
        assert os.read(fd, 10) == b""
        os.write(fd, b"end")
    assert (here / "file").read_bytes() == b"cont" + bytes(6) + b"end"


def test_descriptors_opened_before_see_the_new_size(here: Path) -> None:
    with opened(here / "file", os.O_RDONLY) as fd:
        assert os.read(fd, 7) == b"content"
        os.truncate(here / "file", 9)
        assert os.fstat(fd).st_size == 9
        assert os.read(fd, 100) == b" o"


def test_removed_file_through_a_descriptor(here: Path) -> None:
    with opened(here / "file", os.O_RDWR) as fd:
        os.unlink(here / "file")
        os.ftruncate(fd, 4)
        assert os.fstat(fd).st_size == 4
        assert os.read(fd, 100) == b"cont"


@pytest.mark.tree(MINE)
def test_needs_write_permission(here: Path) -> None:
    assert as_user(BOB, os.truncate, here / "file", 1) == "EACCES"
    assert as_user(ALICE, os.truncate, here / "readonly", 1) == "EACCES"
    assert as_user(ALICE, os.truncate, here / "file", 1) is None
    assert as_user(BOB, os.truncate, here / "shared", 1) is None


@pytest.mark.tree(MINE)
def test_a_writable_descriptor_is_enough(here: Path) -> None:
    with opened(here / "file", os.O_RDWR) as fd:
        assert as_user(BOB, os.ftruncate, fd, 5) is None
    assert os.stat(here / "file").st_size == 5


@pytest.mark.tree(MINE)
@pytest.mark.parametrize("size", [0, 50, 100, 200])
def test_clears_setuid_and_setgid_for_users(here: Path, size: int) -> None:
    assert as_user(BOB, os.truncate, here / "program", size) is None
    assert permissions(here / "program") == 0o777


@pytest.mark.tree(MINE)
def test_opening_with_truncation_clears_setuid_and_setgid_for_users(here: Path) -> None:
    assert isinstance(as_user(BOB, os.open, here / "program", os.O_WRONLY | os.O_TRUNC), int)
    assert permissions(here / "program") == 0o777


@pytest.mark.tree(MINE)
def test_keeps_setuid_and_setgid_for_root(here: Path) -> None:
    os.truncate(here / "program", 50)
    assert permissions(here / "program") == 0o6777


@pytest.mark.tree(MINE)
def test_clears_file_capabilities_even_for_root(here: Path) -> None:
    os.truncate(here / "capable", 50)
    assert errno_of(os.getxattr, here / "capable", "security.capability") == "ENODATA"


@pytest.mark.tree(MINE)
def test_opening_with_truncation_clears_file_capabilities(here: Path) -> None:
    with opened(here / "capable", os.O_WRONLY | os.O_TRUNC):
        assert errno_of(os.getxattr, here / "capable", "security.capability") == "ENODATA"


@pytest.mark.tree(MINE)
def test_errors(here: Path) -> None:
    assert errno_of(os.truncate, here / "dir", 0) == "EISDIR"
    assert errno_of(os.truncate, here / "fifo", 0) == "EINVAL"
    assert errno_of(os.truncate, here / "nothing", 0) == "ENOENT"
    assert errno_of(os.truncate, here / "file/below", 0) == "ENOTDIR"
    assert errno_of(os.truncate, here / "file", -1) == "EINVAL"
    with opened(here / "file", os.O_RDONLY) as fd:
        assert errno_of(os.ftruncate, fd, 1) == "EINVAL"
        assert os.fstat(fd).st_size == 10_000


def test_sizes_beyond_what_the_disk_can_hold_are_refused(here: Path) -> None:
    assert errno_of(os.truncate, here / "file", (1 << 63) - 1) == "EFBIG"
    assert (here / "file").read_text() == "content of file\n"


def test_huge_sparse_size(here: Path) -> None:
    size = 8 << 40
    os.truncate(here / "file", size)
    status = os.stat(here / "file")
    assert (status.st_size, status.st_blocks < 100) == (size, True)
    with opened(here / "file", os.O_RDWR) as fd:
        assert os.pread(fd, 10, size - 5) == bytes(5)
        os.pwrite(fd, b"end", size - 3)
        assert os.pread(fd, 10, size - 5) == b"\0\0end"
        assert os.pread(fd, 7, 0) == b"content"
    os.truncate(here / "file", 0)
