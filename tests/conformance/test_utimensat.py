"""utimensat(2), utimes(2)."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from support.layers import PAST_NS, Dir, File
from support.union import errno_of, tick

from conformance.system import (
    ALICE,
    AT_SYMLINK_NOFOLLOW,
    BOB,
    UTIME_NOW,
    UTIME_OMIT,
    as_user,
    opened,
    times_changed,
    utimensat,
)

SHARED = {
    "mine": File(content="x", mode=0o600, owner=(ALICE, ALICE)),
    "writable": File(content="x", mode=0o666),
    "readable": File(content="x", mode=0o644),
    "dir": Dir(mode=0o777),
}


def times(path: Path) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_atime_ns, status.st_mtime_ns


@pytest.mark.parametrize("name", ["file", "dir", "link"])
def test_sets_nanoseconds(here: Path, name: str) -> None:
    wanted = (1_500_000_000_123_456_789, 1_600_000_000_987_654_321)
    os.utime(here / name, ns=wanted, follow_symlinks=False)
    assert times(here / name) == wanted


@pytest.mark.parametrize(
    "second",
    [0, 1, -1, -86400, -(2**31) + 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**33, 2**33 + 2**32 + 2**31 - 2],
)
def test_seconds_before_1970_and_after_2038(here: Path, second: int) -> None:
    utimensat(here / "file", (second, 5), (second, 999_999_999))
    assert times(here / "file") == (second * 10**9 + 5, second * 10**9 + 999_999_999)


@pytest.mark.parametrize("second", [2**33 + 2**32 + 2**31, 2**40])
def test_seconds_beyond_the_disk_are_its_last(here: Path, second: int) -> None:
    utimensat(here / "file", (second, 5), (second, 5))
    last = (2**33 + 2**32 + 2**31 - 1) * 10**9
    assert times(here / "file") == (last, last)


def test_seconds_before_the_disk_are_its_first(here: Path) -> None:
    utimensat(here / "file", (-(2**31) - 10, 5), (-(2**40), 5))
    assert times(here / "file") == (-(2**31) * 10**9, -(2**31) * 10**9)


@pytest.mark.parametrize("name", ["file", "dir", "link"])
def test_changes_ctime_but_not_the_parent(here: Path, name: str) -> None:
    def action() -> None:
        os.utime(here / name, ns=(5, 6), follow_symlinks=False)

    assert times_changed(action, here / name, here) == ["amc", ""]


def test_now(here: Path) -> None:
    before = time.clock_gettime_ns(5)
    utimensat(here / "file", UTIME_NOW, UTIME_NOW)
    after = time.clock_gettime_ns(time.CLOCK_REALTIME)
    atime, mtime = times(here / "file")
    assert before <= atime == mtime <= after
    assert os.stat(here / "file").st_ctime_ns >= mtime


def test_now_for_one_and_a_time_for_the_other(here: Path) -> None:
    before = time.clock_gettime_ns(5)
    utimensat(here / "file", UTIME_NOW, (7, 8))
    atime, mtime = times(here / "file")
    assert (atime >= before, mtime) == (True, 7_000_000_008)
    utimensat(here / "file", (7, 9), UTIME_NOW)
    atime, mtime = times(here / "file")
    assert (atime, mtime >= before) == (7_000_000_009, True)


def test_omit_keeps_one(here: Path) -> None:
    utimensat(here / "file", UTIME_OMIT, (7, 8))
    assert times(here / "file") == (PAST_NS, 7_000_000_008)
    utimensat(here / "file", (9, 10), UTIME_OMIT)
    assert times(here / "file") == (9_000_000_010, 7_000_000_008)


def test_omitting_both_changes_nothing(here: Path) -> None:
    assert times_changed(lambda: utimensat(here / "file", UTIME_OMIT, UTIME_OMIT), here / "file") == [""]


def test_omitting_one_changes_ctime(here: Path) -> None:
    assert times_changed(lambda: utimensat(here / "file", UTIME_OMIT, (7, 8)), here / "file") == ["mc"]
    assert times_changed(lambda: utimensat(here / "file", (7, 8), UTIME_OMIT), here / "file") == ["ac"]


def test_symlinks_are_followed_unless_told_otherwise(here: Path) -> None:
    utimensat(here / "link", (1, 1), (2, 2))
    assert times(here / "link")[1] == PAST_NS
    assert times(here / "file") == (1_000_000_001, 2_000_000_002)
    utimensat(here / "link", UTIME_NOW, (3, 3), flags=AT_SYMLINK_NOFOLLOW)
    assert times(here / "link")[1] == 3_000_000_003
    assert times(here / "file") == (1_000_000_001, 2_000_000_002)


def test_through_descriptors(here: Path) -> None:
    with opened(here / "file", os.O_RDONLY) as fd:
        os.utime(fd, ns=(1, 2))
        assert times(here / "file") == (1, 2)
        os.unlink(here / "file")
        os.utime(fd, ns=(3, 4))
        status = os.fstat(fd)
        assert (status.st_atime_ns, status.st_mtime_ns) == (3, 4)
        os.utime(fd, ns=(0, 0))
        status = os.fstat(fd)
        assert (status.st_atime_ns, status.st_mtime_ns) == (0, 0)


def test_times_survive_a_later_chmod(here: Path) -> None:
    os.utime(here / "file", ns=(1, 2))
    tick()
    os.chmod(here / "file", 0o600)
    assert times(here / "file") == (1, 2)


@pytest.mark.tree(SHARED)
def test_setting_times_needs_the_owner(here: Path) -> None:
    def action(name: str) -> None:
        os.utime(here / name, ns=(1, 2))

    assert as_user(ALICE, action, "mine") is None
    assert as_user(BOB, action, "mine") == "EPERM"
    assert as_user(BOB, action, "writable") == "EPERM"
    assert as_user(BOB, action, "readable") == "EPERM"
    assert as_user(BOB, action, "dir") == "EPERM"


@pytest.mark.tree(SHARED)
def test_setting_now_needs_the_owner_or_write_permission(here: Path) -> None:
    def action(name: str) -> None:
        os.utime(here / name)

    assert as_user(ALICE, action, "mine") is None
    assert as_user(BOB, action, "mine") == "EACCES"
    assert as_user(BOB, action, "writable") is None
    assert as_user(BOB, action, "readable") == "EACCES"
    assert as_user(BOB, action, "dir") is None


@pytest.mark.tree(SHARED)
def test_now_and_omit_together_need_the_owner(here: Path) -> None:
    assert as_user(BOB, utimensat, here / "writable", UTIME_NOW, UTIME_OMIT) == "EPERM"
    assert as_user(ALICE, utimensat, here / "mine", UTIME_NOW, UTIME_OMIT) is None


def test_errors(here: Path) -> None:
    assert errno_of(os.utime, here / "nothing") == "ENOENT"
    assert errno_of(os.utime, here / "dangling") == "ENOENT"
    assert errno_of(os.utime, here / "file/below") == "ENOTDIR"
    assert errno_of(utimensat, here / "file", (1, 10**9), (1, 1)) == "EINVAL"
    assert errno_of(utimensat, here / "file", (1, -1), (1, 1)) == "EINVAL"
