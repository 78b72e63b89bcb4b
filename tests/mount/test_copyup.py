"""Copy-up: what a change of a lower file brings into the upper layer, and what it leaves as it was."""

from __future__ import annotations

import os
import stat
import subprocess

import pytest
from support.layers import PAST_NS, Dir, File, HardLink, Node, Symlink
from support.snapshot import names_of, picture
from support.union import command, errno_of, tick

pytestmark = pytest.mark.root

ATTRIBUTES = {"user.colour": b"blue", "trusted.note": b"\0\1", "security.thing": b"label"}

KINDS = {
    "file": File(content=b"content" * 100, mode=0o4751, owner=(7, 8), xattrs=ATTRIBUTES),
    "large file": File(content=b"0123456789abcdef" * 65536, mode=0o640, owner=(7, 8), xattrs=ATTRIBUTES),
    "empty": File(mode=0o2711, owner=(7, 8)),
    "unreadable": File(content=b"secret", mode=0, owner=(7, 8)),
    "fifo": Node(kind=stat.S_IFIFO, mode=0o631, owner=(7, 8)),
    "socket": Node(kind=stat.S_IFSOCK, mode=0o754, owner=(7, 8)),
    "character device": Node(kind=stat.S_IFCHR, device=(1, 3), mode=0o666, owner=(7, 8)),
    "block device": Node(kind=stat.S_IFBLK, device=(7, 200), mode=0o660, owner=(7, 8)),
    "symlink": Symlink(target="no/where", owner=(7, 8), xattrs={"trusted.note": b"x"}),
    "directory": Dir(mode=0o1773, owner=(7, 8), xattrs=ATTRIBUTES, names={"in": "x"}),
}

