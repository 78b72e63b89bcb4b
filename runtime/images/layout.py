"""The OCI image layout that images are kept in (image-layout.md); other tools can read it.

An image's name is the annotation org.opencontainers.image.ref.name of its entry in index.json, in full
(docker.io/library/busybox:latest). An image of several names has several entries, one that lost its last
name has one without. An image pulled by its digest has the name REPOSITORY@DIGEST.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from runtime.errors import RuntimeFailure
from runtime.images.documents import OCI_INDEX, REF_NAME, Descriptor, parse_index
from runtime.images.workspace import sync_directory

#: An annotation: the digest of the index, at the registry, that led to an entry's manifest.
ORIGIN = "unionfs.origin.digest"


class Layout:
    """An OCI image layout in one directory. Who changes it holds the store's lock."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.blobs = directory / "blobs" / "sha256"

    def prepare(self) -> None:
        """Make an empty layout where there is none."""
        self.blobs.mkdir(mode=0o700, parents=True, exist_ok=True)
        marker = self.directory / "oci-layout"
        if not marker.exists():
            self._replace(marker, {"imageLayoutVersion": "1.0.0"})

    def entries(self) -> list[Descriptor]:
        """The entries of index.json, none when there is no index yet."""
        path = self.directory / "index.json"
        try:
            return parse_index(path.read_bytes(), str(path))
        except FileNotFoundError:
            return []

    def write_entries(self, entries: Iterable[Descriptor]) -> None:
        """Replace index.json, all at once and for good."""
        index = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [entry.to_json() for entry in entries],
        }
        self._replace(self.directory / "index.json", index)

    def blob_path(self, digest: str) -> Path:
        """Where the blob `digest` is or would be."""
        return self.blobs / digest.removeprefix("sha256:")

    def read_blob(self, digest: str) -> bytes:
        """A document of the layout; raises RuntimeFailure when it is missing."""
        try:
            return self.blob_path(digest).read_bytes()
        except FileNotFoundError:
            raise RuntimeFailure(f"the image store is damaged: blob {digest} is missing") from None

    def add_blob(self, path: Path, digest: str) -> None:
        """Move the file `path`, whose content was verified and is on disk, into the layout."""
        target = self.blob_path(digest)
        if not target.exists():
            os.rename(path, target)

    def sync_blobs(self) -> None:
        """Wait until blobs added before are found after a power cut."""
        sync_directory(self.blobs)

    def remove_blobs_except(self, kept: Iterable[str]) -> None:
        """Remove the blobs whose digest is not in `kept`."""
        names = {digest.removeprefix("sha256:") for digest in kept}
        for path in self.blobs.iterdir():
            if path.name not in names:
                path.unlink()

    def _replace(self, path: Path, value: dict[str, Any]) -> None:
        new = path.with_suffix(".new")
        with new.open("w") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
        sync_directory(self.directory)


def name_of(entry: Descriptor) -> str | None:
    """The full name of an entry of the index."""
    return entry.annotations.get(REF_NAME)


def origin_of(entry: Descriptor) -> str:
    """The digest by which the repository that an entry names has it."""
    return entry.annotations.get(ORIGIN, entry.digest)


def named(entry: Descriptor, name: str | None, origin: str | None = None) -> Descriptor:
    """The entry as it is under another name, or under none."""
    annotations = {REF_NAME: name} if name else {}
    if name and origin and origin != entry.digest:
        annotations[ORIGIN] = origin
    return Descriptor(entry.media_type, entry.digest, entry.size, annotations, entry.platform)


def with_name(entries: Iterable[Descriptor], added: Descriptor) -> list[Descriptor]:
    """The entries with `added`, which takes its name from whoever has it. No manifest gets lost by that."""
    name = name_of(added)
    result = [named(entry, None) if name and name_of(entry) == name else entry for entry in entries]
    return without_needless([*result, added])


def without_needless(entries: Iterable[Descriptor]) -> list[Descriptor]:
    """The entries, but none without a name whose manifest has another one."""
    entries = list(entries)
    present = {entry.digest for entry in entries if name_of(entry)}
    result = []
    for entry in entries:
        if name_of(entry) is None:
            if entry.digest in present:
                continue
            present.add(entry.digest)
        result.append(entry)
    return result
