"""Random layers, unpacked each alone and mounted as a union, are the tree that applying them in turn gives.

The mounts are kernel overlayfs and ours: both read what the unpacker wrote.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from image_builder import Entry, archive, directory, docker_files, file, opaque, symlink, tar, whiteout

from runtime.images.store import ImageStore
from runtime.root import Root

pytestmark = pytest.mark.root

#: A tree: path → (what it is, mode or content). An implicit directory has the mode None until it is known.
Tree = dict[str, tuple[str, object]]

NAMES = ["a", "b"]
PATHS = [*NAMES, *(f"{x}/{y}" for x in NAMES for y in NAMES), *(f"{x}/{y}/c" for x in NAMES for y in NAMES)]
MODES = [0o700, 0o755, 0o1777]

entries = st.one_of(
    st.tuples(st.just("directory"), st.sampled_from(PATHS), st.sampled_from(MODES)),
    st.tuples(st.just("file"), st.sampled_from(PATHS), st.binary(max_size=3)),
    st.tuples(st.just("symlink"), st.sampled_from(PATHS), st.sampled_from(["a", "../b", "/etc"])),
    st.tuples(st.just("whiteout"), st.sampled_from(PATHS), st.none()),
    st.tuples(st.just("opaque"), st.sampled_from(PATHS), st.none()),
)


@st.composite
def layer(draw: st.DrawFn) -> list[tuple[str, str, object]]:
    """Entries in any order, of which none lies beneath another's file or symlink."""
    chosen: list[tuple[str, str, object]] = []
    solid: dict[str, str] = {}
    for kind, path, value in draw(st.lists(entries, max_size=8)):
        parents = {path[:place] for place, char in enumerate(path) if char == "/"}
        needed = parents | ({path} if kind == "opaque" else set())
        beneath = any(other.startswith(f"{path}/") for other in solid)
        if any(solid.get(parent, "directory") != "directory" for parent in needed):
            continue
        if kind in ("file", "symlink") and (beneath or solid.get(path) == "directory"):
            continue
        if kind == "whiteout":
            solid.update(dict.fromkeys(parents, "directory"))
        else:
            solid.update(dict.fromkeys(needed, "directory"))
            solid[path] = "directory" if kind == "opaque" else kind
        chosen.append((kind, path, value))
    return chosen


def apply(tree: Tree, layer: list[tuple[str, str, object]]) -> Tree:
    """The rules of layer.md: what is hidden goes first, whatever the order; then the entries in theirs."""
    tree = dict(tree)
    for kind, path, _ in layer:
        if kind in ("opaque", "whiteout"):
            for known in [known for known in tree if known.startswith(f"{path}/")]:
                del tree[known]
            if kind == "whiteout":
                tree.pop(path, None)
    own: set[str] = set()

    def make_parents(path: str) -> None:
        for parent in [path[:place] for place, char in enumerate(path) if char == "/"]:
            if tree.get(parent, ("", 0))[0] != "directory":
                tree[parent] = ("directory", 0o755)

    hiding = {path for kind, path, _ in layer if kind in ("opaque", "whiteout")}
    # A directory that comes after a file of its name in the layer hides what the file has hidden.
    solid = {path for kind, path, _ in layer if kind in ("file", "symlink")}
    hiding |= {path for kind, path, _ in layer if kind == "directory" and path in solid}
    for kind, path, value in layer:
        if kind == "whiteout" and any(path.startswith(f"{other}/") for other in hiding):
            continue  # it says nothing more
        make_parents(path)
        if kind == "opaque" and tree.get(path, ("", 0))[0] != "directory":
            tree[path] = ("directory", 0o755)
        if kind in ("directory", "file", "symlink"):
            if kind != "directory":
                for known in [known for known in tree if known.startswith(f"{path}/")]:
                    del tree[known]
            tree[path] = (kind, value)
            own.add(path)
    return tree


def to_tar(layer: list[tuple[str, str, object]]) -> bytes:
    made: list[Entry] = []
    for kind, path, value in layer:
        if kind == "directory":
            made.append(directory(path, mode=value))
        elif kind == "file":
            assert isinstance(value, bytes)
            made.append(file(path, value))
        elif kind == "symlink":
            made.append(symlink(path, str(value)))
        else:
            made.append(whiteout(path) if kind == "whiteout" else opaque(path))
    return tar(*made)


def read(path: Path, ghosts: bool = False) -> Tree:
    """The tree as it is; with `ghosts` names that are listed but cannot be looked up are left out.

    Kernel overlayfs lists whiteouts in a directory that only one layer has: it looks for them in merged ones.
    """
    found: Tree = {}
    for place, directories, names in os.walk(path):
        for name in directories + names:
            full = os.path.join(place, name)
            try:
                state = os.lstat(full)
            except FileNotFoundError:
                if ghosts:
                    continue
                raise
            shown = os.path.relpath(full, path)
            if stat.S_ISDIR(state.st_mode):
                found[shown] = ("directory", stat.S_IMODE(state.st_mode))
            elif stat.S_ISLNK(state.st_mode):
                found[shown] = ("symlink", os.readlink(full))
            elif stat.S_ISREG(state.st_mode):
                found[shown] = ("file", Path(full).read_bytes())
            else:
                found[shown] = ("other", oct(state.st_mode))
    return found


@contextmanager
def mounted(command: list[str], place: Path) -> Iterator[Path]:
    place.mkdir()
    subprocess.run([*command, str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(layer(), min_size=1, max_size=3))
def test_random_layers(
    tmp_path_factory: pytest.TempPathFactory, layers: list[list[tuple[str, str, object]]]
) -> None:
    note(layers)
    place = tmp_path_factory.mktemp("merge")
    try:
        expected: Tree = {}
        for entries in layers:
            expected = apply(expected, entries)
        store = ImageStore(Root(place / "root"))
        (image,) = store.load("-", stdin=io.BytesIO(archive(docker_files(list(map(to_tar, layers))))))
        paths = [str(path) for path in reversed(image.trees)]
        # The kernel wants two lower directories at least.
        (place / "empty").mkdir()
        options = f"lowerdir={':'.join([*paths, str(place / 'empty')])}"
        with mounted(["mount", "-t", "overlay", "overlay", "-o", options], place / "kernel") as tree:
            assert read(tree, ghosts=True) == expected
        ours = [sys.executable, "-m", "unionfs", "-o", f"lowerdir={':'.join(paths)}"]
        with mounted(ours, place / "ours") as tree:
            assert read(tree) == expected
    finally:
        shutil.rmtree(place)
