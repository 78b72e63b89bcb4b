"""Layers on other filesystems, what a full disk does, and what a read-only mount refuses."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.layers import PAST_NS, Dir, File, HardLink, Node, Symlink, whiteout
from support.snapshot import differences, names_of, snapshot
from support.union import command, detach, errno_of

from unionfs import syscalls

pytestmark = pytest.mark.root

DISKS = ("tmpfs", "ext4", "xfs", "btrfs")


@contextlib.contextmanager
def disk(place: Path, kind: str, size: str = "") -> Iterator[Path]:
    """A filesystem of its own, mounted below `place`."""
    root = place / f"disk-{kind}"
    root.mkdir()
    if kind == "tmpfs":
        mounted = command("mount", "-t", "tmpfs", "-o", f"size={size or '64m'}", "tmpfs", root)
    else:
        image = place / f"{kind}.img"
        with open(image, "wb") as file:
            file.truncate(400 << 20)
        quiet = {"ext4": ["-q", "-F"], "xfs": ["-q"], "btrfs": ["-q"]}[kind]
        made = command(f"mkfs.{kind}", *quiet, image)
        if made.returncode:
            pytest.skip(f"mkfs.{kind}: {made.stderr}")
        mounted = command("mount", "-o", "loop", image, root)
    try:
        if mounted.returncode:
            pytest.skip(f"{kind} cannot be mounted here: {mounted.stderr.strip()}")
        yield root
    finally:
        detach(root)


@pytest.fixture(params=DISKS)
def any_disk(request, place):
    with disk(place, request.param) as root:
        yield root


LAYERS = (
    {"d": {"top": "t"}, "gone": whiteout(), "f": "top"},
    {
        "f": "bottom",
        "gone": "x",
        "d": Dir(mode=0o2750, owner=(3, 4), names={"sub": {"x": "y"}, "low": "l"}),
        "s": Symlink(target="t"),
        "a": File(content="linked", xattrs={"trusted.t": b"v"}),
        "b": HardLink("a"),
        "p": Node(),
        "c": Node(kind=stat.S_IFCHR, device=(1, 3)),
        "sparse": File(content="end", holes=8 << 20),
    },
)


def work_through(root):
    """One of everything."""
    (root / "f").write_text("written")
    (root / "new").write_text("new")
    os.chmod(root / "d/low", 0o600)
    (root / "d/sub/x").unlink()
    (root / "d/sub").rmdir()
    (root / "d/sub").mkdir()
    (root / "d/sub/again").touch()
    (root / "a").write_text("both")
    os.rename(root / "p", root / "d/pipe")
    os.rename(root / "d/sub", root / "sub")
    os.symlink("x", root / "gone")
    os.link(root / "b", root / "third")
    os.chown(root / "sparse", 5, 5)
    syscalls.renameat2(
        syscalls.AT_FDCWD, os.fsencode(root / "f"), syscalls.AT_FDCWD, os.fsencode(root / "new"), 2
    )
    (root / "s").unlink()
    (root / "c").unlink()


def check_worked(root):
    assert names_of(root) == {
        "f", "new", "d", "d/top", "d/low", "d/pipe", "sub", "sub/again", "a", "b", "third", "gone", "sparse",
    }  # fmt: skip
    assert (root / "f").read_text() == "new"
    assert (root / "new").read_text() == "written"
    assert {(root / name).read_text() for name in ("a", "b", "third")} == {"both"}
    assert {os.stat(root / name).st_nlink for name in ("a", "b", "third")} == {3}
    assert os.getxattr(root / "b", "trusted.t") == b"v"
    assert stat.S_ISFIFO(os.stat(root / "d/pipe").st_mode)
    status = (root / "sparse").stat()
    assert (status.st_size, status.st_uid) == ((8 << 20) + 3, 5)
    assert status.st_blocks < 1000


def test_all_layers_on(make_union, any_disk):
    union = make_union(*LAYERS, under=any_disk)
    work_through(union.root)
    check_worked(union.root)
    before = snapshot(union.root)
    union.remount()
    assert differences(before, snapshot(union.root)) == []
    union.close()


def test_lower_here_and_upper_on(make_union, any_disk, place):
    low = make_union(*LAYERS, mount=False)
    union = make_union(under=any_disk, mount=False)
    union.share_lowers(low)
    union.mount()
    work_through(union.root)
    check_worked(union.root)
    union.close()


def test_upper_here_and_lower_on(make_union, any_disk):
    low = make_union(*LAYERS, mount=False, under=any_disk)
    low.ignore_lowers()
    union = make_union(mount=False)
    union.share_lowers(low)
    union.mount()
    work_through(union.root)
    check_worked(union.root)
    union.close()


def test_lower_layers_on_two_disks_keep_numbers_apart(make_union, place):
    with disk(place, "tmpfs") as other:
        low = make_union({f"a{n}": "" for n in range(50)}, under=other, mount=False)
        low.ignore_lowers()
        union = make_union({f"b{n}": "" for n in range(50)}, mount=False)
        union.lowers += low.lowers
        union.remember_lowers()
        union.mount()
        numbers = [os.stat(union.root / name).st_ino for name in os.listdir(union.root)]
        assert len(set(numbers)) == 100
        union.close()


def test_a_layer_that_is_an_overlay(make_union, place):
    low = make_union({"a": "top"}, {"a": "bottom", "b": "bottom"}, mount=False)
    with low.kernel(writable=False) as overlay:
        union = make_union(mount=False)
        union.lowers = [overlay]
        union.mount()
        assert names_of(union.root) == {"a", "b"}
        (union.root / "a").write_text("changed")
        (union.root / "b").unlink()
        assert names_of(union.root) == {"a"}
        union.close()


def test_a_union_of_a_union(make_union):
    inner = make_union({"a": "a", "d": {"b": "b"}})
    (inner.root / "d/new").write_text("new")
    outer = make_union({"d": {"c": "c"}}, mount=False)
    outer.lowers.append(inner.root)
    outer.mount()
    assert names_of(outer.root) == {"a", "d", "d/b", "d/c", "d/new"}
    (outer.root / "a").write_text("outer")
    (outer.root / "d/b").unlink()
    assert names_of(outer.root) == {"a", "d", "d/c", "d/new"}
    assert (inner.root / "a").read_text() == "a"
    outer.close()


def test_what_is_mounted_in_a_layer_is_not_seen(make_union, place):
    union = make_union({"d": {"own": ""}}, mount=False)
    mounted = command("mount", "-t", "tmpfs", "tmpfs", union.lowers[0] / "d")
    assert mounted.returncode == 0
    try:
        (union.lowers[0] / "d" / "strange").touch()
        union.mount()
        assert names_of(union.root) == {"d", "d/own"}
        union.unmount()
    finally:
        detach(union.lowers[0] / "d")


# Space --------------------------------------------------------------------------------------------


def test_statfs_is_the_upper_layers(make_union, place):
    with disk(place, "tmpfs", "16m") as root:
        union = make_union({"f": ""}, under=root)
        ours, theirs = os.statvfs(union.root), os.statvfs(union.upper)
        for field in (
            "f_bsize",
            "f_frsize",
            "f_blocks",
            "f_bfree",
            "f_bavail",
            "f_files",
            "f_ffree",
            "f_namemax",
        ):
            assert getattr(ours, field) == getattr(theirs, field), field
        union.close()


def test_a_full_upper_fails_cleanly(make_union, place):
    with disk(place, "tmpfs", "4m") as root:
        low = make_union({"big": os.urandom(6 << 20), "small": "s"}, mount=False)
        union = make_union(under=root, mount=False)
        union.share_lowers(low)
        union.mount()
        content = (union.lowers[0] / "big").read_bytes()
        for act in (
            lambda: os.chmod(union.root / "big", 0o600),
            lambda: open(union.root / "big", "r+b").close(),
            lambda: os.rename(union.root / "big", union.root / "other"),
            lambda: os.link(union.root / "big", union.root / "other"),
            lambda: os.setxattr(union.root / "big", "user.x", b"y"),
        ):
            assert errno_of(act) == "ENOSPC"
            assert (union.root / "big").read_bytes() == content
            assert names_of(union.upper) == set()
            assert os.listdir(union.work / "work") == []
        assert os.statvfs(union.upper).f_bfree == os.statvfs(union.root).f_bfree
        (union.root / "small").write_text("still writable")
        os.truncate(union.root / "big", 1 << 20)
        assert (union.root / "big").read_bytes() == content[: 1 << 20]
        union.close()


def test_a_write_to_a_full_upper(make_union, place):
    with disk(place, "tmpfs", "2m") as root:
        union = make_union({"f": "x"}, under=root)
        fd = os.open(union.root / "f", os.O_WRONLY)
        try:
            failure = errno_of(lambda: [os.write(fd, b"y" * 100_000) for _ in range(40)])
            assert failure == "ENOSPC"
            os.ftruncate(fd, 10)
            assert os.pwrite(fd, b"z", 9) == 1
        finally:
            os.close(fd)
        union.close()


def test_a_full_upper_and_whiteouts(make_union, place):
    """No inode is left: unlink says so, and the name stays."""
    with disk(place, "tmpfs", "4m,nr_inodes=24") as root:
        low = make_union({f"f{n}": "x" for n in range(40)}, mount=False)
        union = make_union(under=root, mount=False)
        union.share_lowers(low)
        union.mount()
        failed = [n for n in range(40) if errno_of(os.unlink, union.root / f"f{n}") == "ENOSPC"]
        assert 10 < len(failed) < 40
        assert names_of(union.root) == {f"f{n}" for n in failed}
        assert errno_of(os.mkdir, union.root / "d") == "ENOSPC"
        assert (union.root / f"f{failed[0]}").read_text() == "x"
        union.close()


# Read only ----------------------------------------------------------------------------------------

CHANGES = {
    "create": lambda r: (r / "new").touch(),
    "write": lambda r: open(r / "f", "r+b").close(),
    "truncate": lambda r: os.truncate(r / "f", 0),
    "chmod": lambda r: os.chmod(r / "f", 0o600),
    "chown": lambda r: os.chown(r / "f", 1, 1),
    "utime": lambda r: os.utime(r / "f"),
    "setxattr": lambda r: os.setxattr(r / "f", "user.a", b""),
    "removexattr": lambda r: os.removexattr(r / "f", "user.a"),
    "unlink": lambda r: (r / "f").unlink(),
    "rmdir": lambda r: (r / "d").rmdir(),
    "mkdir": lambda r: (r / "new").mkdir(),
    "mkfifo": lambda r: os.mkfifo(r / "new"),
    "symlink": lambda r: os.symlink("x", r / "new"),
    "link": lambda r: os.link(r / "f", r / "new"),
    "rename": lambda r: os.rename(r / "f", r / "new"),
}


@pytest.mark.parametrize("kind", ["no upper", "ro"])
def test_a_read_only_mount(make_union, kind):
    union = make_union({"f": "x", "d": {}}, writable=kind == "ro", options=("ro",) if kind == "ro" else ())
    assert {name: errno_of(change, union.root) for name, change in CHANGES.items()} == dict.fromkeys(
        CHANGES, "EROFS"
    )
    assert not os.access(union.root / "f", os.W_OK)
    assert os.statvfs(union.root).f_flag & os.ST_RDONLY
    assert (union.root / "f").read_text() == "x"
    assert names_of(union.upper) == set()


def test_a_remount_read_only_and_back(make_union):
    union = make_union({"f": "x"})
    assert command("mount", "-i", "-o", "remount,ro", union.root).returncode == 0
    assert errno_of((union.root / "f").write_text, "y") == "EROFS"
    assert command("mount", "-i", "-o", "remount,rw", union.root).returncode == 0
    (union.root / "f").write_text("y")


# Nodes --------------------------------------------------------------------------------------------


def test_nodes_work(make_union):
    union = make_union({"zero": Node(kind=stat.S_IFCHR, device=(1, 5), mode=0o666), "fifo": Node()})
    with open(union.root / "zero", "rb") as device:
        assert device.read(3) == b"\0\0\0"
    os.mknod(union.root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert (union.root / "null").read_bytes() == b""
    reader = os.open(union.root / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(union.root / "fifo", os.O_WRONLY)
    try:
        os.write(writer, b"through")
        assert os.read(reader, 10) == b"through"
    finally:
        os.close(reader)
        os.close(writer)
    assert names_of(union.upper) == {"null"}


def test_sockets_work(make_union):
    import socket

    union = make_union({"d": {}})
    path = os.fspath(union.root / "d" / "socket")
    link = f"/proc/self/fd/{os.open(union.root / 'd', os.O_PATH)}"
    try:
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind(f"{link}/socket")
            server.listen()
            client.connect(f"{link}/socket")
        assert stat.S_ISSOCK(os.stat(path).st_mode)
    finally:
        os.close(int(link.rpartition("/")[2]))


def test_a_whiteout_device_cannot_be_made(make_union):
    union = make_union({"f": ""})
    assert errno_of(os.mknod, union.root / "new", stat.S_IFCHR | 0o600, os.makedev(0, 0)) == "EPERM"
    assert names_of(union.root) == {"f"}


def test_symlinks(make_union):
    long = "x" * 4095
    union = make_union(
        {
            "s": Symlink(target="f"),
            "long": Symlink(target=long),
            "f": "content",
            "loop": Symlink(target="loop"),
        }
    )
    assert (union.root / "s").read_text() == "content"
    assert os.lstat(union.root / "long").st_size == 4095
    assert os.readlink(union.root / "long") == long
    assert errno_of(os.stat, union.root / "loop") == "ELOOP"
    assert errno_of(os.open, union.root / "s", os.O_NOFOLLOW) == "ELOOP"
    os.symlink(b"\xff\n", os.fsencode(union.root) + b"/bytes")
    assert os.readlink(os.fsencode(union.root) + b"/bytes") == b"\xff\n"
    os.utime(union.root / "s", ns=(1, 2), follow_symlinks=False)
    assert os.lstat(union.root / "s").st_mtime_ns == 2
    assert os.lstat(union.root / "f").st_mtime_ns == PAST_NS
    assert errno_of(os.symlink, "", union.root / "empty") == "ENOENT"
