"""What a name means: the order of layers, whiteouts and opaque directories in every convention."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from support.layers import PAST_NS, Dir, File, Node, Symlink, build, opaque, whiteout
from support.snapshot import names_of
from support.union import errno_of

pytestmark = pytest.mark.root


def test_a_name_is_what_the_topmost_layer_has(make_union):
    root = make_union(
        {"a": "top", "d": {"x": "top"}},
        {"a": "middle", "b": "middle", "d": {"x": "middle", "y": "middle"}},
        {"a": "bottom", "b": "bottom", "c": "bottom", "d": {"z": "bottom"}},
        upper={"c": "upper", "d": {"u": "upper"}},
    ).root
    seen = {name: (root / name).read_text() for name in ("a", "b", "c", "d/x", "d/y", "d/z", "d/u")}
    assert seen == {
        "a": "top",
        "b": "middle",
        "c": "upper",
        "d/x": "top",
        "d/y": "middle",
        "d/z": "bottom",
        "d/u": "upper",
    }
    assert sorted(os.listdir(root)) == ["a", "b", "c", "d"]
    assert sorted(os.listdir(root / "d")) == ["u", "x", "y", "z"]


def test_attributes_of_a_merged_directory_are_the_topmost_ones(make_union):
    root = make_union({"d": Dir(mode=0o2710, owner=(5, 6))}, {"d": Dir(mode=0o777, names={"x": ""})}).root
    status = (root / "d").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o2710, 5, 6)
    assert os.listdir(root / "d") == ["x"]


def test_another_kind_hides_what_lies_below_it_at_any_depth(make_union):
    root = make_union(
        {"d": {"top": ""}},
        {"d": "a file between"},
        {"d": {"never": {"seen": ""}}},
    ).root
    assert names_of(root) == {"d", "d/top"}


def test_a_file_over_a_directory_and_a_directory_over_a_file(make_union):
    root = make_union({"one": "file", "two": {"in": ""}}, {"one": {"in": ""}, "two": "file"}).root
    assert names_of(root) == {"one", "two", "two/in"}
    assert (root / "one").read_text() == "file"


def test_a_symlink_is_not_followed_for_merging(make_union):
    root = make_union({"d": Symlink(target="elsewhere")}, {"d": {"x": ""}, "elsewhere": {"y": ""}}).root
    assert os.readlink(root / "d") == "elsewhere"
    assert os.listdir(root / "d") == ["y"]


WHITEOUTS = {
    "device": {"gone": whiteout()},
    "marker": {".wh.gone": ""},
}


@pytest.mark.parametrize("form", WHITEOUTS)
@pytest.mark.parametrize("where", ["upper", "lower"])
@pytest.mark.parametrize("hidden", ["file", {"in": {"deep": ""}}], ids=["file", "directory"])
def test_a_whiteout_hides_what_lies_below(make_union, form, where, hidden):
    layers = [{"kept": ""}, {"gone": hidden, "d": {"gone": hidden, "x": ""}}]
    hiding = {**WHITEOUTS[form], "d": WHITEOUTS[form]}
    if where == "upper":
        root = make_union(*layers, upper=hiding).root
    else:
        root = make_union(hiding, *layers).root
    assert names_of(root) == {"kept", "d", "d/x"}
    assert errno_of(os.lstat, root / "gone") == "ENOENT"
    assert errno_of(os.lstat, root / ".wh.gone") == "ENOENT"
    assert errno_of(os.listdir, root / "d" / "gone") == "ENOENT"


def test_a_whiteout_acts_on_the_layers_below_its_own_only(make_union):
    root = make_union(
        {"a": "above"}, {"a": whiteout(), ".wh.b": "", "b": "same layer"}, {"a": "", "b": ""}
    ).root
    assert (root / "a").read_text() == "above"
    assert (root / "b").read_text() == "same layer"


def test_a_whiteout_between_two_directories_ends_the_merge(make_union):
    root = make_union({"d": {"new": ""}}, {"d": whiteout()}, {"d": {"old": ""}}).root
    assert names_of(root) == {"d", "d/new"}


OPAQUE = {
    "trusted": opaque({"new": ""}),
    "user": opaque({"new": ""}, "user.overlay.opaque"),
    "fuse-overlayfs": opaque({"new": ""}, "user.fuseoverlayfs.opaque"),
    "marker": {"new": "", ".wh..wh..opq": ""},
}


@pytest.mark.parametrize("form", OPAQUE)
@pytest.mark.parametrize("where", ["upper", "lower"])
def test_an_opaque_directory_hides_all_that_lies_below(make_union, form, where):
    below = {"d": {"old": "", "sub": {"older": ""}}}
    hiding = {"d": OPAQUE[form]}
    union = make_union(below, upper=hiding) if where == "upper" else make_union(hiding, below)
    assert names_of(union.root) == {"d", "d/new"}
    assert errno_of(os.lstat, union.root / "d" / "old") == "ENOENT"
    assert errno_of(os.lstat, union.root / "d" / ".wh..wh..opq") == "ENOENT"
    assert not [name for name in os.listxattr(union.root / "d") if "opaque" in name]


@pytest.mark.parametrize("form", OPAQUE)
def test_an_opaque_root_of_the_upper_layer(make_union, form, place):
    union = make_union({"old": ""}, {"older": ""}, mount=False)
    thing = OPAQUE[form]
    if isinstance(thing, Dir):
        for name, value in thing.xattrs.items():
            os.setxattr(union.upper, name, value)
    else:
        (union.upper / ".wh..wh..opq").touch()
    (union.upper / "new").touch()
    union.mount()
    assert names_of(union.root) == {"new"}


def test_an_opaque_root_of_a_lower_layer(make_union):
    union = make_union({"new": "", ".wh..wh..opq": ""}, {"old": ""}, upper={"own": ""})
    assert names_of(union.root) == {"new", "own"}


@pytest.mark.parametrize("namespace", ["trusted", "user"])
@pytest.mark.parametrize("where", ["upper", "lower"])
def test_xattr_whiteouts_count_in_a_directory_marked_x_only(make_union, namespace, where):
    empty = File(xattrs={f"{namespace}.overlay.whiteout": b""})
    hiding = {
        "d": opaque({"gone": empty, "empty": "", "new": "n"}, f"{namespace}.overlay.opaque", b"x"),
        "e": {"kept": empty},
    }
    below = {"d": {"gone": "g", "empty": "e", "old": "o"}, "e": {"kept": "k"}}
    union = make_union(below, upper=hiding) if where == "upper" else make_union(hiding, below)
    assert names_of(union.root) == {"d", "d/new", "d/empty", "d/old", "e", "e/kept"}
    assert (union.root / "e" / "kept").read_text() == ""


def test_a_real_device_is_no_whiteout(make_union):
    root = make_union({"null": Node(kind=stat.S_IFCHR, device=(1, 3))}, {"null": "file"}).root
    assert (root / "null").is_char_device()
    assert (root / "null").read_bytes() == b""


def test_many_layers(make_union):
    layers = [{f"only{n}": str(n), "all": str(n), "d": {f"f{n}": ""}} for n in range(60)]
    root = make_union(*layers).root
    assert (root / "all").read_text() == "0"
    assert len(os.listdir(root)) == 62
    assert len(os.listdir(root / "d")) == 60


def test_one_layer_read_only(make_union):
    union = make_union({"a": "x", "d": {"b": "y"}}, writable=False)
    assert names_of(union.root) == {"a", "d", "d/b"}


def test_two_mounts_of_the_same_layers_see_nothing_of_each_other(make_union, place):
    one = make_union({"a": "image", "d": {"b": "image"}})
    other = make_union(mount=False)
    other.share_lowers(one)
    other.mount()
    (one.root / "a").write_text("one")
    (one.root / "d" / "b").unlink()
    (other.root / "d" / "c").write_text("other")
    assert (other.root / "a").read_text() == "image"
    assert (other.root / "d" / "b").read_text() == "image"
    assert names_of(one.root) == {"a", "d"}
    assert names_of(other.root) == {"a", "d", "d/b", "d/c"}


def test_a_symlink_planted_in_a_layer_leads_nowhere(make_union, place):
    outside = place / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    union = make_union({"d": {"secret": "layer"}}, {}, mount=False)
    # The directory is replaced after the union was asked of: what follows must not leave the layer.
    union.mount()
    assert (union.root / "d" / "secret").read_text() == "layer"
    (union.lowers[0] / "d" / "secret").unlink()
    (union.lowers[0] / "d").rmdir()
    (union.lowers[0] / "d").symlink_to(outside)
    assert errno_of((union.root / "d" / "secret").write_text, "x") != ""
    assert (outside / "secret").read_text() == "secret"
    (union.lowers[0] / "d").unlink()
    restore(union.lowers[0])


def restore(lower: Path) -> None:
    """Put back what the test replaced."""
    build(lower, {"d": {"secret": "layer"}})
    os.utime(lower, ns=(PAST_NS, PAST_NS))
