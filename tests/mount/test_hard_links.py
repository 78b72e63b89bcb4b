"""Hard links of lower layers stay one file after copy-up, through any name, and after the next mount."""

from __future__ import annotations

import os

import pytest
from support.layers import Dir, File, HardLink, Symlink
from support.union import errno_of

pytestmark = pytest.mark.root

LAYER = {
    "a": File(content=b"one", xattrs={"user.x": b"y"}),
    "b": HardLink("a"),
    "d": {"e": {"c": HardLink("a")}},
}
NAMES = ("a", "b", "d/e/c")

ACTS = {
    "write": lambda path: path.write_text("new content"),
    "append": lambda path: path.open("a").write("more"),
    "chmod": lambda path: path.chmod(0o600),
    "truncate": lambda path: os.truncate(path, 1),
    "chown": lambda path: os.chown(path, 4, 4),
    "setxattr": lambda path: os.setxattr(path, "user.x", b"z"),
}


def alike(root, names=NAMES):
    """That names are one file, and its state."""
    states = {
        (s.st_ino, s.st_nlink, s.st_mode, s.st_uid, s.st_size)
        for s in (os.stat(root / name) for name in names)
    }
    assert len(states) == 1, states
    contents = {(root / name).read_bytes() for name in names}
    assert len(contents) == 1, contents
    return states.pop()


@pytest.mark.parametrize("through", NAMES)
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("looked", [True, False], ids=["names known", "names unknown"])
def test_all_names_show_a_change_through_one(make_union, act, through, looked):
    union = make_union(LAYER)
    if looked:
        before = alike(union.root)
        assert before[1] == 3
    ACTS[act](union.root / through)
    after = alike(union.root)
    assert after[1] == 3
    union.remount()
    assert alike(union.root) == after
    inodes = {(union.upper / name).stat().st_ino for name in NAMES}
    assert len(inodes) == 1


@pytest.mark.parametrize("removed", NAMES)
def test_the_others_count_right_when_one_name_goes(make_union, removed):
    union = make_union(LAYER)
    numbers = {os.stat(union.root / name).st_ino for name in NAMES}
    os.unlink(union.root / removed)
    left = tuple(name for name in NAMES if name != removed)
    state = alike(union.root, left)
    assert state[1] == 2
    assert numbers == {state[0]}
    union.remount()
    assert alike(union.root, left) == state
    os.unlink(union.root / left[0])
    assert os.stat(union.root / left[1]).st_nlink == 1


def test_a_new_name_for_a_lower_file(make_union):
    union = make_union(LAYER)
    number = os.stat(union.root / "b").st_ino
    os.link(union.root / "b", union.root / "d" / "new")
    state = alike(union.root, (*NAMES, "d/new"))
    assert state[1] == 4
    assert state[0] == number
    union.remount()
    assert alike(union.root, (*NAMES, "d/new")) == state


def test_names_hidden_by_other_layers_are_not_of_the_file(make_union):
    """Two of three names are seen; a copy-up must not bring the third back."""
    union = make_union({"a": "other"}, LAYER)
    (union.root / "b").write_text("changed")
    assert (union.root / "a").read_text() == "other"
    assert alike(union.root, ("b", "d/e/c"))[1] >= 2
    union.remount()
    assert (union.root / "a").read_text() == "other"
    assert (union.root / "d/e/c").read_text() == "changed"


def test_a_removed_name_does_not_come_back(make_union):
    union = make_union(LAYER)
    (union.root / "a").unlink()
    (union.root / "b").write_text("changed")
    assert errno_of(os.stat, union.root / "a") == "ENOENT"
    union.remount()
    assert errno_of(os.stat, union.root / "a") == "ENOENT"


def test_a_replaced_directory_does_not_get_its_name_back(make_union):
    union = make_union(LAYER)
    (union.root / "d/e/c").unlink()
    (union.root / "d/e").rmdir()
    (union.root / "d").rmdir()
    (union.root / "d").mkdir()
    (union.root / "a").write_text("changed")
    assert os.listdir(union.root / "d") == []
    union.remount()
    assert os.listdir(union.root / "d") == []


def test_rename_over_one_name(make_union):
    union = make_union(LAYER | {"z": "z"})
    os.rename(union.root / "z", union.root / "a")
    assert (union.root / "a").read_text() == "z"
    assert alike(union.root, ("b", "d/e/c"))[1] == 2


def test_rename_of_one_name_to_another_does_nothing(make_union):
    union = make_union(LAYER)
    os.rename(union.root / "a", union.root / "b")
    assert alike(union.root)[1] == 3


def test_rename_of_one_name(make_union):
    union = make_union(LAYER)
    os.rename(union.root / "a", union.root / "d" / "moved")
    state = alike(union.root, ("b", "d/e/c", "d/moved"))
    assert state[1] == 3
    (union.root / "d/moved").write_text("through the new name")
    assert (union.root / "b").read_text() == "through the new name"
    union.remount()
    assert alike(union.root, ("b", "d/e/c", "d/moved"))[:2] == state[:2]


def test_hard_linked_symlinks_and_parents_of_mode_0(make_union):
    union = make_union({"s": Symlink(target="t"), "d": Dir(mode=0, names={"s2": HardLink("s")})})
    os.chown(union.root / "s", 3, 4, follow_symlinks=False)
    one, other = os.lstat(union.root / "s"), os.lstat(union.root / "d" / "s2")
    assert (one.st_ino, one.st_uid, one.st_nlink) == (other.st_ino, other.st_uid, 2)


def test_copy_up_through_a_hard_link_keeps_the_mtimes_of_all_parents(make_union):
    union = make_union(LAYER)
    before = [os.stat(union.root / name).st_mtime_ns for name in (".", "d", "d/e")]
    (union.root / "b").chmod(0o600)
    assert [os.stat(union.root / name).st_mtime_ns for name in (".", "d", "d/e")] == before


def test_many_links_of_upper_files(make_union):
    union = make_union({"d": {}})
    (union.root / "f").write_text("x")
    for number in range(200):
        os.link(union.root / "f", union.root / "d" / str(number))
    assert alike(union.root, ("f", *(f"d/{n}" for n in range(200))))[1] == 201
    for number in range(200):
        os.unlink(union.root / "d" / str(number))
    assert (union.root / "f").stat().st_nlink == 1


@pytest.mark.parametrize("known", [True, False], ids=["names known", "names unknown"])
def test_the_links_of_an_upper_file_from_an_earlier_mount(make_union, known):
    union = make_union({}, upper={"a": "x", "d": {"b": HardLink("a")}})
    if known:
        alike(union.root, ("a", "d/b"))
    (union.root / "a").unlink()
    assert (union.root / "d/b").stat().st_nlink == 1
    assert (union.root / "d/b").read_text() == "x"
    (union.root / "d/b").write_text("y")
    assert (union.root / "d/b").read_text() == "y"


def test_an_open_file_whose_other_name_is_unknown(make_union):
    """The known name goes; the open descriptor and the name that nobody asked for are still one file."""
    union = make_union({}, upper={"a": "x", "d": {"b": HardLink("a")}})
    with open(union.root / "a", "r+b") as file:
        (union.root / "a").unlink()
        assert os.fstat(file.fileno()).st_nlink == 1
        file.write(b"y")
        file.flush()
        assert (union.root / "d/b").read_text() == "y"
        assert os.stat(union.root / "d/b").st_ino == os.fstat(file.fileno()).st_ino
        os.fchmod(file.fileno(), 0o751)
        assert (union.root / "d/b").stat().st_mode & 0o7777 == 0o751
