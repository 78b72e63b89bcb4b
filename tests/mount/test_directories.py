"""Directories: made, removed, made again, listed while they change, with any names, at any depth."""

from __future__ import annotations

import os

import pytest
from support.layers import PAST_NS, opaque, whiteout
from support.snapshot import names_of, snapshot
from support.union import errno_of, tick

pytestmark = pytest.mark.root


def upper_whiteouts(union):
    return {os.fsdecode(path) for path, thing in snapshot(union.upper).items() if thing.kind == "c"}


TREE = {"d": {"f": "x", "sub": {"g": "y", "deeper": {"h": "z"}}}, "keep": ""}


def remove_tree(path):
    for directory, names, files in os.walk(path, topdown=False):
        for name in files:
            os.unlink(os.path.join(directory, name))
        for name in names:
            os.rmdir(os.path.join(directory, name))
    os.rmdir(path)


def test_a_directory_made_where_one_was_removed_shows_nothing(make_union):
    union = make_union({"d": {"sub": {"more": ""}}}, TREE)
    remove_tree(union.root / "d")
    (union.root / "d").mkdir()
    (union.root / "d" / "sub").mkdir()
    (union.root / "d" / "sub" / "deeper").mkdir()
    for _ in range(2):
        assert names_of(union.root) == {"keep", "d", "d/sub", "d/sub/deeper"}
        assert errno_of(os.stat, union.root / "d" / "f") == "ENOENT"
        assert upper_whiteouts(union) == set()
        union.remount()


@pytest.mark.parametrize("where", ["upper whiteout", "upper marker", "lower whiteout"])
def test_a_directory_made_over_a_whiteout_shows_nothing(make_union, where):
    hiding = {".wh.d": ""} if where == "upper marker" else {"d": whiteout()}
    union = make_union(hiding, TREE) if where == "lower whiteout" else make_union(TREE, upper=hiding)
    assert names_of(union.root) == {"keep"}
    (union.root / "d").mkdir()
    (union.root / "d" / "sub").mkdir()
    for _ in range(2):
        assert names_of(union.root) == {"keep", "d", "d/sub"}
        union.remount()


def test_an_opaque_directory_holds_no_whiteouts(make_union):
    """Kernel overlayfs may refuse or show them."""
    union = make_union(TREE)
    remove_tree(union.root / "d")
    (union.root / "d").mkdir()
    for name in ("f", "sub"):
        (union.root / "d" / name).write_text("new")
        (union.root / "d" / name).unlink()
    assert upper_whiteouts(union) == set()
    assert names_of(union.upper) == {"d"}
    assert os.getxattr(union.upper / "d", "trusted.overlay.opaque") == b"y"


def test_an_opaque_directory_from_an_earlier_mount_gets_no_whiteouts(make_union):
    union = make_union(TREE, upper={"d": opaque({"f": "own"})})
    (union.root / "d" / "f").unlink()
    assert names_of(union.upper) == {"d"}


def test_a_whiteout_is_left_only_where_something_is_hidden(make_union):
    union = make_union(TREE)
    (union.root / "new").write_text("")
    (union.root / "new").unlink()
    (union.root / "d" / "new").mkdir()
    (union.root / "d" / "new").rmdir()
    assert upper_whiteouts(union) == set()
    (union.root / "d" / "f").unlink()
    assert upper_whiteouts(union) == {"d/f"}


def test_rmdir_of_what_shows_something(make_union):
    union = make_union(TREE, upper={"full": {"x": ""}})
    for name in ("d", "d/sub", "full"):
        assert errno_of(os.rmdir, union.root / name) == "ENOTEMPTY"
    assert errno_of(os.rmdir, union.root / "keep") == "ENOTDIR"
    assert errno_of(os.rmdir, union.root / "none") == "ENOENT"
    assert errno_of(os.unlink, union.root / "d") == "EISDIR"
    assert errno_of(os.rmdir, f"{union.root}/d/.") == "EINVAL"
    assert errno_of(os.mkdir, union.root / "d") == "EEXIST"
    assert errno_of(os.mkdir, union.root / "none" / "x") == "ENOENT"
    assert errno_of(os.mkdir, union.root / "keep" / "x") == "ENOTDIR"


