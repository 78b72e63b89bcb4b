"""push: an image goes from the store to a registry.

A blob that the repository has is not sent; one that another repository of the registry has is mounted from
there. The manifest goes last, so that it never names what is not there.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import trio

from runtime.errors import RuntimeFailure
from runtime.images.compress import compressed
from runtime.images.documents import Descriptor
from runtime.images.reference import Reference
from runtime.images.store import ImageStore, Outgoing
from runtime.images.streams import CHUNK, HashingReader
from runtime.registry.client import Client, run
from runtime.registry.report import Report, short
from runtime.registry.repository import Repository

#: docker's max-concurrent-uploads.
_AT_ONCE = 5
_PIECE = 256 << 10


@dataclass(frozen=True)
class Pushed:
    """What a push made: the manifest by its digest and size."""

    digest: str
    size: int


def push(store: ImageStore, name: Reference, client: Client, report: Report) -> Pushed:
    """Push the image `name` to the repository and tag that this is.

    Raises NotFound when the store has no such image, Unauthorized when the registry does not take it from us,
    and RuntimeFailure for all else.
    """
    if name.digest or not name.tag:
        raise RuntimeFailure(f"cannot push {name.familiar}: a digest is no tag")
    report.say(f"The push refers to repository [{name.domain}/{name.path}]")
    with store.outgoing(name) as outgoing:
        pushed = run(lambda: _Push(name, outgoing, client, report).run())
    store.pushed(name, pushed.digest)
    return pushed


@dataclass
class _Push:
    name: Reference
    outgoing: Outgoing
    client: Client
    report: Report

    async def run(self) -> Pushed:
        async with AsyncExitStack() as stack:
            repository = await self.client.repository(stack, self.name, push=True)
            layers = list(self.outgoing.manifest.layers)
            for layer in layers:
                self.report.say("Preparing", short(layer.digest))
            places = iter(range(len(layers)))
            async with trio.open_nursery() as nursery:
                for _ in range(_AT_ONCE):
                    nursery.start_soon(self._layers, repository, layers, places)
            config = self.outgoing.manifest.config
            if not await repository.has_blob(config.digest):
                await self._upload(repository, config, quiet=True)
            data = self._manifest(layers)
            digest = await repository.put_manifest(self.name.tag or "", self.outgoing.entry.media_type, data)
            self.report.say(f"{self.name.tag}: digest: {digest} size: {len(data)}")
            return Pushed(digest, len(data))

    async def _layers(self, repository: Repository, layers: list[Descriptor], places: Iterator[int]) -> None:
        for place in places:
            if layers[place].digest in {layer.digest for layer in layers[:place]}:
                continue  # it goes with the other one
            was = layers[place]
            now = await self._layer(repository, was)
            for other, layer in enumerate(layers):
                if layer.digest == was.digest:
                    layers[other] = now

    async def _layer(self, repository: Repository, layer: Descriptor) -> Descriptor:
        """Have a layer in the repository; gives what it is there."""
        part = short(layer.digest)
        homes = self.outgoing.homes.get(layer.digest, ())
        if layer.media_type.endswith(".tar"):
            self.report.say("Compressing", part)
            layer = await trio.to_thread.run_sync(partial(packed, layer, self.outgoing.directory))
        if await repository.has_blob(layer.digest):
            self.report.say("Layer already exists", part)
            return layer
        paths = {home.path for home in homes if home.domain == self.name.domain} - {self.name.path}
        for path in sorted(paths):
            if await repository.mount(layer.digest, path):
                self.report.say(f"Mounted from {path}", part)
                return layer
        await self._upload(repository, layer, part=part)
        self.report.say("Pushed", part)
        return layer

    async def _upload(
        self, repository: Repository, blob: Descriptor, part: str = "", quiet: bool = False
    ) -> None:
        path = self.outgoing.path(blob.digest)

        async def content() -> AsyncIterator[bytes]:
            sent = 0
            with path.open("rb") as file:
                while data := file.read(_PIECE):
                    yield data
                    sent += len(data)
                    if not quiet:
                        self.report.advance("Pushing", part, sent, blob.size)

        await repository.upload(blob.digest, blob.size, content)

    def _manifest(self, layers: list[Descriptor]) -> bytes:
        """The manifest as it is; made anew when layers had to be packed."""
        if tuple(layers) == self.outgoing.manifest.layers:
            return self.outgoing.data
        value = json.loads(self.outgoing.data)
        return json.dumps({**value, "layers": [layer.to_json() for layer in layers]}).encode()


def packed(layer: Descriptor, directory: Path) -> Descriptor:
    """Pack a plain layer of `directory`, always to the same bytes; gives what it is then."""
    plain = directory / layer.digest.removeprefix("sha256:")
    new = plain.with_suffix(".gz")
    with plain.open("rb") as source, new.open("wb") as target, compressed(target, "gzip") as packer:
        while data := source.read(CHUNK):
            packer.write(data)
    with new.open("rb") as file:
        hashing = HashingReader(file)
        hashing.drain()
    new.rename(directory / hashing.digest.removeprefix("sha256:"))
    return replace(layer, media_type=f"{layer.media_type}+gzip", digest=hashing.digest, size=hashing.size)
