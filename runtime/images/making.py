"""New layers and new images: from a function that writes a tar, and from a config to the store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runtime.errors import RuntimeFailure
from runtime.images.archive import Blob, SourceImage
from runtime.images.compress import SUFFIXES, Writable, compressed
from runtime.images.documents import OCI_CONFIG, OCI_MANIFEST, Descriptor, ImageConfig
from runtime.images.pack import Packed, pack, strip
from runtime.images.reference import Reference
from runtime.images.store import Intake
from runtime.images.tarwriter import Clamp

WriteTar = Callable[[Writable], object]


@dataclass(frozen=True)
class NewLayer:
    """A layer whose blob is staged: not yet unpacked, not yet in the store."""

    diff_id: str
    blob: Blob
    descriptor: Descriptor


@dataclass(frozen=True)
class OwnLayer(NewLayer):
    """One whose tree is there already: the directory `tree` is what `packed` was made of."""

    tree: Path
    packed: Packed


class _Summed:
    """Passes on what is written, and counts and hashes it."""

    def __init__(self, target: Writable) -> None:
        self._target = target
        self._sum = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes, /) -> int:
        self._sum.update(data)
        self.size += len(data)
        self._target.write(data)
        return len(data)

    @property
    def digest(self) -> str:
        return f"sha256:{self._sum.hexdigest()}"


def stage_layer(path: Path, write_tar: WriteTar, compression: str = "gzip") -> NewLayer:
    """Let `write_tar` write a layer's plain tar, and put it compressed into the new file `path`.

    Raises RuntimeFailure when there is no such `compression`.
    """
    with path.open("xb") as file:
        outer = _Summed(file)
        with compressed(outer, compression) as stream:  # type: ignore[arg-type]  # it only writes
            plain = _Summed(stream)
            write_tar(plain)
    media_type = f"application/vnd.oci.image.layer.v1.tar{SUFFIXES[compression]}"
    descriptor = Descriptor(media_type, outer.digest, outer.size, {}, None)
    return NewLayer(plain.digest, Blob(path, outer.digest, outer.size), descriptor)


def stage_upper(upper: Path, place: Path, clamp: Clamp, compression: str = "gzip") -> OwnLayer:
    """Make a layer of the directory `upper`, which is moved to the directory `place`: nothing is copied.

    Raises RuntimeFailure as `pack` does.
    """
    strip(upper, clamp)
    tree = place / "tree"
    upper.rename(tree)
    packed: list[Packed] = []
    layer = stage_layer(place / "layer", lambda out: packed.append(pack(tree, out, clamp)), compression)
    return OwnLayer(layer.diff_id, layer.blob, layer.descriptor, tree, packed[0])


def stored_layers(intake: Intake, descriptors: Sequence[Descriptor]) -> list[tuple[Blob, Descriptor]]:
    """The blobs of layers that the store has; raises RuntimeFailure when one has been removed."""
    found = []
    for descriptor in descriptors:
        blob = intake.blob(descriptor)
        if blob is None:
            raise RuntimeFailure(f"the layer {descriptor.digest} has been removed meanwhile")
        found.append((blob, descriptor))
    return found


def stage_image(
    intake: Intake,
    config: Mapping[str, Any],
    layers: Sequence[tuple[Blob, Descriptor]],
    names: Sequence[Reference],
) -> SourceImage:
    """Write the documents of an image of `layers` (lowest first) as an intake takes it."""
    data = json.dumps(config, ensure_ascii=False).encode("utf-8", "surrogateescape")
    config_blob = _stage(intake.staging / "config", data)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": Descriptor(OCI_CONFIG, config_blob.digest, config_blob.size, {}, None).to_json(),
        "layers": [descriptor.to_json() for _, descriptor in layers],
    }
    manifest_blob = _stage(intake.staging / "manifest", json.dumps(manifest).encode())
    blobs = tuple(blob for blob, _ in layers)
    return SourceImage(
        tuple(names),
        ImageConfig.parse(data, "the new image's config"),
        manifest_blob,
        OCI_MANIFEST,
        (manifest_blob, config_blob, *blobs),
        blobs,
    )


def _stage(path: Path, data: bytes) -> Blob:
    path.write_bytes(data)
    return Blob(path, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))


def timestamp(seconds: int | None = None) -> str:
    """RFC 3339 in UTC, as configs have it: of `seconds` since the epoch, or of now."""
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="microseconds" if seconds is None else "seconds").replace("+00:00", "Z")


def full_history(config: ImageConfig) -> list[dict[str, Any]]:
    """The history of a config, with a step for each layer that it does not tell of: one can be added."""
    told = config.raw.get("history")
    steps = [dict(step) for step in told if isinstance(step, dict)] if isinstance(told, list) else []
    untold = len(config.diff_ids) - sum(not step.get("empty_layer") for step in steps)
    created = config.raw.get("created")
    return steps + [{"created": created} if created else {} for _ in range(untold)]
