"""An upper layer on a disk that fills up at each step of each change: ENOSPC, and everything as it was."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.layers import Dir, File, HardLink, opaque, whiteout
from support.snapshot import differences, names_of, snapshot
from support.union import command, detach, errno_of, wait_until

pytestmark = pytest.mark.root

LOWER = {
    "p": {"q": {"deep": "content", "other": "x"}},
    "big": os.urandom(100_000),
    "attributes": File(content="a", xattrs={"user.long": b"v" * 3000, "trusted.note": b"n"}),
    "one": "linked",
    "s": {"two": HardLink("one"), "t": {"three": HardLink("one")}},
    "gone": "g",
    "emptied": {},
    "whole": Dir(names={f"name{number}": "" for number in range(5)}, mode=0o2770, owner=(3, 4)),
    "covered": {"old": "o"},
    "w": {f"file{number}": "w" for number in range(5)},
}

UPPER = {"covered": opaque({}), "hidden": whiteout(), "u": {"own": "u", "h": whiteout()}}


def replace_by_a_directory(root):
    (root / "gone").unlink()
    (root / "gone").mkdir()


#: Each is one change of one step; that which it makes.
CHANGES = {
    "copy up a file and its parents": lambda root: os.chmod(root / "p/q/deep", 0o600),
    "copy up a big file": lambda root: os.chown(root / "big", 7, 7),
    "copy up long attributes": lambda root: os.setxattr(root / "attributes", "user.more", b"m"),
    "rename a file": lambda root: os.rename(root / "w/file0", root / "p/renamed"),
    "link a file": lambda root: os.link(root / "w/file1", root / "p/linked"),
    "whiteout of a file": lambda root: (root / "w/file2").unlink(),
    "whiteout of a directory": lambda root: (root / "emptied").rmdir(),
    "a directory over a whiteout": lambda root: (root / "hidden").mkdir(),
    "a file over a whiteout": lambda root: (root / "u/h").touch(),
    "a symlink": lambda root: os.symlink("x" * 200, root / "covered/link"),
    "a file": lambda root: (root / "whole/new").touch(),
    "another directory": lambda root: (root / "whole/sub").mkdir(),
    "rename over a file": lambda root: os.rename(root / "u/own", root / "w/file3"),
}

#: One change of several steps: a link for each name, in directories that are to be copied up.
HARD_LINKS = {"copy up hard links": lambda root: os.utime(root / "one", ns=(1, 1))}

#: (KiB, inodes) that remain; None is more than enough.
REMAINS = [(0, None), (4, None), (16, None), (112, None)]
REMAINS += [(None, inodes) for inodes in range(5)]


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest, place: Path) -> Iterator[Path]:
    """A few megabytes and a few hundred inodes. To be asked for before `make_union`, and to end after it."""
    root = place / "small"
    root.mkdir()
    if request.param == "tmpfs":
        mounted = command("mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=200", "tmpfs", root)
    else:
        with open(place / "image", "wb") as file:
            file.truncate(8 << 20)
        size = ("-b", "4096", "-N", "256", "-m", "0", "-O", "^has_journal")
        assert command("mkfs.ext4", "-q", "-F", *size, place / "image").returncode == 0
        mounted = command("mount", "-o", "loop", place / "image", root)
    assert mounted.returncode == 0, mounted.stderr
    try:
        yield root
    finally:
        detach(root)


class Filler:
    """Files that leave just so much of a disk."""

    def __init__(self, root: Path) -> None:
        self.root = root / "filler"
        self.root.mkdir()
        self.blocks = self.root / "blocks"
        # The directory has its blocks before the disk is measured.
        self.names = [self.root / f"inode{number}" for number in range(256)]
        for name in self.names[:100]:
            name.touch()
        self.clear()

    def leave(self, kib: int | None, inodes: int | None) -> None:
        if inodes is not None:
            free = os.statvfs(self.root).f_ffree
            for name in self.names[: max(free - inodes, 0)]:
                name.touch()
        if kib is not None:
            self._fill(kib)

    def _fill(self, kib: int) -> None:
        fd = os.open(self.blocks, os.O_WRONLY | os.O_CREAT)
        try:
            status = os.statvfs(self.root)
            size = status.f_bavail * status.f_frsize - kib * 1024
            while size > 0:
                try:
                    os.posix_fallocate(fd, 0, size)
                    break
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    size -= status.f_frsize
        finally:
            os.close(fd)

    def clear(self) -> None:
        for name in (self.blocks, *self.names):
            name.unlink(missing_ok=True)


def go_through(disk, make_union, remains, changes):
    """Each change is done or it is not; what was not is done when there is room again. Returns those."""
    low = make_union(LOWER, {"hidden": "h", "u": {"h": "h"}}, mount=False)
    union = make_union(upper=UPPER, under=disk, mount=False)
    union.share_lowers(low)
    union.mount()
    filler = Filler(disk)
    failed = []
    for name, change in changes.items():
        before = snapshot(union.root)
        filler.leave(*remains)
        failure = errno_of(change, union.root)
        assert failure in ("", "ENOSPC"), name
        assert os.listdir(union.work / "work") == [], name
        if failure:
            failed.append(name)
            assert differences(before, snapshot(union.root)) == [], name
            assert (union.root / "s/t/three").stat().st_nlink == 3, name
        filler.clear()
        if failure:
            assert errno_of(change, union.root) == "", name
        assert differences(before, snapshot(union.root)) != [], name
    assert os.listdir(union.work / "hardlinks") == []
    after = snapshot(union.root)
    numbers = {name: os.lstat(union.root / name).st_ino for name in names_of(union.root)}
    union.remount()
    assert differences(after, snapshot(union.root)) == []
    assert {name: os.lstat(union.root / name).st_ino for name in names_of(union.root)} == numbers
    return failed


LEVELS = pytest.mark.parametrize(
    "remains", REMAINS, ids=lambda remains: f"{remains[0]} KiB, {remains[1]} inodes"
)


@LEVELS
def test_each_change(disk, make_union, remains):
    failed = go_through(disk, make_union, remains, CHANGES)
    if remains in ((0, None), (None, 0)):
        assert "copy up a file and its parents" in failed


@LEVELS
def test_hard_links(disk, make_union, remains):
    go_through(disk, make_union, remains, HARD_LINKS)


@pytest.mark.parametrize("disk", ["tmpfs"], indirect=True)
def test_a_disk_that_is_filled_by_whiteouts(disk, make_union):
    """rm -r of a lower directory until no inode is left, then with room again."""
    names = {f"file{number}": "x" for number in range(120)}
    low = make_union({"many": names, "other": "x"}, mount=False)
    union = make_union(under=disk, mount=False)
    union.share_lowers(low)
    union.mount()
    filler = Filler(disk)
    filler.leave(None, 5)
    removed = 0
    for name in sorted(names):
        failure = errno_of((union.root / "many" / name).unlink)
        assert failure in ("", "ENOSPC")
        removed += not failure
    assert 0 < removed < 120
    assert len(os.listdir(union.root / "many")) == 120 - removed
    assert (union.root / "other").read_text() == "x"
    filler.clear()
    assert command("rm", "-r", union.root / "many").returncode == 0
    assert os.listdir(union.root) == ["other"]
    assert os.listdir(union.work / "work") == []
    union.remount()
    assert os.listdir(union.root) == ["other"]


@pytest.mark.parametrize("remains", [(0, None), (None, 0)], ids=["no block", "no inode"])
def test_a_full_disk_can_be_mounted_to_make_room(disk, make_union, remains):
    low = make_union({"low": "l"}, mount=False)
    union = make_union({}, upper={"big": "b" * 100_000, "kept": "k"}, under=disk, mount=False)
    union.share_lowers(low)
    union.mount()
    filler = Filler(disk)
    filler.leave(*remains)
    union.remount()
    assert (union.root / "kept").read_text() == "k"
    assert errno_of((union.root / "new").write_text, "n" * 50_000) == "ENOSPC"
    (union.root / "new").unlink(missing_ok=True)
    (union.root / "big").unlink()
    # The disk has the room when the kernel has forgotten the file, which it says in its own time.
    wait_until(lambda: errno_of((union.root / "new").write_text, "n" * 50_000) == "", "there is room")
    assert not (union.root / "big").exists()
    filler.clear()