CHANGES = {
    "chmod": lambda path: os.chmod(path, 0o700),
    "chown": lambda path: os.chown(path, 9, 9, follow_symlinks=False),
    "utime": lambda path: os.utime(path, ns=(5, 6), follow_symlinks=False),
    "setxattr": lambda path: os.setxattr(path, "trusted.new", b"v", follow_symlinks=False),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_attributes_changes_just_them(make_union, place, kind, change):
    """The same change on a plain copy, kept by cp(1), gives the same file."""
    if change == "chmod" and kind == "symlink":
        pytest.skip("chmod(2) follows symlinks")
    union = make_union({"d": {"thing": KINDS[kind]}})
    plain = place / "plain"
    subprocess.run(["cp", "-a", "--preserve=all", union.lowers[0] / "d", plain], check=True)
    CHANGES[change](plain / "thing")
    CHANGES[change](union.root / "d" / "thing")
    expected = picture(plain / "thing")
    assert picture(union.root / "d" / "thing") == expected
    assert picture(union.upper / "d" / "thing") == expected
    assert not union.lowers_changed()
    union.remount()
    assert picture(union.root / "d" / "thing") == expected


def test_only_what_changes_is_copied(make_union):
    union = make_union({"a": "1", "d": {"b": "2", "e": {"c": "3"}}, "f": {}})
    os.chmod(union.root / "d" / "b", 0o600)
    assert names_of(union.upper) == {"d", "d/b"}


@pytest.mark.parametrize(
    "looking",
    [
        lambda root: (root / "d" / "f").read_bytes(),
        lambda root: os.listdir(root / "d"),
        lambda root: os.stat(root / "d" / "f"),
        lambda root: os.listxattr(root / "d" / "f"),
        lambda root: os.access(root / "d" / "f", os.W_OK),
        lambda root: errno_of(os.removexattr, root / "d" / "f", "user.none"),
        lambda root: errno_of(os.rmdir, root / "d"),
        lambda root: errno_of(os.mkdir, root / "d"),
        lambda root: errno_of(os.link, root / "d" / "f", root / "g"),
        lambda root: errno_of(os.rename, root / "d", root / "g"),
        lambda root: os.close(os.open(root / "d" / "f", os.O_RDONLY)),
    ],
    ids=[
        "read",
        "list",
        "stat",
        "listxattr",
        "access",
        "removexattr",
        "rmdir",
        "mkdir",
        "link",
        "rename",
        "open",
    ],
)
def test_looking_and_failing_copies_nothing(make_union, looking):
    union = make_union({"d": {"f": "x"}, "g": {"h": ""}})
    looking(union.root)
    assert names_of(union.upper) == set()


def test_copy_up_is_not_seen_in_the_parents(make_union):
    union = make_union({"d": Dir(names={"e": Dir(names={"f": "x"}, mode=0o711)}, mode=0o751)})
    before = {name: picture(union.root / name) for name in (".", "d", "d/e")}
    tick()
    os.chmod(union.root / "d" / "e" / "f", 0o600)
    assert {name: picture(union.root / name) for name in (".", "d", "d/e")} == before
    assert (union.root / "d" / "e").stat().st_mtime_ns == PAST_NS
    assert (union.upper / "d" / "e").stat().st_mtime_ns == PAST_NS
    union.remount()
    assert {name: picture(union.root / name) for name in (".", "d", "d/e")} == before


def test_a_write_changes_mtime_and_a_chmod_does_not(make_union):
    union = make_union({"a": "x", "b": "x"})
    os.chmod(union.root / "a", 0o600)
    (union.root / "b").write_text("y")
    assert (union.root / "a").stat().st_mtime_ns == PAST_NS
    assert (union.root / "b").stat().st_mtime_ns != PAST_NS


def test_atime_of_the_copy(make_union):
    union = make_union({"a": File(content=b"x", atime_ns=PAST_NS - 5)})
    os.chmod(union.root / "a", 0o600)
    assert (union.root / "a").stat().st_atime_ns == PAST_NS - 5


def test_times_far_from_today(make_union):
    before_1970, after_2038 = -1_000_000_001, 4_000_000_000_123_456_789
    union = make_union({"a": File(mtime_ns=before_1970, atime_ns=after_2038)})
    assert (union.root / "a").stat().st_mtime_ns == before_1970
    os.chmod(union.root / "a", 0o600)
    status = (union.root / "a").stat()
    assert (status.st_mtime_ns, status.st_atime_ns) == (before_1970, after_2038)
    os.utime(union.root / "a", ns=(before_1970 + 1, after_2038 + 1))
    status = (union.root / "a").stat()
    assert (status.st_atime_ns, status.st_mtime_ns) == (before_1970 + 1, after_2038 + 1)


def test_acls_are_kept(make_union):
    union = make_union({"f": File(content=b"x", mode=0o640), "d": {}}, mount=False)
    command("setfacl", "-m", "u:12:rwx,g:13:r--,m::rw-", union.lowers[0] / "f")
    command("setfacl", "-m", "u:12:rwx", "-d", union.lowers[0] / "d")
    union.remember_lowers()
    before = {name: picture(union.lowers[0] / name) for name in ("f", "d")}
    assert dict(before["f"].xattrs)["system.posix_acl_access"]
    union.mount()
    assert {name: picture(union.root / name) for name in ("f", "d")} == before
    os.utime(union.root / "f", ns=(PAST_NS, PAST_NS))
    os.utime(union.root / "d", ns=(PAST_NS, PAST_NS))
    assert {name: picture(union.upper / name) for name in ("f", "d")} == before
    assert {name: picture(union.root / name) for name in ("f", "d")} == before


@pytest.mark.parametrize("before", [0, 1 << 16, 300 << 20])
def test_holes_are_kept(make_union, before):
    union = make_union({"f": File(content=b"end" * 5000, holes=before)}, mount=False)
    with open(union.lowers[0] / "f", "r+b") as file:
        file.truncate(before + 15000 + (64 << 20))
    union.remember_lowers()
    union.mount()
    os.chmod(union.root / "f", 0o600)
    assert (union.upper / "f").stat().st_blocks <= (union.lowers[0] / "f").stat().st_blocks + 8
    assert picture(union.upper / "f").content == picture(union.lowers[0] / "f").content
    fd = os.open(union.upper / "f", os.O_RDONLY)
    try:
        assert os.lseek(fd, before, os.SEEK_DATA) == before
        assert os.lseek(fd, before, os.SEEK_HOLE) < before + 15000 + (64 << 20)
    finally:
        os.close(fd)


def test_a_file_of_nothing_but_a_hole(make_union):
    union = make_union({"f": File(holes=1 << 30)})
    os.chmod(union.root / "f", 0o600)
    status = (union.upper / "f").stat()
    assert (status.st_size, status.st_blocks) == (1 << 30, 0)


@pytest.mark.parametrize("size", [0, 1, 5000, 300_000, 2_000_000])
def test_truncate_of_a_lower_file(make_union, size):
    content = bytes(range(256)) * 4096
    union = make_union({"f": content})
    os.truncate(union.root / "f", size)
    assert (union.root / "f").read_bytes() == content[:size].ljust(size, b"\0")
    assert (union.upper / "f").read_bytes() == content[:size].ljust(size, b"\0")


def test_file_capabilities_are_kept_by_copy_up_and_cleared_by_a_write(make_union):
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    union = make_union({"f": File(content=b"x", mode=0o755, xattrs={"security.capability": capability})})
    os.utime(union.root / "f")
    assert os.getxattr(union.root / "f", "security.capability") == capability
    with open(union.root / "f", "ab") as file:
        file.write(b"y")
    assert errno_of(os.getxattr, union.root / "f", "security.capability") == "ENODATA"


def test_a_copied_up_file_over_many_layers(make_union):
    union = make_union({}, {"d": {"e": {}}}, {"d": {"e": {"f": "deep"}}}, {"d": {"e": {"f": "deeper"}}})
    with open(union.root / "d" / "e" / "f", "a") as file:
        file.write("er")
    assert (union.upper / "d" / "e" / "f").read_text() == "deeper"
    assert names_of(union.upper) == {"d", "d/e", "d/e/f"}


def test_nothing_is_left_in_the_staging_directory(make_union):
    union = make_union({"f": "x" * 500_000, "g": "y", "h": HardLink("g"), "d": {"x": ""}})
    os.chmod(union.root / "f", 0o600)
    os.chmod(union.root / "g", 0o600)
    (union.root / "d" / "x").unlink()
    (union.root / "d").rmdir()
    (union.root / "d").mkdir()
    union.unmount()
    assert names_of(union.work) == {"work", "hardlinks"}


def test_two_who_write_at_once_share_one_copy(make_union):
    union = make_union({"f": b"x" * (8 << 20)})
    writers = [
        subprocess.Popen(
            ["dd", "if=/dev/zero", f"of={union.root / 'f'}", "conv=notrunc", "bs=1", "count=1", f"seek={n}"],
            stderr=subprocess.DEVNULL,
        )
        for n in range(5)
    ]
    assert [writer.wait() for writer in writers] == [0] * 5
    assert (union.root / "f").read_bytes() == b"\0" * 5 + b"x" * ((8 << 20) - 5)


def test_removed_while_it_is_copied(make_union):
    """Whatever comes first: the name is gone, the writer wrote to a file."""
    union = make_union({"f": b"x" * (64 << 20)})
    writer = subprocess.Popen(
        ["dd", "if=/dev/zero", f"of={union.root / 'f'}", "conv=notrunc", "bs=1", "count=1"],
        stderr=subprocess.PIPE,
    )
    (union.root / "f").unlink()
    assert b"Input/output" not in writer.communicate()[1]
    if (union.root / "f").exists():  # dd came second, and made it anew
        assert (union.root / "f").stat().st_size == 1
