"""mkdir(2)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from support.layers import Dir
from support.union import errno_of

from conformance.system import ALICE, STAFF, as_user, permissions, times_changed

SHARED = {
    "open": Dir(mode=0o777),
    "closed": Dir(mode=0o755),
    "team": Dir(mode=0o2777, owner=(0, STAFF)),
    "sticky": Dir(mode=0o1777),
}


@pytest.mark.parametrize("mode", [0o777, 0o700, 0, 0o1777])
def test_mode_less_the_umask(here: Path, mode: int) -> None:
    os.mkdir(here / "new", mode)
    assert os.stat(here / "new").st_mode == stat.S_IFDIR | mode & ~0o022


def test_umask_of_the_caller(here: Path) -> None:
    os.umask(0o177)
    os.mkdir(here / "new")
    assert permissions(here / "new") == 0o600


def test_times(here: Path) -> None:
    assert times_changed(lambda: os.mkdir(here / "new"), here, here / "dir") == ["mc", ""]
    status = os.stat(here / "new")
    assert status.st_atime_ns == status.st_mtime_ns <= status.st_ctime_ns


def test_link_counts(here: Path) -> None:
    assert (os.stat(here).st_nlink, os.stat(here / "empty").st_nlink) == (4, 2)
    os.mkdir(here / "new")
    assert (os.stat(here).st_nlink, os.stat(here / "new").st_nlink) == (5, 2)
    os.mkdir(here / "new/inner")
    os.mkdir(here / "dir/new")
    assert (os.stat(here / "new").st_nlink, os.stat(here / "dir").st_nlink) == (3, 3)
    os.rmdir(here / "new/inner")
    assert os.stat(here / "new").st_nlink == 2


@pytest.mark.parametrize("name", ["empty", "dir"])
def test_made_again_shows_nothing_of_before(here: Path, name: str) -> None:
    for inner in os.listdir(here / name):
        os.unlink(here / name / inner)
    os.rmdir(here / name)
    os.mkdir(here / name, 0o700)
    assert os.listdir(here / name) == []
    assert permissions(here / name) == 0o700
    assert not (here / name / "inner").exists()
    os.mkdir(here / name / "inner")
    assert os.listdir(here / name / "inner") == []


def test_where_a_file_was(here: Path) -> None:
    os.unlink(here / "file")
    os.mkdir(here / "file")
    (here / "file/inner").write_text("x")
    assert os.listdir(here / "file") == ["inner"]


def test_owner_is_the_caller(here: Path) -> None:
    os.chmod(here, 0o777)
    as_user(ALICE, os.mkdir, here / "new", gid=STAFF)
    status = os.stat(here / "new")
    assert (status.st_uid, status.st_gid) == (ALICE, STAFF)


@pytest.mark.tree(SHARED)
def test_setgid_directories_hand_on_group_and_bit(here: Path) -> None:
    assert as_user(ALICE, os.mkdir, here / "team/new") is None
    status = os.stat(here / "team/new")
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (ALICE, STAFF, 0o2755)


@pytest.mark.tree(SHARED)
def test_permissions(here: Path) -> None:
    assert as_user(ALICE, os.mkdir, here / "open/new") is None
    assert as_user(ALICE, os.mkdir, here / "sticky/new") is None
    assert as_user(ALICE, os.mkdir, here / "closed/new") == "EACCES"
    assert as_user(ALICE, os.mkdir, here / "closed") == "EEXIST"


def test_setgid_bit_in_the_mode_is_not_taken(here: Path) -> None:
    os.mkdir(here / "new", 0o6755)
    assert permissions(here / "new") == 0o755


def test_errors(here: Path) -> None:
    for name in ("file", "dir", "empty", "link", "dangling"):
        assert errno_of(os.mkdir, here / name) == "EEXIST"
    assert errno_of(os.mkdir, here / "nothing/new") == "ENOENT"
    assert errno_of(os.mkdir, here / "dangling/new") == "ENOENT"
    assert errno_of(os.mkdir, here / "file/new") == "ENOTDIR"
    assert errno_of(os.mkdir, os.fspath(here) + "/.") == "EEXIST"


def test_in_a_removed_directory(here: Path) -> None:
    fd = os.open(here / "empty", os.O_RDONLY)
    try:
        os.rmdir(here / "empty")
        assert errno_of(os.mkdir, "new", dir_fd=fd) == "ENOENT"
        assert os.fstat(fd).st_nlink == 0
    finally:
        os.close(fd)


def test_deep(here: Path) -> None:
    path = here / "new"
    for depth in range(40):
        os.mkdir(path)
        path = path / f"level{depth}"
    assert os.stat(here / "new").st_nlink == 3
