"""metacopy=on: what needs no content is copied up without it, in kernel overlayfs's own format."""

from __future__ import annotations

import os

import pytest
from support.layers import Dir, File, HardLink
from support.snapshot import differences, snapshot
from support.union import errno_of

pytestmark = pytest.mark.root

ON = ("metacopy=on", "redirect_dir=on")
CONTENT = "content of some length " * 20_000

ATTRIBUTES = {
    "mode": lambda path: os.chmod(path, 0o600),
    "owner": lambda path: os.chown(path, 3, 4),
    "times": lambda path: os.utime(path, ns=(1, 2)),
    "xattr": lambda path: os.setxattr(path, "user.a", b"b"),
    "another name": lambda path: os.link(path, path.parent / "linked"),
}


def disk_usage(path):
    return os.stat(path).st_blocks * 512


@pytest.mark.parametrize("change", ATTRIBUTES.values(), ids=ATTRIBUTES)
def test_content_stays_below(make_union, change):
    union = make_union({"f": CONTENT}, options=ON)
    change(union.root / "f")
    assert os.stat(union.upper / "f").st_size == len(CONTENT)
    assert disk_usage(union.upper / "f") < len(CONTENT) // 2
    assert (union.root / "f").read_text() == CONTENT
    union.remount()
    assert (union.root / "f").read_text() == CONTENT


def test_without_the_option_content_goes_up(make_union):
    union = make_union({"f": CONTENT})
    os.chmod(union.root / "f", 0o600)
    assert (union.upper / "f").read_text() == CONTENT


@pytest.mark.parametrize("remounts", [False, True])
def test_writing_brings_the_content(make_union, remounts):
    union = make_union({"f": CONTENT}, options=ON)
    os.chmod(union.root / "f", 0o640)
    os.utime(union.root / "f", ns=(10**18, 10**18))
    number = os.stat(union.root / "f").st_ino
    if remounts:
        union.remount()
    with open(union.root / "f", "a") as file:
        assert os.stat(union.root / "f").st_mtime_ns == 10**18
        file.write("more")
    assert (union.upper / "f").read_text() == (union.root / "f").read_text() == CONTENT + "more"
    assert "trusted.overlay.metacopy" not in os.listxattr(union.upper / "f")
    assert os.stat(union.root / "f").st_ino == number


@pytest.mark.parametrize("size", [0, 5, len(CONTENT) + 5])
def test_truncation_of_a_metacopy(make_union, size):
    union = make_union({"f": CONTENT}, options=ON)
    os.chmod(union.root / "f", 0o640)
    os.truncate(union.root / "f", size)
    assert (union.root / "f").read_bytes() == CONTENT.encode()[:size].ljust(size, b"\0")
    union.remount()
    assert (union.root / "f").read_bytes() == CONTENT.encode()[:size].ljust(size, b"\0")


def test_an_open_descriptor_sees_what_is_written_after(make_union):
    union = make_union({"f": CONTENT}, options=ON)
    with open(union.root / "f", "rb") as before:
        os.chmod(union.root / "f", 0o640)
        with open(union.root / "f", "rb") as between:
            with open(union.root / "f", "r+b") as file:
                file.write(b"NEW")
            assert before.read(3) == between.read(3) == b"NEW"


def test_moved_and_linked(make_union):
    union = make_union({"d": Dir(names={"f": CONTENT}), "f": CONTENT, "g": HardLink("f")}, options=ON)
    os.chmod(union.root / "d" / "f", 0o600)
    os.rename(union.root / "d", union.root / "e")
    os.rename(union.root / "e" / "f", union.root / "h")
    os.chmod(union.root / "f", 0o600)
    os.unlink(union.root / "g")
    for _ in range(2):
        assert (union.root / "h").read_text() == (union.root / "f").read_text() == CONTENT
        assert os.stat(union.root / "f").st_nlink == 1
        union.remount()


def test_content_that_is_nowhere(make_union):
    union = make_union({}, upper={"f": File(content="x", xattrs={"trusted.overlay.metacopy": b""})})
    assert errno_of(open, union.root / "f") == "EIO"


def test_kernel_overlayfs_reads_ours_and_we_its(make_union):
    union = make_union({"f": CONTENT, "g": CONTENT}, options=ON)
    os.chmod(union.root / "f", 0o601)
    os.rename(union.root / "f", union.root / "h")
    ours = snapshot(union.root)
    union.unmount()
    with union.kernel(*ON) as overlay:
        assert not differences(ours, snapshot(overlay))
        os.chmod(overlay / "g", 0o611)
        os.rename(overlay / "g", overlay / "i")
        theirs = snapshot(overlay)
    union.mount()
    assert not differences(theirs, snapshot(union.root))
