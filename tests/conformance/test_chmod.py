"""chmod(2), fchmod(2)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from support.layers import Dir, File
from support.union import errno_of

from conformance.system import ALICE, BOB, STAFF, as_user, opened, permissions, times_changed

OWNED = {
    "file": File(content="x", mode=0o644, owner=(ALICE, STAFF)),
    "dir": Dir(mode=0o755, owner=(ALICE, STAFF)),
    "tools": Dir(mode=0o755, owner=(ALICE, ALICE)),
    "special": File(content="x", mode=0o6755, owner=(ALICE, STAFF)),
}


@pytest.mark.parametrize("mode", [0, 0o111, 0o644, 0o7777, 0o4755, 0o2755, 0o1777])
@pytest.mark.parametrize("name", ["file", "dir"])
def test_sets_all_twelve_bits(here: Path, name: str, mode: int) -> None:
    kind = stat.S_IFMT(os.stat(here / name).st_mode)
    os.chmod(here / name, mode)
    assert os.stat(here / name).st_mode == kind | mode


@pytest.mark.parametrize("name", ["file", "dir"])
def test_changes_ctime_alone(here: Path, name: str) -> None:
    assert times_changed(lambda: os.chmod(here / name, 0o700), here / name, here) == ["c", ""]


def test_changes_ctime_even_if_the_mode_stays(here: Path) -> None:
    assert times_changed(lambda: os.chmod(here / "file", 0o644), here / "file") == ["c"]


def test_follows_symlinks(here: Path) -> None:
    os.chmod(here / "link", 0o600)
    assert permissions(here / "file") == 0o600
    assert permissions(here / "link") == 0o777


def test_keeps_content_and_identity(here: Path) -> None:
    before = os.stat(here / "file")
    os.chmod(here / "file", 0o600)
    after = os.stat(here / "file")
    assert (here / "file").read_text() == "content of file\n"
    assert (after.st_ino, after.st_dev, after.st_mtime_ns, after.st_uid) == (
        before.st_ino,
        before.st_dev,
        before.st_mtime_ns,
        before.st_uid,
    )


def test_through_a_descriptor(here: Path) -> None:
    with opened(here / "file", os.O_RDONLY) as fd:
        os.fchmod(fd, 0o640)
        assert os.fstat(fd).st_mode == stat.S_IFREG | 0o640
    assert permissions(here / "file") == 0o640


def test_through_a_descriptor_of_a_removed_file(here: Path) -> None:
    with opened(here / "file", os.O_RDONLY) as fd:
        os.unlink(here / "file")
        os.fchmod(fd, 0o640)
        assert os.fstat(fd).st_mode == stat.S_IFREG | 0o640


@pytest.mark.tree(OWNED)
def test_only_the_owner_may(here: Path) -> None:
    assert as_user(BOB, os.chmod, here / "file", 0o600, gid=STAFF) == "EPERM"
    assert permissions(here / "file") == 0o644
    assert as_user(ALICE, os.chmod, here / "file", 0o600) is None
    assert permissions(here / "file") == 0o600


@pytest.mark.tree(OWNED)
def test_owner_outside_the_group_loses_setgid_on_files(here: Path) -> None:
    assert as_user(ALICE, os.chmod, here / "file", 0o6755) is None
    assert permissions(here / "file") == 0o4755


@pytest.mark.tree(OWNED)
def test_owner_in_the_group_by_supplement_keeps_setgid(here: Path) -> None:
    assert as_user(ALICE, os.chmod, here / "file", 0o6755, groups=(STAFF,)) is None
    assert permissions(here / "file") == 0o6755


@pytest.mark.tree(OWNED)
def test_owner_outside_the_group_loses_setgid_on_directories_too(here: Path) -> None:
    assert as_user(ALICE, os.chmod, here / "dir", 0o2755) is None
    assert permissions(here / "dir") == 0o755
    assert as_user(ALICE, os.chmod, here / "tools", 0o2755) is None
    assert permissions(here / "tools") == 0o2755


@pytest.mark.tree(OWNED)
def test_sticky_may_be_set_by_the_owner(here: Path) -> None:
    assert as_user(ALICE, os.chmod, here / "dir", 0o1777) is None
    assert permissions(here / "dir") == 0o1777
    assert as_user(ALICE, os.chmod, here / "file", 0o1644) is None
    assert permissions(here / "file") == 0o1644


@pytest.mark.tree(
    {"closed": Dir(names={"file": File(content="x", mode=0o666, owner=(ALICE, ALICE))}, mode=0o700)}
)
def test_needs_search_permission_on_the_way(here: Path) -> None:
    assert as_user(ALICE, os.chmod, here / "closed/file", 0o600) == "EACCES"


@pytest.mark.tree({"file": "x"})
def test_takes_effect_at_once_for_others(here: Path) -> None:
    os.chmod(here / "file", 0o600)
    assert as_user(ALICE, os.open, here / "file", os.O_RDONLY) == "EACCES"
    os.chmod(here / "file", 0o604)
    assert as_user(ALICE, (here / "file").read_text) == "x"


def test_errors(here: Path) -> None:
    assert errno_of(os.chmod, here / "nothing", 0o600) == "ENOENT"
    assert errno_of(os.chmod, here / "dangling", 0o600) == "ENOENT"
    assert errno_of(os.chmod, here / "file/below", 0o600) == "ENOTDIR"
    os.symlink("loop", here / "loop")
    assert errno_of(os.chmod, here / "loop", 0o600) == "ELOOP"
