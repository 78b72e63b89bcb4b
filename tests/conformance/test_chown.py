"""chown(2), lchown(2), fchown(2)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from support.layers import Dir, File, Node, Symlink
from support.union import errno_of

from conformance.system import ALICE, BOB, STAFF, as_user, opened, permissions, times_changed

#: VFS_CAP_REVISION_2 with CAP_NET_RAW permitted and effective.
NET_RAW = b"\x01\x00\x00\x02" + (1 << 13).to_bytes(4, "little") + bytes(12)

OWNED = {
    "file": File(content="x", mode=0o644, owner=(ALICE, ALICE)),
    "program": File(content="x", mode=0o6755, owner=(ALICE, ALICE)),
    "locking": File(content="x", mode=0o2644, owner=(ALICE, ALICE)),
    "dir": Dir(mode=0o2755, owner=(ALICE, ALICE)),
    "link": Symlink(target="file", owner=(ALICE, ALICE)),
    "fifo": Node(kind=stat.S_IFIFO, owner=(ALICE, ALICE)),
    "capable": File(content="x", mode=0o755, xattrs={"security.capability": NET_RAW}),
}


def owner(path: Path) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_uid, status.st_gid


@pytest.mark.tree(OWNED)
@pytest.mark.parametrize("name", ["file", "dir", "fifo"])
def test_sets_owner_and_group(here: Path, name: str) -> None:
    os.chown(here / name, BOB, STAFF)
    assert owner(here / name) == (BOB, STAFF)


@pytest.mark.tree(OWNED)
def test_minus_one_keeps(here: Path) -> None:
    os.chown(here / "file", -1, STAFF)
    assert owner(here / "file") == (ALICE, STAFF)
    os.chown(here / "file", BOB, -1)
    assert owner(here / "file") == (BOB, STAFF)


@pytest.mark.tree(OWNED)
@pytest.mark.parametrize("name", ["file", "dir", "link"])
def test_changes_ctime_alone(here: Path, name: str) -> None:
    def action() -> None:
        os.chown(here / name, BOB, BOB, follow_symlinks=False)

    assert times_changed(action, here / name, here) == ["c", ""]


@pytest.mark.tree(OWNED)
def test_follows_symlinks_unless_told_otherwise(here: Path) -> None:
    os.chown(here / "link", BOB, BOB)
    assert (owner(here / "link"), owner(here / "file")) == ((ALICE, ALICE), (BOB, BOB))
    os.chown(here / "link", BOB, STAFF, follow_symlinks=False)
    assert (owner(here / "link"), owner(here / "file")) == ((BOB, STAFF), (BOB, BOB))


@pytest.mark.tree(OWNED)
def test_large_ids(here: Path) -> None:
    os.chown(here / "file", 4_000_000_000, 3_000_000_000)
    assert owner(here / "file") == (4_000_000_000, 3_000_000_000)


@pytest.mark.tree(OWNED)
def test_through_descriptors(here: Path) -> None:
    with opened(here / "file", os.O_RDONLY) as fd:
        os.fchown(fd, BOB, STAFF)
        os.unlink(here / "file")
        os.fchown(fd, ALICE, -1)
        status = os.fstat(fd)
        assert (status.st_uid, status.st_gid) == (ALICE, STAFF)


@pytest.mark.tree(OWNED)
def test_users_may_not_give_files_away(here: Path) -> None:
    assert as_user(ALICE, os.chown, here / "file", BOB, -1) == "EPERM"
    assert as_user(BOB, os.chown, here / "file", BOB, -1) == "EPERM"
    assert as_user(ALICE, os.chown, here / "file", ALICE, -1) is None


@pytest.mark.tree(OWNED)
def test_users_may_give_their_files_to_their_groups(here: Path) -> None:
    assert as_user(ALICE, os.chown, here / "file", -1, STAFF) == "EPERM"
    assert as_user(ALICE, os.chown, here / "file", -1, STAFF, groups=(STAFF,)) is None
    assert owner(here / "file") == (ALICE, STAFF)
    assert as_user(BOB, os.chown, here / "file", -1, BOB, groups=(STAFF,)) == "EPERM"


@pytest.mark.tree(OWNED)
def test_clears_setuid_and_setgid_of_programs_even_for_root(here: Path) -> None:
    os.chown(here / "program", BOB, BOB)
    assert permissions(here / "program") == 0o755


@pytest.mark.tree(OWNED)
def test_clears_setuid_and_setgid_for_the_owner(here: Path) -> None:
    assert as_user(ALICE, os.chown, here / "program", -1, STAFF, groups=(STAFF,)) is None
    assert permissions(here / "program") == 0o755


@pytest.mark.tree(OWNED)
def test_clears_them_even_when_nothing_changes_hands(here: Path) -> None:
    os.chown(here / "program", ALICE, ALICE)
    assert permissions(here / "program") == 0o755


@pytest.mark.tree(OWNED)
def test_clears_them_even_when_both_ids_are_minus_one(here: Path) -> None:
    os.chown(here / "program", -1, -1)
    assert permissions(here / "program") == 0o755


@pytest.mark.tree(OWNED)
def test_keeps_setgid_without_group_execute_for_root(here: Path) -> None:
    os.chown(here / "locking", BOB, BOB)
    assert permissions(here / "locking") == 0o2644


@pytest.mark.tree(OWNED)
def test_keeps_setgid_of_directories(here: Path) -> None:
    os.chown(here / "dir", BOB, BOB)
    assert permissions(here / "dir") == 0o2755


@pytest.mark.tree(OWNED)
def test_clears_file_capabilities(here: Path) -> None:
    assert os.getxattr(here / "capable", "security.capability") == NET_RAW
    os.chown(here / "capable", BOB, -1)
    assert errno_of(os.getxattr, here / "capable", "security.capability") == "ENODATA"


def test_errors(here: Path) -> None:
    assert errno_of(os.chown, here / "nothing", 1, 1) == "ENOENT"
    assert errno_of(os.chown, here / "dangling", 1, 1) == "ENOENT"
    assert errno_of(os.chown, here / "file/below", 1, 1) == "ENOTDIR"
    os.symlink("loop", here / "loop")
    assert errno_of(os.chown, here / "loop", 1, 1) == "ELOOP"
    os.chown(here / "loop", 1, 1, follow_symlinks=False)
    assert owner(here / "loop") == (1, 1)
