"""A blob of an image becomes an unpacked layer, ready to be moved into the layer store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from runtime.errors import RuntimeFailure
from runtime.images.archive import Blob
from runtime.images.inherit import inherit
from runtime.images.layers import Layer, Record, chain_id
from runtime.images.progress import Progress
from runtime.images.streams import DecompressingReader, HashingReader, Limits
from runtime.images.unpack import unpack


def unpack_blob(
    blob: Blob,
    below: Sequence[Layer],
    diff_id: str,
    staged: Path,
    progress: Progress,
    limits: Limits,
) -> Layer:
    """Unpack `blob` into the directory `staged`, from where `LayerStore.adopt` takes it.

    Raises RuntimeFailure when it is refused, damaged, or not the layer `diff_id`.
    """
    where = f"layer {diff_id[:19]}"
    making = staged / "new"
    (making / "diff").mkdir(parents=True)
    with blob.open() as file, progress.task(f"unpacking {diff_id[7:19]}", blob.size) as advance:
        plain = DecompressingReader(HashingReader(file, advance), where, limits)
        hashing = HashingReader(plain)
        done = unpack(hashing, making / "diff", where, limits)
    if hashing.digest != diff_id:
        raise RuntimeFailure(f"{where} is not what the config says: its digest is {hashing.digest}")
    for note in done.notes:
        progress.note(f"{where}: {note}")
    standalone = not done.implicit
    if below:
        inherit(done.implicit, making / "diff", [layer.path for layer in reversed(below)])
    record = Record(diff_id, done.size, done.entries, standalone)
    (making / "layer.json").write_text(json.dumps(asdict(record)))
    key = diff_id if standalone else chain_id([*(layer.diff_id for layer in below), diff_id])
    final = staged / key.removeprefix("sha256:")
    making.rename(final)
    return Layer(diff_id, final / "diff", done.size)


def verify(blob: Blob, diff_id: str, progress: Progress, limits: Limits) -> None:
    """Check that `blob` is the layer `diff_id`, without unpacking it; raises RuntimeFailure otherwise."""
    if blob.digest == diff_id:
        return
    where = f"layer {diff_id[:19]}"
    with blob.open() as file, progress.task(f"verifying {diff_id[7:19]}", blob.size) as advance:
        hashing = HashingReader(DecompressingReader(HashingReader(file, advance), where, limits))
        hashing.drain()
    if hashing.digest != diff_id:
        raise RuntimeFailure(f"{where} is not what the config says: its digest is {hashing.digest}")
