"""st_ino, st_dev, d_ino and st_nlink: a file stays the file that it was."""

from __future__ import annotations

import os

import pytest
from support.layers import HardLink, Node, Symlink, whiteout
from support.union import command

pytestmark = pytest.mark.root

LAYER = {"f": "x", "s": Symlink(target="f"), "p": Node(), "d": {"g": "y", "e": {"h": "z"}}}
PATHS = ("f", "s", "p", "d", "d/g", "d/e", "d/e/h")


def numbers(root):
    return {path: os.lstat(root / path).st_ino for path in PATHS}


def d_inos(directory):
    with os.scandir(directory) as found:
        return {entry.name: entry.inode() for entry in found}


def change_all(root):
    for path in PATHS:
        os.chown(root / path, 3, 3, follow_symlinks=False)


def test_numbers_are_constant(make_union):
    union = make_union({"d": {}}, LAYER)
    before = numbers(union.root)
    assert len(set(before.values())) == len(PATHS)
    change_all(union.root)
    assert numbers(union.root) == before
    union.remount()
    assert numbers(union.root) == before
    assert union.lowers_changed() == []


def test_numbers_are_constant_when_copy_up_comes_first(make_union):
    """Nobody asked for the numbers before the files were copied up."""
    union = make_union(LAYER)
    before = numbers(union.root)
    union.remount()
    change_all(union.root)
    assert numbers(union.root) == before


def test_numbers_of_new_files_are_constant(make_union):
    union = make_union({"x": ""})
    for path in ("d/e", "d/g"):
        os.makedirs((union.root / path).parent, exist_ok=True)
    (union.root / "d/e").mkdir()
    for path in ("f", "s", "p", "d/g", "d/e/h"):
        (union.root / path).write_text("new")
    before = numbers(union.root)
    union.remount()
    assert numbers(union.root) == before


def test_numbers_stay_through_rename(make_union):
    union = make_union(LAYER)
    before = numbers(union.root)
    os.rename(union.root / "f", union.root / "d/e/moved")
    assert os.lstat(union.root / "d/e/moved").st_ino == before["f"]
    union.remount()
    assert os.lstat(union.root / "d/e/moved").st_ino == before["f"]


def test_readdir_gives_the_number_that_stat_gives(make_union):
    union = make_union({"d": {"above": ""}}, LAYER)

    def check():
        for directory in (union.root, union.root / "d", union.root / "d" / "e"):
            for name, number in d_inos(directory).items():
                assert os.lstat(directory / name).st_ino == number

    check()
    change_all(union.root)
    check()
    union.remount()
    check()


def test_dot_and_dot_dot_have_their_numbers(make_union):
    union = make_union(LAYER)
    listing = command("ls", "-aif", "--", union.root / "d" / "e").stdout.split()
    shown = dict(zip(listing[1::2], map(int, listing[0::2]), strict=True))
    assert shown["."] == os.stat(union.root / "d" / "e").st_ino
    assert shown[".."] == os.stat(union.root / "d").st_ino


def test_all_of_it_is_one_device(make_union, place):
    union = make_union({"d": {"a": ""}}, {"d": {"b": ""}}, upper={"d": {"c": ""}})
    devices = {os.stat(union.root / path).st_dev for path in (".", "d", "d/a", "d/b", "d/c")}
    assert len(devices) == 1
    assert devices != {os.stat(place).st_dev}


def test_the_copy_of_a_copied_up_file_is_another(make_union):
    """`cp -a` cannot see the origin; whoever copies the upper layer file by file copies it."""
    union = make_union(LAYER)
    os.chmod(union.root / "f", 0o600)
    union.unmount()
    command("cp", "-a", union.upper / "f", union.upper / "twin")
    union.mount()
    assert os.stat(union.root / "twin").st_ino != os.stat(union.root / "f").st_ino
    (union.root / "twin").write_text("twin")
    assert (union.root / "f").read_text() == "x"


