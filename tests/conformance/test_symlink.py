"""symlink(2), readlink(2)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from support.layers import Dir, Symlink
from support.union import errno_of

from conformance.system import ALICE, STAFF, as_user, times_changed

SHARED = {
    "open": Dir(mode=0o777),
    "closed": Dir(mode=0o755),
    "team": Dir(mode=0o2777, owner=(0, STAFF)),
    "long": Symlink(target="x" * 4095),
    "bytes": Symlink(target=bytes(range(1, 256))),
    "up": Symlink(target="../."),
    "hop": Symlink(target="open"),
}


@pytest.mark.parametrize(
    "target", [b"x", b"/absolute", b"../..", b"y" * 59, b"y" * 60, b"y" * 4095, b"\xff\x01\n "]
)
def test_keeps_its_target(here: Path, target: bytes) -> None:
    os.symlink(target, os.fsencode(here / "new"))
    assert os.readlink(os.fsencode(here / "new")) == target
    status = os.lstat(here / "new")
    assert (status.st_mode, status.st_size, status.st_nlink) == (stat.S_IFLNK | 0o777, len(target), 1)


@pytest.mark.tree(SHARED)
@pytest.mark.parametrize("name", ["long", "bytes", "up"])
def test_targets_made_before(here: Path, name: str) -> None:
    target = os.fsencode(SHARED[name].target)
    assert os.readlink(os.fsencode(here / name)) == target
    assert os.lstat(here / name).st_size == len(target)
    os.chown(here / name, 1, 1, follow_symlinks=False)
    assert os.readlink(os.fsencode(here / name)) == target


def test_times(here: Path) -> None:
    assert times_changed(lambda: os.symlink("x", here / "new"), here, here / "dir") == ["mc", ""]


def test_following_a_symlink_made_before(here: Path) -> None:
    assert (here / "link").read_text() == "content of file\n"
    (here / "link").write_text("changed")
    assert (here / "file").read_text() == "changed"
    assert os.readlink(here / "link") == "file"


@pytest.mark.tree(SHARED)
def test_directories_by_symlink(here: Path) -> None:
    (here / "hop/new").write_text("x")
    assert (here / "open/new").read_text() == "x"
    assert os.path.samefile(here / "up", here.parent)


@pytest.mark.tree(SHARED)
def test_permissions_and_owner(here: Path) -> None:
    assert as_user(ALICE, os.symlink, "x", here / "open/new") is None
    assert as_user(ALICE, os.symlink, "x", here / "closed/new") == "EACCES"
    assert as_user(ALICE, os.symlink, "x", here / "team/new") is None
    assert (os.lstat(here / "open/new").st_uid, os.lstat(here / "open/new").st_gid) == (ALICE, ALICE)
    assert os.lstat(here / "team/new").st_gid == STAFF


def test_errors(here: Path) -> None:
    for name in ("file", "dir", "link", "dangling"):
        assert errno_of(os.symlink, "x", here / name) == "EEXIST"
    assert errno_of(os.symlink, "", here / "new") == "ENOENT"
    assert errno_of(os.symlink, "x" * 4096, here / "new") == "ENAMETOOLONG"
    assert errno_of(os.symlink, "x", here / "nothing/new") == "ENOENT"
    assert errno_of(os.symlink, "x", here / "file/new") == "ENOTDIR"
    assert errno_of(os.readlink, here / "file") == "EINVAL"
    assert errno_of(os.readlink, here / "dir") == "EINVAL"
    assert errno_of(os.readlink, here / "nothing") == "ENOENT"


def test_loops(here: Path) -> None:
    os.symlink("newer", here / "new")
    os.symlink("new", here / "newer")
    assert errno_of(os.stat, here / "new") == "ELOOP"
    assert errno_of(os.listdir, here / "new" / "below") == "ELOOP"
    os.symlink("file", here / "hop0")
    for number in range(40):
        os.symlink(f"hop{number}", here / f"hop{number + 1}")
    assert os.stat(here / "hop39").st_ino == os.stat(here / "file").st_ino
    assert errno_of(os.stat, here / "hop40") == "ELOOP"


def test_no_follow(here: Path) -> None:
    assert errno_of(os.open, here / "link", os.O_RDONLY | os.O_NOFOLLOW) == "ELOOP"
    fd = os.open(here / "link", os.O_PATH | os.O_NOFOLLOW)
    try:
        assert stat.S_ISLNK(os.fstat(fd).st_mode)
        assert os.readlink("", dir_fd=fd) == "file"
    finally:
        os.close(fd)
