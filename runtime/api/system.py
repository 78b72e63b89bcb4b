"""/_ping, /version, /info, /events, /system/df."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable

import trio

from runtime import about
from runtime import events as journal
from runtime.api.containers import summary
from runtime.api.daemon import Daemon
from runtime.api.http import Call, Reply, Write
from runtime.api.images import image_summary
from runtime.api.pipes import work
from runtime.api.values import Json
from runtime.containers import present, volumes
from runtime.containers.logs import nanoseconds
from runtime.containers.settle import settle_all

_NO_CACHE = {"Cache-Control": "no-cache, no-store, must-revalidate", "Pragma": "no-cache"}


async def ping(daemon: Daemon, call: Call) -> Reply:
    """GET and HEAD /_ping: OK; the headers say which API this is."""
    return Reply(b"OK", headers={**_NO_CACHE, "Builder-Version": "1", "Swarm": "inactive"})


async def version(daemon: Daemon, call: Call) -> Reply:
    """GET /version."""
    return Reply(about.version())


async def info(daemon: Daemon, call: Call) -> Reply:
    """GET /info."""
    return Reply(await work(lambda: about.info(daemon.root, daemon.store)))


async def events(daemon: Daemon, call: Call) -> None:
    """GET /events: a JSON object for each event, from `since` and to `until`."""
    filters = call.query.filters(journal.FILTERS)
    since, until = _moment(call, "since"), _moment(call, "until")
    async with call.streaming() as write:
        await _until(until, lambda: _tell(daemon, write, filters, since, until))


async def _until(until: int | None, listen: Callable[[], Awaitable[None]]) -> None:
    left = trio.CancelScope()
    if until is not None:
        left.deadline = trio.current_time() + max(0.0, (until - time.time_ns()) / 10**9) + 0.2
    with left:
        await listen()


async def _tell(
    daemon: Daemon, write: Write, filters: dict[str, list[str]], since: int | None, until: int | None
) -> None:
    async for event in daemon.events.follow(since):
        if event is None:
            if until is not None and until <= time.time_ns():
                return
        elif event.passes(filters) and (until is None or event.nanoseconds <= until):
            await write(json.dumps(event.to_json()).encode() + b"\n")


def _moment(call: Call, key: str) -> int | None:
    text = call.query.text(key)
    if not text or text == "0":
        return None
    return nanoseconds(text, key)


async def disk_usage(daemon: Daemon, call: Call) -> Reply:
    """GET /system/df."""
    return Reply(await work(lambda: _disk_usage(daemon, call.query.texts("type"))))


def _disk_usage(daemon: Daemon, kinds: list[str]) -> Json:
    containers = settle_all(daemon.root)
    images = daemon.store.images()
    used = [container.image_id for container in containers]
    layers = {str(layer.path): layer.size for image in images for layer in image.layers}
    answer: Json = {"LayersSize": sum(layers.values())}
    if not kinds or "image" in kinds:
        answer["Images"] = [{**image_summary(image), "Containers": used.count(image.id)} for image in images]
    if not kinds or "container" in kinds:
        answer["Containers"] = [summary(daemon.root, container, size=True) for container in containers]
    if not kinds or "volume" in kinds:
        answer["Volumes"] = [
            {
                **present.volume(volume),
                "UsageData": {
                    "Size": volumes.disk_usage(volume.data),
                    "RefCount": len(volumes.users(daemon.root, volume.name)),
                },
            }
            for volume in volumes.list_all(daemon.root)
        ]
    if not kinds or "build-cache" in kinds:
        answer["BuildCache"] = []
    return answer
