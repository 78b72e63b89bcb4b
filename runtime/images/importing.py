"""A plain tar of a root filesystem becomes an image of one layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, BinaryIO

from runtime.images.archive import SourceImage
from runtime.images.compress import Writable
from runtime.images.making import stage_image, stage_layer, timestamp
from runtime.images.platforms import host_platform
from runtime.images.progress import Progress, Silent
from runtime.images.reference import Reference
from runtime.images.store import Image, ImageStore, Intake
from runtime.images.streams import CHUNK, DecompressingReader, Limits


def import_tar(
    store: ImageStore,
    stream: BinaryIO,
    where: str,
    name: Reference | None = None,
    message: str = "",
    change: Callable[[dict[str, Any]], None] = lambda config: None,
    progress: Progress | None = None,
) -> Image:
    """Make an image of the tar `stream` (plain, gzip or zstd), which `where` names in messages.

    `change` edits the image's config document. Raises RuntimeFailure when the tar is damaged or refused.
    """
    platform = host_platform()
    now = timestamp()
    plain = DecompressingReader(stream, where, Limits())

    def copy(out: Writable) -> None:
        while data := plain.read(CHUNK):
            out.write(data)

    def make(intake: Intake) -> list[SourceImage]:
        layer = stage_layer(intake.staging / "layer", copy)
        config: dict[str, Any] = {
            "architecture": platform.architecture,
            "os": platform.os,
            "created": now,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
            "history": [{"created": now, "comment": message or f"Imported from {where}"}],
        }
        change(config)
        return [stage_image(intake, config, [(layer.blob, layer.descriptor)], [name] if name else [])]

    return store.take_in(make, progress or Silent())[0]
