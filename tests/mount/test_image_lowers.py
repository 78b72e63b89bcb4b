"""Lower layers on what containers' images come as: squashfs, erofs, and kernel overlayfs."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.layers import Dir, File, HardLink, Node, Symlink, build, opaque, whiteout
from support.snapshot import differences, names_of, snapshot
from support.union import command, detach, errno_of, overlayfs

pytestmark = pytest.mark.root

TOP = {
    "f": "top",
    "gone": whiteout(),
    "d": {"top": "t", "replaced": opaque({"new": "n"})},
}

BOTTOM = {
    "f": "bottom",
    "gone": "x",
    "d": Dir(
        mode=0o2750,
        owner=(3, 4),
        xattrs={"user.colour": b"blue"},
        names={"low": "l", "sub": {"x": "y"}, "replaced": {"old": "o"}},
    ),
    "a": File(content="linked", mode=0o4755, owner=(7, 8), xattrs={"trusted.t": b"\0v"}),
    "b": HardLink("a"),
    "big": File(content=b"0123456789abcdef" * 40_000, mode=0o640),
    "sparse": File(content="end", holes=3 << 20),
    "pipe": Node(),
    "null": Node(kind=stat.S_IFCHR, device=(1, 3), mode=0o666),
    "link": Symlink(target="d/low", owner=(5, 6)),
    "many": {f"name{number}": "" for number in range(300)},
}


@contextlib.contextmanager
def image(place: Path, kind: str, content: Path, *, damaged: bool = False) -> Iterator[Path]:
    """A directory as an image, mounted; a damaged one has lost some bytes of its first file."""
    root, file = place / f"{kind}-{content.name}", place / f"{kind}-{content.name}.img"
    root.mkdir()
    if kind == "overlay":
        empty = place / f"empty-{content.name}"
        empty.mkdir()
        with overlayfs(root, [empty, content], None, place):
            yield root
        return
    tool, arguments = {
        "squashfs": ("mksquashfs", [content, file, "-quiet", "-no-progress"]),
        "erofs": ("mkfs.erofs", ["-Eforce-inode-extended", file, content]),
    }[kind]
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    made = command(tool, *arguments)
    assert made.returncode == 0, made.stdout + made.stderr
    if damaged:
        with open(file, "r+b") as whole:
            whole.seek(200)  # the superblock is 96 bytes, then files' compressed blocks follow
            whole.write(b"\xff" * 2000)
    mounted = command("mount", "-t", kind, "-o", "loop,ro", file, root)
    try:
        if mounted.returncode:
            pytest.skip(f"{kind} cannot be mounted here: {mounted.stderr.strip()}")
        yield root
    finally:
        detach(root)


@pytest.fixture(params=["squashfs", "erofs", "overlay"])
def images(request, place):
    """Two layers on images, the topmost first."""
    with contextlib.ExitStack() as stack:
        mounted = []
        for name, names in (("top", TOP), ("bottom", BOTTOM)):
            content = place / name
            build(content, names)
            mounted.append(stack.enter_context(image(place, request.param, content)))
        if request.param == "overlay":
            # What it hides itself is not in it any more.
            assert not (mounted[0] / "gone").exists()
        yield mounted


def work_through(root):
    (root / "f").write_text("written")
    os.chmod(root / "d/low", 0o600)
    os.chown(root / "big", 5, 5)
    (root / "a").write_text("both")
    os.truncate(root / "sparse", 4 << 20)
    (root / "d/sub/x").unlink()
    (root / "d/sub").rmdir()
    (root / "d/sub").mkdir()
    os.rename(root / "pipe", root / "d/pipe")
    os.rename(root / "link", root / "moved")
    os.setxattr(root / "d/top", "user.x", b"y")
    for number in range(0, 300, 3):
        (root / "many" / f"name{number}").unlink()
    (root / "null").unlink()
    assert errno_of(os.rename, root / "many", root / "other") == "EXDEV"


def seen(root, since_ns):
    """The tree; times since the test began are all alike."""
    return {
        path: dataclasses.replace(picture, mtime_ns=min(picture.mtime_ns, since_ns))
        for path, picture in snapshot(root).items()
    }


def test_the_same_as_on_the_disk(images, make_union, place):
    """A union of images and one of copies of their content: before, after many changes, and mounted again."""
    since = time.time_ns()
    pictures = []
    for kind in ("images", "disk"):
        union = make_union(mount=False)
        for number, mounted in enumerate(images):
            if kind == "images":
                union.lowers.append(mounted)
            else:
                union.lowers.append(place / f"copy{number}")
                assert command("cp", "-a", mounted, union.lowers[-1]).returncode == 0
        union.remember_lowers()
        union.mount()
        before = seen(union.root, since)
        numbers = {path: os.lstat(os.fsencode(union.root) + b"/" + path).st_ino for path in before}
        work_through(union.root)
        after = seen(union.root, since)
        union.remount()
        assert differences(after, seen(union.root, since)) == []
        for path in after.keys() & numbers.keys() - {b"d/sub"}:
            assert os.lstat(os.fsencode(union.root) + b"/" + path).st_ino == numbers[path], path
        pictures.append((before, after))
        union.close()
    assert len(pictures[0][0]) > 300
    for ours, disk in zip(*pictures, strict=True):
        assert differences(ours, disk) == []


def test_an_unreadable_block_of_an_image(make_union, place):
    """EIO goes to who reads it or copies it up; nothing is left of the copy, and the rest works."""
    build(place / "content", {"bad": os.urandom(200_000).hex(), "good": "content", "linked": HardLink("bad")})
    with image(place, "squashfs", place / "content", damaged=True) as mounted:
        if errno_of((mounted / "bad").read_bytes) != "EIO":
            pytest.skip("the kernel reads the damaged image")
        union = make_union(mount=False)
        union.lowers.append(mounted)  # its pictures cannot be taken
        union.mount()
        for act in (
            lambda: (union.root / "bad").read_bytes(),
            lambda: os.chmod(union.root / "bad", 0o600),
            lambda: os.rename(union.root / "bad", union.root / "other"),
            lambda: open(union.root / "bad", "r+b").close(),
            lambda: (union.root / "linked").unlink(),
        ):
            assert errno_of(act) == "EIO"
            assert set(os.listdir(union.root)) == {"bad", "good", "linked"}
            assert names_of(union.upper) == set()
            assert os.listdir(union.work / "work") == []
        (union.root / "good").write_text("changed")
        (union.root / "bad").write_text("as good as new")  # none of the content is copied
        assert (union.root / "linked").read_text() == "as good as new"
        union.close()
