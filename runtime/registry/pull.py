"""pull: an image comes from a registry into the store.

Layers come several at once, each verified while it streams and unpacked as it arrives; what the store has is
not asked for. Nothing is in the store before all of it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial

import trio

from runtime.errors import RuntimeFailure
from runtime.images.archive import Blob, SourceImage, check_layers
from runtime.images.documents import (
    Descriptor,
    ImageConfig,
    Manifest,
    for_platform,
    images_in,
    parse_index,
)
from runtime.images.layers import Layer
from runtime.images.platforms import Platform, host_platform
from runtime.images.progress import Silent
from runtime.images.reference import Reference
from runtime.images.store import Image, ImageStore, Intake
from runtime.images.unpack_blob import LayerTree, unpack_layer
from runtime.registry.arriving import Arriving, GivenUp, Reader
from runtime.registry.client import Client, run
from runtime.registry.report import Report, short
from runtime.registry.repository import Found, Repository

#: docker's max-concurrent-downloads.
_AT_ONCE = 3
_NESTED_MAX = 4


@dataclass(frozen=True)
class Pulled:
    """What a pull gave; `digest` is that of the manifest or index which the name stands for."""

    image: Image
    digest: str
    newer: bool


def pull(
    store: ImageStore, name: Reference, client: Client, report: Report, platform: Platform | None = None
) -> Pulled:
    """Pull the image `name` for `platform`, that of this machine by default, and give it this name.

    Raises NotFound when the registry has none, Unauthorized when it does not give it to us, and
    RuntimeFailure for all else; the store is then as it was.
    """
    wanted = platform or host_platform()
    kept = replace(name, tag=None) if name.digest else name
    known = next((image for image in store.images() if kept in image.names), None)
    return run(lambda: _Pull(store, name, kept, known, client, report, wanted).run())


@dataclass
class _Layer:
    """A layer that has to come, and what became of it so far."""

    descriptor: Descriptor
    diff_id: str
    arriving: Arriving
    unpack: bool
    blob: Blob | None = None
    tree: LayerTree | None = None

    @property
    def part(self) -> str:
        return short(self.descriptor.digest)


@dataclass
class _Pull:
    store: ImageStore
    name: Reference
    kept: Reference
    known: Image | None
    client: Client
    report: Report
    wanted: Platform

    async def run(self) -> Pulled:
        async with AsyncExitStack() as stack:
            *mirrors, registry = await self.client.sources(stack, self.name)
            for mirror in mirrors:
                try:
                    return await self._from(mirror)
                except RuntimeFailure as failure:
                    self.report.say(f"mirror {mirror.endpoint.name}: {failure}")
            return await self._from(registry)

    async def _from(self, repository: Repository) -> Pulled:
        reference = self.name.digest or self.name.tag or ""
        top = await repository.manifest(reference)
        self.report.say(f"Pulling from {self.name.path}", reference)
        digest = top.descriptor.digest
        manifest = await self._manifest(repository, top)
        image, newer = self.known, False
        if image is None or not self._is(image, digest, manifest.descriptor.digest):
            image, newer = await self._take_in(repository, manifest, digest), True
        self.report.say(f"Digest: {digest}")
        what = "Downloaded newer image" if newer else "Image is up to date"
        self.report.say(f"Status: {what} for {self.kept.familiar}")
        return Pulled(image, digest, newer)

    def _is(self, image: Image, origin: str, manifest: str) -> bool:
        came_from_there = replace(self.kept, tag=None, digest=origin) in image.digests
        return came_from_there and any(known.digest == manifest for known in image.manifests)

    async def _manifest(self, repository: Repository, found: Found) -> Found:
        """Follow indexes down to the manifest that is wanted."""
        for _ in range(_NESTED_MAX):
            if not found.is_index:
                return found
            entries = images_in(parse_index(found.data, self.name.familiar))
            entry = for_platform(entries, self.wanted, self.name.familiar)
            found = await repository.manifest(entry.digest, entry)
        raise RuntimeFailure(f"{self.name.familiar}: indexes within indexes, more than {_NESTED_MAX}")

    async def _take_in(self, repository: Repository, found: Found, origin: str) -> Image:
        # The store is no asynchronous one: it has a thread, which comes back here for what only we can do.
        def find(intake: Intake) -> list[SourceImage]:
            return [trio.from_thread.run(self._fetch, repository, found, origin, intake)]

        notes = _Notes(self.report)
        (image,) = await trio.to_thread.run_sync(lambda: self.store.take_in(find, notes))
        return image

    async def _fetch(self, repository: Repository, found: Found, origin: str, intake: Intake) -> SourceImage:
        where = f"{self.name.familiar}: manifest {found.descriptor.digest}"
        manifest = Manifest.parse(found.data, where)
        config_blob = intake.blob(manifest.config)
        data = config_blob.path.read_bytes() if config_blob else await repository.document(manifest.config)
        config = ImageConfig.parse(data, f"{self.name.familiar}: config {manifest.config.digest}")
        check_layers(where, config, len(manifest.layers))
        if not self.wanted.runs(config.platform):
            self.report.say(f"WARNING: {self.name.familiar} is for {config.platform}, not for {self.wanted}")
        blobs = await self._layers(repository, manifest, config, intake)
        manifest_blob = _staged(intake, found.descriptor, found.data)
        config_blob = config_blob or _staged(intake, manifest.config, data)
        layers = tuple(blobs[layer.digest] for layer in manifest.layers)
        return SourceImage(
            (self.kept,),
            config,
            manifest_blob,
            found.descriptor.media_type,
            (manifest_blob, config_blob, *layers),
            layers,
            origin,
        )

    async def _layers(
        self, repository: Repository, manifest: Manifest, config: ImageConfig, intake: Intake
    ) -> dict[str, Blob]:
        """All layers' blobs, by digest; those that came are unpacked."""
        blobs: dict[str, Blob] = {}
        coming: dict[str, _Layer] = {}
        for count, layer in enumerate(manifest.layers, 1):
            if layer.digest in blobs or layer.digest in coming:
                continue
            diff_ids = config.diff_ids[:count]
            blob = intake.blob(layer)
            if blob is not None:
                blobs[layer.digest] = blob
                self.report.say("Already exists", short(layer.digest))
                continue
            self.report.say("Pulling fs layer", short(layer.digest))
            arriving = Arriving(layer, intake.staging / layer.digest.removeprefix("sha256:"), intake.limits)
            coming[layer.digest] = _Layer(layer, diff_ids[-1], arriving, intake.layer(diff_ids) is None)
        await self._get_all(repository, list(coming.values()), intake)
        await trio.to_thread.run_sync(lambda: self._settle(manifest, config, coming, intake))
        return blobs | {digest: layer.blob for digest, layer in coming.items() if layer.blob}

    async def _get_all(self, repository: Repository, layers: list[_Layer], intake: Intake) -> None:
        unpacking = trio.CapacityLimiter(os.cpu_count() or 1)
        waiting = iter(layers)
        try:
            async with trio.open_nursery() as unpackers, trio.open_nursery() as downloaders:
                for _ in range(_AT_ONCE):
                    downloaders.start_soon(self._get, repository, waiting, intake, unpackers, unpacking)
        finally:
            # Also when nothing failed: it closes the files.
            for layer in layers:
                layer.arriving.give_up()

    async def _get(
        self,
        repository: Repository,
        waiting: Iterator[_Layer],
        intake: Intake,
        unpackers: trio.Nursery,
        unpacking: trio.CapacityLimiter,
    ) -> None:
        for layer in waiting:
            layer.arriving.open()
            if layer.unpack:
                unpackers.start_soon(self._unpack, layer, intake, unpacking)
            try:
                await repository.blob(layer.arriving, partial(self._came, layer))
                layer.blob = layer.arriving.finish()
            except BaseException:
                # Else a thread waits on for its bytes, and we for the thread.
                layer.arriving.give_up()
                raise
            self.report.say("Download complete", layer.part)

    def _came(self, layer: _Layer) -> None:
        self.report.advance("Downloading", layer.part, layer.arriving.size, layer.descriptor.size)

    async def _unpack(self, layer: _Layer, intake: Intake, unpacking: trio.CapacityLimiter) -> None:
        directory = intake.making / layer.descriptor.digest.removeprefix("sha256:")

        def unpack() -> LayerTree:
            with Reader(layer.arriving) as reader:
                return unpack_layer(
                    _Told(reader, layer, self.report), layer.diff_id, directory, intake.limits
                )

        try:
            layer.tree = await trio.to_thread.run_sync(unpack, limiter=unpacking)
        except GivenUp:
            return
        intake.verified[layer.descriptor.digest] = layer.diff_id
        self.report.say("Pull complete", layer.part)

    def _settle(
        self, manifest: Manifest, config: ImageConfig, coming: dict[str, _Layer], intake: Intake
    ) -> None:
        """Give each tree its place, from the lowest up; the store does the same for what came packed."""
        below: list[Layer] = []
        for count, (descriptor, diff_id) in enumerate(zip(manifest.layers, config.diff_ids, strict=True), 1):
            layer = intake.layer(config.diff_ids[:count])
            arrived = coming.get(descriptor.digest)
            if layer is None and arrived and arrived.tree and arrived.diff_id == diff_id:
                layer = arrived.tree.settle(below, intake.layers, _Notes(self.report))
                arrived.tree = None
            if layer is None:
                return  # one that is there already, but not unpacked: all above it has to wait
            below.append(layer)


class _Told:
    """A stream whose reader's place is reported, once downloading is not what takes the time."""

    def __init__(self, reader: Reader, layer: _Layer, report: Report) -> None:
        self._reader = reader
        self._layer = layer
        self._report = report

    def read(self, size: int, /) -> bytes:
        data = self._reader.read(size)
        if self._layer.arriving.complete:
            total = self._layer.descriptor.size
            self._report.advance("Extracting", self._layer.part, self._reader.position, total)
        return data


class _Notes(Silent):
    """What unpacking has to say, as lines of the report."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def note(self, text: str) -> None:
        self._report.say(f"note: {text}")


def _staged(intake: Intake, descriptor: Descriptor, data: bytes) -> Blob:
    """A document that came, as a file of the intake."""
    path = intake.staging / descriptor.digest.removeprefix("sha256:")
    path.write_bytes(data)
    return Blob(path, descriptor.digest, len(data))
