"""One layer: nothing leads out of it, and any name is a name."""

from __future__ import annotations

import os
import stat

import pytest
from support.layers import HardLink, Node, Symlink, build
from support.union import errno_of

from unionfs.layer import DIRECTORY_CACHE, DirectoryEntry, join, open_lower, split

pytestmark = pytest.mark.root


@pytest.fixture
def make_layer(tmp_path):
    made = []

    def make(names):
        build(tmp_path / "layer", names)
        made.append(open_lower(os.fspath(tmp_path / "layer")))
        return made[-1]

    yield make
    for layer in made:
        layer.close()


@pytest.mark.parametrize(
    ("path", "parent", "name"), [(b"a", b"", b"a"), (b"a/b", b"a", b"b"), (b"a/b/c", b"a/b", b"c")]
)
def test_split_and_join(path, parent, name):
    assert split(path) == (parent, name)
    assert join(parent, name) == path


def test_kinds_of_entries(make_layer):
    layer = make_layer({"f": "", "d": {}, "s": Symlink(target="d"), "p": Node(), b"\xff\n": ""})
    assert set(layer.entries(b"")) == {
        DirectoryEntry(b"f", stat.S_IFREG),
        DirectoryEntry(b"d", stat.S_IFDIR),
        DirectoryEntry(b"s", stat.S_IFLNK),
        DirectoryEntry(b"p", stat.S_IFIFO),
        DirectoryEntry(b"\xff\n", stat.S_IFREG),
    }


def test_no_symlink_is_followed(make_layer, tmp_path):
    build(tmp_path / "outside", {"secret": "s", "d": {"f": ""}})
    layer = make_layer(
        {"file": Symlink(target="../outside/secret"), "dir": Symlink(target="../outside/d"), "d": {}}
    )
    assert stat.S_ISLNK(layer.stat(b"file").st_mode)
    assert errno_of(layer.open, b"file", os.O_RDONLY) == "ELOOP"
    for path in (b"dir/f", b"dir/../secret"):
        assert errno_of(layer.stat, path) == "ENOTDIR"
        assert errno_of(layer.open, path, os.O_RDONLY) == "ENOTDIR"
    assert errno_of(layer.entries, b"dir") != ""


def test_a_lower_layer_cannot_be_written(make_layer, tmp_path):
    layer = make_layer({"d": {"f": "x"}})
    assert errno_of(layer.open, b"d/f", os.O_WRONLY) == "EROFS"
    assert errno_of(os.mkdir, b"new", dir_fd=layer.directory_fd(b"d")) == "EROFS"
    before = os.stat(tmp_path / "layer" / "d" / "f").st_atime_ns
    fd = layer.open(b"d/f", os.O_RDONLY)
    os.read(fd, 1)
    os.close(fd)
    assert os.stat(tmp_path / "layer" / "d" / "f").st_atime_ns == before


def test_more_directories_than_are_held_open(make_layer):
    layer = make_layer({f"d{n}": {"in": {"f": ""}} for n in range(DIRECTORY_CACHE)})
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for n in range(DIRECTORY_CACHE):
            assert layer.stat(b"d%d/in/f" % n).st_size == 0
    assert len(os.listdir("/proc/self/fd")) <= before + DIRECTORY_CACHE


def test_closing_gives_back_every_descriptor(tmp_path):
    build(tmp_path / "layer", {"a": {"b": {"c": ""}}})
    before = len(os.listdir("/proc/self/fd"))
    layer = open_lower(os.fspath(tmp_path / "layer"))
    layer.stat(b"a/b/c")
    assert errno_of(layer.stat, b"a/none/c") == "ENOENT"
    layer.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_moved_directory_is_forgotten(make_layer, tmp_path):
    layer = make_layer({"a": {"b": {"f": ""}}, "ab": {"f": ""}})
    layer.stat(b"a/b/f")
    layer.stat(b"ab/f")
    os.rename(tmp_path / "layer" / "a", tmp_path / "layer" / "c")
    layer.forget_directories(b"a")
    assert errno_of(layer.stat, b"a/b/f") == "ENOENT"
    assert layer.stat(b"c/b/f").st_size == 0


def test_hard_links_are_found(make_layer, tmp_path):
    layer = make_layer({"a": "", "d": {"b": HardLink("a")}, "alone": "", "s": Symlink(target="a")})
    inode = (tmp_path / "layer" / "a").stat().st_ino
    assert {ino: sorted(paths) for ino, paths in layer.hard_links().items()} == {inode: [b"a", b"d/b"]}
