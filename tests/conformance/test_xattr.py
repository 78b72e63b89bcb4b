"""setxattr(2), getxattr(2), listxattr(2), removexattr(2)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from support.layers import Dir, File, Node, Symlink
from support.union import errno_of

from conformance.system import ALICE, BOB, as_user, opened, times_changed

ATTRIBUTES = {
    "file": File(
        content="x",
        mode=0o644,
        owner=(ALICE, ALICE),
        xattrs={"user.one": b"1", "user.empty": b"", "trusted.two": b"\x00\xff", "security.three": b"3"},
    ),
    "dir": Dir(mode=0o755, xattrs={"user.one": b"1"}),
    "symlink": Symlink(target="file", xattrs={"trusted.link": b"l"}),
    "fifo": Node(kind=stat.S_IFIFO, xattrs={"trusted.fifo": b"f"}),
    "sticky": Dir(mode=0o1777),
}


@pytest.mark.tree(ATTRIBUTES)
def test_those_set_before(here: Path) -> None:
    assert sorted(os.listxattr(here / "file")) == ["security.three", "trusted.two", "user.empty", "user.one"]
    assert os.getxattr(here / "file", "trusted.two") == b"\x00\xff"
    assert os.getxattr(here / "file", "user.empty") == b""
    assert os.listxattr(here / "dir") == ["user.one"]
    assert os.listxattr(here / "symlink", follow_symlinks=False) == ["trusted.link"]
    assert os.listxattr(here / "fifo") == ["trusted.fifo"]


@pytest.mark.tree(ATTRIBUTES)
def test_are_kept_through_other_changes(here: Path) -> None:
    os.chmod(here / "file", 0o600)
    os.chmod(here / "dir", 0o700)
    os.chown(here / "symlink", 1, 1, follow_symlinks=False)
    os.chmod(here / "fifo", 0o600)
    with opened(here / "file", os.O_WRONLY | os.O_TRUNC):
        pass
    os.rename(here / "file", here / "dir/new")
    test = sorted(os.listxattr(here / "dir/new"))
    assert test == ["security.three", "trusted.two", "user.empty", "user.one"]
    assert os.getxattr(here / "dir", "user.one") == b"1"
    assert os.getxattr(here / "symlink", "trusted.link", follow_symlinks=False) == b"l"
    assert os.getxattr(here / "fifo", "trusted.fifo") == b"f"


@pytest.mark.tree(ATTRIBUTES)
@pytest.mark.parametrize("name", ["file", "dir"])
@pytest.mark.parametrize("attribute", ["user.new", "trusted.new", "security.new"])
def test_set_and_removed(here: Path, name: str, attribute: str) -> None:
    before = sorted(os.listxattr(here / name))
    os.setxattr(here / name, attribute, b"value")
    assert sorted(os.listxattr(here / name)) == sorted([*before, attribute])
    os.setxattr(here / name, attribute, b"v")
    assert os.getxattr(here / name, attribute) == b"v"
    os.setxattr(here / name, attribute, b"")
    assert os.getxattr(here / name, attribute) == b""
    os.removexattr(here / name, attribute)
    assert sorted(os.listxattr(here / name)) == before
    assert errno_of(os.getxattr, here / name, attribute) == "ENODATA"
    assert errno_of(os.removexattr, here / name, attribute) == "ENODATA"


@pytest.mark.tree(ATTRIBUTES)
def test_removing_those_set_before(here: Path) -> None:
    os.removexattr(here / "file", "user.one")
    os.removexattr(here / "file", "trusted.two")
    assert sorted(os.listxattr(here / "file")) == ["security.three", "user.empty"]


@pytest.mark.tree(ATTRIBUTES)
def test_flags(here: Path) -> None:
    assert errno_of(os.setxattr, here / "file", "user.one", b"2", os.XATTR_CREATE) == "EEXIST"
    assert errno_of(os.setxattr, here / "file", "user.new", b"2", os.XATTR_REPLACE) == "ENODATA"
    os.setxattr(here / "file", "user.one", b"2", os.XATTR_REPLACE)
    os.setxattr(here / "file", "user.new", b"3", os.XATTR_CREATE)
    assert os.getxattr(here / "file", "user.one") == b"2"
    assert os.getxattr(here / "file", "user.new") == b"3"
    assert errno_of(os.setxattr, here / "file", "user.one", b"2", 4) == "EINVAL"


@pytest.mark.tree(ATTRIBUTES)
@pytest.mark.parametrize("name", ["file", "dir"])
def test_times(here: Path, name: str) -> None:
    assert times_changed(lambda: os.setxattr(here / name, "user.new", b"1"), here / name, here) == ["c", ""]
    assert times_changed(lambda: os.removexattr(here / name, "user.new"), here / name, here) == ["c", ""]
    assert times_changed(lambda: os.getxattr(here / name, "user.one"), here / name) == [""]


@pytest.mark.tree(ATTRIBUTES)
def test_by_descriptor(here: Path) -> None:
    with opened(here / "file", os.O_RDONLY) as fd:
        os.setxattr(fd, "user.new", b"1")
        assert os.getxattr(here / "file", "user.new") == b"1"
        os.unlink(here / "file")
        os.setxattr(fd, "user.new", b"2")
        assert os.getxattr(fd, "user.new") == b"2"
        os.removexattr(fd, "user.one")
        assert sorted(os.listxattr(fd)) == ["security.three", "trusted.two", "user.empty", "user.new"]


@pytest.mark.tree(ATTRIBUTES)
def test_kinds_of_files(here: Path) -> None:
    assert errno_of(os.setxattr, here / "fifo", "user.x", b"1") == "EPERM"
    assert errno_of(os.getxattr, here / "fifo", "user.x") == "ENODATA"
    assert errno_of(os.setxattr, here / "symlink", "user.x", b"1", follow_symlinks=False) == "EPERM"
    os.setxattr(here / "fifo", "trusted.x", b"1")
    os.setxattr(here / "symlink", "trusted.x", b"1", follow_symlinks=False)
    assert os.getxattr(here / "symlink", "trusted.x", follow_symlinks=False) == b"1"
    assert errno_of(os.getxattr, here / "file", "trusted.x") == "ENODATA"


@pytest.mark.tree(ATTRIBUTES)
def test_permissions(here: Path) -> None:
    assert as_user(ALICE, os.setxattr, here / "file", "user.x", b"1") is None
    assert as_user(BOB, os.setxattr, here / "file", "user.x", b"1") == "EACCES"
    assert as_user(BOB, os.getxattr, here / "file", "user.x") == b"1"
    os.chmod(here / "file", 0o600)
    assert as_user(BOB, os.getxattr, here / "file", "user.x") == "EACCES"
    assert as_user(ALICE, os.setxattr, here / "file", "trusted.x", b"1") == "EPERM"
    assert as_user(ALICE, os.getxattr, here / "file", "trusted.two") == "ENODATA"
    assert as_user(ALICE, os.setxattr, here / "file", "security.x", b"1") == "EPERM"
    assert as_user(BOB, os.setxattr, here / "sticky", "user.x", b"1") == "EPERM"


@pytest.mark.tree(ATTRIBUTES)
def test_trusted_ones_are_listed_for_root_alone(here: Path) -> None:
    assert as_user(ALICE, lambda: sorted(os.listxattr(here / "file"))) == [
        "security.three",
        "user.empty",
        "user.one",
    ]


def test_limits(here: Path) -> None:
    assert errno_of(os.setxattr, here / "file", "user." + "n" * 251, b"1") == "ERANGE"
    os.setxattr(here / "file", "user." + "n" * 250, b"1")
    assert os.getxattr(here / "file", "user." + "n" * 250) == b"1"
    assert errno_of(os.setxattr, here / "file", "user.", b"1") == "EINVAL"
    assert errno_of(os.setxattr, here / "file", "other.x", b"1") == "ENOTSUP"
    assert errno_of(os.setxattr, here / "file", "plain", b"1") == "ENOTSUP"
    assert errno_of(os.getxattr, here / "file", "other.x") == "ENOTSUP"
    assert errno_of(os.setxattr, here / "file", "user.large", b"x" * 65537) == "E2BIG"
    os.setxattr(here / "file", "user.large", b"x" * 3000)
    assert len(os.getxattr(here / "file", "user.large")) == 3000


def test_more_than_fits_leaves_the_old_value(here: Path) -> None:
    os.setxattr(here / "file", "user.x", b"old")
    assert errno_of(os.setxattr, here / "file", "user.x", b"x" * 65536) == "ENOSPC"
    assert os.getxattr(here / "file", "user.x") == b"old"


def test_errors(here: Path) -> None:
    assert errno_of(os.getxattr, here / "nothing", "user.x") == "ENOENT"
    assert errno_of(os.setxattr, here / "dangling", "user.x", b"") == "ENOENT"
    assert errno_of(os.listxattr, here / "file/below") == "ENOTDIR"
