"""/volumes."""

from __future__ import annotations

from collections.abc import Callable

from runtime import prune as pruning
from runtime.api.daemon import Daemon
from runtime.api.errors import ApiError, NotImplementedHere
from runtime.api.http import NO_CONTENT, Call, Reply
from runtime.api.pipes import work
from runtime.api.values import Filters, has_labels, truth
from runtime.containers import present, volumes
from runtime.containers.volumes import Volume
from runtime.root import Root


async def list_(daemon: Daemon, call: Call) -> Reply:
    """GET /volumes."""
    filters = call.query.filters(("dangling", "driver", "label", "name"))
    passes = _passes(daemon.root, filters)
    found = await work(lambda: [volume for volume in volumes.list_all(daemon.root) if passes(volume)])
    return Reply({"Volumes": [present.volume(volume) for volume in found], "Warnings": None})


def _passes(root: Root, filters: Filters) -> Callable[[Volume], bool]:
    dangling = truth(filters, "dangling")
    return lambda volume: (
        has_labels(volume.labels, filters.get("label", []))
        and ("name" not in filters or any(text in volume.name for text in filters["name"]))
        and ("driver" not in filters or "local" in filters["driver"])
        and (dangling is None or dangling is not bool(volumes.users(root, volume.name)))
    )


async def create(daemon: Daemon, call: Call) -> Reply:
    """POST /volumes/create."""
    wanted = await call.fields()
    name, labels = wanted.text("Name"), wanted.mapping("Labels")
    driver = wanted.text("Driver") or "local"
    if driver != "local":
        raise ApiError(404, f'error looking up volume plugin {driver}: plugin "{driver}" not found')
    if wanted.mapping("DriverOpts"):
        raise NotImplementedHere("a volume's DriverOpts")
    volume = await work(lambda: volumes.create(daemon.root, name, labels))
    return Reply(present.volume(volume), 201)


async def inspect(daemon: Daemon, call: Call) -> Reply:
    """GET /volumes/NAME."""
    return Reply(present.volume(await work(lambda: volumes.find(daemon.root, call.name))))


async def remove(daemon: Daemon, call: Call) -> Reply:
    """DELETE /volumes/NAME."""
    await work(lambda: volumes.remove(daemon.root, call.name, call.query.flag("force")))
    return NO_CONTENT


async def prune(daemon: Daemon, call: Call) -> Reply:
    """POST /volumes/prune: those that no container has; ones with a name if the filter all=true says so."""
    filters = call.query.filters(("all", "label", "label!"))
    # Before 1.42 volumes with a name were pruned, too.
    everything = truth(filters, "all") is True or call.version < (1, 42)
    pruned = await work(lambda: pruning.volumes_(daemon.root, filters, everything))
    return Reply({"VolumesDeleted": pruned.names, "SpaceReclaimed": pruned.reclaimed})
