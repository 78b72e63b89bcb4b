"""redirect_dir=on: a directory of lower layers is renamed in one step, in kernel overlayfs's own format."""

from __future__ import annotations

import os

import pytest
from support.layers import Dir, HardLink, whiteout
from support.snapshot import differences, names_of, snapshot
from support.union import errno_of

from unionfs import syscalls

pytestmark = pytest.mark.root

ON = "redirect_dir=on"

LAYERS = (
    {"d": {"top": "t", "gone": whiteout()}},
    {
        "d": Dir(mode=0o2751, owner=(3, 4), names={"low": "l", "gone": "", "sub": {"deep": {"f": "x"}}}),
        "e": {"own": "e"},
        "w": {"hidden": ""},
    },
)


def move_whole(root):
    os.rename(root / "d", root / "moved")


def move_twice(root):
    os.rename(root / "d", root / "one")
    os.rename(root / "one", root / "e" / "two")


def move_there_and_back(root):
    os.rename(root / "d", root / "one")
    os.rename(root / "one", root / "d")


def move_two_levels(root):
    os.rename(root / "d" / "sub", root / "sub")
    os.rename(root / "d", root / "sub" / "deep" / "d")


def move_within(root):
    os.rename(root / "d/sub/deep", root / "d/deep")


def move_and_change(root):
    os.rename(root / "d", root / "moved")
    (root / "moved/sub/deep/f").write_text("changed")
    (root / "moved/low").unlink()
    (root / "moved/new").touch()
    (root / "d").mkdir()
    (root / "d/sub").mkdir()


def move_over_a_whiteout(root):
    (root / "w/hidden").unlink()
    (root / "w").rmdir()
    os.rename(root / "d", root / "w")


def move_over_an_emptied_directory(root):
    (root / "w/hidden").unlink()
    os.rename(root / "d", root / "w")


def exchange(root):
    here = syscalls.AT_FDCWD
    syscalls.renameat2(here, os.fsencode(root / "d"), here, os.fsencode(root / "e"), syscalls.RENAME_EXCHANGE)


def exchange_with_a_file(root):
    here = syscalls.AT_FDCWD
    syscalls.renameat2(
        here, os.fsencode(root / "d/sub"), here, os.fsencode(root / "e/own"), syscalls.RENAME_EXCHANGE
    )


def move_and_remove(root):
    os.rename(root / "d/sub", root / "sub")
    (root / "sub/deep/f").unlink()
    (root / "sub/deep").rmdir()
    (root / "sub").rmdir()


MOVES = [
    move_whole,
    move_twice,
    move_there_and_back,
    move_two_levels,
    move_within,
    move_and_change,
    move_over_a_whiteout,
    move_over_an_emptied_directory,
    exchange,
    exchange_with_a_file,
    move_and_remove,
]


def without_times(tree):
    return {path: (p.kind, p.mode, p.uid, p.gid, p.content, p.links) for path, p in tree.items()}


@pytest.mark.parametrize("move", MOVES)
def test_ours_and_the_kernels_are_read_by_both(make_union, move):
    ours, theirs = make_union(*LAYERS, options=(ON,)), make_union(*LAYERS, mount=False)
    move(ours.root)
    tree = snapshot(ours.root)
    with theirs.kernel(ON) as root:
        move(root)
        kernel_tree = snapshot(root)
    assert without_times(tree) == without_times(kernel_tree)
    ours.remount(ON)
    assert differences(tree, snapshot(ours.root)) == []
    ours.unmount()
    with ours.kernel(ON) as root:
        assert differences(tree, snapshot(root)) == []
    theirs.mount(ON)
    assert differences(kernel_tree, snapshot(theirs.root)) == []


@pytest.mark.parametrize("move", MOVES)
def test_numbers_stay(make_union, move):
    union = make_union(*LAYERS, options=(ON,))
    before = {os.lstat(union.root / path).st_ino for path in names_of(union.root)}
    move(union.root)
    after = {path: os.lstat(union.root / path).st_ino for path in names_of(union.root)}
    if move not in (move_and_change, move_and_remove):
        assert set(after.values()) <= before
    union.remount(ON)
    assert {path: os.lstat(union.root / path).st_ino for path in names_of(union.root)} == after


def test_redirects_are_read_without_the_option(make_union):
    union = make_union(*LAYERS, options=(ON,))
    move_two_levels(union.root)
    tree = snapshot(union.root)
    union.remount()
    assert differences(tree, snapshot(union.root)) == []
    assert errno_of(os.rename, union.root / "e", union.root / "x") == "EXDEV"


def test_nothing_is_copied(make_union):
    union = make_union({"d": {"big": "x" * 1_000_000, "sub": {"f": ""}}}, options=(ON,))
    os.rename(union.root / "d", union.root / "moved")
    assert names_of(union.upper) == {"d", "moved"}
    assert (union.root / "moved/big").stat().st_size == 1_000_000


def test_hard_links_below_a_moved_directory(make_union):
    union = make_union({"b": "one", "d": {"c": HardLink("b"), "e": {"f": HardLink("b")}}}, options=(ON,))
    os.rename(union.root / "d", union.root / "x")
    (union.root / "b").write_text("changed")
    names = ("b", "x/c", "x/e/f")
    for _ in range(2):
        assert [(union.root / name).read_text() for name in names] == ["changed"] * 3
        assert {os.stat(union.root / name).st_nlink for name in names} == {3}
        assert len({os.stat(union.root / name).st_ino for name in names}) == 1
        union.remount(ON)


def test_a_directory_made_where_a_linked_one_was_is_not_of_the_file(make_union):
    union = make_union({"b": "one", "d": {"c": HardLink("b")}, "z": {"c": "other"}}, options=(ON,))
    os.rename(union.root / "d", union.root / "x")
    os.rename(union.root / "z", union.root / "d")
    (union.root / "b").write_text("changed")
    assert (union.root / "d/c").read_text() == "other"
    assert (union.root / "x/c").read_text() == "changed"


def test_open_files_follow(make_union):
    union = make_union(*LAYERS, options=(ON,))
    with open(union.root / "d/low", "rb", buffering=0) as held:
        os.rename(union.root / "d", union.root / "moved")
        (union.root / "moved/low").write_text("new")
        assert held.read() == b"new"
