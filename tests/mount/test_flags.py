"""Flags of files, as chattr(1) and lsattr(1) have them (ioctl_iflags(2))."""

from __future__ import annotations

import array
import errno
import fcntl
import os

import pytest
from support.union import errno_of

pytestmark = [pytest.mark.root, pytest.mark.fastpath]

GET = 0x80086601  # FS_IOC_GETFLAGS
SET = 0x40086602  # FS_IOC_SETFLAGS
NODUMP = 0x40  # FS_NODUMP_FL
IMMUTABLE = 0x10  # FS_IMMUTABLE_FL


def flags(path, new=None):
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        value = array.array("i", [new or 0])
        fcntl.ioctl(fd, GET if new is None else SET, value)
        return value[0]
    finally:
        os.close(fd)


@pytest.mark.parametrize("options", [(), ("passthrough=off",)])
def test_flags_are_kept(make_union, options):
    union = make_union({"f": "lower", "d": {"g": "x"}}, upper={"u": "upper"}, options=options)
    for name in ("f", "d", "u"):
        path = union.root / name
        before = flags(path)
        assert not before & NODUMP
        flags(path, before | NODUMP)
        assert flags(path) == before | NODUMP
        assert flags(union.upper / name) & NODUMP
    assert (union.root / "f").read_text() == "lower"
    assert not flags(union.lowers[0] / "f") & NODUMP
    union.remount()
    assert flags(union.root / "f") & NODUMP


def test_what_is_immutable_is_not_written(make_union):
    union = make_union({"f": "lower"})
    path = union.root / "f"
    flags(path, flags(path) | IMMUTABLE)
    try:
        assert errno_of(path.write_text, "x") == "EPERM"
        assert errno_of(os.unlink, path) == "EPERM"
    finally:
        flags(path, flags(path) & ~IMMUTABLE)
    path.write_text("x")


def test_a_read_only_union_refuses(make_union):
    union = make_union({"f": "lower"}, writable=False)
    assert errno_of(flags, union.root / "f", NODUMP) == "EROFS"


def test_other_requests_are_for_other_files(make_union):
    union = make_union({"f": "lower"})
    with open(union.root / "f") as file, pytest.raises(OSError) as refused:
        fcntl.ioctl(file, 0x5401, bytes(64))  # TCGETS
    assert refused.value.errno == errno.ENOTTY