@pytest.mark.parametrize("kind", ["merged", "lower", "upper holding whiteouts and markers"])
def test_rmdir_of_what_holds_only_whiteouts(make_union, kind):
    if kind == "merged":
        union = make_union({"d": {"f": ""}}, upper={"d": {"f": whiteout()}})
    elif kind == "lower":
        union = make_union({"d": {"f": whiteout()}}, {"d": {"f": ""}})
    else:
        union = make_union({}, upper={"d": {"f": whiteout(), ".wh.g": "", ".wh..wh..opq": ""}})
    assert os.listdir(union.root / "d") == []
    (union.root / "d").rmdir()
    for _ in range(2):
        assert names_of(union.root) == set()
        union.remount()


def test_a_file_where_a_directory_was_and_back(make_union):
    union = make_union(TREE)
    remove_tree(union.root / "d")
    (union.root / "d").write_text("file")
    assert (union.root / "d").read_text() == "file"
    (union.root / "d").unlink()
    (union.root / "d").mkdir()
    assert os.listdir(union.root / "d") == []
    union.remount()
    assert names_of(union.root) == {"keep", "d"}


def test_times_of_the_parent(make_union):
    union = make_union(TREE)
    for act in (
        lambda: (union.root / "d" / "new").touch(),
        lambda: (union.root / "d" / "f").unlink(),
        lambda: (union.root / "d" / "dir").mkdir(),
        lambda: (union.root / "d" / "dir").rmdir(),
        lambda: os.link(union.root / "keep", union.root / "d" / "link"),
        lambda: os.symlink("x", union.root / "d" / "symlink"),
        lambda: os.mkfifo(union.root / "d" / "fifo"),
    ):
        os.utime(union.root / "d", ns=(PAST_NS, PAST_NS))
        tick()
        act()
        status = (union.root / "d").stat()
        assert status.st_mtime_ns > PAST_NS
        assert status.st_ctime_ns >= status.st_mtime_ns
    os.utime(union.root / "d", ns=(PAST_NS, PAST_NS))
    (union.root / "d" / "new").write_text("content")
    (union.root / "d" / "sub" / "x").touch()
    os.listdir(union.root / "d")
    assert (union.root / "d").stat().st_mtime_ns == PAST_NS


NAMES = [
    b"x" * 255,
    b"\xff\xfe\x80",
    b"new\nline",
    bytes(range(1, 47)) + bytes(range(48, 256)),
    b" space ",
    "ünïcödé".encode(),
    b"\\",
    b"...",
    b".wh",
    b"wh.x",
    b"-rf",
    b"#1",
    b"'\"`$",
]


def test_names_of_any_bytes(make_union):
    union = make_union({"d": dict.fromkeys(NAMES, "low")})
    root = os.fsencode(union.root)
    assert sorted(os.listdir(root + b"/d")) == sorted(NAMES)
    for name in NAMES:
        os.chmod(root + b"/d/" + name, 0o600)
        with open(root + b"/" + name, "xb") as file:
            file.write(name)
        os.rename(root + b"/d/" + name, root + b"/d/x")
        os.rename(root + b"/d/x", root + b"/d/" + name)
        os.unlink(root + b"/d/" + name)
    for _ in range(2):
        assert os.listdir(root + b"/d") == []
        assert sorted(os.listdir(root)) == sorted([*NAMES, b"d"])
        for name in NAMES:
            with open(root + b"/" + name, "rb") as file:
                assert file.read() == name
        union.remount()


@pytest.mark.parametrize("parent", ["upper", "lower"])
def test_names_that_are_too_long(make_union, parent):
    union = make_union({"lower": {"x" * 255: ""}}, upper={"upper": {}})
    directory = union.root / parent
    long = directory / ("y" * 256)
    for act in (
        lambda: os.stat(long),
        lambda: long.touch(),
        lambda: os.mkdir(long),
        lambda: os.unlink(long),
        lambda: os.rmdir(long),
        lambda: os.symlink("x", long),
        lambda: os.mkfifo(long),
        lambda: os.rename(long, directory / "x"),
        lambda: os.open(long, os.O_RDONLY),
    ):
        assert errno_of(act) == "ENAMETOOLONG"
    (directory / ("z" * 255)).touch()
    (directory / ("z" * 255)).unlink()
    if parent == "lower":
        (directory / ("x" * 255)).unlink()
    assert os.listdir(directory) == []


