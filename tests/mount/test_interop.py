"""Kernel overlayfs on the directories that we wrote, and we on those that it wrote: the same tree."""

from __future__ import annotations

import os
import stat

import pytest
from support.layers import Dir, File, HardLink, Node, Symlink, opaque, whiteout
from support.snapshot import differences, names_of, snapshot
from support.union import errno_of

from unionfs import syscalls

pytestmark = pytest.mark.root

LAYERS = (
    {
        "d": {"top": "t", "gone": whiteout()},
        "o": opaque({"own": "x"}),
        "wasdir": "file now",
        "x": opaque(
            {"gone": File(xattrs={"trusted.overlay.whiteout": b""}), "kept": ""},
            "trusted.overlay.opaque",
            b"x",
        ),
    },
    {
        "d": Dir(
            mode=0o2750,
            owner=(3, 4),
            xattrs={"user.dir": b"1"},
            names={"low": "l", "gone": "g", "sub": {"e": "f"}},
        ),
        "o": {"hidden": "h", "sub": {"hidden": ""}},
        "wasdir": {"hidden": ""},
        "x": {"gone": "g", "kept": "k", "more": "m"},
        "f": File(content="f", mode=0o640, owner=(1, 2), xattrs={"user.a": b"b", "trusted.c": b"d"}),
        "a": "linked",
        "sub": {"b": HardLink("a")},
        "s": Symlink(target="t", owner=(8, 9)),
        "p": Node(owner=(5, 5)),
        "c": Node(kind=stat.S_IFCHR, device=(1, 3)),
        "tree": {"one": {"two": {"three": "3"}, "f": "1"}},
    },
)


def remove(path):
    for name in os.listdir(path):
        child = path / name
        if child.is_dir() and not child.is_symlink():
            remove(child)
        else:
            child.unlink()
    path.rmdir()


def step_nothing(root):
    pass


def step_attributes(root):
    os.chmod(root / "f", 0o600)
    os.chown(root / "d", 7, 7)
    os.chown(root / "s", 7, 7, follow_symlinks=False)
    os.utime(root / "p", ns=(5, 6))
    os.setxattr(root / "c", "trusted.n", b"v")
    os.removexattr(root / "f", "user.a")


def step_content(root):
    (root / "f").write_text("new")
    with open(root / "d/low", "a") as file:
        file.write("more")
    os.truncate(root / "a", 2)


def step_removed(root):
    (root / "f").unlink()
    remove(root / "tree")
    (root / "s").unlink()
    (root / "x/kept").unlink()


def step_made_anew(root):
    remove(root / "tree")
    (root / "tree").mkdir(0o711)
    (root / "tree/one").mkdir()
    (root / "tree/one/new").write_text("n")
    remove(root / "d")
    (root / "d").write_text("file")
    (root / "f").unlink()
    (root / "f").mkdir()
    (root / "x/gone").mkdir()
    (root / "o/hidden").mkdir()
    (root / "o/sub").write_text("")


def step_renamed(root):
    os.rename(root / "f", root / "d/gone")
    os.rename(root / "s", root / "wasdir")
    (root / "new/deep").mkdir(parents=True)
    (root / "new/deep/f").write_text("x")
    remove(root / "tree")
    os.rename(root / "new", root / "tree")
    os.rename(root / "p", root / "d/sub/e")


def step_exchanged(root):
    (root / "new").mkdir()
    (root / "new/in").touch()
    syscalls.renameat2(
        syscalls.AT_FDCWD, os.fsencode(root / "new"), syscalls.AT_FDCWD, os.fsencode(root / "wasdir"), 2
    )


def step_emptied_and_replaced(root):
    remove(root / "tree/one")
    (root / "new").mkdir()
    (root / "new/one").mkdir()
    os.rename(root / "new", root / "tree")


STEPS = [
    step_nothing,
    step_attributes,
    step_content,
    step_removed,
    step_made_anew,
    step_renamed,
    step_exchanged,
    step_emptied_and_replaced,
]


@pytest.mark.parametrize("step", STEPS)
def test_the_kernel_shows_what_we_show(make_union, step):
    union = make_union(*LAYERS)
    step(union.root)
    ours = snapshot(union.root)
    union.unmount()
    with union.kernel() as root:
        theirs = snapshot(root)
    assert differences(ours, theirs) == []
    union.mount()
    assert differences(ours, snapshot(union.root)) == []


@pytest.mark.parametrize("step", STEPS)
def test_we_show_what_the_kernel_shows(make_union, step):
    union = make_union(*LAYERS, mount=False)
    with union.kernel() as root:
        step(root)
        theirs = snapshot(root)
    assert differences(theirs, snapshot(union.mount())) == []


@pytest.mark.parametrize("step", STEPS)
def test_the_kernel_takes_our_upper_for_a_lower_layer(make_union, step):
    """As an engine does that makes an image of a container."""
    union = make_union(*LAYERS)
    step(union.root)
    ours = snapshot(union.root)
    union.unmount()
    union.lowers.insert(0, union.upper)
    with union.kernel(writable=False) as root:
        assert differences(ours, snapshot(root)) == []
    union.writable = False
    assert differences(ours, snapshot(union.mount())) == []


def test_we_and_the_kernel_take_turns(make_union):
    union = make_union(*LAYERS, mount=False)
    before = None
    for number, step in enumerate([step_attributes, step_content, step_made_anew, step_exchanged]):
        if number % 2:
            with union.kernel() as root:
                step(root)
                before = snapshot(root)
        else:
            root = union.mount()
            if before is not None:
                assert differences(before, snapshot(root)) == []
            step(root)
            before = snapshot(root)
            union.unmount()
            with union.kernel() as root:
                assert differences(before, snapshot(root)) == []
    assert differences(before, snapshot(union.mount())) == []


def test_an_upper_that_the_kernel_serves_is_refused(make_union):
    union = make_union({"a": ""}, mount=False)
    with union.kernel(), pytest.raises(AssertionError, match="in use by an overlay mount of the kernel"):
        union.mount()
    assert names_of(union.mount()) == {"a"}


def test_the_kernel_has_no_whiteout_of_ours_to_show_in_an_opaque_directory(make_union):
    union = make_union({"d": {"f": "x", "g": {"h": ""}}})
    remove(union.root / "d")
    (union.root / "d").mkdir()
    (union.root / "d/f").write_text("new")
    (union.root / "d/f").unlink()
    union.unmount()
    with union.kernel() as root:
        assert os.listdir(root / "d") == []
        assert errno_of(os.rmdir, root / "d") == ""
