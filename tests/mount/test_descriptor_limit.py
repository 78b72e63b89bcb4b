"""A server that has no descriptor left says so to who asks, changes nothing by halves, and goes on."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys

import pytest
from support.layers import HardLink
from support.snapshot import names_of
from support.union import complaints, detach, errno_of, mounts_at, wait_until

pytestmark = pytest.mark.root

LIMIT = 64

LAYER = {
    "d": {"e": {"f": "content", "g": "content"}},
    "big": "b" * 500_000,
    "one": "linked",
    "two": HardLink("one"),
    "gone": {},
    **{f"file{number}": "x" for number in range(2 * LIMIT)},
}

#: What to do with few descriptors left, and how it is seen to be done.
CHANGES = {
    "copy up": (lambda root: os.chmod(root / "d/e/f", 0o600), lambda root: root.joinpath("d/e/f").stat()),
    "copy up a big file": (
        lambda root: os.truncate(root / "big", 400_000),
        lambda root: (root / "big").stat().st_size == 400_000,
    ),
    "whiteout": (
        lambda root: (root / "d/e/g").unlink(),
        lambda root: not (root / "d/e/g").exists(),
    ),
    "hard links": (lambda root: os.chmod(root / "one", 0o600), lambda root: (root / "two").stat()),
    "remove a directory": (
        lambda root: (root / "gone").rmdir(),
        lambda root: not (root / "gone").exists(),
    ),
    "rename": (lambda root: os.rename(root / "file1", root / "d/new"), lambda root: (root / "d/new").stat()),
    "make": (lambda root: (root / "d/made").mkdir(), lambda root: (root / "d/made").stat()),
    "list": (lambda root: names_of(root), lambda root: True),
}


@pytest.fixture
def union(make_union):
    """A union whose server may have 64 descriptors."""
    made = make_union(LAYER, mount=False)
    with open(made.log, "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "unionfs", "-f", "-o", made.options(), made.root],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT)),
        )
    made.server = server
    try:
        wait_until(lambda: bool(mounts_at(made.root)) or server.poll() is not None, "it is mounted")
        yield made
        assert server.poll() is None, made.words()
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0, made.words()
        assert not complaints(made.words()), made.words()
    finally:
        detach(made.root)
        server.kill()
        server.wait()


def in_use(union):
    return len(os.listdir(f"/proc/{union.server.pid}/fd"))


@contextlib.contextmanager
def exhausted(union, spare):
    """All of the server's descriptors are files that we have open, but some."""
    held = []
    try:
        for number in range(2 * LIMIT):
            try:
                held.append(os.open(union.root / f"file{number}", os.O_RDONLY))
            except OSError as error:
                failure = os.strerror(error.errno)
                break
        assert failure == "Too many open files"
        full = in_use(union)
        for _ in range(spare):
            os.close(held.pop())
        wait_until(lambda: in_use(union) <= full - spare, "files are closed")
        yield
    finally:
        for fd in held:
            os.close(fd)


def test_opening_more_files_than_it_may(union):
    for _ in range(3):
        with exhausted(union, 0):
            assert errno_of(os.open, union.root / "d/e/f", os.O_RDONLY) == "EMFILE"
        wait_until(lambda: in_use(union) < LIMIT - 30, "files are closed")
        assert (union.root / "d/e/f").read_text() == "content"
    assert len(names_of(union.root)) == 8 + 2 * LIMIT


@pytest.mark.parametrize("change", CHANGES)
def test_changes_with_few_descriptors(union, change):
    """As soon as there are enough it is done; before, nothing is."""
    act, done = CHANGES[change]
    for spare in range(12):
        with exhausted(union, spare):
            failure = errno_of(act, union.root)
        assert failure in ("", "EMFILE")
        wait_until(lambda: not os.listdir(union.work / "work"), "nothing is in preparation")
        assert {(union.root / name).read_text() for name in ("one", "two")} == {"linked"}
        assert (union.root / "one").stat().st_ino == (union.root / "two").stat().st_ino
        if not failure:
            break
    assert not failure
    assert done(union.root)
    assert (union.root / "d/e/f").read_text() == "content"
