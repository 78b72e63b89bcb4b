"""The situations that a test's files are put in, and how each is laid out.

A test declares the files it begins with once; every situation makes the same tree of them as users see it.
Each test has a directory of its own, so that all tests of a module share one mount.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from support.layers import Dir, File, HardLink, Symlink, build, whiteout
from support.union import Union

Names = Mapping[str | bytes, Any]

#: Where a test's files are when it begins.
#: disk: no union. upper: new in the upper layer. lower: in a lower layer, parents too. parent: in a lower
#: layer, the directories in the upper one as well. whiteout: new, where a lower layer has something else
#: that was removed. deep: in several layers, over other files of the same names.
SITUATIONS = ("disk", "upper", "lower", "parent", "whiteout", "deep")

#: What a test begins with if it does not say otherwise.
COMMON: Names = {
    "file": File(content="content of file\n", mode=0o644),
    "other": File(content="another\n", mode=0o600),
    "dir": Dir(names={"inner": File(content="inner\n")}, mode=0o755),
    "empty": Dir(mode=0o755),
    "link": Symlink(target="file"),
    "dangling": Symlink(target="nothing"),
}

#: Names that tests make; in situation `whiteout` they are whited out.
_FRESH = ("new", "newer")


def _names_of(tree: Names | Dir) -> Names:
    return tree.names if isinstance(tree, Dir) else tree


def _like(tree: Names | Dir, names: Names) -> Dir:
    """A directory with the attributes of a described one and other names in it."""
    if not isinstance(tree, Dir):
        return Dir(names=names)
    return Dir(tree.mode, tree.owner, tree.mtime_ns, tree.atime_ns, tree.xattrs, names)


def _is_directory(thing: Any) -> bool:
    return isinstance(thing, Dir | Mapping)


def _directories(tree: Names | Dir) -> Dir:
    """The directories of a tree alone."""
    return _like(
        tree, {name: _directories(thing) for name, thing in _names_of(tree).items() if _is_directory(thing)}
    )


def _rooted(tree: Names | Dir, path: str) -> Dir:
    """The tree with its hard links named from the directory that holds `path`, where the tree will be."""
    names: dict[str | bytes, Any] = {}
    for name, thing in _names_of(tree).items():
        if isinstance(thing, HardLink):
            thing = HardLink(f"{path}/{thing.path}")
        names[name] = _rooted(thing, path) if _is_directory(thing) else thing
    return _like(tree, names)


def _decoys(tree: Names | Dir) -> dict[str | bytes, Any]:
    """Something of another kind for each name."""
    found: dict[str | bytes, Any] = {}
    for name, thing in _names_of(tree).items():
        found[name] = {"ghost": "below", "inner": {}} if _is_directory(thing) else f"below {name!r}"
    found |= {name: "below" for name in _FRESH if name not in found}
    return found


def _linked(tree: Names | Dir) -> set[str]:
    """The paths that hard links in a tree lead to."""
    found = set()
    for thing in _names_of(tree).values():
        if isinstance(thing, HardLink):
            found.add(thing.path)
        elif _is_directory(thing):
            found |= _linked(thing)
    return found


def _spread(tree: Names | Dir, linked: set[str], prefix: str = "") -> list[Dir]:
    """A tree over three layers: directories in all of them, files in the lower two over other ones.

    Files with several names stay in the middle layer, with all names.
    """
    layers: list[dict[str | bytes, Any]] = [{}, {}, {}]
    for number, (name, thing) in enumerate(_names_of(tree).items()):
        path = prefix + os.fsdecode(name)
        if _is_directory(thing):
            for layer, part in zip(layers, _spread(thing, linked, path + "/"), strict=True):
                layer[name] = part
        elif isinstance(thing, HardLink) or path in linked or number % 2:
            layers[1][name] = thing
            layers[2][name] = "hidden by the middle layer"
        else:
            layers[2][name] = thing
    return [_like(tree, names) for names in layers]


class Subject:
    """A place that the tests of one module run in, for one situation."""

    def __init__(self, root: Path, situation: str) -> None:
        self.root = root
        self.situation = situation

    def directory(self, name: str, tree: Names | Dir) -> Path:
        """The directory of one test, with its files in it."""
        if self.situation in ("disk", "upper"):
            build(self.root, {name: _rooted(tree, name)})
        elif self.situation == "whiteout":
            build(self.root / name, _names_of(tree))
        return self.root / name


def layers_for(situation: str, trees: Mapping[str, Names | Dir]) -> tuple[list[Names], Names]:
    """The lower layers, topmost first, and the upper one, in which the union shows the trees."""
    if situation in ("lower", "parent"):
        rooted = {name: _rooted(tree, name) for name, tree in trees.items()}
        above = {name: _directories(tree) for name, tree in trees.items()}
        return [rooted], above if situation == "parent" else {}
    if situation == "whiteout":
        hidden = {name: _decoys(tree) for name, tree in trees.items()}
        upper = {
            name: _like(tree, {decoy: whiteout() for decoy in hidden[name]}) for name, tree in trees.items()
        }
        return [hidden], upper
    if situation == "deep":
        spread = {name: _spread(tree, _linked(tree)) for name, tree in trees.items()}
        return [
            {name: _rooted(layers[number], name) for name, layers in spread.items()} for number in range(3)
        ], {}
    return [{}], {}


@contextlib.contextmanager
def scratch(where: Path | None) -> Iterator[Path]:
    """A directory that other users can pass through, gone afterwards."""
    place = Path(tempfile.mkdtemp(prefix="conformance-", dir=where))
    place.chmod(0o755)
    try:
        yield place
    finally:
        shutil.rmtree(os.fsencode(place))


@contextlib.contextmanager
def subject(
    situation: str, trees: Mapping[str, Names | Dir], *, where: Path | None = None, kernel: bool = False
) -> Iterator[Subject]:
    """A place in one situation: a directory of a disk, or a mount of ours (or of kernel overlayfs)."""
    with scratch(where) as place:
        if situation == "disk":
            yield Subject(place, situation)
            return
        lowers, upper = layers_for(situation, trees)
        union = Union(place, *lowers, upper=upper)
        if kernel:
            with union.kernel() as root:
                yield Subject(root, situation)
            return
        try:
            yield Subject(union.mount(), situation)
        finally:
            union.close()
