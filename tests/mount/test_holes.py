"""What goes beyond reading and writing: holes, preallocation, copies by the kernel, files without names."""

from __future__ import annotations

import os

import pytest
from support.layers import File
from support.snapshot import names_of
from support.union import errno_of, run_as

from unionfs import syscalls

pytestmark = pytest.mark.root

MIB = 1 << 20


@pytest.fixture(params=["lower", "upper", "copied up"])
def sparse(request, make_union):
    """2 MiB of nothing, 1 MiB of x, 3 MiB of nothing."""
    thing = {"f": File(content=b"x" * MIB, holes=2 * MIB)}
    union = (
        make_union({}, upper=thing, mount=False)
        if request.param == "upper"
        else make_union(thing, mount=False)
    )
    os.truncate((union.upper if request.param == "upper" else union.lowers[0]) / "f", 6 * MIB)
    union.remember_lowers()
    union.mount()
    if request.param == "copied up":
        os.chmod(union.root / "f", 0o600)
    return union.root / "f"


def test_seek_hole_and_data(sparse):
    fd = os.open(sparse, os.O_RDONLY)
    try:
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
        assert os.lseek(fd, 0, os.SEEK_DATA) == 2 * MIB
        assert os.lseek(fd, 2 * MIB, os.SEEK_HOLE) == 3 * MIB
        assert errno_of(os.lseek, fd, 3 * MIB, os.SEEK_DATA) == "ENXIO"
        assert errno_of(os.lseek, fd, 6 * MIB, os.SEEK_HOLE) == "ENXIO"
        assert os.lseek(fd, 0, os.SEEK_END) == 6 * MIB
    finally:
        os.close(fd)


def test_punching_a_hole(sparse):
    with open(sparse, "r+b") as file:
        before = os.fstat(file.fileno()).st_blocks
        mode = syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE
        syscalls.fallocate(file.fileno(), mode, 2 * MIB, MIB // 2)
        assert os.fstat(file.fileno()).st_size == 6 * MIB
        assert os.fstat(file.fileno()).st_blocks < before
        assert os.pread(file.fileno(), 2, 2 * MIB + MIB // 2 - 1) == b"\0x"


def test_preallocation(sparse):
    with open(sparse, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 8 * MIB)
        status = os.fstat(file.fileno())
        assert status.st_size == 8 * MIB
        assert status.st_blocks * 512 >= 8 * MIB
        assert os.pread(file.fileno(), 1, 2 * MIB) == b"x"
    assert sparse.stat().st_size == 8 * MIB


def test_preallocation_that_keeps_the_size(sparse):
    with open(sparse, "r+b") as file:
        syscalls.fallocate(file.fileno(), syscalls.FALLOC_FL_KEEP_SIZE, 6 * MIB, MIB)
        assert os.fstat(file.fileno()).st_size == 6 * MIB


def test_copy_file_range(sparse):
    copy = sparse.parent / "copy"
    with open(sparse, "rb") as source, open(copy, "w+b") as target:
        assert os.copy_file_range(source.fileno(), target.fileno(), MIB, 2 * MIB, 5) > 0
        assert os.pread(target.fileno(), 10, 0) == b"\0" * 5 + b"x" * 5
    assert copy.read_bytes()[:10] == b"\0" * 5 + b"x" * 5


def test_sendfile(sparse):
    with open(sparse, "rb") as source, open(sparse.parent / "copy", "w+b") as target:
        assert os.sendfile(target.fileno(), source.fileno(), 2 * MIB, 100) == 100
        assert os.pread(target.fileno(), 200, 0) == b"x" * 100


@pytest.mark.parametrize("parent", ["lower", "upper"])
def test_a_file_without_a_name(make_union, parent):
    union = make_union({"lower": {}}, upper={"upper": {}})
    fd = os.open(union.root / parent, os.O_TMPFILE | os.O_RDWR, 0o640)
    try:
        os.write(fd, b"content")
        status = os.fstat(fd)
        assert (status.st_nlink, status.st_size, status.st_mode & 0o7777) == (0, 7, 0o640)
        assert os.listdir(union.root / parent) == []
        os.link(f"/proc/self/fd/{fd}", union.root / parent / "named", src_dir_fd=fd, follow_symlinks=True)
        assert os.fstat(fd).st_nlink == 1
        assert os.fstat(fd).st_ino == (union.root / parent / "named").stat().st_ino
        os.write(fd, b" and more")
        assert (union.root / parent / "named").read_bytes() == b"content and more"
    finally:
        os.close(fd)
    union.remount()
    assert (union.root / parent / "named").read_bytes() == b"content and more"


def test_a_file_without_a_name_leaves_nothing(make_union):
    union = make_union({"d": {}})
    fd = os.open(union.root / "d", os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o640)
    assert (
        errno_of(os.link, f"/proc/self/fd/{fd}", union.root / "x", src_dir_fd=fd, follow_symlinks=True)
        == "ENOENT"
    )
    os.close(fd)
    assert names_of(union.upper) <= {"d"}
    assert os.listdir(union.work / "work") == []


def test_the_owner_of_a_file_without_a_name(make_union):
    union = make_union({"d": {}})
    os.chmod(union.root / "d", 0o777)

    def make():
        fd = os.open(union.root / "d", os.O_TMPFILE | os.O_RDWR, 0o666)
        status = os.fstat(fd)
        return status.st_uid, status.st_gid, status.st_mode & 0o7777

    assert run_as(1234, 1235, make, umask=0o027) == (1234, 1235, 0o640)