def test_an_upper_that_was_copied_elsewhere_serves_the_same_tree(make_union):
    union = make_union(LAYER | {"l": HardLink("f")})
    os.chmod(union.root / "f", 0o600)
    union.unmount()
    union.upper.rename(union.place / "old")
    command("cp", "-a", union.place / "old", union.upper)
    union.mount()
    assert os.stat(union.root / "f").st_ino == os.stat(union.root / "l").st_ino
    assert os.stat(union.root / "f").st_nlink == 2


def test_the_same_name_made_anew_is_another_file(make_union):
    union = make_union(LAYER)
    before = os.stat(union.root / "f").st_ino
    with open(union.root / "f"):
        (union.root / "f").unlink()
        (union.root / "f").write_text("new")
        assert os.stat(union.root / "f").st_ino != before


def test_no_number_is_used_twice(make_union):
    """Files of three layers whose inode numbers are the same on their disks would be one."""
    names = {f"f{n}": "" for n in range(50)}
    union = make_union({"a": names}, {"b": names}, {"c": names}, upper={"d": names})
    for n in range(50):
        (union.root / "e").mkdir(exist_ok=True)
        (union.root / "e" / f"f{n}").touch()
    seen = [number for d in "abcde" for number in d_inos(union.root / d).values()]
    assert len(seen) == len(set(seen)) == 250


def test_link_counts_of_directories(make_union):
    union = make_union(
        {"d": {"a": {}, "b": {}, "f": ""}},
        {"d": {"b": {}, "c": {}, "gone": {}}},
        upper={"d": {"gone": whiteout(), "own": {}}},
    )
    assert sorted(os.listdir(union.root / "d")) == ["a", "b", "c", "f", "own"]
    assert os.stat(union.root / "d").st_nlink == 2 + 4
    (union.root / "d" / "new").mkdir()
    assert os.stat(union.root / "d").st_nlink == 2 + 5
    (union.root / "d" / "c").rmdir()
    (union.root / "d" / "new").rmdir()
    assert os.stat(union.root / "d").st_nlink == 2 + 3
    assert os.stat(union.root / "d" / "a").st_nlink == 2
    assert os.stat(union.root).st_nlink == 3


def test_link_counts_of_directories_of_the_upper_layer_alone(make_union):
    union = make_union({"x": ""})
    (union.root / "d").mkdir()
    for name in "abc":
        (union.root / "d" / name).mkdir()
    assert os.stat(union.root / "d").st_nlink == 5
    os.rename(union.root / "d" / "a", union.root / "a")
    assert os.stat(union.root / "d").st_nlink == 4
    assert os.stat(union.root).st_nlink == 4


def test_link_count_of_a_directory_after_a_directory_of_its_layer_was_whited_out(make_union):
    union = make_union({"d": {"a": {}, "b": {}}})
    assert os.stat(union.root / "d").st_nlink == 4
    (union.root / "d" / "a").rmdir()
    assert os.stat(union.root / "d").st_nlink == 3
    union.remount()
    assert os.stat(union.root / "d").st_nlink == 3


def test_link_count_of_a_directory_with_an_opaque_one_above(make_union):
    union = make_union({"d": {"a": {}, "b": {}}})
    for name in ("a", "b"):
        (union.root / "d" / name).rmdir()
    (union.root / "d").rmdir()
    (union.root / "d").mkdir()
    assert os.stat(union.root / "d").st_nlink == 2
    (union.root / "d" / "c").mkdir()
    assert os.stat(union.root / "d").st_nlink == 3
    union.remount()
    assert os.stat(union.root / "d").st_nlink == 3


def test_find_trusts_the_link_counts(make_union):
    union = make_union({"d": {"a": {"x": {}}, "f": ""}}, {"d": {"b": {"y": {}}}})
    found = command("find", union.root, "-type", "d", "-printf", "%P\n").stdout.split("\n")
    assert {"d", "d/a", "d/a/x", "d/b", "d/b/y"} <= set(found)


def test_static_nlink(make_union):
    union = make_union({"d": {"a": {}}}, options=("static_nlink",))
    assert os.stat(union.root / "d").st_nlink == 1
