"""Archives for tests, made byte by byte so that they can be wrong in every way."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import zstandard

Entry = tuple[tarfile.TarInfo, bytes | None]


def entry(name: str, kind: bytes, data: bytes | None = None, **attributes: Any) -> Entry:
    """A tar entry of any type; `attributes` are TarInfo's."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(data) if data is not None else 0
    info.mtime = 1_600_000_000
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info, data


def file(name: str, data: bytes = b"", **attributes: Any) -> Entry:
    return entry(name, tarfile.REGTYPE, data, **attributes)


def directory(name: str, **attributes: Any) -> Entry:
    return entry(name, tarfile.DIRTYPE, **attributes)


def symlink(name: str, target: str) -> Entry:
    return entry(name, tarfile.SYMTYPE, linkname=target)


def hard_link(name: str, target: str) -> Entry:
    return entry(name, tarfile.LNKTYPE, linkname=target)


def device(name: str, major: int, minor: int, kind: bytes = tarfile.CHRTYPE) -> Entry:
    return entry(name, kind, devmajor=major, devminor=minor)


def whiteout(name: str) -> Entry:
    parent, base = os.path.split(name)
    return file(os.path.join(parent, f".wh.{base}"))


def opaque(name: str) -> Entry:
    return file(os.path.join(name, ".wh..wh..opq"))


def tar(*entries: Entry) -> bytes:
    """A tar of `entries`, in PAX format."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data) if data is not None else None)
    return buffer.getvalue()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    "+gzip": lambda data: gzip.compress(data, 1, mtime=0),
    "+zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}


def config(layers: Sequence[bytes], **changes: Any) -> bytes:
    """The config of an image of plain layer tars."""
    value = {
        "created": "2020-01-02T03:04:05.123456789Z",
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"], "Volumes": {"/data": {}}, "Labels": None},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
    }
    return json.dumps(value | changes).encode()


def docker_files(
    layers: Sequence[bytes], tags: Sequence[str] | None = ("test:1",), old: bool = False, **changes: Any
) -> dict[str, Any]:
    """The files of what `docker save` writes; with `old`, of Docker before 25."""
    image = config(layers, **changes)
    files: dict[str, Any] = {}
    names = []
    for number, layer in enumerate(layers):
        hexadecimal = digest(layer)[7:]
        name = f"{number:064x}/layer.tar" if old else f"blobs/sha256/{hexadecimal}"
        known = next((other for other in names if files[other] == layer), None)
        if old and known:
            files[name] = symlink(name, f"../{known}")
        else:
            files[name] = layer
        names.append(name)
    config_name = f"{digest(image)[7:]}.json" if old else f"blobs/sha256/{digest(image)[7:]}"
    files[config_name] = image
    files["manifest.json"] = json.dumps([{"Config": config_name, "RepoTags": tags, "Layers": names}]).encode()
    return files


def oci_files(
    layers: Sequence[bytes], name: str | None = "test:1", compression: str = "+gzip", **changes: Any
) -> dict[str, Any]:
    """The files of an OCI layout with one image."""
    files: dict[str, Any] = {"oci-layout": json.dumps({"imageLayoutVersion": "1.0.0"}).encode()}

    def blob(data: bytes, media_type: str) -> dict[str, Any]:
        files[f"blobs/sha256/{digest(data)[7:]}"] = data
        return {"mediaType": media_type, "digest": digest(data), "size": len(data)}

    oci = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "config": blob(config(layers, **changes), f"{oci}.config.v1+json"),
        "layers": [
            blob(COMPRESSIONS[compression](layer), f"{oci}.layer.v1.tar{compression}") for layer in layers
        ],
    }
    descriptor = blob(json.dumps(manifest).encode(), f"{oci}.manifest.v1+json")
    if name:
        descriptor["annotations"] = {"org.opencontainers.image.ref.name": name}
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [descriptor]}).encode()
    return files


def archive(files: dict[str, Any]) -> bytes:
    """A tar of files; a value that is an entry of its own stands for itself."""
    return tar(*(value if isinstance(value, tuple) else file(name, value) for name, value in files.items()))


def write_layout(path: Path, files: dict[str, bytes]) -> Path:
    """The files as a directory."""
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def tree(path: Path) -> dict[str, Any]:
    """All that is beneath `path`: name → mode and content."""
    found: dict[str, Any] = {}
    for place, directories, names in os.walk(path):
        for name in directories + names:
            full = os.path.join(place, name)
            state = os.lstat(full)
            content: Any = None
            if os.path.islink(full):
                content = os.readlink(full)
            elif os.path.isfile(full):
                content = Path(full).read_bytes()
            found[os.path.relpath(full, path)] = (oct(state.st_mode), state.st_rdev, content)
    return found
