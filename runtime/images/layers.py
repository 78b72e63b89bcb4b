"""Unpacked layers, one directory each, shared by all images that have them.

A layer is known by its diff ID, the digest of its plain tar, and unpacked once: DIFF-ID/diff is the tree,
DIFF-ID/layer.json says what was measured.

Some builders leave directories out of a layer that they only add files to. What such a directory looks like
is for the layers below to say: /tmp must stay 1777 when an image adds /tmp/x. A layer like that cannot be
shared with an image that has other layers below, and is kept by its chain ID (config.md, "Layer ChainID"),
the digest of the diff IDs up to it. For the lowest layer the two IDs are the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime.images.workspace import sync_directory


@dataclass(frozen=True)
class Layer:
    """One unpacked layer: its tree is the directory `path`."""

    diff_id: str
    path: Path
    size: int


@dataclass(frozen=True)
class Record:
    """layer.json: `size` is that of all files. `standalone`: the tree does not depend on the layers below."""

    diff_id: str
    size: int
    entries: int
    standalone: bool


def chain_id(diff_ids: Sequence[str]) -> str:
    """The chain ID of the last of `diff_ids`, which go from the lowest layer up."""
    chain = diff_ids[0]
    for diff_id in diff_ids[1:]:
        chain = f"sha256:{hashlib.sha256(f'{chain} {diff_id}'.encode()).hexdigest()}"
    return chain


def stage_tree(tree: Path, diff_id: str, size: int, entries: int, staged: Path) -> None:
    """Move a directory that is the whole layer `diff_id` into `staged`, for `LayerStore.adopt` to take."""
    directory = staged / diff_id.removeprefix("sha256:")
    directory.mkdir()
    (directory / "layer.json").write_text(json.dumps(asdict(Record(diff_id, size, entries, standalone=True))))
    tree.rename(directory / "diff")


class LayerStore:
    """The unpacked layers of one state root."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "sha256"

    def prepare(self) -> None:
        """Make the directory."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def find(self, diff_ids: Sequence[str], also: Path | None = None) -> Layer | None:
        """The layer of the last of `diff_ids` (lowest first), here or in the directory `also`."""
        for place in (self.directory, also):
            for key in dict.fromkeys((chain_id(diff_ids), diff_ids[-1])):
                if place is None:
                    continue
                directory = place / key.removeprefix("sha256:")
                try:
                    record = Record(**json.loads((directory / "layer.json").read_bytes()))
                except FileNotFoundError:
                    continue
                if record.standalone or key == chain_id(diff_ids):
                    return Layer(diff_ids[-1], directory / "diff", record.size)
        return None

    def sizes(self) -> dict[str, int]:
        """Key → the bytes of its files, of all layers."""
        found = {}
        for directory in self.directory.iterdir():
            record = Record(**json.loads((directory / "layer.json").read_bytes()))
            found[f"sha256:{directory.name}"] = record.size
        return found

    def adopt(self, staged: Path) -> None:
        """Move the layers in `staged`, which are on disk, into the store."""
        for directory in staged.iterdir():
            target = self.directory / directory.name
            if not target.exists():
                os.rename(directory, target)
        sync_directory(self.directory)

    def discard_except(self, kept: Sequence[Layer], trash: Path) -> set[str]:
        """Move the layers that are not `kept` into the directory `trash`; give their keys."""
        names = {layer.path.parent.name for layer in kept}
        gone = set()
        for directory in self.directory.iterdir():
            if directory.name not in names:
                os.rename(directory, trash / directory.name)
                gone.add(f"sha256:{directory.name}")
        return gone
