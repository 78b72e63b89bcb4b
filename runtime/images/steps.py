"""What builds have made and may use again: one record for each step, named by the sum of all it depends on.

A record keeps the layers it names, and their blobs, from being swept out of the store, so a step that was
built is there as long as its record is. A pin does the same for one build, named after its workspace, and
means nothing when that is dead. Records and pins are made and removed under the store's lock.
"""

from __future__ import annotations

import hashlib
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
        """Key and step, of all that can be read, pins among them."""
        if self.directory.exists():
            for name in os.listdir(self.directory):
                if not name.startswith(".") and (step := self.find(name)) is not None:
                    yield name, step

    def forget(self, key: str) -> None:
        """Remove one."""
        (self.directory / key).unlink(missing_ok=True)

    def write(self, key: str, step: Step) -> None:
        """Keep a step; the layers and blobs it names are there and on disk."""
        self._write(key, step, durable=True)

    def pin(self, build: str, step: Step) -> None:
        """Keep what a step names as long as the workspace `build` lives."""
        name = f"{build}.{hashlib.sha256(repr(step.diff_ids).encode()).hexdigest()[:32]}"
        if not (self.directory / name).exists():
            self._write(name, step, durable=False)

    def unpin(self, build: str) -> None:
        """Let go of what a build has pinned."""
        for path in self.directory.glob(f"{build}.*"):
            path.unlink(missing_ok=True)

    def _write(self, name: str, step: Step, durable: bool) -> None:
        self.directory.mkdir(mode=0o700, exist_ok=True)
        new = self.directory / f".{name}"
        value = asdict(step) | {"blobs": [blob.to_json() for blob in step.blobs]}
        with new.open("w") as file:
            json.dump(value, file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        new.rename(self.directory / name)

    def clear(self) -> int:
        """Forget all but pins; give how many there were."""
        count = 0
        for path in self.directory.glob("[0-9a-f]*"):
            if builder_of(path.name) is None:
                path.unlink(missing_ok=True)
                count += 1
        return count


def builder_of(name: str) -> str | None:
    """The workspace of the build whose pin has that name; None when it is no pin."""
    build, dot, _ = name.partition(".")
    return build if dot else None


def _parse(data: bytes, where: str) -> Step:
    document = Document(parse_json(data, where), where)
    return Step(
        document.string("created"),
        document.strings("diff_ids") or (),
        tuple(map(Descriptor.parse, document.objects("blobs"))),
    )
