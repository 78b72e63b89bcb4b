"""POSIX access control lists, in the form that the kernel keeps them in."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from support.layers import Dir, File
from support.union import errno_of

from conformance.system import ALICE, BOB, STAFF, as_user, create, permissions, times_changed

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
NOBODY = 0xFFFFFFFF
CAROL = 1003


def acl(*entries: tuple[int, int, int]) -> bytes:
    """The value of an ACL attribute: (tag, permissions, id) each."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


FOR_BOB = acl(
    (USER_OBJ, 6, NOBODY), (USER, 6, BOB), (GROUP_OBJ, 0, NOBODY), (MASK, 6, NOBODY), (OTHER, 0, NOBODY)
)
FOR_STAFF = acl(
    (USER_OBJ, 6, NOBODY), (GROUP_OBJ, 0, NOBODY), (GROUP, 4, STAFF), (MASK, 4, NOBODY), (OTHER, 0, NOBODY)
)
INHERITED = acl(
    (USER_OBJ, 7, NOBODY), (USER, 7, BOB), (GROUP_OBJ, 5, NOBODY), (MASK, 7, NOBODY), (OTHER, 0, NOBODY)
)
SHARED = {
    "file": File(content="x", mode=0o660, owner=(ALICE, ALICE), xattrs={ACCESS: FOR_BOB}),
    "staff": File(content="x", mode=0o640, owner=(ALICE, ALICE), xattrs={ACCESS: FOR_STAFF}),
    "plain": File(content="x", mode=0o600, owner=(ALICE, ALICE)),
    "dir": Dir(mode=0o777, xattrs={DEFAULT: INHERITED}),
}


@pytest.mark.tree(SHARED)
def test_named_users(here: Path) -> None:
    assert isinstance(as_user(BOB, os.open, here / "file", os.O_RDWR), int)
    assert as_user(CAROL, os.open, here / "file", os.O_RDONLY) == "EACCES"
    assert as_user(BOB, os.open, here / "plain", os.O_RDONLY) == "EACCES"


@pytest.mark.tree(SHARED)
def test_named_groups(here: Path) -> None:
    assert isinstance(as_user(BOB, os.open, here / "staff", os.O_RDONLY, groups=(STAFF,)), int)
    assert as_user(BOB, os.open, here / "staff", os.O_WRONLY, groups=(STAFF,)) == "EACCES"
    assert as_user(BOB, os.open, here / "staff", os.O_RDONLY) == "EACCES"


@pytest.mark.tree(SHARED)
def test_are_kept_through_changes(here: Path) -> None:
    with open(here / "file", "a") as file:
        file.write("more")
    os.rename(here / "file", here / "new")
    assert os.getxattr(here / "new", ACCESS) == FOR_BOB
    assert isinstance(as_user(BOB, os.open, here / "new", os.O_RDWR), int)


@pytest.mark.tree(SHARED)
def test_chmod_sets_the_mask(here: Path) -> None:
    os.chmod(here / "file", 0o640)
    wanted = (
        (USER_OBJ, 6, NOBODY),
        (USER, 6, BOB),
        (GROUP_OBJ, 0, NOBODY),
        (MASK, 4, NOBODY),
        (OTHER, 0, NOBODY),
    )
    assert os.getxattr(here / "file", ACCESS) == acl(*wanted)
    assert as_user(BOB, os.open, here / "file", os.O_WRONLY) == "EACCES"
    assert isinstance(as_user(BOB, os.open, here / "file", os.O_RDONLY), int)


@pytest.mark.tree(SHARED)
def test_setting_one_sets_the_mode(here: Path) -> None:
    os.setxattr(here / "plain", ACCESS, FOR_BOB)
    assert permissions(here / "plain") == 0o660
    assert "system.posix_acl_access" in os.listxattr(here / "plain")
    assert isinstance(as_user(BOB, os.open, here / "plain", os.O_RDWR), int)


@pytest.mark.tree(SHARED)
def test_one_that_says_no_more_than_the_mode_is_the_mode(here: Path) -> None:
    os.setxattr(
        here / "plain", ACCESS, acl((USER_OBJ, 7, NOBODY), (GROUP_OBJ, 5, NOBODY), (OTHER, 4, NOBODY))
    )
    assert permissions(here / "plain") == 0o754
    assert os.listxattr(here / "plain") == []
    assert errno_of(os.getxattr, here / "plain", ACCESS) == "ENODATA"


