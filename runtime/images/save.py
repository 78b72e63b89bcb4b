"""Images of the store written as an archive that docker, podman, skopeo and `unionctl load` read.

The archive is two in one, as docker has written it since version 25: an OCI layout (image-layout.md), and
beside it manifest.json, which makes a docker archive of the same blobs. `oci` leaves that out, for readers
that take whatever has a manifest.json for the older kind. The same images give the same bytes.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from runtime.errors import RuntimeFailure
from runtime.images.archive import CONTAINERD_NAME
from runtime.images.documents import OCI_INDEX, REF_NAME, Descriptor
from runtime.images.reference import Reference, parse
from runtime.images.store import Image, ImageStore

FORMATS = ("docker-archive", "oci-archive", "oci-dir")


@dataclass(frozen=True)
class _Saved:
    image: Image
    names: tuple[Reference, ...]


def save(store: ImageStore, names: Sequence[str], out: BinaryIO, form: str = "docker-archive") -> None:
    """Write the images of `names` as one archive; an image given by ID keeps no name, as docker does it.

    Raises RuntimeFailure when there is no such image.
    """
    with store.reading():  # nothing is removed while its blobs are read
        files = _files(store, _chosen(store, names), form)
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            for directory in ("blobs", "blobs/sha256"):
                info = tarfile.TarInfo(directory)
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            for name, content in sorted(files.items()):
                info = tarfile.TarInfo(name)
                if isinstance(content, bytes):
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                else:
                    with content.open("rb") as file:
                        info.size = content.stat().st_size
                        tar.addfile(info, file)


def save_layout(store: ImageStore, names: Sequence[str], directory: Path) -> None:
    """Write the images of `names` as an OCI layout into the new directory `directory`.

    Raises RuntimeFailure when there is no such image, or something of that name; nothing half done is left.
    """
    with store.reading():
        files = _files(store, _chosen(store, names), "oci-dir")
        try:
            directory.mkdir()
        except OSError as error:
            raise RuntimeFailure(f"cannot make {directory}: {error.strerror}") from error
        try:
            for name, content in files.items():
                target = directory / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, bytes):
                    target.write_bytes(content)
                else:
                    shutil.copyfile(content, target)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise


def _chosen(store: ImageStore, names: Sequence[str]) -> list[_Saved]:
    chosen: dict[str, _Saved] = {}
    for name in names:
        image = store.resolve(name)
        known = chosen.get(image.id, _Saved(image, ()))
        wanted = _names(image, name)
        chosen[image.id] = _Saved(image, tuple(dict.fromkeys((*known.names, *wanted))))
    return list(chosen.values())


def _names(image: Image, name: str) -> tuple[Reference, ...]:
    """The names to save of what the user called `name`: itself, or none when that is an ID."""
    try:
        wanted = parse(name)
    except RuntimeFailure:
        return ()
    return (wanted,) if wanted in image.names else ()


def _files(store: ImageStore, chosen: Sequence[_Saved], form: str) -> dict[str, bytes | Path]:
    files: dict[str, bytes | Path] = {"oci-layout": json.dumps({"imageLayoutVersion": "1.0.0"}).encode()}
    listing: list[dict[str, Any]] = []
    index: list[dict[str, Any]] = []
    for saved in chosen:
        image = saved.image
        descriptor = image.manifests[0]
        manifest = store.manifest_of(image)
        for digest in (descriptor.digest, manifest.config.digest, *(blob.digest for blob in manifest.layers)):
            files[_path(digest)] = store.blob(digest)
        listing.append(
            {
                "Config": _path(manifest.config.digest),
                "RepoTags": [name.familiar for name in saved.names] or None,
                "Layers": [_path(blob.digest) for blob in manifest.layers],
            }
        )
        for name in saved.names or (None,):
            annotations = {CONTAINERD_NAME: str(name), REF_NAME: name.tag or ""} if name else {}
            if name and form != "docker-archive":
                annotations[REF_NAME] = str(name)
            entry = Descriptor(
                descriptor.media_type, descriptor.digest, descriptor.size, annotations, image.config.platform
            )
            index.append(entry.to_json())
    files["index.json"] = json.dumps(
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": index}
    ).encode()
    if form == "docker-archive":
        files["manifest.json"] = json.dumps(listing).encode()
    return files


def _path(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"
