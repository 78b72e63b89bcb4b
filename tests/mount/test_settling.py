"""Copies are settled later, and a crash of the machine loses none of their content.

Another boot's mark and a file without its content stand for the crash: so the journal of a disk leaves a
file whose content was never written.
"""

from __future__ import annotations

import mmap
import os

import pytest
from support.snapshot import names_of
from support.union import wait_until

pytestmark = pytest.mark.root

ORIGIN = "trusted.unionfs.origin"


def is_marked(path):
    return ORIGIN in os.listxattr(path) and b" " in os.getxattr(path, ORIGIN)


def crash(union, *names, lost=True):
    """Kill the server, and let the files be as after a crash of the machine."""
    union.kill()
    for name in names:
        path = union.upper / name
        origin, _ = os.getxattr(path, ORIGIN).split(b" ")
        os.setxattr(path, ORIGIN, origin + b" another")
        if lost:
            kept = path.stat()
            os.truncate(path, 0)
            os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))


def test_a_copy_is_marked_and_then_settled(make_union):
    union = make_union({"f": "content", "d": {"g": "more"}})
    os.chmod(union.root / "f", 0o600)
    with open(union.root / "d/g", "a") as file:
        file.write("!")
    assert is_marked(union.upper / "f")
    assert is_marked(union.upper / "d/g")
    assert os.listxattr(union.root / "f") == []
    for name in ("f", "d/g"):
        wait_until(lambda name=name: not is_marked(union.upper / name), "it is settled")
    assert (union.root / "d/g").read_text() == "more!"


def test_what_has_no_content_is_not_marked(make_union):
    union = make_union({"empty": "", "cut": "content", "d": {}})
    os.chmod(union.root / "empty", 0o600)
    (union.root / "cut").write_text("other")
    os.chmod(union.root / "d", 0o700)
    for name in ("empty", "cut", "d"):
        assert not is_marked(union.upper / name)


def test_the_end_of_the_mount_settles(make_union):
    union = make_union({"f": "content"})
    os.chmod(union.root / "f", 0o600)
    assert is_marked(union.upper / "f")
    union.unmount()
    assert not is_marked(union.upper / "f")
    assert sorted(os.listdir(union.work)) == ["hardlinks", "work"]


@pytest.mark.parametrize("sync", [os.fsync, os.fdatasync])
def test_fsync_settles(make_union, sync):
    union = make_union({"f": "content"})
    fd = os.open(union.root / "f", os.O_RDWR)
    try:
        os.pwrite(fd, b"CON", 0)
        assert is_marked(union.upper / "f")
        sync(fd)
        assert not is_marked(union.upper / "f")
        os.pwrite(fd, b"T", 3)
        sync(fd)
    finally:
        os.close(fd)
    assert (union.upper / "f").read_text() == "CONTent"


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC])
def test_opening_to_write_through_settles(make_union, flag):
    union = make_union({"f": "content"})
    os.chmod(union.root / "f", 0o600)
    assert is_marked(union.upper / "f")
    os.close(os.open(union.root / "f", os.O_WRONLY | flag))
    assert not is_marked(union.upper / "f")


def test_msync_settles(make_union):
    """Passed through, msync(2) would reach the layer's file alone, and the mark would stay."""
    union = make_union({"f": "content" * 1000})
    fd = os.open(union.root / "f", os.O_RDWR)
    try:
        with mmap.mmap(fd, 0) as memory:
            memory[:3] = b"CON"
            memory.flush()
            assert not is_marked(union.upper / "f")
    finally:
        os.close(fd)
    assert (union.upper / "f").read_bytes()[:7] == b"CONtent"


def test_after_a_crash_the_content_is_there(make_union):
    union = make_union({"f": "content", "d": {"g": "more"}, "h": "twice"}, {"below": "x"})
    os.chmod(union.root / "f", 0o600)
    os.chown(union.root / "d/g", 7, 8)
    os.rename(union.root / "d/g", union.root / "moved")
    os.chmod(union.root / "h", 0o640)
    os.link(union.root / "h", union.root / "h2")
    before = {name: os.stat(union.root / name) for name in ("f", "moved", "h")}
    crash(union, "f", "moved", "h")
    union.mount()
    for name, content in {"f": "content", "moved": "more", "h": "twice", "h2": "twice"}.items():
        assert (union.root / name).read_text() == content
        assert not is_marked(union.upper / name)
    for name, was in before.items():
        now = os.stat(union.root / name)
        for field in ("st_mode", "st_uid", "st_gid", "st_size", "st_ino", "st_mtime_ns", "st_nlink"):
            assert getattr(now, field) == getattr(was, field), (name, field)


def test_a_killed_server_loses_nothing_that_was_written(make_union):
    """Within one boot memory has what the disk has not: the mark means nothing."""
    union = make_union({"f": "content"})
    with open(union.root / "f", "r+") as file:
        file.write("CON")
    assert is_marked(union.upper / "f")
    union.kill()
    assert is_marked(union.upper / "f")
    union.mount()
    assert not is_marked(union.upper / "f")
    assert (union.root / "f").read_text() == "CONtent"


def test_content_that_is_nowhere_is_told_of(make_union):
    union = make_union({"f": "content"})
    os.chmod(union.root / "f", 0o600)
    crash(union, "f")
    union.ignore_lowers()
    os.unlink(union.lowers[0] / "f")
    union.expected_complaint = "may have lost content"
    union.mount()
    assert "'f' may have lost content in a crash" in union.words()
    assert (union.root / "f").read_text() == ""
    union.unmount()
    assert is_marked(union.upper / "f")


def test_a_copy_of_a_marked_file_is_a_file_of_its_own(make_union):
    """cp -a of an upper layer takes the marks along."""
    union = make_union({"f": "content"})
    os.chmod(union.root / "f", 0o600)
    crash(union, "f", lost=False)
    value = os.getxattr(union.upper / "f", ORIGIN)
    (union.upper / "g").write_text("own")
    os.setxattr(union.upper / "g", ORIGIN, value)
    union.mount()
    assert (union.root / "g").read_text() == "own"
    assert not is_marked(union.upper / "g")


def test_removed_before_it_was_settled(make_union):
    union = make_union({"f": "content", "g": "open"})
    os.chmod(union.root / "f", 0o600)
    with open(union.root / "g", "r+") as file:
        os.unlink(union.root / "f")
        os.unlink(union.root / "g")
        file.write("OP")
        file.flush()
        file.seek(0)
        assert file.read() == "OPen"
    assert names_of(union.root) == set()


def test_volatile_mounts_do_not_mark(make_union):
    union = make_union({"f": "content"}, options=("volatile",))
    os.chmod(union.root / "f", 0o600)
    assert not is_marked(union.upper / "f")


def test_attributes_that_leave_no_room_for_the_mark(make_union):
    """ext4 has 4 KiB for them: the copy is on the disk before it has its name."""
    union = make_union({"f": "content"}, mount=False)
    os.setxattr(union.lowers[0] / "f", "user.small", b"x" * 60)  # in the inode, the other in a block
    os.setxattr(union.lowers[0] / "f", "user.big", b"x" * 4000)
    union.remember_lowers()
    union.mount()
    os.chmod(union.root / "f", 0o600)
    assert not is_marked(union.upper / "f")
    assert os.getxattr(union.root / "f", "user.big") == b"x" * 4000