@pytest.mark.tree(SHARED)
def test_removing_one(here: Path) -> None:
    os.removexattr(here / "file", ACCESS)
    assert as_user(BOB, os.open, here / "file", os.O_RDONLY) == "EACCES"
    assert os.listxattr(here / "file") == []
    os.removexattr(here / "dir", DEFAULT)
    create(here / "dir/new", 0o666)
    assert permissions(here / "dir/new") == 0o644


@pytest.mark.tree(SHARED)
def test_only_the_owner_sets_one(here: Path) -> None:
    assert as_user(BOB, os.setxattr, here / "file", ACCESS, FOR_STAFF) == "EPERM"
    assert as_user(ALICE, os.setxattr, here / "file", ACCESS, FOR_STAFF) is None
    assert as_user(BOB, os.removexattr, here / "file", ACCESS) == "EPERM"


@pytest.mark.tree(SHARED)
def test_setting_one_changes_ctime(here: Path) -> None:
    assert times_changed(lambda: os.setxattr(here / "plain", ACCESS, FOR_BOB), here / "plain") == ["c"]


@pytest.mark.tree(SHARED)
def test_owner_outside_the_group_loses_setgid(here: Path) -> None:
    os.chown(here / "plain", ALICE, STAFF)
    os.chmod(here / "plain", 0o2770)
    assert as_user(ALICE, os.setxattr, here / "plain", ACCESS, FOR_BOB, gid=ALICE) is None
    assert permissions(here / "plain") == 0o660


@pytest.mark.tree(SHARED)
def test_default_ones_go_to_new_files_whatever_the_umask(here: Path) -> None:
    os.umask(0o077)
    create(here / "dir/new", 0o666)
    wanted = (
        (USER_OBJ, 6, NOBODY),
        (USER, 7, BOB),
        (GROUP_OBJ, 5, NOBODY),
        (MASK, 6, NOBODY),
        (OTHER, 0, NOBODY),
    )
    assert os.getxattr(here / "dir/new", ACCESS) == acl(*wanted)
    assert permissions(here / "dir/new") == 0o660
    assert isinstance(as_user(BOB, os.open, here / "dir/new", os.O_RDWR), int)


@pytest.mark.tree(SHARED)
@pytest.mark.parametrize("fresh", [False, True])
def test_default_ones_go_on_in_new_directories(here: Path, fresh: bool) -> None:
    name = "new"
    if fresh:  # where something was removed
        os.mkdir(here / "dir/new")
        os.rmdir(here / "dir/new")
    os.mkdir(here / "dir" / name, 0o777)
    assert os.getxattr(here / "dir" / name, DEFAULT) == INHERITED
    assert permissions(here / "dir" / name) == 0o770
    os.mkfifo(here / "dir" / name / "fifo", 0o666)
    assert permissions(here / "dir" / name / "fifo") == 0o660
    assert ACCESS in os.listxattr(here / "dir" / name / "fifo")


@pytest.mark.tree(SHARED)
def test_default_ones_go_to_unnamed_files(here: Path) -> None:
    fd = os.open(here / "dir", os.O_TMPFILE | os.O_RDWR, 0o666)
    try:
        assert os.fstat(fd).st_mode & 0o777 == 0o660
        assert ACCESS in os.listxattr(fd)
    finally:
        os.close(fd)


@pytest.mark.tree(SHARED)
def test_a_default_one_of_the_mode_alone(here: Path) -> None:
    plain = acl((USER_OBJ, 7, NOBODY), (GROUP_OBJ, 7, NOBODY), (OTHER, 5, NOBODY))
    os.setxattr(here / "dir", DEFAULT, plain)
    os.umask(0o077)
    create(here / "dir/new", 0o666)
    assert permissions(here / "dir/new") == 0o664
    assert os.listxattr(here / "dir/new") == []


@pytest.mark.tree(SHARED)
def test_errors(here: Path) -> None:
    assert errno_of(os.setxattr, here / "file", ACCESS, b"nonsense") == "ENOTSUP"
    assert errno_of(os.setxattr, here / "file", ACCESS, acl((USER_OBJ, 6, NOBODY))) == "EINVAL"
    assert errno_of(os.setxattr, here / "file", DEFAULT, FOR_BOB) == "EACCES"
    assert errno_of(os.getxattr, here / "plain", ACCESS) == "ENODATA"
    assert errno_of(os.getxattr, here / "file", DEFAULT) == "ENODATA"
