"""What builds have made and may use again: one record for each step, named by the sum of all it depends on.

A record keeps the layers it names, and their blobs, from being swept out of the store, so a step that was
built is there as long as its record is. Records are made and removed under the store's lock.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime.errors import RuntimeFailure
from runtime.images.documents import Descriptor, Document, parse_json


@dataclass(frozen=True)
class Step:
    """All layers after a step, lowest first: diff IDs, and the blobs of the same layers."""

    created: str
    diff_ids: tuple[str, ...]
    blobs: tuple[Descriptor, ...]


class Steps:
    """The records of one state root."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def find(self, key: str) -> Step | None:
        """The step of that key; None when there is none, or it is damaged."""
        try:
            return _parse((self.directory / key).read_bytes(), key)
        except (FileNotFoundError, RuntimeFailure):
            return None

    def all(self) -> Iterator[tuple[str, Step]]:
        """Key and step, of all that can be read."""
        if self.directory.exists():
            for name in os.listdir(self.directory):
                if (step := self.find(name)) is not None:
                    yield name, step

    def forget(self, key: str) -> None:
        """Remove one."""
        (self.directory / key).unlink(missing_ok=True)

    def write(self, key: str, step: Step) -> None:
        """Keep a step; the layers and blobs it names are there and on disk."""
        self.directory.mkdir(mode=0o700, exist_ok=True)
        new = self.directory / f".{key}"
        value = asdict(step) | {"blobs": [blob.to_json() for blob in step.blobs]}
        with new.open("w") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        new.rename(self.directory / key)

    def clear(self) -> int:
        """Forget all; give how many there were."""
        count = 0
        if self.directory.exists():
            for path in self.directory.iterdir():
                path.unlink(missing_ok=True)
                count += not path.name.startswith(".")
        return count


def _parse(data: bytes, where: str) -> Step:
    document = Document(parse_json(data, where), where)
    return Step(
        document.string("created"),
        document.strings("diff_ids") or (),
        tuple(map(Descriptor.parse, document.objects("blobs"))),
    )
