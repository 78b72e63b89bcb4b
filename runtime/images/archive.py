"""Where images are loaded from: docker archives, OCI archives and OCI layout directories.

* docker archive, as `docker save` writes it: manifest.json names configs and layers. Before Docker 25 a layer
  is `ID/layer.tar`, and one that repeats is a symlink to it; since then it is `blobs/sha256/DIGEST`.
* OCI layout (image-layout.md): oci-layout, index.json, blobs/; a directory, or a tar of one.

An archive may come from a pipe, in any order, so all its files are put into a staging directory first,
hashed on the way; what an image needs of them is moved into the store later, without a copy.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from runtime.errors import RuntimeFailure
from runtime.images.documents import (
    DOCUMENT_MAX,
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_CONFIG,
    OCI_MANIFEST,
    REF_NAME,
    Descriptor,
    Document,
    ImageConfig,
    Manifest,
    for_platform,
    images_in,
    parse_index,
    parse_json,
)
from runtime.images.platforms import host_platform
from runtime.images.progress import Progress
from runtime.images.reference import Reference, is_digest, parse
from runtime.images.streams import CHUNK, DecompressingReader, DiskGuard, HashingReader, Limits
from runtime.images.tarstream import TarStream

CONTAINERD_NAME = "io.containerd.image.name"
_LINKS_MAX = 8
_NESTED_MAX = 4


@dataclass(frozen=True)
class Blob:
    """A file in the staging directory, with what was measured of it."""

    path: Path
    digest: str
    size: int

    def open(self) -> BinaryIO:
        """The file, for reading."""
        return self.path.open("rb")


@dataclass(frozen=True)
class SourceImage:
    """An image that a source offers. Its layers are in the order of `config.diff_ids`, not yet verified.

    `origin` is the digest by which a registry has it: of the manifest, or of the index that led to it.
    """

    names: tuple[Reference, ...]
    config: ImageConfig
    manifest: Blob
    media_type: str
    blobs: tuple[Blob, ...]
    layers: tuple[Blob, ...]
    origin: str | None = None


class Content(Protocol):
    """The files of a source, by name."""

    where: str

    def find(self, name: str) -> Blob | None:
        """The file `name`, staged; None when there is none."""
        ...


def open_source(
    source: str, stdin: BinaryIO | None, staging: Path, progress: Progress, limits: Limits
) -> Content:
    """Stage the archive or layout at `source`; `-` is the stream `stdin`.

    Raises RuntimeFailure when it is neither, or is damaged or refused.
    """
    if source == "-":
        assert stdin is not None
        with progress.task("reading standard input", None) as advance:
            return _stage_archive(stdin, "the archive", staging, advance, limits)
    try:
        mode = os.stat(source).st_mode
        if stat.S_ISDIR(mode):
            return _Directory(Path(source), staging, progress, limits)
        with open(source, "rb") as file, progress.task(f"reading {source}", _size(file)) as advance:
            return _stage_archive(file, source, staging, advance, limits)
    except OSError as error:
        if error.filename == source:
            raise RuntimeFailure(f"cannot read {source}: {error.strerror}") from error
        raise


def _size(file: BinaryIO) -> int | None:
    state = os.fstat(file.fileno())
    return state.st_size if stat.S_ISREG(state.st_mode) else None


class _Staging:
    """New files in a directory, named by number: names from an archive never become paths."""

    def __init__(self, directory: Path, where: str, limits: Limits) -> None:
        self._directory = directory
        self._disk = DiskGuard(directory, where, limits)
        self._count = 0

    def take(self, parts: Iterable[bytes]) -> Blob:
        """Write `parts` to a new file."""
        self._count += 1
        path = self._directory / str(self._count)
        checksum = hashlib.sha256()
        size = 0
        with path.open("xb", buffering=0) as file:
            for data in parts:
                self._disk.take(len(data))
                checksum.update(data)
                size += len(data)
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
        return Blob(path, f"sha256:{checksum.hexdigest()}", size)


class _Archive:
    def __init__(self, where: str, files: dict[str, Blob], links: dict[str, str]) -> None:
        self.where = where
        self._files = files
        self._links = links

    def find(self, name: str) -> Blob | None:
        for _ in range(_LINKS_MAX):
            if name not in self._links:
                break
            name = self._links[name]
        return self._files.get(name)


def _stage_archive(
    stream: BinaryIO, where: str, staging: Path, advance: Callable[[int], None], limits: Limits
) -> Content:
    plain = DecompressingReader(HashingReader(stream, advance), where, limits)
    files: dict[str, Blob] = {}
    links: dict[str, str] = {}
    store = _Staging(staging, where, limits)
    tar = TarStream(plain, where, limits)
    for member in tar:
        name = _inside(member.name, where)
        files.pop(name, None)
        links.pop(name, None)
        if member.isreg():
            if member.sparse is not None:
                raise RuntimeFailure(f"{where}: {name!r} is a sparse file")
            files[name] = store.take(data for _, data in tar.data(member))
        elif member.issym():
            links[name] = _inside(posixpath.join(posixpath.dirname(name), member.linkname), where)
        elif member.islnk():
            links[name] = _inside(member.linkname, where)
        elif not member.isdir():
            raise RuntimeFailure(f"{where}: {name!r} is neither a file, a directory nor a link")
    return _Archive(where, files, links)


def _inside(name: str, where: str) -> str:
    """`name` in its plain form; raises RuntimeFailure when it leads out of the archive."""
    plain = posixpath.normpath(name)
    if plain == ".." or plain.startswith(("/", "../")) or "\0" in plain:
        raise RuntimeFailure(f"{where}: {name!r} leads out of the archive")
    return plain


class _Directory:
    def __init__(self, path: Path, staging: Path, progress: Progress, limits: Limits) -> None:
        self.where = str(path)
        self._path = path
        self._progress = progress
        self._staging = _Staging(staging, self.where, limits)
        self._found: dict[str, Blob] = {}

    def find(self, name: str) -> Blob | None:
        name = _inside(name, self.where)
        if name not in self._found:
            try:
                fd = os.open(self._path / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            with open(fd, "rb") as file:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise RuntimeFailure(f"{self.where}: {name} is not a file")
                with self._progress.task(f"reading {name.rpartition('/')[2][:12]}", _size(file)) as advance:
                    stream = HashingReader(file, advance)
                    self._found[name] = self._staging.take(iter(lambda: stream.read(CHUNK), b""))
        return self._found[name]


def find_images(content: Content, staging: Path) -> list[SourceImage]:
    """The images that a source offers, each for the platform of this machine where there is a choice.

    New manifests, for docker archives, are written to `staging`. Raises RuntimeFailure when a document is
    not what it has to be, or a blob is missing or not what its descriptor says.
    """
    manifest = content.find("manifest.json")
    if manifest is not None:
        return _docker_images(content, manifest, staging)
    index = content.find("index.json")
    layout = content.find("oci-layout")
    if index is not None and layout is not None:
        where = f"{content.where}: oci-layout"
        version = Document(parse_json(_read(layout, where), where), where).string("imageLayoutVersion")
        if version != "1.0.0":
            raise RuntimeFailure(f"{where} has the unknown version {version!r}")
        return _oci_images(content, index)
    raise RuntimeFailure(f"{content.where} holds no images: it has neither manifest.json nor an OCI layout")


def _read(blob: Blob, where: str) -> bytes:
    if blob.size > DOCUMENT_MAX:
        raise RuntimeFailure(f"{where} is too large: {blob.size} bytes")
    return blob.path.read_bytes()


def _need(content: Content, name: str) -> Blob:
    blob = content.find(name)
    if blob is None:
        raise RuntimeFailure(f"{content.where} is incomplete: {name} is missing")
    stated = posixpath.basename(name).removesuffix(".json")
    if is_digest(f"sha256:{stated}") and blob.digest != f"sha256:{stated}":
        raise RuntimeFailure(f"{content.where} is damaged: {name} has the digest {blob.digest}")
    return blob


def check_layers(where: str, config: ImageConfig, layers: int) -> None:
    """Raise RuntimeFailure unless the config of an image is of so many layers, and they are some."""
    if len(config.diff_ids) != layers:
        raise RuntimeFailure(f"{where}: {layers} layers, but the config lists {len(config.diff_ids)}")
    if not layers:
        raise RuntimeFailure(f"{where} is an image without layers")


# docker archives


def _docker_images(content: Content, listing: Blob, staging: Path) -> list[SourceImage]:
    where = f"{content.where}: manifest.json"
    entries = parse_json(_read(listing, where), where)
    if not isinstance(entries, list) or not entries:
        raise RuntimeFailure(f"{where} is not a list of images")
    return [
        _docker_image(content, Document(entry, f"{where}[{number}]"), staging / f"manifest-{number}")
        for number, entry in enumerate(entries)
    ]


def _docker_image(content: Content, entry: Document, new_manifest: Path) -> SourceImage:
    config_name = _inside(entry.string("Config"), content.where)
    config_blob = _need(content, config_name)
    where = f"{content.where}: {config_name}"
    config = ImageConfig.parse(_read(config_blob, where), where)
    names = entry.strings("Layers") or ()
    layers = tuple(_need(content, _inside(name, content.where)) for name in names)
    check_layers(entry.where, config, len(layers))
    descriptors = [
        Descriptor(_layer_type(layer), layer.digest, layer.size, {}, None).to_json() for layer in layers
    ]
    text: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": Descriptor(OCI_CONFIG, config_blob.digest, config_blob.size, {}, None).to_json(),
        "layers": descriptors,
    }
    data = json.dumps(text).encode()
    new_manifest.write_bytes(data)
    manifest = Blob(new_manifest, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
    tags = tuple(parse(tag).tagged() for tag in entry.strings("RepoTags") or ())
    return SourceImage(tags, config, manifest, OCI_MANIFEST, (manifest, config_blob, *layers), layers)


def _layer_type(layer: Blob) -> str:
    with layer.open() as file:
        suffix = DecompressingReader(file, "a layer", Limits()).suffix
    return f"application/vnd.oci.image.layer.v1.tar{suffix}"


# OCI layouts


def _oci_images(content: Content, index: Blob) -> list[SourceImage]:
    where = f"{content.where}: index.json"
    groups: dict[str | None, list[Descriptor]] = {}
    for entry in images_in(parse_index(_read(index, where), where)):
        name = entry.annotations.get(CONTAINERD_NAME) or entry.annotations.get(REF_NAME)
        groups.setdefault(name, []).append(entry)
    images = []
    for name, entries in groups.items():
        names = (parse(name).tagged(),) if name else ()
        for entry in _for_host(entries, where):
            descriptor, blob = _to_manifest(content, entry, where)
            images.append(_oci_image(content, names, descriptor, blob))
    if not images:
        raise RuntimeFailure(f"{where} lists no images")
    return images


def _for_host(entries: list[Descriptor], where: str) -> list[Descriptor]:
    """Of the same image for several platforms the one for this machine; else all of them."""
    if len({entry.platform for entry in entries}) < 2:
        return entries
    return [for_platform(entries, host_platform(), where)]


def _described(content: Content, descriptor: Descriptor) -> Blob:
    name = f"blobs/sha256/{descriptor.digest.removeprefix('sha256:')}"
    blob = _need(content, name)
    if blob.size != descriptor.size:
        raise RuntimeFailure(
            f"{content.where} is damaged: {name} has {blob.size} bytes instead of {descriptor.size}"
        )
    return blob


def _to_manifest(content: Content, descriptor: Descriptor, where: str) -> tuple[Descriptor, Blob]:
    """Follow indexes down to a manifest for this machine."""
    for _ in range(_NESTED_MAX):
        blob = _described(content, descriptor)
        if descriptor.media_type in MANIFEST_TYPES:
            return descriptor, blob
        if descriptor.media_type not in INDEX_TYPES:
            break
        where = f"{content.where}: {descriptor.digest}"
        entries = images_in(parse_index(_read(blob, where), where))
        if not entries:
            raise RuntimeFailure(f"{where} lists no images")
        descriptor = _for_host(entries, where)[0]
    raise RuntimeFailure(f"{where}: {descriptor.digest} is no image manifest but {descriptor.media_type}")


def _oci_image(
    content: Content, names: tuple[Reference, ...], descriptor: Descriptor, blob: Blob
) -> SourceImage:
    where = f"{content.where}: {descriptor.digest}"
    manifest = Manifest.parse(_read(blob, where), where)
    config_blob = _described(content, manifest.config)
    config = ImageConfig.parse(_read(config_blob, where), f"{content.where}: {manifest.config.digest}")
    layers = tuple(_described(content, layer) for layer in manifest.layers)
    check_layers(where, config, len(layers))
    return SourceImage(names, config, blob, descriptor.media_type, (blob, config_blob, *layers), layers)
