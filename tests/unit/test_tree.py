"""The merged tree, over layers in temporary directories and without a mount."""

from __future__ import annotations

import os
import stat

import pytest
from support.layers import HardLink, build, opaque, whiteout
from support.union import errno_of

from unionfs.nodes import ROOT
from unionfs.options import parse
from unionfs.stack import open_stack
from unionfs.tree import Tree

pytestmark = pytest.mark.root


@pytest.fixture
def make_tree(tmp_path):
    opened = []

    def make(*lowers, upper=None):
        paths = [tmp_path / f"lower{len(opened)}-{n}" for n in range(len(lowers))]
        for path, names in zip(paths, lowers, strict=True):
            build(path, names)
        options = "lowerdir=" + ":".join(map(os.fspath, paths))
        if upper is not None:
            build(tmp_path / "upper", upper)
            (tmp_path / "work").mkdir(exist_ok=True)
            options += f",upperdir={tmp_path}/upper,workdir={tmp_path}/work"
        layers, above = open_stack(parse([options]))
        opened.extend([*layers, *([above] if above else [])])
        return Tree(layers, above)

    yield make
    for layer in opened:
        layer.close()


def names(tree, path=b""):
    node = tree.resolve(path)
    assert node is not None
    return sorted(os.fsdecode(name) for name in tree.listing(node).names)


def test_the_root(make_tree):
    tree = make_tree({"a": ""}, {"b": ""}, upper={"c": ""})
    assert tree.root.ino == ROOT
    assert names(tree) == ["a", "b", "c"]
    assert tree.path(tree.root) == b""


def test_an_absent_name_is_none(make_tree):
    tree = make_tree({"a": "", "d": {}})
    assert tree.lookup(tree.root, b"none") is None
    assert tree.resolve(b"d/none/deeper") is None
    assert tree.resolve(b"a/below") is None
    assert errno_of(tree.lookup, tree.root, b"x" * 256) == "ENAMETOOLONG"


def test_a_file_has_no_listing(make_tree):
    tree = make_tree({"a": ""})
    node = tree.lookup(tree.root, b"a")
    assert errno_of(tree.listing, node) == "ENOTDIR"


def test_where_a_node_is(make_tree):
    tree = make_tree({"d": {"a": ""}}, {"d": {"b": ""}}, upper={"d": {"c": ""}})
    for name, layer in ((b"a", tree.lowers[0]), (b"b", tree.lowers[1]), (b"c", tree.upper)):
        node = tree.resolve(b"d/" + name)
        assert tree.place(node) == (layer, b"d/" + name)
        assert tree.path(node) == b"d/" + name


def test_what_is_below_and_what_is_seen(make_tree):
    tree = make_tree({"d": {"a": "", "b": ""}}, upper={"d": {"a": whiteout(), "c": "", ".wh.b": ""}})
    listing = tree.listing(tree.resolve(b"d"))
    assert set(listing.names) == {b"c"}
    assert set(listing.below) == {b"a", b"b"}
    assert (listing.whiteouts, listing.marked) == ({b"a"}, {b"b"})


def test_an_opaque_directory_has_nothing_below(make_tree):
    tree = make_tree({"d": {"a": ""}}, upper={"d": opaque({"c": ""})})
    node = tree.resolve(b"d")
    assert set(tree.listing(node).names) == {b"c"}
    assert not tree.listing(node).below
    assert node.lowers == ()


def test_a_merge_stops_at_an_opaque_layer(make_tree):
    tree = make_tree({"d": {"a": ""}}, {"d": opaque({"b": ""})}, {"d": {"c": "", "e": {"f": ""}}})
    assert names(tree, b"d") == ["a", "b"]


def test_numbers_do_not_depend_on_layers_put_on_top(make_tree):
    tree = make_tree({"a": ""}, {"b": ""})
    before = {name: tree.lookup(tree.root, name).ino for name in (b"a", b"b")}
    paths = [layer.path for layer in tree.lowers]
    above = make_tree({"c": ""})
    layers, _ = open_stack(parse(["lowerdir=" + ":".join([above.lowers[0].path, *paths])]))
    try:
        again = Tree(layers, None)
        assert {name: again.lookup(again.root, name).ino for name in (b"a", b"b")} == before
        assert again.lookup(again.root, b"c").ino not in before.values()
    finally:
        for layer in layers:
            layer.close()


def test_hard_links_are_one_node(make_tree):
    tree = make_tree({"a": "", "d": {"b": HardLink("a")}})
    one, other = tree.resolve(b"a"), tree.resolve(b"d/b")
    assert one is other
    assert len(one.names) == 2


def test_a_node_that_nobody_holds_is_let_go(make_tree):
    tree = make_tree({"d": {"e": {"f": ""}}})
    before = len(tree.nodes)
    node = tree.resolve(b"d/e/f")
    assert len(tree.nodes) == before + 3
    tree.nodes.release(node)
    assert len(tree.nodes) == before
    again = tree.resolve(b"d/e/f")
    assert again.ino == node.ino
    tree.nodes.release(again)


def test_a_node_is_kept_while_the_kernel_knows_it(make_tree):
    tree = make_tree({"d": {"f": ""}})
    node = tree.resolve(b"d/f")
    node.lookups = 2
    tree.nodes.forget(node.ino, 1)
    assert tree.nodes.get(node.ino) is node
    assert tree.path(node) == b"d/f"
    tree.nodes.forget(node.ino, 1)
    assert tree.nodes.get(node.ino) is None
    assert len(tree.nodes) == 1


def test_link_counts(make_tree):
    tree = make_tree(
        {"d": {"a": {}, "f": ""}}, {"d": {"a": {}, "b": {}}}, upper={"d": {"b": whiteout(), "c": {}}}
    )
    node = tree.resolve(b"d")
    assert tree.link_count(node, tree.stat(node)) == 4
    node = tree.resolve(b"d/f")
    assert tree.link_count(node, tree.stat(node)) == 1


def test_layers_are_read_once(make_tree, tmp_path):
    """An absent name is known to be absent, and a directory is not read again."""
    tree = make_tree({"a": ""})
    assert names(tree) == ["a"]
    (tmp_path / "lower0-0" / "later").touch()
    assert names(tree) == ["a"]
    assert tree.lookup(tree.root, b"later") is None


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_the_topmost_kind_counts(make_tree, kind):
    top, bottom = ("f", {"x": ""}) if kind == "file" else ({"x": ""}, "f")
    tree = make_tree({"a": top}, {"a": bottom}, {"a": {"y": ""}})
    node = tree.resolve(b"a")
    assert stat.S_ISREG(tree.stat(node).st_mode) is (kind == "file")
    if kind == "directory":
        assert names(tree, b"a") == ["x"]
