"""rmdir(2)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.layers import Dir
from support.union import errno_of

from conformance.system import ALICE, BOB, as_user, opened, times_changed
from unionfs import syscalls

SHARED = {
    "open": Dir(mode=0o777, names={"root": Dir()}),
    "closed": Dir(mode=0o755, names={"alice": Dir(owner=(ALICE, ALICE))}),
    "sticky": Dir(mode=0o1777, names={"alice": Dir(owner=(ALICE, ALICE)), "bob": Dir(owner=(BOB, BOB))}),
}


def test_removes_the_directory(here: Path) -> None:
    os.rmdir(here / "empty")
    assert errno_of(os.lstat, here / "empty") == "ENOENT"
    assert "empty" not in os.listdir(here)


def test_times(here: Path) -> None:
    assert times_changed(lambda: os.rmdir(here / "empty"), here) == ["mc"]


def test_link_count_of_the_parent(here: Path) -> None:
    assert os.stat(here).st_nlink == 4
    os.rmdir(here / "empty")
    assert os.stat(here).st_nlink == 3


def test_not_empty(here: Path) -> None:
    assert errno_of(os.rmdir, here / "dir") == "ENOTEMPTY"
    os.unlink(here / "dir/inner")
    os.rmdir(here / "dir")
    assert not os.path.lexists(here / "dir")


def test_emptied_by_a_rename(here: Path) -> None:
    os.rename(here / "dir/inner", here / "new")
    os.rmdir(here / "dir")
    assert (here / "new").read_text() == "inner\n"


def test_failure_changes_no_time(here: Path) -> None:
    assert times_changed(lambda: errno_of(os.rmdir, here / "dir"), here, here / "dir") == ["", ""]


def test_removed_directories_that_are_open(here: Path) -> None:
    with opened(here / "empty", os.O_RDONLY) as fd:
        ino = os.fstat(fd).st_ino
        os.rmdir(here / "empty")
        assert (os.fstat(fd).st_nlink, os.fstat(fd).st_ino) == (0, ino)
        assert os.listdir(fd) == []
        assert errno_of(os.open, "new", os.O_CREAT | os.O_WRONLY, dir_fd=fd) == "ENOENT"


def test_mode_of_a_removed_directory(here: Path) -> None:
    with opened(here / "empty", os.O_RDONLY) as fd:
        os.rmdir(here / "empty")
        os.fchmod(fd, 0o700)
        assert os.fstat(fd).st_mode & 0o777 == 0o700


@pytest.mark.tree(SHARED)
def test_permissions(here: Path) -> None:
    assert as_user(ALICE, os.rmdir, here / "open/root") is None
    assert as_user(ALICE, os.rmdir, here / "closed/alice") == "EACCES"
    assert as_user(ALICE, os.rmdir, here / "sticky/bob") == "EPERM"
    assert as_user(ALICE, os.rmdir, here / "sticky/alice") is None


def test_errors(here: Path) -> None:
    assert errno_of(os.rmdir, here / "nothing") == "ENOENT"
    assert errno_of(os.rmdir, here / "file") == "ENOTDIR"
    assert errno_of(os.rmdir, here / "link") == "ENOTDIR"
    assert errno_of(os.rmdir, here / "file/below") == "ENOTDIR"
    assert errno_of(os.rmdir, os.fspath(here / "empty") + "/.") == "EINVAL"
    assert errno_of(os.rmdir, os.fspath(here / "empty") + "/..") == "ENOTEMPTY"
    os.symlink("empty", here / "new")
    assert errno_of(os.rmdir, os.fspath(here / "new") + "/") == "ENOTDIR"


def test_a_mount_point_is_busy(here: Path) -> None:
    syscalls.mount(b"tmpfs", os.fsencode(here / "empty"), b"tmpfs", 0, b"")
    try:
        assert errno_of(os.rmdir, here / "empty") == "EBUSY"
    finally:
        syscalls.umount(os.fsencode(here / "empty"))
    os.rmdir(here / "empty")
