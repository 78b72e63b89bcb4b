"""A tree with something of everything, for tools that copy trees."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from support.layers import Dir, File, HardLink, Node, Symlink, build


def make(place: Path) -> None:
    """Make the tree."""
    many = {
        f"file{number}": File(content=bytes([number]) * number * 37, mode=0o600 | number)
        for number in range(64)
    }
    build(
        place,
        {
            "many": many,
            "deep": {"a": {"b": {"c": {"d": "deep"}}}},
            "sparse": File(content=b"end", holes=8 << 20),
            "program": File(content="x", mode=0o6755, owner=(1000, 1001)),
            "attributes": File(content="x", xattrs={"user.one": b"1", "trusted.two": b"\x00\xff"}),
            "linked": File(content="linked"),
            "one": {"twin": HardLink("linked")},
            "two": {"twin": HardLink("linked")},
            "symlink": Symlink(target="nothing", owner=(1, 2)),
            "long": Symlink(target="x" * 1000),
            b"n" * 255: "longest name",
            b"\xff\xfe\n ": "odd name",
            "fifo": Node(kind=stat.S_IFIFO),
            "device": Node(kind=stat.S_IFCHR, device=(1, 3)),
            "block": Node(kind=stat.S_IFBLK, device=(7, 99)),
            "sticky": Dir(mode=0o1777),
            "team": Dir(mode=0o2775, owner=(0, 2001), xattrs={"user.dir": b"d"}),
            "old": File(content="x", mtime_ns=-86_400 * 10**9),
            "future": File(content="x", mtime_ns=2**33 * 10**9 + 5),
        },
    )


def change(place: Path) -> None:
    """Change something of everything."""
    for number in range(0, 64, 3):
        os.unlink(place / f"many/file{number}")
    for number in range(1, 64, 3):
        with open(place / f"many/file{number}", "ab") as file:
            file.write(b"more")
    os.chmod(place / "program", 0o4711)
    os.setxattr(place / "attributes", "user.one", b"changed")
    os.removexattr(place / "attributes", "trusted.two")
    os.unlink(place / "one/twin")
    os.link(place / "sparse", place / "one/sparse")
    os.unlink(place / "symlink")
    (place / "symlink").mkdir()
    os.rename(place / "long", place / "symlink/long")
    os.utime(place / "old", ns=(0, 1))
    os.chown(place / "fifo", 5, 6)


def count(place: Path) -> int:
    """The number of files."""
    return sum(len(names) + len(directories) for _, directories, names in os.walk(place))
