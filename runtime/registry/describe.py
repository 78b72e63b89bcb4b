"""What a registry has in a repository, or by a name, without pulling it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

from runtime.images.documents import Descriptor, ImageConfig, Manifest, images_in, parse_index
from runtime.images.platforms import Platform
from runtime.images.reference import Reference, parse
from runtime.registry.client import Client, run


@dataclass(frozen=True)
class Described:
    """A manifest or index, and the platforms that it is for."""

    descriptor: Descriptor
    platforms: tuple[Platform, ...]


def tags(name: Reference, client: Client) -> list[Reference]:
    """The tags that the registry has in the repository of `name`; raises what a pull raises."""

    async def ask() -> list[str]:
        async with AsyncExitStack() as stack:
            return await (await client.repository(stack, name)).tags()

    return [parse(f"{name.domain}/{name.path}:{tag}") for tag in sorted(set(run(ask)))]


def describe(name: Reference, client: Client) -> Described:
    """Ask the registry what the image `name` is; raises what a pull raises."""

    async def ask() -> Described:
        async with AsyncExitStack() as stack:
            repository = await client.repository(stack, name)
            found = await repository.manifest(name.digest or name.tag or "")
            if found.is_index:
                entries = images_in(parse_index(found.data, name.familiar))
                return Described(
                    found.descriptor, tuple(entry.platform for entry in entries if entry.platform)
                )
            manifest = Manifest.parse(found.data, name.familiar)
            config = ImageConfig.parse(await repository.document(manifest.config), name.familiar)
            return Described(found.descriptor, (config.platform,))

    return run(ask)
