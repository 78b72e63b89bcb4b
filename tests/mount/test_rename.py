"""rename(2) and renameat2(2): all kinds over all kinds, flags, whiteouts, and where EXDEV is the answer."""

from __future__ import annotations

import os
import stat

import pytest
from support.layers import PAST_NS, Node, Symlink, opaque, whiteout
from support.snapshot import names_of, picture, snapshot
from support.union import command, errno_of, tick

from unionfs import syscalls

pytestmark = pytest.mark.root


def rename2(old, new, flags=0):
    syscalls.renameat2(syscalls.AT_FDCWD, os.fsencode(old), syscalls.AT_FDCWD, os.fsencode(new), flags)


KINDS = {
    "file": "content",
    "symlink": Symlink(target="t"),
    "fifo": Node(),
    "character device": Node(kind=stat.S_IFCHR, device=(1, 5)),
}


@pytest.mark.parametrize("origin", ["lower", "upper"])
@pytest.mark.parametrize("kind", KINDS)
def test_rename_keeps_everything(make_union, kind, origin):
    names = {"d": {"thing": KINDS[kind]}, "e": {}}
    union = make_union(names) if origin == "lower" else make_union({}, upper=names)
    before, number = picture(union.root / "d/thing"), os.lstat(union.root / "d/thing").st_ino
    os.rename(union.root / "d/thing", union.root / "e/moved")
    assert picture(union.root / "e/moved") == before
    assert os.lstat(union.root / "e/moved").st_ino == number
    assert names_of(union.root) == {"d", "e", "e/moved"}
    union.remount()
    assert names_of(union.root) == {"d", "e", "e/moved"}
    assert picture(union.root / "e/moved") == before


def test_rename_away_and_back(make_union):
    union = make_union({"d": {"f": "x", "g": "y"}})
    before = {path: picture(union.root / path) for path in ("d/f", "d/g")}
    for name in ("f", "g"):
        os.rename(union.root / "d" / name, union.root / "away")
        os.rename(union.root / "away", union.root / "d" / name)
    assert {path: picture(union.root / path) for path in ("d/f", "d/g")} == before
    assert names_of(union.root) == {"d", "d/f", "d/g"}
    union.remount()
    assert names_of(union.root) == {"d", "d/f", "d/g"}


@pytest.mark.parametrize("target", ["whited out", "removed", "in upper", "in lower", "in both", "nowhere"])
@pytest.mark.parametrize("source", ["in upper", "in lower", "in both"])
def test_rename_of_a_file_to(make_union, source, target):
    lower, upper = {"other": ""}, {}
    for name, where, text in (("source", source, "new"), ("target", target, "old")):
        if where in ("in lower", "in both", "removed", "whited out"):
            lower[name] = text if where == "in lower" else "hidden"
        if where in ("in upper", "in both"):
            upper[name] = text
        if where == "whited out":
            upper[name] = whiteout()
    union = make_union(lower, upper=upper)
    if target == "removed":
        (union.root / "target").unlink()
    os.rename(union.root / "source", union.root / "target")
    for _ in range(2):
        assert names_of(union.root) == {"other", "target"}
        assert (union.root / "target").read_text() == "new"
        union.remount()


PLACES = ["whited out", "marked", "empty upper", "empty lower", "empty merged", "emptied merged", "nowhere"]


@pytest.mark.parametrize("target", PLACES)
@pytest.mark.parametrize("source", ["pure", "opaque"])
def test_rename_of_a_directory_to(make_union, source, target):
    """What lies below the new name stays hidden, at any depth."""
    old = {"old": {"older": "", "new": {"oldest": ""}}}
    lower = {"keep": ""}
    upper = {}
    if source == "opaque":
        lower["source"] = {"hidden": ""}
        upper["source"] = opaque({"new": {"deep": ""}})
    else:
        upper["source"] = {"new": {"deep": ""}}
    if target == "whited out":
        lower["target"], upper["target"] = old, whiteout()
    elif target == "marked":
        lower["target"], upper[".wh.target"] = old, ""
    elif target == "empty upper":
        upper["target"] = {}
    elif target == "empty lower":
        lower["target"] = {}
    elif target == "empty merged":
        lower["target"], upper["target"] = {}, {}
    elif target == "emptied merged":
        lower["target"], upper["target"] = old, {"old": whiteout()}
    union = make_union(lower, upper=upper)
    os.rename(union.root / "source", union.root / "target")
    for _ in range(2):
        assert names_of(union.root) == {"keep", "target", "target/new", "target/new/deep"}
        union.remount()
    with_whiteout = [p for p, thing in snapshot(union.upper).items() if thing.kind == "c" and b"/" in p]
    assert with_whiteout == []
    with_whiteout = {p for p, thing in snapshot(union.upper).items() if thing.kind == "c"}
    assert with_whiteout <= ({b"source"} if source == "opaque" else set())


