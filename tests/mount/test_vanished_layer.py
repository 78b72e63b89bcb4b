"""A lower layer that goes away while it is mounted: an errno, and all that does not need it goes on."""

from __future__ import annotations

import os
import shutil

import pytest
from support.snapshot import names_of
from support.union import command, detach, errno_of

pytestmark = pytest.mark.root

#: What a layer that was removed may answer.
GONE = ("ENOENT", "ESTALE")

LOWER = {"f": "lower", "d": {"g": "lower", "h": "lower"}, "e": {"x": {"y": "lower"}}, "l": "lower"}


def check_alive(union):
    """What is in the upper layer, and what is new, works."""
    assert (union.root / "mine/own").read_text() == "upper"
    (union.root / "mine/new").write_text("new")
    os.rename(union.root / "mine/new", union.root / "mine/newer")
    (union.root / "made").mkdir()
    (union.root / "made").rmdir()
    (union.root / "mine/newer").unlink()
    assert os.listdir(union.work / "work") == []


@pytest.mark.parametrize("looked_at", [False, True], ids=["never looked at", "looked at before"])
def test_a_removed_directory(make_union, looked_at):
    union = make_union(LOWER, {"below": "b"}, upper={"mine": {"own": "upper"}, "d": {"u": "upper"}})
    union.expected_complaint = "readdir: cannot look at"
    root = union.root
    held = os.open(root / "f", os.O_RDONLY)
    try:
        if looked_at:
            assert len(names_of(root)) == 12
        union.ignore_lowers()
        shutil.rmtree(union.lowers[0])
        assert os.pread(held, 10, 0) == b"lower"
        for act in (
            lambda: open(root / "l", "rb").close(),
            lambda: os.chmod(root / "l", 0o600),
            lambda: os.rename(root / "l", root / "mine/l"),
            lambda: (root / "d/g").write_text("x"),
            lambda: os.rename(root / "d/h", root / "mine/h"),
            lambda: os.stat(root / "e/x/y/z"),
            lambda: (root / "e/new").touch(),
            lambda: (root / "e/x/new").mkdir(),
        ):
            assert errno_of(act) in (*GONE, "ENOTDIR")
            check_alive(union)
        errno_of(os.unlink, root / "d/g")
        errno_of(os.rmdir, root / "e")
        for directory in (root, root / "d", root / "e"):
            errno_of(os.listdir, directory)
        assert (root / "below").read_text() == "b"
        check_alive(union)
    finally:
        os.close(held)


def test_a_disk_that_was_unmounted(make_union, place):
    """The union holds the layer, not the name that it had: nothing has vanished."""
    disk = place / "disk"
    disk.mkdir()
    assert command("mount", "-t", "tmpfs", "tmpfs", disk).returncode == 0
    try:
        low = make_union(LOWER, under=disk, mount=False)
        low.ignore_lowers()
        union = make_union(upper={"mine": {"own": "upper"}}, mount=False)
        union.lowers = low.lowers
        union.mount()
        union.ignore_lowers()
    finally:
        assert detach(disk)
    assert not low.lowers[0].exists()
    (union.root / "d/g").write_text("changed")
    (union.root / "f").unlink()
    assert (union.root / "e/x/y").read_text() == "lower"
    check_alive(union)
    union.close()


def test_a_layer_whose_server_died(make_union):
    """A union as the lower layer of another one, killed: ENOTCONN or what else the kernel says of it."""
    inner = make_union({"f": "inner", "d": {"g": "inner"}, "i": "inner"})
    outer = make_union(upper={"mine": {"own": "upper"}}, mount=False)
    outer.lowers = [inner.root]
    outer.mount()
    outer.ignore_lowers()
    assert (outer.root / "f").read_text() == "inner"
    inner.kill()
    for act in (
        lambda: open(outer.root / "i", "rb").close(),
        lambda: os.chmod(outer.root / "i", 0o600),
        lambda: os.listdir(outer.root / "d"),
        lambda: (outer.root / "d/new").touch(),
        lambda: os.rename(outer.root / "i", outer.root / "mine/i"),
    ):
        assert errno_of(act) in ("ENOTCONN", "ECONNABORTED", "EIO")
        check_alive(outer)
    outer.close()
