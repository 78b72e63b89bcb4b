"""rename(2), renameat2(2)."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest
from support.layers import Dir, File, HardLink, Node, Symlink
from support.union import errno_of

from conformance.system import (
    ALICE,
    BOB,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    as_user,
    opened,
    renameat2,
    times_changed,
)

KINDS = {
    "file": File(content="one"),
    "other": File(content="two"),
    "twin": HardLink("file"),
    "fifo": Node(kind=stat.S_IFIFO),
    "device": Node(kind=stat.S_IFCHR, device=(1, 3)),
    "symlink": Symlink(target="other"),
    "dir": Dir(names={"inner": "x", "sub": {"deep": "y"}}),
    "empty": Dir(),
}
STICKY = {
    "sticky": Dir(mode=0o1777, names={"alice": File(owner=(ALICE, ALICE)), "bob": File(owner=(BOB, BOB))}),
    "open": Dir(
        mode=0o777, names={"file": "x", "sub": Dir(mode=0o755), "hers": Dir(mode=0o755, owner=(ALICE, ALICE))}
    ),
    "open2": Dir(mode=0o777),
    "closed": Dir(mode=0o755, names={"alice": File(owner=(ALICE, ALICE))}),
}


def make_directory(here: Path) -> Path:
    """A directory that no lower layer takes part in."""
    (here / "new").mkdir()
    (here / "new/inner").write_text("x")
    return here / "new"


@pytest.mark.tree(KINDS)
@pytest.mark.parametrize("name", ["file", "fifo", "device", "symlink"])
def test_moves_each_type(here: Path, name: str) -> None:
    before = os.lstat(here / name)
    os.rename(here / name, here / "dir/new")
    after = os.lstat(here / "dir/new")
    assert (after.st_ino, after.st_mode, after.st_rdev, after.st_nlink, after.st_mtime_ns) == (
        before.st_ino,
        before.st_mode,
        before.st_rdev,
        before.st_nlink,
        before.st_mtime_ns,
    )
    assert not os.path.lexists(here / name)
    assert name not in os.listdir(here)
    assert "new" in os.listdir(here / "dir")


@pytest.mark.tree(KINDS)
@pytest.mark.parametrize("name", ["file", "fifo", "device", "symlink"])
def test_replaces_a_file(here: Path, name: str) -> None:
    ino = os.lstat(here / name).st_ino
    os.rename(here / name, here / "other")
    assert os.lstat(here / "other").st_ino == ino
    assert sorted(os.listdir(here)) == sorted(KINDS.keys() - {name})


def test_times(here: Path) -> None:
    changed = times_changed(
        lambda: os.rename(here / "file", here / "dir/new"), here, here / "dir", here / "empty"
    )
    assert changed == ["mc", "mc", ""]


def test_times_of_the_file(here: Path) -> None:
    (here / "file").write_text("x")
    before = os.stat(here / "file")
    os.rename(here / "file", here / "new")
    after = os.stat(here / "new")
    assert before.st_ctime_ns < after.st_ctime_ns
    assert (before.st_atime_ns, before.st_mtime_ns) == (after.st_atime_ns, after.st_mtime_ns)


def test_descriptors_follow_the_file(here: Path) -> None:
    with opened(here / "file", os.O_RDWR) as fd:
        os.rename(here / "file", here / "new")
        os.pwrite(fd, b"CONTENT", 0)
        assert (here / "new").read_text() == "CONTENT of file\n"
        (here / "file").write_text("another")
        assert os.pread(fd, 7, 0) == b"CONTENT"


def test_replaced_file_lives_on_while_open(here: Path) -> None:
    with opened(here / "other", os.O_RDONLY) as fd:
        os.rename(here / "file", here / "other")
        assert os.read(fd, 100) == b"another\n"
        assert os.fstat(fd).st_nlink == 0
    assert (here / "other").read_text() == "content of file\n"


@pytest.mark.tree(KINDS)
def test_between_two_names_of_one_file_does_nothing(here: Path) -> None:
    assert times_changed(lambda: os.rename(here / "file", here / "twin"), here) == [""]
    assert os.stat(here / "file").st_ino == os.stat(here / "twin").st_ino
    assert os.stat(here / "file").st_nlink == 2


@pytest.mark.tree(KINDS)
def test_replacing_one_of_two_names(here: Path) -> None:
    os.rename(here / "other", here / "file")
    assert (here / "twin").read_text() == "one"
    assert (os.stat(here / "twin").st_nlink, os.stat(here / "file").st_nlink) == (1, 1)


@pytest.mark.tree(KINDS)
def test_moving_one_of_two_names(here: Path) -> None:
    os.rename(here / "file", here / "dir/new")
    assert os.stat(here / "dir/new").st_ino == os.stat(here / "twin").st_ino
    assert os.stat(here / "twin").st_nlink == 2


def test_to_itself(here: Path) -> None:
    assert times_changed(lambda: os.rename(here / "file", here / "file"), here, here / "file") == ["", ""]


def test_back_and_forth(here: Path) -> None:
    for _ in range(5):
        os.rename(here / "file", here / "new")
        os.rename(here / "new", here / "file")
    assert (here / "file").read_text() == "content of file\n"
    assert not (here / "new").exists()
    os.unlink(here / "file")
    assert "file" not in os.listdir(here)


def test_directories(here: Path) -> None:
    moved = make_directory(here)
    ino = os.stat(moved).st_ino
    nlink, inner_nlink = os.stat(here).st_nlink, os.stat(here / "dir").st_nlink
    os.rename(moved, here / "dir/newer")
    assert os.stat(here / "dir/newer").st_ino == ino
    assert (here / "dir/newer/inner").read_text() == "x"
    assert (os.stat(here).st_nlink, os.stat(here / "dir").st_nlink) == (nlink - 1, inner_nlink + 1)
    assert os.stat(here / "dir/newer/..").st_ino == os.stat(here / "dir").st_ino


def test_directory_over_an_empty_one(here: Path) -> None:
    moved = make_directory(here)
    ino = os.stat(moved).st_ino
    os.rename(moved, here / "empty")
    assert os.stat(here / "empty").st_ino == ino
    assert os.listdir(here / "empty") == ["inner"]
    assert not moved.exists()


def test_directory_over_one_that_was_emptied(here: Path) -> None:
    moved = make_directory(here)
    assert errno_of(os.rename, moved, here / "dir") == "ENOTEMPTY"
    os.unlink(here / "dir/inner")
    os.rename(moved, here / "dir")
    assert (here / "dir/inner").read_text() == "x"


@pytest.mark.tree(KINDS)
def test_whole_directory_made_before(here: Path) -> None:
    shutil.move(os.fspath(here / "dir"), os.fspath(here / "new"))
    assert (here / "new/sub/deep").read_text() == "y"
    assert sorted(os.listdir(here / "new")) == ["inner", "sub"]
    assert not (here / "dir").exists()
    assert os.stat(here / "new").st_nlink == 3


@pytest.mark.tree(KINDS)
def test_directory_made_before_in_one_step(here: Path) -> None:
    os.rename(here / "dir", here / "new")
    assert (here / "new/sub/deep").read_text() == "y"


def test_where_something_was_removed(here: Path) -> None:
    shutil.rmtree(here / "dir")
    os.rename(make_directory(here), here / "dir")
    assert os.listdir(here / "dir") == ["inner"]
    assert (here / "dir/inner").read_text() == "x"
    os.unlink(here / "other")
    os.rename(here / "file", here / "other")
    assert (here / "other").read_text() == "content of file\n"


def test_no_replace(here: Path) -> None:
    assert errno_of(renameat2, here / "file", here / "other", RENAME_NOREPLACE) == "EEXIST"
    assert errno_of(renameat2, here / "file", here / "dangling", RENAME_NOREPLACE) == "EEXIST"
    assert errno_of(renameat2, here / "file", here / "file", RENAME_NOREPLACE) == "EEXIST"
    renameat2(here / "file", here / "new", RENAME_NOREPLACE)
    assert (here / "new").read_text() == "content of file\n"
    os.unlink(here / "other")
    renameat2(here / "new", here / "other", RENAME_NOREPLACE)
    assert (here / "other").read_text() == "content of file\n"


def test_exchange_of_files(here: Path) -> None:
    inos = os.stat(here / "file").st_ino, os.stat(here / "other").st_ino
    renameat2(here / "file", here / "other", RENAME_EXCHANGE)
    assert (os.stat(here / "other").st_ino, os.stat(here / "file").st_ino) == inos
    assert (here / "file").read_text() == "another\n"
    assert (here / "other").read_text() == "content of file\n"


def test_exchange_of_a_file_and_a_directory(here: Path) -> None:
    moved = make_directory(here)
    nlink = os.stat(here).st_nlink
    renameat2(here / "dir/inner", moved, RENAME_EXCHANGE)
    assert (here / "dir/inner/inner").read_text() == "x"
    assert moved.read_text() == "inner\n"
    assert os.stat(here).st_nlink == nlink - 1
    assert os.stat(here / "dir").st_nlink == 3


def test_exchange_times(here: Path) -> None:
    def action() -> None:
        renameat2(here / "file", here / "dir/inner", RENAME_EXCHANGE)

    assert times_changed(action, here, here / "dir") == ["mc", "mc"]


def test_exchange_needs_both(here: Path) -> None:
    assert errno_of(renameat2, here / "file", here / "new", RENAME_EXCHANGE) == "ENOENT"
    assert errno_of(renameat2, here / "file", here / "other", RENAME_EXCHANGE | RENAME_NOREPLACE) == "EINVAL"
    assert errno_of(renameat2, here / "file", here / "other", 1 << 5) == "EINVAL"


@pytest.mark.tree(STICKY)
def test_permissions(here: Path) -> None:
    assert as_user(ALICE, os.rename, here / "open/file", here / "open2/new") is None
    assert as_user(ALICE, os.rename, here / "closed/alice", here / "open/new") == "EACCES"
    assert as_user(ALICE, os.rename, here / "open2/new", here / "closed/new") == "EACCES"


@pytest.mark.tree(STICKY)
def test_sticky_directories(here: Path) -> None:
    assert as_user(ALICE, os.rename, here / "sticky/bob", here / "sticky/new") == "EPERM"
    assert as_user(ALICE, os.rename, here / "sticky/alice", here / "sticky/bob") == "EPERM"
    assert as_user(ALICE, os.rename, here / "open/file", here / "sticky/bob") == "EPERM"
    assert as_user(ALICE, os.rename, here / "sticky/alice", here / "sticky/new") is None


@pytest.mark.tree(STICKY)
def test_moving_a_directory_needs_permission_to_write_it(here: Path) -> None:
    os.mkdir(here / "open/new", 0o755)
    os.mkdir(here / "open/newer", 0o755)
    os.chown(here / "open/newer", ALICE, ALICE)
    assert as_user(ALICE, os.rename, here / "open/new", here / "open2/new") == "EACCES"
    assert as_user(ALICE, os.rename, here / "open/newer", here / "open2/newer") is None
    assert as_user(ALICE, os.rename, here / "open/new", here / "open/renamed") is None


def test_errors(here: Path) -> None:
    assert errno_of(os.rename, here / "nothing", here / "new") == "ENOENT"
    assert errno_of(os.rename, here / "file", here / "nothing/new") == "ENOENT"
    assert errno_of(os.rename, here / "file", here / "other/new") == "ENOTDIR"
    assert errno_of(os.rename, here / "file", here / "empty") == "EISDIR"
    assert errno_of(os.rename, here / "file", here / "dir") == "EISDIR"
    assert errno_of(os.rename, here / "empty", here / "file") == "ENOTDIR"
    assert errno_of(os.rename, here / "dir", here / "dir/new") == "EINVAL"
    assert errno_of(os.rename, here / "dir/inner", here / "dir") == "ENOTEMPTY"
    assert errno_of(os.rename, here / "file", "/dev/shm/conformance-new") == "EXDEV"
    assert errno_of(os.rename, os.fspath(here / "dir") + "/.", here / "new") == "EBUSY"
    assert sorted(os.listdir(here)) == ["dangling", "dir", "empty", "file", "link", "other"]