@pytest.mark.parametrize("flags", [0, syscalls.RENAME_NOREPLACE])
def test_a_directory_that_lower_layers_take_part_in_gives_exdev(make_union, flags):
    union = make_union({"low": {"f": "x"}, "both": {"f": "x"}}, upper={"both": {"g": "y"}})
    before = snapshot(union.root)
    for name in ("low", "both"):
        assert errno_of(rename2, union.root / name, union.root / "new", flags) == "EXDEV"
    assert snapshot(union.root) == before
    assert names_of(union.upper) == {"both", "both/g"}


def test_mv_copies_a_merged_directory(make_union):
    union = make_union({"both": {"f": "x", "s": Symlink(target="f")}}, upper={"both": {"g": "y"}})
    moved = command("mv", union.root / "both", union.root / "new")
    assert moved.returncode == 0, moved.stderr
    for _ in range(2):
        assert names_of(union.root) == {"new", "new/f", "new/g", "new/s"}
        union.remount()


def test_a_directory_made_here_is_renamed_with_all_in_it(make_union):
    union = make_union({"d": {}})
    (union.root / "new" / "a" / "b").mkdir(parents=True)
    (union.root / "new" / "a" / "f").write_text("x")
    number = (union.root / "new").stat().st_ino
    with open(union.root / "new/a/f", "r+") as held:
        os.rename(union.root / "new", union.root / "d" / "moved")
        os.rename(union.root / "d/moved/a", union.root / "a")
        held.write("y")
        held.flush()
        assert (union.root / "a/f").read_text() == "y"
        os.fchmod(held.fileno(), 0o600)
    assert (union.root / "d/moved").stat().st_ino == number
    assert names_of(union.root) == {"d", "d/moved", "a", "a/b", "a/f"}
    (union.root / "a/b/c").write_text("z")
    assert (union.upper / "a/b/c").read_text() == "z"


def test_noreplace(make_union):
    union = make_union({"a": "a", "b": "b", "gone": "g"})
    (union.root / "gone").unlink()
    assert errno_of(rename2, union.root / "a", union.root / "b", syscalls.RENAME_NOREPLACE) == "EEXIST"
    rename2(union.root / "a", union.root / "gone", syscalls.RENAME_NOREPLACE)
    assert (union.root / "gone").read_text() == "a"
    assert names_of(union.root) == {"b", "gone"}


@pytest.mark.parametrize("one", ["file lower", "file upper", "dir upper", "symlink lower"])
@pytest.mark.parametrize("other", ["file lower", "file upper", "dir upper", "dir opaque"])
def test_exchange(make_union, one, other):
    things = {
        "file lower": ("lower", "x"),
        "file upper": ("upper", "y"),
        "symlink lower": ("lower", Symlink(target="t")),
        "dir upper": ("upper", {"new": {"deep": "z"}}),
        "dir opaque": ("opaque", {"new": {"deep": "z"}}),
    }
    lower, upper = {"d": {}}, {"d": {}}
    for name, names, kind in (("one", None, one), ("other", "d", other)):
        where, thing = things[kind]
        into_lower, into_upper = (lower[names], upper[names]) if names else (lower, upper)
        if where == "lower":
            into_lower[name] = thing
        elif where == "upper":
            into_upper[name] = thing
        else:
            into_lower[name], into_upper[name] = {"hidden": ""}, opaque(thing)
    union = make_union(lower, upper=upper)
    before = snapshot(union.root)

    def swapped(path):
        if path.startswith(b"one"):
            return b"d/other" + path[3:]
        if path.startswith(b"d/other"):
            return b"one" + path[7:]
        return path

    numbers = [os.lstat(union.root / path).st_ino for path in ("one", "d/other")]
    rename2(union.root / "one", union.root / "d/other", syscalls.RENAME_EXCHANGE)
    for _ in range(2):
        after = {swapped(path): thing for path, thing in snapshot(union.root).items()}
        for parent in (b".", b"d"):
            del after[parent], before[parent]
        assert after == before
        assert [os.lstat(union.root / path).st_ino for path in ("d/other", "one")] == numbers
        union.remount()
        before = {b".": None, b"d": None, **before}