def test_a_name_of_255_bytes_can_be_whited_out_by_a_directory_and_back(make_union):
    name = "n" * 255
    union = make_union({name: {"x": ""}})
    remove_tree(union.root / name)
    assert os.listdir(union.root) == []
    (union.root / name).mkdir()
    assert os.listdir(union.root / name) == []


def test_marker_names_cannot_be_made(make_union):
    union = make_union({"g": ""})
    for name in (".wh.g", ".wh..wh..opq", ".wh."):
        for act in (
            lambda path: os.close(os.open(path, os.O_CREAT | os.O_WRONLY)),
            os.mkdir,
            lambda path: os.symlink("x", path),
            lambda path: os.link(union.root / "g", path),
        ):
            assert errno_of(act, union.root / name) != ""
    assert names_of(union.root) == {"g"}


def test_paths_deeper_than_path_max(make_union):
    """By descriptors, 60 levels of 100 bytes."""
    name = "n" * 100
    union = make_union({"keep": ""}, mount=False)
    depth = 60

    def descend(start, make):
        fd = os.open(start, os.O_RDONLY | os.O_DIRECTORY)
        for _ in range(depth):
            if make:
                os.mkdir(name, dir_fd=fd)
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        return fd

    fd = descend(union.lowers[0], True)
    os.close(os.open("low", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    union.ignore_lowers()
    union.mount()
    fd = descend(union.root, False)
    try:
        assert os.listdir(fd) == ["low"]
        os.chmod("low", 0o600, dir_fd=fd)
        os.mkdir("new", dir_fd=fd)
        with open(os.open("new/file", os.O_CREAT | os.O_RDWR, dir_fd=fd), "w+") as file:
            file.write("deep")
        os.rename("new/file", "file", src_dir_fd=fd, dst_dir_fd=fd)
        os.unlink("low", dir_fd=fd)
        assert sorted(os.listdir(fd)) == ["file", "new"]
    finally:
        os.close(fd)
    union.remount()
    fd = descend(union.root, False)
    try:
        assert sorted(os.listdir(fd)) == ["file", "new"]
    finally:
        os.close(fd)


def test_a_directory_of_20000_entries_is_listed_once_while_it_changes(make_union):
    stay = {f"stay{n:05}" for n in range(10_000)}
    union = make_union({"d": dict.fromkeys(stay, "")}, upper={"d": {f"go{n:05}": "" for n in range(10_000)}})
    directory = union.root / "d"
    seen = []
    changed = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            seen.append(entry.name)
            if len(seen) % 200 == 0 and changed < 2000:
                (directory / f"new{changed:05}").touch()
                (directory / f"go{changed:05}").unlink()
                os.rename(directory / f"go{9999 - changed:05}", directory / f"renamed{changed:05}")
                changed += 1
    assert changed >= 50
    assert len(seen) == len(set(seen))
    assert stay <= set(seen)
    left = 10_000 - 2 * changed
    listed = os.listdir(directory)
    assert len(listed) == len(set(listed)) == 10_000 + left + 2 * changed


def test_removing_all_while_listing(make_union):
    """As rm(1) does it."""
    union = make_union({"d": {f"f{n}": "" for n in range(3000)}})
    with os.scandir(union.root / "d") as entries:
        for entry in entries:
            os.unlink(entry.path)
    (union.root / "d").rmdir()
    assert os.listdir(union.root) == []


def test_rewinding_shows_what_came_since(make_union):
    union = make_union({"d": {"a": ""}})
    fd = os.open(union.root / "d", os.O_RDONLY)
    try:
        assert os.listdir(fd) == ["a"]
        (union.root / "d" / "b").touch()
        (union.root / "d" / "a").unlink()
        assert os.listdir(fd) == ["b"]
    finally:
        os.close(fd)


def test_an_absent_name_appears_when_it_is_made(make_union):
    """The kernel remembers that a name is absent."""
    union = make_union({"d": {}, "f": "x"})
    makers = {
        "file": lambda path: path.touch(),
        "dir": lambda path: path.mkdir(),
        "link": lambda path: os.link(union.root / "f", path),
        "symlink": lambda path: os.symlink("x", path),
        "renamed": lambda path: os.rename(union.root / "d" / "file", path),
    }
    for name, make in makers.items():
        path = union.root / "d" / name
        assert errno_of(os.lstat, path) == "ENOENT"
        make(path)
        os.lstat(path)
    assert errno_of(os.lstat, union.root / "d" / "file") == "ENOENT"
