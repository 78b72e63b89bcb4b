"""A server that is killed leaves the old state or the new; the next one cleans up and completes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from support.layers import HardLink, build, whiteout
from support.snapshot import differences, names_of, snapshot
from support.union import errno_of, mounts_at

pytestmark = pytest.mark.root

LINKED = {"a": "one", "d": {"b": HardLink("a")}, "e": {"c": HardLink("a")}}


def plant_record(union, *, linked=()):
    """What copyup.py leaves when it is killed among the links: the copy, named by layer and inode."""
    records = union.work / "hardlinks"
    records.mkdir(exist_ok=True)
    inode = (union.lowers[0] / "a").stat().st_ino
    record = records / f"1-{inode:x}"
    record.write_text("changed")
    for name in linked:
        (union.upper / name).parent.mkdir(exist_ok=True)
        os.link(record, union.upper / name)
    return record


@pytest.mark.parametrize("linked", [(), ("a",), ("d/b",), ("a", "d/b", "e/c")])
def test_hard_links_that_were_interrupted_are_completed(make_union, linked):
    union = make_union(LINKED, mount=False)
    plant_record(union, linked=linked)
    union.mount()
    assert {(union.root / name).read_text() for name in ("a", "d/b", "e/c")} == {"changed"}
    assert len({os.stat(union.root / name).st_ino for name in ("a", "d/b", "e/c")}) == 1
    assert {os.stat(union.root / name).st_nlink for name in ("a", "d/b", "e/c")} == {3}
    assert os.listdir(union.work / "hardlinks") == []
    assert names_of(union.upper) == {"a", "d", "d/b", "e", "e/c"}


def test_completing_does_not_bring_back_what_was_removed(make_union):
    union = make_union(LINKED, upper={"d": {"b": whiteout()}, "e": {"c": "another"}}, mount=False)
    plant_record(union, linked=("a",))
    union.mount()
    assert (union.root / "a").read_text() == "changed"
    assert (union.root / "e/c").read_text() == "another"
    assert errno_of(os.stat, union.root / "d/b") == "ENOENT"


@pytest.mark.parametrize("name", ["1-ffffffffff", "9-5", "nonsense", "zz-zz", "1-", "1"])
def test_a_record_that_says_nothing_of_this_union_hinders_nobody(make_union, name):
    union = make_union(LINKED, mount=False)
    (union.work / "hardlinks").mkdir()
    (union.work / "hardlinks" / name).write_text("?")
    union.expected_complaint = "is no record of ours"
    union.mount()
    assert (union.root / "a").read_text() == "one"


def test_the_staging_directory_is_cleaned(make_union):
    union = make_union({"f": "x"}, mount=False)
    outside = union.place / "outside"
    build(outside, {"precious": "data"})
    build(union.work / "work", {"#1": "half", "#2": {"sub": {"x": ""}}, "odd": ""})
    os.symlink(outside, union.work / "work" / "#3")
    os.symlink(outside, union.work / "work" / "#2" / "sub" / "link")
    union.mount()
    assert os.listdir(union.work / "work") == []
    assert (outside / "precious").read_text() == "data"


def test_killed_and_mounted_again(make_union):
    union = make_union({"f": "x", "d": {"g": "y"}})
    (union.root / "f").write_text("changed")
    (union.root / "d/g").unlink()
    (union.root / "new").mkdir()
    before = snapshot(union.root)
    union.kill()
    union.mount()
    assert differences(before, snapshot(union.root)) == []


def test_killed_with_files_open(make_union):
    union = make_union({"f": "x"})
    held = os.open(union.root / "f", os.O_RDWR)
    try:
        os.write(held, b"y")
        union.kill()
        assert errno_of(os.write, held, b"z") in ("ENOTCONN", "ECONNABORTED")
    finally:
        errno_of(os.close, held)
    union.mount()
    assert (union.root / "f").read_text() == "y"


def test_killed_while_many_files_change(make_union):
    """Each file is as it was or as it became."""
    tree = {f"f{n}": f"old{n}" for n in range(200)} | {"hard": "old", "d": {"hard": HardLink("hard")}}
    union = make_union(tree)
    script = "import os, sys\nos.chdir(sys.argv[1])\nwhile True:\n" + "".join(
        f"    {line}\n"
        for line in (
            "for n in range(200):",
            "    open('new', 'w').write(f'new{n}')",
            "    os.rename('new', f'f{n}')",
            "    os.chmod('hard', 0o600 + n % 2)",
            "    os.unlink(f'f{n}')",
            "    os.mkdir(f'f{n}')",
            "    open(f'f{n}/in', 'w').close()",
            "    os.unlink(f'f{n}/in')",
            "    os.rmdir(f'f{n}')",
            "    print(n, flush=True)",
        )
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", script, union.root],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert worker.stdout
    try:
        for _ in range(17):
            worker.stdout.readline()
        os.kill(union.pid, signal.SIGKILL)
    finally:
        worker.kill()
        worker.communicate()
    union.kill()
    union.mount()
    assert (union.root / "hard").stat().st_ino == (union.root / "d/hard").stat().st_ino
    for n in range(200):
        path = union.root / f"f{n}"
        if path.is_dir():
            assert set(os.listdir(path)) <= {"in"}
        elif path.exists():
            assert path.read_text() in (f"old{n}", f"new{n}")
        else:
            assert n <= 60
    assert os.listdir(union.work / "work") == []
    assert os.listdir(union.work / "hardlinks") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_unmount_cleanly(make_union, number):
    union = make_union({"f": "x"})
    (union.root / "f").write_text("y")
    os.kill(union.pid, number)
    assert union.wait() == 0
    assert mounts_at(union.root) == []
    assert (union.upper / "f").read_text() == "y"


def test_a_signal_while_a_file_is_open(make_union):
    union = make_union({"f": "x"})
    held = os.open(union.root / "f", os.O_RDWR)
    try:
        os.write(held, b"y")
        os.kill(union.pid, signal.SIGTERM)
        assert union.wait() == 0
        assert mounts_at(union.root) == []
    finally:
        errno_of(os.close, held)  # the server it was opened at is gone
    assert (union.upper / "f").read_text() == "y"
