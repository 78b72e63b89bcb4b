"""/images: list, inspect, history, tag, remove, load, prune; what is pulled, pushed and saved."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence

from runtime import prune as pruning
from runtime.api import layers, registry
from runtime.api.daemon import Daemon
from runtime.api.errors import ApiError
from runtime.api.event_log import of_image
from runtime.api.http import Call, Reply
from runtime.api.pipes import body_file, patiently, work
from runtime.api.values import Filters, Json, has_labels, truth
from runtime.containers import present
from runtime.images.history import history as history_of
from runtime.images.store import Image

_FILTERS = ("before", "dangling", "label", "reference", "since", "until")


def image_summary(subject: Image) -> Json:
    """An image as the list has it."""
    whole = present.image(subject)
    created = subject.config.created
    return {
        "Id": subject.id,
        "ParentId": "",
        "RepoTags": whole["RepoTags"],
        "RepoDigests": whole["RepoDigests"],
        "Created": int(created.timestamp()) if created else 0,
        "Size": subject.size,
        "VirtualSize": subject.size,
        "SharedSize": -1,
        "Labels": dict(subject.config.labels) or None,
        "Containers": -1,
    }


async def list_(daemon: Daemon, call: Call) -> Reply:
    """GET /images/json."""
    filters = call.query.filters(_FILTERS)
    images = await work(daemon.store.images)
    return Reply([image_summary(image) for image in _filtered(images, filters)])


def _filtered(images: Sequence[Image], filters: Filters) -> list[Image]:
    dangling = truth(filters, "dangling")
    found = [
        image
        for image in images
        if (dangling is None or dangling is not bool(image.names))
        and has_labels(dict(image.config.labels), filters.get("label", []))
        and ("reference" not in filters or any(_refers(image, text) for text in filters["reference"]))
    ]
    for key, is_older in (("before", True), ("since", False)):
        for name in filters.get(key, []):
            edge = _created(next((image for image in images if _is(image, name)), None), name)
            found = [image for image in found if (_created(image, name) < edge) is is_older]
            found = [image for image in found if not _is(image, name)]
    return found


def _created(image: Image | None, name: str) -> float:
    if image is None:
        raise ApiError(404, f"No such image: {name}")
    return image.config.created.timestamp() if image.config.created else 0.0


def _is(image: Image, name: str) -> bool:
    bare = name.removeprefix("sha256:")
    names = {text for known in image.names for text in (known.familiar, known.repository, str(known))}
    return name in names or (len(bare) >= 12 and image.id.startswith(f"sha256:{bare}"))


def _refers(image: Image, pattern: str) -> bool:
    return any(
        fnmatch.fnmatchcase(text, pattern)
        for known in image.names
        for text in (known.familiar, known.repository, str(known))
    )


async def inspect(daemon: Daemon, call: Call) -> Reply:
    """GET /images/NAME/json."""
    return Reply(details(await work(lambda: daemon.store.resolve(call.name))))


def details(subject: Image) -> Json:
    """An image as inspect has it, with all the fields that docker's clients look at."""
    created = subject.config.created
    whole = present.image(subject)
    return {
        "Parent": "",
        "Comment": "",
        "DockerVersion": "",
        **whole,
        "VirtualSize": subject.size,
        "Metadata": {"LastTagTime": "0001-01-01T00:00:00Z"},
        "Created": whole["Created"] or (created.isoformat() if created else "0001-01-01T00:00:00Z"),
    }


async def history(daemon: Daemon, call: Call) -> Reply:
    """GET /images/NAME/history."""
    image = await work(lambda: daemon.store.resolve(call.name))
    tags = [name.familiar for name in image.names]
    entries = [
        {
            "Id": entry.id,
            "Created": int(entry.created.timestamp()) if entry.created else 0,
            "CreatedBy": entry.created_by,
            "Tags": (tags or None) if entry.id == image.id else None,
            "Size": entry.size,
            "Comment": entry.comment,
        }
        for entry in history_of(image)
    ]
    return Reply(entries)


async def tag(daemon: Daemon, call: Call) -> Reply:
    """POST /images/NAME/tag?repo=…&tag=…"""
    repository, tag_ = call.query.text("repo"), call.query.text("tag")
    target = f"{repository}:{tag_}" if tag_ else repository
    await work(lambda: daemon.store.tag(call.name, target))
    image = await work(lambda: daemon.store.resolve(target))
    daemon.events.add(of_image("tag", image.id, target))
    return Reply(status=201)


async def remove(daemon: Daemon, call: Call) -> Reply:
    """DELETE /images/NAME."""
    force = call.query.flag("force")
    image = await work(lambda: daemon.store.resolve(call.name))
    lines = await work(lambda: daemon.store.remove(call.name, force))
    return Reply(_told(daemon, image, lines))


def _told(daemon: Daemon, image: Image, lines: list[str]) -> list[Json]:
    """The lines of a removal as docker's objects, and as events."""
    answer = []
    for line in lines:
        what, _, name = line.partition(": ")
        answer.append({what: name})
        if what == "Untagged":
            daemon.events.add(of_image("untag", image.id, name))
        elif name == image.id:
            daemon.events.add(of_image("delete", image.id, image.id))
    return answer


async def prune(daemon: Daemon, call: Call) -> Reply:
    """POST /images/prune: images without a name, or with dangling=false all, that no container uses."""
    filters = call.query.filters(("dangling", "label", "label!", "until"))
    everything = truth(filters, "dangling") is False
    deleted: list[Json] = []

    def removed(image: Image, lines: list[str]) -> None:
        deleted.extend(_told(daemon, image, lines))

    pruned = await work(lambda: pruning.images(daemon.root, daemon.store, filters, everything, removed))
    return Reply({"ImagesDeleted": deleted or None, "SpaceReclaimed": pruned.reclaimed})


async def load(daemon: Daemon, call: Call) -> Reply:
    """POST /images/load: the body is an archive of docker's or OCI's."""
    async with body_file(call) as file:
        loaded = await patiently(lambda: daemon.store.load("-", stdin=file))
    lines = []
    for image in loaded:
        for name in image.names:
            lines.append(f"Loaded image: {name.familiar}\n")
            daemon.events.add(of_image("load", image.id, name.familiar))
        if not image.names:
            lines.append(f"Loaded image ID: {image.id}\n")
    return Reply(
        b"".join(json.dumps({"stream": line}).encode() + b"\r\n" for line in lines),
        headers={"Content-Type": "application/json"},
    )


async def create(daemon: Daemon, call: Call) -> Reply | None:
    """POST /images/create: a pull, or an import."""
    if call.query.text("fromSrc"):
        return await layers.import_(daemon, call)
    await registry.pull(daemon, call)
    return None
