"""link(2), linkat(2)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from support.layers import Dir, File, HardLink, Node
from support.union import errno_of

from conformance.system import ALICE, as_user, linkat, opened, times_changed

LINKED = {
    "file": File(content="shared", mode=0o644),
    "twin": HardLink("file"),
    "dir": Dir(names={}),
    "fifo": Node(kind=stat.S_IFIFO),
    "device": Node(kind=stat.S_IFCHR, device=(1, 3)),
    "socket": Node(kind=stat.S_IFSOCK),
}
SHARED = {
    "open": Dir(mode=0o777, names={"mine": File(content="x", owner=(ALICE, ALICE))}),
    "closed": Dir(mode=0o755),
    "theirs": File(content="x", mode=0o644),
    "usable": File(content="x", mode=0o666),
}


def test_both_names_are_one_file(here: Path) -> None:
    os.link(here / "file", here / "new")
    one, other = os.stat(here / "file"), os.stat(here / "new")
    assert (one.st_ino, one.st_dev, one.st_nlink) == (other.st_ino, other.st_dev, 2)
    (here / "new").write_text("changed")
    assert (here / "file").read_text() == "changed"
    os.chmod(here / "file", 0o600)
    assert os.stat(here / "new").st_mode == stat.S_IFREG | 0o600


def test_times(here: Path) -> None:
    assert times_changed(
        lambda: os.link(here / "file", here / "dir/new"), here / "file", here, here / "dir"
    ) == [
        "c",
        "",
        "mc",
    ]


def test_inode_number_stays(here: Path) -> None:
    before = os.stat(here / "file").st_ino
    os.link(here / "file", here / "new")
    assert os.stat(here / "file").st_ino == before == os.stat(here / "new").st_ino


def test_counts_down_again(here: Path) -> None:
    os.link(here / "file", here / "new")
    os.link(here / "file", here / "dir/newer")
    assert os.stat(here / "new").st_nlink == 3
    os.unlink(here / "file")
    assert os.stat(here / "new").st_nlink == 2
    os.rename(here / "dir/newer", here / "new")  # one file: nothing happens
    assert os.stat(here / "new").st_nlink == 2
    os.unlink(here / "dir/newer")
    assert os.stat(here / "new").st_nlink == 1
    assert (here / "new").read_text() == "content of file\n"


def test_many_links(here: Path) -> None:
    for number in range(200):
        os.link(here / "file", here / f"new{number}")
    assert os.stat(here / "file").st_nlink == 201
    for number in range(200):
        os.unlink(here / f"new{number}")
    assert os.stat(here / "file").st_nlink == 1


@pytest.mark.tree(LINKED)
@pytest.mark.parametrize("changed", ["file", "twin"])
def test_links_made_before_stay_one_file(here: Path, changed: str) -> None:
    before = [os.stat(here / name).st_ino for name in ("file", "twin")]
    assert [os.stat(here / name).st_nlink for name in ("file", "twin")] == [2, 2]
    (here / changed).write_text("new content")
    assert [(here / name).read_text() for name in ("file", "twin")] == ["new content"] * 2
    assert [os.stat(here / name).st_ino for name in ("file", "twin")] == before
    assert before[0] == before[1]
    os.link(here / changed, here / "new")
    assert [os.stat(here / name).st_nlink for name in ("file", "twin", "new")] == [3, 3, 3]


@pytest.mark.tree(LINKED)
def test_removing_one_of_two_names(here: Path) -> None:
    os.unlink(here / "file")
    assert os.stat(here / "twin").st_nlink == 1
    assert (here / "twin").read_text() == "shared"


@pytest.mark.tree(LINKED)
def test_attributes_of_one_name_are_those_of_the_other(here: Path) -> None:
    os.chmod(here / "twin", 0o640)
    os.chown(here / "file", 5, 6)
    os.setxattr(here / "twin", "user.x", b"1")
    os.utime(here / "file", ns=(7, 8))
    one, other = os.stat(here / "file"), os.stat(here / "twin")
    assert one == other
    assert (one.st_mode & 0o7777, one.st_uid, one.st_gid, one.st_mtime_ns) == (0o640, 5, 6, 8)
    assert os.getxattr(here / "file", "user.x") == b"1"


@pytest.mark.tree(LINKED)
@pytest.mark.parametrize("name", ["fifo", "device", "socket"])
def test_of_special_files(here: Path, name: str) -> None:
    os.link(here / name, here / "new")
    one, other = os.stat(here / name), os.stat(here / "new")
    assert (one.st_ino, one.st_mode, one.st_rdev, one.st_nlink) == (
        other.st_ino,
        other.st_mode,
        other.st_rdev,
        2,
    )


def test_of_a_symlink_itself(here: Path) -> None:
    os.link(here / "link", here / "new", follow_symlinks=False)
    assert os.readlink(here / "new") == "file"
    assert os.lstat(here / "new").st_ino == os.lstat(here / "link").st_ino
    assert os.lstat(here / "new").st_nlink == 2


def test_of_an_open_descriptor(here: Path) -> None:
    with opened(here / "file", os.O_RDONLY) as fd:
        linkat(fd, here / "new")
        assert os.fstat(fd).st_nlink == 2
    assert os.stat(here / "new").st_ino == os.stat(here / "file").st_ino


def test_of_a_removed_file_is_refused(here: Path) -> None:
    with opened(here / "file", os.O_RDONLY) as fd:
        os.unlink(here / "file")
        assert errno_of(linkat, fd, here / "new") == "ENOENT"


def test_to_a_name_removed_before(here: Path) -> None:
    os.unlink(here / "other")
    os.link(here / "file", here / "other")
    assert (here / "other").read_text() == "content of file\n"
    assert os.stat(here / "file").st_nlink == 2


@pytest.mark.tree(SHARED)
def test_permissions(here: Path) -> None:
    assert as_user(ALICE, os.link, here / "open/mine", here / "open/new") is None
    assert as_user(ALICE, os.link, here / "open/mine", here / "closed/new") == "EACCES"
    assert as_user(ALICE, os.link, here / "theirs", here / "open/newer") in ("EPERM", None)
    assert as_user(ALICE, os.link, here / "usable", here / "open/newest") is None


def test_errors(here: Path) -> None:
    assert errno_of(os.link, here / "file", here / "other") == "EEXIST"
    assert errno_of(os.link, here / "file", here / "dir") == "EEXIST"
    assert errno_of(os.link, here / "file", here / "dangling") == "EEXIST"
    assert errno_of(os.link, here / "nothing", here / "new") == "ENOENT"
    assert errno_of(os.link, here / "file", here / "nothing/new") == "ENOENT"
    assert errno_of(os.link, here / "file", here / "other/new") == "ENOTDIR"
    assert errno_of(os.link, here / "dir", here / "new") == "EPERM"
    assert errno_of(os.link, here / "file", "/dev/shm/conformance-new") == "EXDEV"
    assert os.stat(here / "file").st_nlink == 1
