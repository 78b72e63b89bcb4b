"""A blob of an image becomes an unpacked layer, ready to be moved into the layer store.

That is two steps, since layers that arrive together are unpacked together: the tree of each, and then, from
the lowest up, what the layers below say of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime.errors import RuntimeFailure
from runtime.images.archive import Blob
from runtime.images.inherit import inherit
from runtime.images.layers import Layer, Record, chain_id
from runtime.images.progress import Progress
from runtime.images.streams import DecompressingReader, HashingReader, Limits, Readable
from runtime.images.unpack import Unpacked, unpack


@dataclass(frozen=True)
class LayerTree:
    """The verified layer `diff_id`, unpacked at `directory`/diff."""

    directory: Path
    diff_id: str
    unpacked: Unpacked

    def settle(self, below: Sequence[Layer], staged: Path, progress: Progress) -> Layer:
        """Make it whole by the layers `below`, and move it to `staged`, for `LayerStore.adopt` to take."""
        for note in self.unpacked.notes:
            progress.note(f"{_where(self.diff_id)}: {note}")
        implicit = self.unpacked.implicit
        if below:
            inherit(implicit, self.directory / "diff", [layer.path for layer in reversed(below)])
        record = Record(self.diff_id, self.unpacked.size, self.unpacked.entries, standalone=not implicit)
        (self.directory / "layer.json").write_text(json.dumps(asdict(record)))
        chain = chain_id([*(layer.diff_id for layer in below), self.diff_id])
        final = staged / (chain if implicit else self.diff_id).removeprefix("sha256:")
        self.directory.rename(final)
        return Layer(self.diff_id, final / "diff", self.unpacked.size)


def unpack_layer(stream: Readable, diff_id: str, directory: Path, limits: Limits) -> LayerTree:
    """Unpack the layer tar `stream`, compressed or not, into the new `directory`.

    Raises RuntimeFailure when it is refused, damaged, or not the layer `diff_id`.
    """
    (directory / "diff").mkdir(parents=True)
    hashing = HashingReader(DecompressingReader(stream, _where(diff_id), limits))
    unpacked = unpack(hashing, directory / "diff", _where(diff_id), limits)
    _check(hashing, diff_id)
    return LayerTree(directory, diff_id, unpacked)


def unpack_blob(
    blob: Blob, below: Sequence[Layer], diff_id: str, staged: Path, progress: Progress, limits: Limits
) -> Layer:
    """Unpack `blob`, both steps; raises RuntimeFailure as `unpack_layer` does."""
    with blob.open() as file, progress.task(f"unpacking {diff_id[7:19]}", blob.size) as advance:
        tree = unpack_layer(HashingReader(file, advance), diff_id, staged / "new", limits)
    return tree.settle(below, staged, progress)


def verify(blob: Blob, diff_id: str, progress: Progress, limits: Limits) -> None:
    """Check that `blob` is the layer `diff_id`, without unpacking it; raises RuntimeFailure otherwise."""
    if blob.digest == diff_id:
        return
    with blob.open() as file, progress.task(f"verifying {diff_id[7:19]}", blob.size) as advance:
        hashing = HashingReader(DecompressingReader(HashingReader(file, advance), _where(diff_id), limits))
        hashing.drain()
    _check(hashing, diff_id)


def _where(diff_id: str) -> str:
    return f"layer {diff_id[:19]}"


def _check(plain: HashingReader, diff_id: str) -> None:
    if plain.digest != diff_id:
        raise RuntimeFailure(f"{_where(diff_id)} is not what the config says: its digest is {plain.digest}")
