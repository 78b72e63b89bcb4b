"""The same random operations on our mount, on kernel overlayfs and in a plain directory have the same outcomes.

The three begin with the same tree; the reference is the plain directory, and where it cannot be, kernel
overlayfs (KNOWN says when). In the end the trees are the same, before and after the next mount, and kernel
overlayfs shows on our layers what we show.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from differential_operations import LAYERS, NAMES, Hands, Operation
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from support.layers import build
from support.snapshot import Picture, differences, snapshot
from support.union import Union, detach, overlayfs

from unionfs import syscalls

pytestmark = pytest.mark.root


# Operations ---------------------------------------------------------------------------------------


def build_strategy() -> st.SearchStrategy[Operation]:
    path = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
    slot = st.integers(0, 2)
    text = st.sampled_from([b"", b"x", b"longer text", b"0" * 9000])
    mode = st.sampled_from([0o644, 0o600, 0o4755, 0o2711, 0o000, 0o1777])
    create = st.sampled_from([0, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_CREAT | os.O_TRUNC, os.O_TRUNC])
    append = st.sampled_from([0, os.O_APPEND])
    flags = st.builds(lambda one, other: one | other, create, append)
    rename = st.sampled_from([0, 0, 0, syscalls.RENAME_NOREPLACE, syscalls.RENAME_EXCHANGE])
    xattr = st.sampled_from(["user.x", "user.y", "trusted.z"])
    ways = {
        "write": (path, flags, mode, text),
        "read": (path,),
        "truncate": (path, st.sampled_from([0, 1, 4999, 20000])),
        "hold": (slot, path, st.sampled_from([os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT])),
        "use": (slot, st.sampled_from(["stat", "list", "chmod", "utime", "read", "write", "truncate"])),
        "drop": (slot,),
        "mkdir": (path, mode),
        "mkfifo": (path,),
        "symlink": (st.sampled_from(["a", "../b", "d/d", "loop"]), path),
        "unlink": (path,),
        "rmdir": (path,),
        "link": (path, path),
        "rename": (path, path, rename),
        "chmod": (path, mode),
        "chown": (path, st.sampled_from([-1, 0, 5]), st.sampled_from([-1, 0, 6])),
        "utime": (path, st.integers(0, 10**19), st.integers(0, 4 * 10**18)),
        "setxattr": (path, xattr, st.sampled_from([b"", b"v"]), st.sampled_from([0, 1, 2])),
        "removexattr": (path, xattr),
        "stat": (path,),
        "xattrs": (path,),
        "list": (path,),
        "old": (path,),
        "changed": (path,),
        "remount": (),
    }
    weights = {"rename": 4, "unlink": 3, "rmdir": 3, "mkdir": 3, "write": 3, "link": 2, "hold": 2, "use": 3}
    choices = [
        st.tuples(*arguments).map(lambda given, what=what: Operation(what, given))
        for what, arguments in ways.items()
        for _ in range(weights.get(what, 1))
    ]
    return st.one_of(choices)


OPERATIONS = st.lists(build_strategy(), min_size=5, max_size=40)


# Differences that are not ours to mend ------------------------------------------------------------


def known(operation: Operation, ours: object, overlay: object, plain: object) -> str:
    """Why an operation's outcomes may differ, "" when they may not.

    `ours` must then be as kernel overlayfs has it.
    """
    if operation.what == "rename" and overlay == "EXDEV":
        return "a directory that lower layers take part in cannot be moved: overlayfs without redirect_dir"
    return ""


# The three trees ----------------------------------------------------------------------------------


class Three:
    """Our mount, kernel overlayfs and a plain directory that begin alike."""

    def __init__(self, place: Path) -> None:
        self.union = Union(place / "ours", *LAYERS)
        self.place = place
        self.hands: dict[str, Hands] = {}

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Mounted; everything is given back in the end."""
        theirs, plain = self.place / "theirs", self.place / "plain"
        theirs.mkdir()
        for path in self.union.lowers:
            build(theirs / path.name, LAYERS[self.union.lowers.index(path)])
        (theirs / "upper").mkdir()
        lowers = [theirs / path.name for path in self.union.lowers]
        # index=on: hard links of lower layers stay one file when they are copied up.
        with overlayfs(theirs / "root", lowers, theirs / "upper", theirs / "work", "index=on") as overlay:
            subprocess.run(["cp", "-a", overlay, plain], check=True)
            try:
                self.hands = {
                    "ours": Hands(self.union.mount()),
                    "overlay": Hands(overlay),
                    "plain": Hands(plain),
                }
                yield
            finally:
                for hands in self.hands.values():
                    hands.close()
                self.union.close()

    def remount(self) -> None:
        for hands in self.hands.values():
            hands.close()
        self.union.remount()

    def tree(self, which: str) -> dict[bytes, Picture]:
        """A tree without the mtimes: what is done at different times has different ones."""
        return {path: replace(thing, mtime_ns=0) for path, thing in snapshot(self.hands[which].root).items()}

    def run(self, operations: list[Operation]) -> None:
        follows_plain = True
        for operation in operations:
            if operation.what == "remount":
                self.remount()
                continue
            outcomes = {name: hands.do(operation) for name, hands in self.hands.items()}
            ours, overlay, plain = (outcomes[name] for name in ("ours", "overlay", "plain"))
            if follows_plain and known(operation, ours, overlay, plain):
                follows_plain = plain == overlay
            assert ours == overlay, f"{operation}: {outcomes}"
            if follows_plain:
                assert ours == plain, f"{operation}: {outcomes}"
        trees = {name: self.tree(name) for name in self.hands}
        assert differences(trees["ours"], trees["overlay"]) == []
        if follows_plain:
            assert differences(trees["ours"], trees["plain"]) == []
        full = snapshot(self.union.root)
        numbers = {path: os.lstat(os.fsencode(self.union.root) + b"/" + path).st_ino for path in full}
        self.remount()
        assert differences(full, snapshot(self.union.root)) == []
        again = {path: os.lstat(os.fsencode(self.union.root) + b"/" + path).st_ino for path in full}
        assert again == numbers
        self.hands["ours"].close()
        self.union.unmount()
        with self.union.kernel() as root:
            assert differences(full, snapshot(root)) == []
        self.union.mount()
        assert differences(full, snapshot(self.union.root)) == []


_serial = itertools.count()


def check(operations: list[Operation]) -> None:
    """Run a sequence in directories of its own."""
    place = Path(tempfile.mkdtemp(prefix=f"differential{next(_serial)}-"))
    try:
        three = Three(place)
        with three.ready():
            three.run(operations)
    finally:
        for directory in ("ours/merged", "ours/kernel", "theirs/root"):
            detach(place / directory)
        shutil.rmtree(place)


COMMON = settings(
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    print_blob=False,
)


@settings(COMMON, max_examples=80, derandomize=True)
@given(OPERATIONS)
@example([])
def test_outcomes_are_the_same(operations):
    check(operations)


@pytest.mark.slow
@settings(COMMON, max_examples=1500)
@given(OPERATIONS)
def test_outcomes_are_the_same_for_long(operations):
    check(operations)
