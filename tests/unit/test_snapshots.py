"""Snapshots without containerd: the filters, and SIGKILL between any two lines."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.snapshotter import files, filters
from runtime.snapshotter.errors import InvalidArgument, NotFound
from runtime.snapshotter.mounts import Directories, Mount, mounts
from runtime.snapshotter.snapshot import Kind, Snapshot
from runtime.snapshotter.snapshotter import Snapshotter

LABELS = {"colour": "blue", "containerd.io/snapshot.ref": "sha256:1", "odd,key": "a b"}
SNAPSHOT = Snapshot("default/1/one", "default/0/base", Kind.ACTIVE, 0, 0, LABELS)


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ([], True),
        ([""], True),
        (["kind==active"], True),
        (["kind==committed"], False),
        (["kind!=committed,parent==default/0/base"], True),
        (["kind==committed", "name==default/1/one"], True),
        (["labels.colour"], True),
        (["labels.taste"], False),
        (["labels.colour==blue,kind==view"], False),
        (['labels."containerd.io/snapshot.ref"==sha256:1'], True),
        (["labels.containerd.io==x"], False),
        (['labels."odd,key"=="a b"'], True),
        (["name~=^default/.*one$"], True),
        (["name~=/one|two/"], True),
        ([r"name~=|default\/1|"], True),
        (["labels.taste!=sweet"], True),
        (["nothing==x"], False),
    ],
)
def test_filters(texts, found):
    assert filters.parse(texts)(SNAPSHOT) is found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("==x", "at character 1: a field must stand here"),
        ("kind==", "at character 7: a value must follow the operator"),
        ("kind=active", "at character 5: a ',' must stand between selectors"),
        ("kind,", "at character 6: a field must stand here"),
        ("name~=(", "'(' is no regular expression"),
    ],
)
def test_wrong_filters(text, reason):
    with pytest.raises(InvalidArgument) as caught:
        filters.parse([text])
    assert reason in str(caught.value) and text in str(caught.value)


def test_mounts():
    one, two, upper, work = Path("/1"), Path("/2"), Path("/u"), Path("/w")
    assert mounts("unionfs", Directories([one])) == [Mount("bind", "/1", ("ro", "rbind"))]
    assert mounts("unionfs", Directories([], upper, work)) == [Mount("bind", "/u", ("rw", "rbind"))]
    union = mounts("unionfs", Directories([two, one], upper, work), ["uidmapping=0:1:2"])
    options = ("lowerdir=/2:/1", "uidmapping=0:1:2", "upperdir=/u", "workdir=/w")
    assert union == [Mount("fuse3.unionfs", "overlay", options)]


def test_labels_are_changed_by_field(tmp_path):
    snapshotter = Snapshotter(tmp_path, "unionfs")
    snapshotter.prepare("one", "", {"a": "1", "b": "2"})
    assert dict(snapshotter.update("one", {"a": "3", "c": "4"}, ["labels.a", "labels.b"]).labels) == {
        "a": "3"
    }
    assert dict(snapshotter.update("one", {"c": "4"}).labels) == {"c": "4"}
    with pytest.raises(InvalidArgument, match="field 'parent' of snapshot 'one' cannot be changed"):
        snapshotter.update("one", {}, ["parent"])
    with pytest.raises(NotFound, match="snapshot 'two' does not exist"):
        snapshotter.update("two", {})
    snapshotter.close()


def test_a_tree_deeper_than_any_path_is_removed(tmp_path):
    top = tmp_path / "top"
    top.mkdir()
    (top / "0").mkdir()
    (top / "file").write_text("x" * 10_000)
    os.link(top / "file", top / "0" / "link")
    os.symlink("/", top / "0" / "root")
    here = os.open(top, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("directory", dir_fd=here)
        below = os.open("directory", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    found = files.usage(top)
    assert found.inodes > 400 and 10_000 <= found.size < 10_000_000
    files.remove(top)
    assert not top.exists()
    files.remove(top)


def _life(root: Path) -> None:
    """Everything that changes something."""
    snapshotter = Snapshotter(root, "unionfs")
    snapshotter.prepare("extract", "", {})
    (root / "snapshots" / "1" / "upper" / "file").write_text("x")
    snapshotter.commit("extract", "base", {"a": "1"})
    snapshotter.prepare("container", "base", {})
    snapshotter.view("look", "base", {})
    snapshotter.update("container", {"b": "2"})
    snapshotter.remove("look")
    snapshotter.remove("container")
    snapshotter.remove("base")
    snapshotter.close()


def _killed_after(root: Path, lines: int) -> bool:
    """Live in a child that is killed before that line of the snapshotter's; False if it has fewer."""
    child = os.fork()
    if child == 0:
        try:
            left = lines

            def trace(frame, event, argument):
                nonlocal left
                if "runtime/snapshotter" not in frame.f_code.co_filename:
                    return None
                if event == "line":
                    left -= 1
                    if left < 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                return trace

            sys.settrace(trace)
            _life(root)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory that need not wait for a disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def test_sigkill_between_any_two_lines(memory):
    """What a new start finds is whole: a row has its directories, a directory its row, and work goes on."""
    lines = 0
    while _killed_after(root := memory / str(lines), lines):
        snapshotter = Snapshotter(root, "unionfs")
        rows = snapshotter.find()
        directories = os.listdir(root / "snapshots")
        assert len(directories) == len([row for row in rows if row.kind is not Kind.VIEW]), lines
        for row in rows:
            if row.kind is Kind.COMMITTED:
                assert snapshotter.usage(row.name).inodes == 2, lines
            else:
                mount = snapshotter.mounts(row.name)[0]
                places = [option.split("=")[1] for option in mount.options if "=" in option] or [mount.source]
                assert all(os.path.isdir(place) for place in places), lines
        for row in sorted(rows, key=lambda row: row.parent == ""):
            snapshotter.remove(row.name)
        snapshotter.prepare("next", "", {})
        assert len(os.listdir(root / "snapshots")) == 1
        snapshotter.close()
        lines += 1
    assert lines > 200
