"""Random operations on our mount, on kernel overlayfs and in a plain directory have the same outcomes.

The three begin with the same tree; the reference is the plain directory, and where it cannot be, kernel
overlayfs (KNOWN says when). In the end the trees are the same, before and after the next mount, and kernel
overlayfs shows on our layers what we show.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from differential_operations import LAYERS, NAMES, Hands, Operation
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.layers import build
from support.snapshot import Picture, differences, snapshot
from support.union import Union, detach, overlayfs

from unionfs import syscalls

pytestmark = pytest.mark.root


# Choosing operations ------------------------------------------------------------------------------

MODES = st.sampled_from([0o644, 0o600, 0o4755, 0o2711, 0o000, 0o1777])
CREATE = [0, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_CREAT | os.O_TRUNC, os.O_TRUNC, os.O_APPEND]
RENAMES = st.sampled_from([0, 0, 0, syscalls.RENAME_NOREPLACE, syscalls.RENAME_EXCHANGE])
ATTRIBUTES = st.sampled_from(["user.x", "user.y", "trusted.z"])
SLOTS = st.integers(0, 2)

OLD, NEW, ANY = "a name that is there", "a name that is most likely not", "either"

#: The arguments of each operation.
WAYS: dict[str, tuple[st.SearchStrategy[Any] | str, ...]] = {
    "write": (ANY, st.sampled_from(CREATE), MODES, st.sampled_from([b"", b"x", b"longer text", b"0" * 9000])),
    "read": (OLD,),
    "truncate": (OLD, st.sampled_from([0, 1, 4999, 20000])),
    "hold": (SLOTS, ANY, st.sampled_from([os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT])),
    "use": (SLOTS, st.sampled_from(["stat", "list", "chmod", "utime", "read", "write", "truncate"])),
    "drop": (SLOTS,),
    "mkdir": (NEW, MODES),
    "mkfifo": (NEW,),
    "symlink": (st.sampled_from(["a", "../b", "d/d", "loop"]), NEW),
    "unlink": (OLD,),
    "rmdir": (OLD,),
    "remove_tree": (OLD,),
    "link": (OLD, NEW),
    "rename": (OLD, ANY, RENAMES),
    "chmod": (OLD, MODES),
    "chown": (OLD, st.sampled_from([-1, 0, 5]), st.sampled_from([-1, 0, 6])),
    "utime": (OLD, st.integers(0, 10**19), st.integers(0, 4 * 10**18)),
    "setxattr": (OLD, ATTRIBUTES, st.sampled_from([b"", b"v"]), st.sampled_from([0, 1, 2])),
    "removexattr": (OLD, ATTRIBUTES),
    "stat": (ANY,),
    "xattrs": (OLD,),
    "list": (OLD,),
    "old": (OLD,),
    "changed": (OLD,),
    "remount": (),
}
WEIGHTS = {"rename": 6, "unlink": 3, "remove_tree": 2, "mkdir": 4, "write": 3, "link": 3, "hold": 2, "use": 4}
CHOICES = [what for what in WAYS for _ in range(WEIGHTS.get(what, 1))]


def choose(data: st.DataObject, root: Path) -> Operation:
    """An operation that has something to act on in the tree as it is now."""
    directories, paths = [""], []
    for here, below, files in os.walk(root):
        inside = os.path.relpath(here, root) + "/" if here != os.fspath(root) else ""
        directories += [f"{inside}{name}/" for name in sorted(below) if not os.path.islink(f"{here}/{name}")]
        paths += [f"{inside}{name}" for name in sorted([*below, *files])]
    old = st.sampled_from(sorted(paths) or ["a"])
    new = st.builds(
        lambda parent, name: parent + name, st.sampled_from(sorted(directories)), st.sampled_from(NAMES)
    )
    places = {OLD: old, NEW: new, ANY: st.one_of(old, new)}
    what = data.draw(st.sampled_from(CHOICES))
    return Operation(what, tuple(data.draw(places[a] if isinstance(a, str) else a) for a in WAYS[what]))


# Differences that are not ours to mend ------------------------------------------------------------


def is_errno(outcome: object) -> bool:
    return isinstance(outcome, str) and hasattr(errno, outcome)


def known(operation: Operation, ours: object, overlay: object, plain: object) -> str:
    """Why the three outcomes may differ, "" when they may not."""
    if operation.what == "rename" and overlay == "EXDEV":
        # A directory that lower layers take part in cannot be moved: overlayfs without redirect_dir.
        if ours == "EXDEV":
            return "as overlayfs"
        if is_errno(plain) and ours == plain:
            return "overlayfs looks whether it can be moved before it looks whether it may be"
    if operation.what == "use" and overlay in ("EIO", "ENOTDIR") and ours == plain:
        return "overlayfs cannot copy up what was removed while it was open"
    if operation.what == "use" and ours == plain and only_links_differ(ours, overlay):
        return "overlayfs may count a link of a node that was removed while it was open"
    return ""


def only_links_differ(ours: object, overlay: object) -> bool:
    """Whether two outcomes of stat are the same but for the link count, of which ours is 0."""
    both_are_stats = isinstance(ours, tuple) and isinstance(overlay, tuple)
    return both_are_stats and ours[-1] == 0 and ours[:-1] == overlay[:-1]


def assert_alike(one: dict[bytes, Picture], other: dict[bytes, Picture]) -> None:
    lines = differences(one, other)
    assert not lines, "\n".join(lines)


# The three trees ----------------------------------------------------------------------------------


class Three:
    """Our mount, kernel overlayfs and a plain directory that begin alike."""

    def __init__(self, place: Path, *options: str) -> None:
        (place / "ours").mkdir()
        self.union = Union(place / "ours", *LAYERS)
        self.options = options
        self.place = place
        self.hands: dict[str, Hands] = {}
        #: Until an operation came that overlayfs cannot do and a plain directory can.
        self.follows_plain = True

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
        options = ("index=on", *self.options)
        with overlayfs(theirs / "root", lowers, theirs / "upper", theirs / "work", *options) as overlay:
            subprocess.run(["cp", "-a", overlay, plain], check=True)
            try:
                self.hands = {
                    "ours": Hands(self.union.mount(*self.options)),
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
        self.union.remount(*self.options)

    def tree(self, which: str) -> dict[bytes, Picture]:
        """A tree without the mtimes: what is done at different times has different ones."""
        return {path: replace(thing, mtime_ns=0) for path, thing in snapshot(self.hands[which].root).items()}

    def run(self, operations: Iterable[Operation]) -> None:
        for operation in operations:
            self.step(operation)
        self.compare_trees()

    def step(self, operation: Operation) -> None:
        if operation.what == "remount":
            self.remount()
            return
        outcomes = {name: hands.do(operation) for name, hands in self.hands.items()}
        ours, overlay, plain = (outcomes[name] for name in ("ours", "overlay", "plain"))
        if not self.follows_plain:
            plain = ours
        if ours == overlay == plain:
            return
        assert known(operation, ours, overlay, plain), f"{operation}: {outcomes}"
        if not is_errno(plain):
            self.follows_plain = False

    def compare_trees(self) -> None:
        trees = {name: self.tree(name) for name in self.hands}
        assert_alike(trees["ours"], trees["overlay"])
        if self.follows_plain:
            assert_alike(trees["ours"], trees["plain"])
        full = snapshot(self.union.root)
        numbers = {path: os.lstat(os.fsencode(self.union.root) + b"/" + path).st_ino for path in full}
        self.remount()
        assert_alike(full, snapshot(self.union.root))
        again = {path: os.lstat(os.fsencode(self.union.root) + b"/" + path).st_ino for path in full}
        assert again == numbers, "inode numbers after the next mount"
        self.hands["ours"].close()
        self.union.unmount()
        with self.union.kernel(*self.options) as root:
            assert_alike(full, snapshot(root))
        self.union.mount(*self.options)
        assert_alike(full, snapshot(self.union.root))


REDIRECTS = ("redirect_dir=on",)

_serial = itertools.count()


@contextmanager
def three_trees(*options: str) -> Iterator[Three]:
    """In directories of their own, which are gone in the end."""
    place = Path(tempfile.mkdtemp(prefix=f"differential{next(_serial)}-"))
    try:
        three = Three(place, *options)
        with three.ready():
            yield three
    finally:
        detach(place)
        shutil.rmtree(place)


def check_random(data: st.DataObject, *options: str) -> None:
    """Choose and do operations; those of a failure are printed, to become one of REGRESSIONS."""
    done: list[Operation] = []
    with three_trees(*options) as three:
        try:
            for _ in range(data.draw(st.integers(20, 60))):
                # The reference chooses; where it cannot be followed, kernel overlayfs does.
                chooser = three.hands["plain" if three.follows_plain else "overlay"]
                done.append(choose(data, chooser.root))
                three.step(done[-1])
            three.compare_trees()
        except AssertionError as error:
            error.add_note("operations:\n" + "\n".join(f"    {operation}," for operation in done))
            raise


COMMON = settings(
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
    print_blob=False,
)


@settings(COMMON, max_examples=40, derandomize=True)
@given(st.data())
def test_outcomes_are_the_same(data):
    check_random(data)


@settings(COMMON, max_examples=40, derandomize=True)
@given(st.data())
def test_outcomes_are_the_same_with_redirects(data):
    check_random(data, *REDIRECTS)


@pytest.mark.slow
@settings(COMMON, max_examples=2000, phases=[Phase.generate, Phase.shrink])
@given(st.data(), st.sampled_from([(), REDIRECTS]))
def test_outcomes_are_the_same_for_long(data, options):
    check_random(data, *options)


#: Sequences that failed once, with the options of the mounts.
REGRESSIONS: dict[str, tuple[tuple[str, ...], list[Operation]]] = {
    "a removed lower directory is changed by its descriptor": (
        (),
        [
            Operation("hold", (0, "e/c", os.O_RDONLY)),
            Operation("rmdir", ("e/c",)),
            Operation("use", (0, "utime")),
        ],
    ),
    "hard links below a moved directory": (
        REDIRECTS,
        [
            Operation("rename", ("d", "e/e", 0)),
            Operation("write", ("b", os.O_TRUNC, 0o644, b"changed")),
            Operation("stat", ("e/e/c",)),
        ],
    ),
}


@pytest.mark.parametrize("name", REGRESSIONS)
def test_a_sequence_that_failed_once(name):
    options, operations = REGRESSIONS[name]
    with three_trees(*options) as three:
        three.run(operations)
