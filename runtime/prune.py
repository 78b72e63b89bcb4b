"""What nobody uses any more is removed: containers that have ended, images, networks, volumes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC

from runtime.containers import lifecycle, networks, volumes
from runtime.containers.container import images_in_use
from runtime.containers.logs import instant
from runtime.containers.settle import settle_all
from runtime.errors import RuntimeFailure
from runtime.images.store import Image, ImageStore
from runtime.root import Root

#: --filter, as key → values: label, label! and until.
Filters = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Pruned:
    """What was removed, and the bytes on disk that it had."""

    names: list[str] = field(default_factory=list)
    reclaimed: int = 0


def passes(labels: Mapping[str, str], created: str, filters: Filters) -> bool:
    """Whether a thing with `labels`, `created` (RFC 3339 in UTC) then, is one that `filters` want removed.

    Raises RuntimeFailure when `until` is no instant.
    """
    if not all(_has(labels, text) for text in filters.get("label", ())):
        return False
    if any(_has(labels, text) for text in filters.get("label!", ())):
        return False
    return all(created <= instant(text, "until") for text in filters.get("until", ()))


def _has(labels: Mapping[str, str], text: str) -> bool:
    name, equals, value = text.partition("=")
    return name in labels and (not equals or labels[name] == value)


def containers(root: Root, filters: Filters) -> Pruned:
    """Remove the containers that do not run; their IDs."""
    pruned = Pruned()
    for container in settle_all(root):
        if container.state.active or not passes(container.labels, container.created, filters):
            continue
        size = volumes.disk_usage(container.upper)
        with contextlib.suppress(RuntimeFailure):  # started meanwhile
            lifecycle.remove(root, container.id)
            pruned = Pruned([*pruned.names, container.id], pruned.reclaimed + size)
    return pruned


def images(
    root: Root,
    store: ImageStore,
    filters: Filters,
    everything: bool,
    on_removed: Callable[[Image, list[str]], None] = lambda image, lines: None,
) -> Pruned:
    """Remove images without a name, or all of them (`everything`), that no container is made of.

    `on_removed` is told the lines that `ImageStore.remove` gives; those are the names, too.
    """
    pruned = Pruned()
    used = images_in_use(root)
    for image in store.images():
        created = image.config.created
        stamp = f"{created.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.000000000Z" if created else ""
        if image.id in used or (image.names and not everything):
            continue
        if not passes(image.config.labels, stamp, filters):
            continue
        lines: list[str] = []
        with contextlib.suppress(RuntimeFailure):  # a container has it since
            for name in [name.familiar for name in image.names] or [image.id]:
                lines += store.remove(name)
            pruned = Pruned(pruned.names, pruned.reclaimed + image.size)
        on_removed(image, lines)
        pruned = Pruned([*pruned.names, *lines], pruned.reclaimed)
    return pruned


def volumes_(root: Root, filters: Filters, everything: bool) -> Pruned:
    """Remove the volumes that no container has; those with a name only when `everything` is asked for."""
    pruned = Pruned()
    for volume in volumes.list_all(root):
        if not (everything or volume.anonymous) or not passes(volume.labels, volume.created, filters):
            continue
        if volumes.users(root, volume.name):
            continue
        size = volumes.disk_usage(volume.data)
        with contextlib.suppress(RuntimeFailure):  # taken by a container meanwhile
            volumes.remove(root, volume.name)
            pruned = Pruned([*pruned.names, volume.name], pruned.reclaimed + size)
    return pruned


def networks_(root: Root, filters: Filters) -> Pruned:
    """Remove the networks that somebody made and no container is in."""
    pruned = Pruned()
    for network in networks.unused(root):
        if passes(network.labels, network.created, filters):
            with contextlib.suppress(RuntimeFailure):  # taken by a container meanwhile
                networks.remove(root, network.name)
                pruned.names.append(network.name)
    return pruned
