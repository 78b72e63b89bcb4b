"""unlink(2)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from support.layers import Dir, File, HardLink, Node, Symlink
from support.union import errno_of, tick

from conformance.system import ALICE, BOB, as_user, opened, times_changed

KINDS = {
    "file": File(content="x"),
    "twin": HardLink("file"),
    "fifo": Node(kind=stat.S_IFIFO),
    "device": Node(kind=stat.S_IFBLK, device=(7, 200)),
    "socket": Node(kind=stat.S_IFSOCK),
    "symlink": Symlink(target="dir"),
    "dir": Dir(names={"inner": "x"}),
}
STICKY = {
    "sticky": Dir(
        mode=0o1777,
        names={"alice": File(owner=(ALICE, ALICE)), "bob": File(owner=(BOB, BOB)), "root": File()},
    ),
    "hers": Dir(mode=0o1777, owner=(ALICE, ALICE), names={"bob": File(owner=(BOB, BOB)), "root": File()}),
    "open": Dir(mode=0o777, names={"root": File(mode=0o600)}),
    "closed": Dir(mode=0o755, names={"alice": File(owner=(ALICE, ALICE), mode=0o666)}),
}


@pytest.mark.tree(KINDS)
@pytest.mark.parametrize("name", ["file", "fifo", "device", "socket", "symlink"])
def test_removes_the_name(here: Path, name: str) -> None:
    os.unlink(here / name)
    assert errno_of(os.lstat, here / name) == "ENOENT"
    assert name not in os.listdir(here)
    assert errno_of(os.unlink, here / name) == "ENOENT"
    assert (here / "dir/inner").read_text() == "x"


@pytest.mark.tree(KINDS)
@pytest.mark.parametrize("name", ["fifo", "device", "socket", "symlink"])
def test_changes_mtime_and_ctime_of_the_directory(here: Path, name: str) -> None:
    assert times_changed(lambda: os.unlink(here / name), here, here / "dir") == ["mc", ""]


@pytest.mark.tree(KINDS)
def test_changes_ctime_of_a_file_that_has_another_name(here: Path) -> None:
    assert times_changed(lambda: os.unlink(here / "file"), here / "twin", here) == ["c", "mc"]
    assert os.stat(here / "twin").st_nlink == 1


def test_open_files_live_on(here: Path) -> None:
    with opened(here / "file", os.O_RDWR) as fd, opened(here / "file", os.O_RDONLY) as reader:
        ino = os.fstat(fd).st_ino
        os.unlink(here / "file")
        assert os.read(reader, 7) == b"content"
        os.pwrite(fd, b"CONTENT", 0)
        assert os.pread(reader, 7, 0) == b"CONTENT"
        status = os.fstat(fd)
        assert (status.st_nlink, status.st_ino, status.st_size) == (0, ino, 16)


def test_a_new_file_of_the_same_name_is_another(here: Path) -> None:
    with opened(here / "file", os.O_RDONLY) as fd:
        os.unlink(here / "file")
        (here / "file").write_text("new")
        assert os.fstat(fd).st_ino != os.stat(here / "file").st_ino
        assert os.read(fd, 100) == b"content of file\n"
    assert (here / "file").read_text() == "new"


def test_reopening_a_removed_file_by_its_descriptor(here: Path) -> None:
    with opened(here / "file", os.O_RDONLY) as fd:
        os.unlink(here / "file")
        with opened(Path(f"/proc/self/fd/{fd}"), os.O_RDWR) as again:
            os.pwrite(again, b"CON", 0)
        assert os.pread(fd, 7, 0) == b"CONtent"


def test_changes_ctime_of_a_removed_open_file(here: Path) -> None:
    with opened(here / "file", os.O_RDONLY) as fd:
        before = os.fstat(fd)
        tick()
        os.unlink(here / "file")
        after = os.fstat(fd)
    assert before.st_ctime_ns < after.st_ctime_ns
    assert before.st_mtime_ns == after.st_mtime_ns


@pytest.mark.tree(STICKY)
def test_needs_write_permission_on_the_directory_not_on_the_file(here: Path) -> None:
    assert as_user(ALICE, os.unlink, here / "open/root") is None
    assert as_user(ALICE, os.unlink, here / "closed/alice") == "EACCES"


@pytest.mark.tree(STICKY)
def test_sticky_directories(here: Path) -> None:
    assert as_user(ALICE, os.unlink, here / "sticky/bob") == "EPERM"
    assert as_user(ALICE, os.unlink, here / "sticky/root") == "EPERM"
    assert as_user(ALICE, os.unlink, here / "sticky/alice") is None
    assert as_user(ALICE, os.unlink, here / "hers/bob") is None
    assert as_user(BOB, os.unlink, here / "hers/root") == "EPERM"
    assert sorted(os.listdir(here / "sticky")) == ["bob", "root"]


def test_errors(here: Path) -> None:
    assert errno_of(os.unlink, here / "nothing") == "ENOENT"
    assert errno_of(os.unlink, here / "dir") == "EISDIR"
    assert errno_of(os.unlink, here / "empty") == "EISDIR"
    assert errno_of(os.unlink, here / "file/below") == "ENOTDIR"
    assert errno_of(os.unlink, os.fspath(here / "file") + "/") == "ENOTDIR"
    assert errno_of(os.unlink, here / "dangling/below") == "ENOENT"


def test_all_and_then_the_directory(here: Path) -> None:
    for name in ("file", "other", "link", "dangling", "dir/inner"):
        os.unlink(here / name)
    os.rmdir(here / "dir")
    os.rmdir(here / "empty")
    assert os.listdir(here) == []
    os.rmdir(here)
    assert not os.path.lexists(here)
