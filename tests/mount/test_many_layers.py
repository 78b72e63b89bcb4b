"""One layer and hundreds: each adds something, hides something and covers something of the one below."""

from __future__ import annotations

import os

import pytest
from support.layers import opaque, whiteout
from support.snapshot import differences, names_of, snapshot
from support.union import command, errno_of

pytestmark = pytest.mark.root


def layer(number):
    """Layer `number` from the bottom: the names that it adds and takes away."""
    names = {
        f"only{number}": str(number),
        f"hidden{number}": str(number),
        "all": str(number),
        "d": {f"in{number}": str(number), "sub": {"all": str(number)}},
        f"remade{number}": {"old": str(number)},
    }
    if number:
        names[f"hidden{number - 1}"] = whiteout()
        names[f"remade{number - 1}"] = opaque({"new": str(number)})
    if number % 10 == 9:
        names["d"]["sub"] = opaque({"all": str(number), f"since{number}": ""})
    return names


def expected(count):
    top = count - 1
    names = {"all", "d", "d/sub", "d/sub/all", f"hidden{top}"}
    for number in range(count):
        names |= {f"only{number}", f"d/in{number}", f"remade{number}"}
        names.add(f"remade{number}/{'old' if number == top else 'new'}")
    last_opaque = (count // 10) * 10 - 1
    if last_opaque > 0:
        names.add(f"d/sub/since{last_opaque}")
    return names


@pytest.mark.parametrize("count", [1, 2, 100])
def test_layers(make_union, count):
    union = make_union(
        *(layer(number) for number in reversed(range(count))), name="a-rather-long-name-for-a-layer"
    )
    assert len(union.options()) > 4096 or count < 100
    root, top = union.root, str(count - 1)
    assert names_of(root) == expected(count)
    assert {(root / name).read_text() for name in ("all", "d/sub/all", f"d/in{top}")} == {top}
    for number in range(count):
        assert (root / f"only{number}").read_text() == str(number)
    assert root.stat().st_nlink == 2 + 1 + count
    numbers = {os.stat(root / name).st_ino for name in names_of(root)}
    assert len(numbers) == len(names_of(root))


def test_changes_over_500_layers(make_union):
    """What was hidden by the upper layer stays hidden through all of them, also after a remount."""
    count = 500
    union = make_union(*(layer(number) for number in reversed(range(count))))
    assert len(union.options()) > 4096
    root = union.root
    assert names_of(root) == expected(count)
    (root / "only0").write_text("changed")
    (root / "d/in0").unlink()
    (root / "all").unlink()
    os.rename(root / "only1", root / "d/moved")
    assert errno_of(os.rename, root / "d/sub", root / "sub") == "EXDEV"
    for name in os.listdir(root / "d/sub"):
        (root / "d/sub" / name).unlink()
    (root / "d/sub").rmdir()
    (root / "d/sub").mkdir()
    (root / f"hidden{count // 2}").write_text("again")
    wanted = {name for name in expected(count) if not name.startswith("d/sub/")}
    wanted -= {"d/in0", "all", "only1"}
    wanted |= {"d/moved", f"hidden{count // 2}"}
    assert names_of(root) == wanted
    assert (root / "d/moved").read_text() == "1"
    before = snapshot(root)
    union.remount()
    assert differences(before, snapshot(root)) == []
    assert names_of(root) == wanted


def test_a_renamed_directory_over_layers(make_union):
    """With redirect_dir=on it is one step, and goes on in every layer below."""
    count = 100
    union = make_union(*(layer(number) for number in reversed(range(count))), options=("redirect_dir=on",))
    os.rename(union.root / "d", union.root / "e")
    wanted = {"e" + name[1:] if name == "d" or name.startswith("d/") else name for name in expected(count)}
    assert names_of(union.root) == wanted
    union.remount("redirect_dir=on")
    assert names_of(union.root) == wanted
    assert (union.root / "e/in0").read_text() == "0"


def test_fewer_than_asked_for_are_refused(make_union, place):
    """One of hundreds is missing: one line that names it."""
    union = make_union(*({} for _ in range(100)), mount=False)
    union.lowers[70].rmdir()
    union.ignore_lowers()
    with pytest.raises(AssertionError, match=f"lowerdir '{union.lowers[70]}': No such"):
        union.mount()
    assert command("findmnt", union.root).returncode != 0
