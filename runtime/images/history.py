"""The steps an image was made by (config.md, "history"), as docker shows them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from runtime.images.store import Image

MISSING = "<missing>"


@dataclass(frozen=True)
class Entry:
    """One step; `size` is that of the layer it made, `id` the image's own for the last step."""

    id: str
    created: datetime | None
    created_by: str
    size: int
    comment: str


def history(image: Image) -> list[Entry]:
    """The steps, the last first; layers that no step tells of come on top."""
    steps = image.config.raw.get("history")
    sizes = [layer.size for layer in image.layers]
    entries: list[Entry] = []
    for step in steps if isinstance(steps, list) else []:
        if not isinstance(step, dict):
            continue
        made_layer = not step.get("empty_layer")
        entries.append(
            Entry(
                MISSING,
                _moment(step.get("created")),
                str(step.get("created_by") or ""),
                sizes.pop(0) if made_layer and sizes else 0,
                str(step.get("comment") or ""),
            )
        )
    entries += [Entry(MISSING, image.config.created, "", size, "") for size in sizes]
    if entries:
        last = entries[-1]
        entries[-1] = Entry(image.id, last.created, last.created_by, last.size, last.comment)
    return entries[::-1]


def _moment(stamp: object) -> datetime | None:
    try:
        return datetime.fromisoformat(str(stamp))
    except ValueError:
        return None