def test_exchange_errors(make_union):
    union = make_union({"a": "a", "low": {"f": ""}}, upper={"d": {"e": {}}})
    exchange = syscalls.RENAME_EXCHANGE
    assert errno_of(rename2, union.root / "a", union.root / "none", exchange) == "ENOENT"
    assert errno_of(rename2, union.root / "none", union.root / "a", exchange) == "ENOENT"
    assert errno_of(rename2, union.root / "a", union.root / "low", exchange) == "EXDEV"
    assert errno_of(rename2, union.root / "d", union.root / "d/e", exchange) == "EINVAL"
    assert (
        errno_of(rename2, union.root / "a", union.root / "d", exchange | syscalls.RENAME_NOREPLACE)
        == "EINVAL"
    )
    assert names_of(union.root) == {"a", "low", "low/f", "d", "d/e"}


def test_the_whiteout_flag_is_refused_as_overlayfs_refuses_it(make_union):
    union = make_union({"a": "a"})
    assert errno_of(rename2, union.root / "a", union.root / "b", syscalls.RENAME_WHITEOUT) == "EINVAL"
    assert names_of(union.root) == {"a"}


def test_errors(make_union):
    union = make_union({"f": "", "full": {"x": ""}, "empty": {}}, upper={"d": {"e": {}}, "g": ""})
    root = union.root
    cases = {
        ("none", "x"): "ENOENT",
        ("f", "none/x"): "ENOENT",
        ("f", "g/x"): "ENOTDIR",
        ("f", "d"): "EISDIR",
        ("f", "empty"): "EISDIR",
        ("d", "f"): "ENOTDIR",
        ("d", "full"): "ENOTEMPTY",
        ("d", "d/e/x"): "EINVAL",
        ("d/e", "d"): "ENOTEMPTY",
        ("f", "x" * 256): "ENAMETOOLONG",
        ("f", "."): "EBUSY",
        ("d/e/..", "x"): "EBUSY",
    }
    before = snapshot(root)
    given = {case: errno_of(os.rename, f"{root}/{case[0]}", f"{root}/{case[1]}") for case in cases}
    assert given == cases
    assert snapshot(root) == before


def test_a_marker_cannot_be_made_by_rename(make_union):
    union = make_union({"f": "", "g": ""})
    assert errno_of(os.rename, union.root / "f", union.root / ".wh.g") != ""
    assert names_of(union.root) == {"f", "g"}


def test_times_of_the_parents(make_union):
    union = make_union({"one": {"f": "x"}, "two": {"g": ""}, "three": {}})
    tick()
    os.rename(union.root / "one/f", union.root / "two/f")
    moved = {name: os.stat(union.root / name).st_mtime_ns for name in ("one", "two", "three", "two/f")}
    assert moved["one"] > PAST_NS
    assert moved["two"] > PAST_NS
    assert (moved["three"], moved["two/f"]) == (PAST_NS, PAST_NS)


def test_renaming_a_directory_moves_dot_dot(make_union):
    union = make_union({}, upper={"a": {"d": {}}, "b": {}})
    os.rename(union.root / "a/d", union.root / "b/d")
    assert os.stat(union.root / "b/d/..").st_ino == os.stat(union.root / "b").st_ino
    assert os.stat(union.root / "a").st_nlink == 2
    assert os.stat(union.root / "b").st_nlink == 3


def test_a_rename_over_a_lower_file_leaves_the_number_of_the_moved_one(make_union):
    union = make_union({"a": "a", "b": "b"})
    number = os.stat(union.root / "a").st_ino
    os.rename(union.root / "a", union.root / "b")
    assert os.stat(union.root / "b").st_ino == number
    assert errno_of(os.stat, union.root / "a") == "ENOENT"
    (union.root / "a").write_text("again")
    assert os.stat(union.root / "a").st_ino != number
