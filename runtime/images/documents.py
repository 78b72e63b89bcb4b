"""The JSON documents of an image: index, manifest, config. Their types are checked, they come from anywhere.

OCI image-spec: image-index.md, manifest.md, descriptor.md, config.md; docker's image-spec v1.2 for
manifest.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from runtime.errors import RuntimeFailure
from runtime.images.platforms import Platform, choose
from runtime.images.reference import is_digest

#: No index, manifest or config is near this; it bounds the memory a hostile one takes.
DOCUMENT_MAX = 8 << 20

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

INDEX_TYPES = (OCI_INDEX, DOCKER_INDEX)
MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)
CONFIG_TYPES = (OCI_CONFIG, DOCKER_CONFIG)
LAYER_PREFIXES = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")

REF_NAME = "org.opencontainers.image.ref.name"
_ATTESTATION = "vnd.docker.reference.type"


class Document:
    """A JSON object of unknown honesty; each getter checks the type of what it gives."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise RuntimeFailure(f"{where} is not a JSON object")
        self.value: dict[str, Any] = value
        self.where = where

    def wrong(self, key: str, wanted: str) -> RuntimeFailure:
        """The failure that says `key` is not what it has to be."""
        return RuntimeFailure(f"{self.where}: {key} is not {wanted}")

    def string(self, key: str, default: str | None = None) -> str:
        """A string; `default` when it is absent or null."""
        value = self.value.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def integer(self, key: str) -> int:
        """A number that is whole and not negative."""
        value = self.value.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.wrong(key, "a size")
        return value

    def strings(self, key: str) -> tuple[str, ...] | None:
        """A list of strings; None when it is absent or null."""
        value = self.value.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "a list of strings")
        return tuple(value)

    def mapping(self, key: str) -> dict[str, str]:
        """An object whose values are strings; empty when it is absent or null."""
        value = self.value.get(key) or {}
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            raise self.wrong(key, "an object of strings")
        return dict(value)

    def keys(self, key: str) -> tuple[str, ...]:
        """The keys of an object (how configs write sets); empty when it is absent or null."""
        value = self.value.get(key) or {}
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return tuple(value)

    def object(self, key: str) -> Document:
        """An object; an empty one when it is absent or null."""
        return Document(self.value.get(key) or {}, f"{self.where}: {key}")

    def objects(self, key: str) -> list[Document]:
        """A list of objects; empty when it is absent or null."""
        value = self.value.get(key) or []
        if not isinstance(value, list):
            raise self.wrong(key, "a list")
        return [Document(item, f"{self.where}: {key}[{number}]") for number, item in enumerate(value)]


def parse_json(data: bytes, where: str) -> Any:
    """Read JSON whose strings can all be written as UTF-8.

    Raises RuntimeFailure naming `where` when it is not that.
    """
    try:
        value = json.loads(data)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise RuntimeFailure(f"{where} is not valid JSON") from error
    return value


@dataclass(frozen=True)
class Descriptor:
    """What one document says of a blob (descriptor.md)."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str]
    platform: Platform | None

    @classmethod
    def parse(cls, document: Document) -> Descriptor:
        """Read a descriptor; raises RuntimeFailure when a part of it is missing or of a wrong type."""
        digest = document.string("digest")
        if not is_digest(digest):
            raise document.wrong("digest", f"a sha256 digest: {digest!r}")
        platform = None
        if document.value.get("platform") is not None:
            said = document.object("platform")
            platform = Platform(said.string("os"), said.string("architecture"), said.string("variant", ""))
        return cls(
            document.string("mediaType"),
            digest,
            document.integer("size"),
            document.mapping("annotations"),
            platform,
        )

    def to_json(self) -> dict[str, Any]:
        """The descriptor as an index or a manifest holds it."""
        value: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.platform is not None:
            value["platform"] = self.platform.to_json()
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        return value


@dataclass(frozen=True)
class Manifest:
    """One image: its config and its layers, bottom first (manifest.md)."""

    config: Descriptor
    layers: tuple[Descriptor, ...]

    @classmethod
    def parse(cls, data: bytes, where: str) -> Manifest:
        """Read a manifest; raises RuntimeFailure when it is not one of a container image."""
        document = Document(parse_json(data, where), where)
        config = Descriptor.parse(document.object("config"))
        if config.media_type not in CONFIG_TYPES:
            raise RuntimeFailure(f"{where} is not of a container image: its config is {config.media_type}")
        layers = tuple(map(Descriptor.parse, document.objects("layers")))
        for layer in layers:
            if not layer.media_type.startswith(LAYER_PREFIXES) or layer.media_type.endswith("+encrypted"):
                raise RuntimeFailure(f"{where}: a layer of type {layer.media_type} cannot be unpacked")
        return cls(config, layers)


def parse_index(data: bytes, where: str) -> list[Descriptor]:
    """The manifests that an image index lists, in its order."""
    return list(map(Descriptor.parse, Document(parse_json(data, where), where).objects("manifests")))


def images_in(entries: Iterable[Descriptor]) -> list[Descriptor]:
    """The entries of an index that are images, not what a builder says of them."""
    return [entry for entry in entries if _ATTESTATION not in entry.annotations]


def for_platform(entries: Sequence[Descriptor], wanted: Platform, where: str) -> Descriptor:
    """The image of an index that fits `wanted`.

    Raises RuntimeFailure, saying what there is, when none does.
    """
    place = choose([entry.platform for entry in entries], wanted)
    if place is None:
        offered = ", ".join(sorted({str(entry.platform) for entry in entries})) or "nothing"
        raise RuntimeFailure(f"{where} has nothing for {wanted}, only for {offered}")
    return entries[place]


@dataclass(frozen=True)
class ImageConfig:
    """How an image is run, and the layers it is made of (config.md)."""

    architecture: str
    os: str
    variant: str
    created: datetime | None
    diff_ids: tuple[str, ...]
    env: tuple[str, ...]
    cmd: tuple[str, ...] | None
    entrypoint: tuple[str, ...] | None
    working_dir: str
    user: str
    volumes: tuple[str, ...]
    stop_signal: str
    labels: Mapping[str, str]
    exposed_ports: tuple[str, ...]
    raw: Mapping[str, Any]

    @property
    def platform(self) -> Platform:
        """For whom the image is built."""
        return Platform(self.os, self.architecture, self.variant)

    @classmethod
    def parse(cls, data: bytes, where: str) -> ImageConfig:
        """Read a config of docker's or OCI's; raises RuntimeFailure when a part has a wrong type."""
        document = Document(parse_json(data, where), where)
        config = document.object("config")
        rootfs = document.object("rootfs")
        diff_ids = rootfs.strings("diff_ids") or ()
        if rootfs.string("type", "layers") != "layers" or not all(map(is_digest, diff_ids)):
            raise rootfs.wrong("diff_ids", "a list of sha256 digests")
        return cls(
            architecture=document.string("architecture", ""),
            os=document.string("os", ""),
            variant=document.string("variant", ""),
            created=_parse_time(document),
            diff_ids=diff_ids,
            env=config.strings("Env") or (),
            cmd=config.strings("Cmd"),
            entrypoint=config.strings("Entrypoint"),
            working_dir=config.string("WorkingDir", ""),
            user=config.string("User", ""),
            volumes=config.keys("Volumes"),
            stop_signal=config.string("StopSignal", ""),
            labels=config.mapping("Labels"),
            exposed_ports=config.keys("ExposedPorts"),
            raw=document.value,
        )


def _parse_time(document: Document) -> datetime | None:
    text = document.string("created", "")
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise document.wrong("created", "a time as RFC 3339 has it") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
