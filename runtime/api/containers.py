"""/containers: list, inspect and the verbs that change one. What streams is in `consoles` and `archives`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from runtime import prune as pruning
from runtime.api.answers import container_details
from runtime.api.creation import to_changes, to_request
from runtime.api.daemon import Daemon
from runtime.api.errors import ApiError
from runtime.api.http import NO_CONTENT, Call, Reply
from runtime.api.pipes import patiently, work
from runtime.api.values import Json
from runtime.cli.rows import status
from runtime.containers import amend, filters, lifecycle, networks, present, volumes
from runtime.containers import create as creating
from runtime.containers import diff as differing
from runtime.containers.container import Container
from runtime.containers.layers import Layers
from runtime.containers.settle import settle_all
from runtime.errors import RuntimeFailure
from runtime.images.platforms import parse_platform
from runtime.root import Root

_NOT_MODIFIED = Reply(status=304)
_FILTERS = (
    *("ancestor", "before", "exited", "expose", "health", "id", "is-task", "label", "name", "network"),
    *("publish", "since", "status", "volume"),
)
_KINDS = {"A": 1, "C": 0, "D": 2}


def summary(root: Root, subject: Container, size: bool = False) -> Json:
    """A container as the list has it."""
    whole = present.container(root, subject)
    answer: Json = {
        "Id": subject.id,
        "Names": [whole["Name"]],
        "Image": subject.request.image,
        "ImageID": subject.image_id,
        "Command": " ".join(subject.process.args),
        "Created": int(datetime.fromisoformat(subject.created).timestamp()),
        "Ports": ports(whole),
        "Labels": dict(subject.labels),
        "State": whole["State"]["Status"],
        "Status": status(subject),
        "HostConfig": {"NetworkMode": whole["HostConfig"]["NetworkMode"]},
        "NetworkSettings": {"Networks": whole["NetworkSettings"]["Networks"]},
        "Mounts": whole["Mounts"],
    }
    if size:
        answer["SizeRw"] = volumes.disk_usage(subject.upper)
        answer["SizeRootFs"] = answer["SizeRw"] + sum(
            volumes.disk_usage(Path(layer)) for layer in subject.layers
        )
    return answer


def ports(whole: Json) -> list[Json]:
    """The published and exposed ports of an inspected container, as the list has them."""
    answer = []
    for port, bindings in (whole["NetworkSettings"].get("Ports") or {}).items():
        number, _, protocol = port.partition("/")
        entry = {"PrivatePort": int(number), "Type": protocol or "tcp"}
        for binding in bindings or ():
            answer.append({"IP": binding["HostIp"], **entry, "PublicPort": int(binding["HostPort"])})
        if not bindings:
            answer.append(entry)
    return answer


async def list_(daemon: Daemon, call: Call) -> Reply:
    """GET /containers/json."""
    wanted = call.query.filters(_FILTERS)
    everything, limit = call.query.flag("all"), call.query.number("limit") or 0
    size = call.query.flag("size")

    def found() -> list[Json]:
        containers = settle_all(daemon.root)
        kept = [container for container in containers if _passes(container, wanted, containers)]
        if limit > 0:
            kept = kept[:limit]
        elif not everything and wanted.keys().isdisjoint(("status", "exited", "before", "since")):
            kept = [container for container in kept if container.state.active]
        return [summary(daemon.root, container, size) for container in kept]

    return Reply(await work(found))


def _passes(subject: Container, wanted: filters.Filters, containers: list[Container]) -> bool:
    wanted = dict(wanted)
    wanted.pop("is-task", None)
    for key, is_older in (("before", True), ("since", False)):
        for name in wanted.pop(key, []):
            edge = next((one for one in containers if name in (one.name, one.id, f"/{one.name}")), None)
            if edge is None:
                raise ApiError(404, f"No such container: {name}")
            if edge.id == subject.id or (subject.created < edge.created) is not is_older:
                return False
    # Checked as the command's own are, by the same function.
    checked = filters.parse(f"{key}={value}" for key, values in wanted.items() for value in values)
    return filters.matches(subject, checked)


async def create(daemon: Daemon, call: Call) -> Reply:
    """POST /containers/create?name=…"""
    fields = await call.fields()
    wanted = to_request(fields)
    text = call.query.text("platform")
    platform = parse_platform(text) if text else None

    def make() -> Container:
        with daemon.store.reading():
            # One for another platform is not there: the client then pulls the one that it wants.
            image = daemon.store.resolve(wanted.request.image, platform)
            name = call.query.text("name").lstrip("/")
            made = creating.create(daemon.root, image, wanted.request, name)
        for endpoint in wanted.more:
            networks.connect(daemon.root, endpoint.network, made.id, endpoint)
        return made

    container = await work(make)
    if wanted.window:
        daemon.windows[container.id] = wanted.window
    return Reply({"Id": container.id, "Warnings": wanted.warnings}, 201)


async def inspect(daemon: Daemon, call: Call) -> Reply:
    """GET /containers/NAME/json."""
    size = call.query.flag("size")

    def find() -> Json:
        subject = lifecycle.inspect(daemon.root, call.name)
        answer = container_details(daemon.root, subject)
        if size:
            counted = summary(daemon.root, subject, size=True)
            answer |= {key: counted[key] for key in ("SizeRw", "SizeRootFs")}
        return answer

    return Reply(await work(find))


async def start(daemon: Daemon, call: Call) -> Reply:
    """POST /containers/NAME/start: 304 when it runs already; those who attached before see all of it."""
    return await start_one(daemon, call.name)


async def start_one(daemon: Daemon, name: str) -> Reply:
    """Start a container; one that was to be removed at its end is removed when it cannot be."""
    subject = await work(lambda: lifecycle.inspect(daemon.root, name))
    if subject.state.active:
        return _NOT_MODIFIED
    window = daemon.windows.pop(subject.id, None)
    with daemon.starting(subject.id) as on_created:
        try:
            await work(lambda: lifecycle.start(daemon.root, subject.id, on_created=on_created, window=window))
        except RuntimeFailure:
            if subject.request.remove:
                await work(lambda: lifecycle.remove(daemon.root, subject.id, force=True, with_volumes=True))
            raise
    return NO_CONTENT


async def stop(daemon: Daemon, call: Call) -> Reply:
    """POST /containers/NAME/stop?t=SECONDS: 304 when it does not run."""
    subject = await work(lambda: lifecycle.inspect(daemon.root, call.name))
    if not subject.state.active:
        return _NOT_MODIFIED
    seconds = call.query.number("t")
    signal = call.query.text("signal")
    await patiently(lambda: lifecycle.stop(daemon.root, subject.id, seconds, signal))
    return NO_CONTENT


async def restart(daemon: Daemon, call: Call) -> Reply:
    """POST /containers/NAME/restart?t=SECONDS."""
    seconds, signal = call.query.number("t"), call.query.text("signal")
    subject = await work(lambda: lifecycle.inspect(daemon.root, call.name))
    with daemon.starting(subject.id) as on_created:
        await patiently(
            lambda: lifecycle.restart(daemon.root, subject.id, seconds, signal, on_created=on_created)
        )
    return NO_CONTENT


async def rename(daemon: Daemon, call: Call) -> Reply:
    """POST /containers/NAME/rename?name=…"""
    await work(lambda: amend.rename(daemon.root, call.name, call.query.text("name")))
    return NO_CONTENT


async def update(daemon: Daemon, call: Call) -> Reply:
    """POST /containers/NAME/update."""
    wanted = await call.fields()
    changes, warnings = to_changes(wanted), list[str]()
    await work(lambda: amend.update(daemon.root, call.name, changes, warnings.append))
    return Reply({"Warnings": warnings or None})


async def kill(daemon: Daemon, call: Call) -> Reply:
    """POST /containers/NAME/kill?signal=…"""
    signal = call.query.text("signal") or "SIGKILL"
    subject = await work(lambda: lifecycle.inspect(daemon.root, call.name))
    await work(lambda: lifecycle.kill(daemon.root, subject.id, signal))
    return NO_CONTENT


async def pause(daemon: Daemon, call: Call) -> Reply:
    """POST /containers/NAME/pause."""
    await work(lambda: lifecycle.pause(daemon.root, call.name))
    return NO_CONTENT


async def unpause(daemon: Daemon, call: Call) -> Reply:
    """POST /containers/NAME/unpause."""
    await work(lambda: lifecycle.unpause(daemon.root, call.name))
    return NO_CONTENT


async def remove(daemon: Daemon, call: Call) -> Reply:
    """DELETE /containers/NAME?force=…&v=…"""
    force, with_volumes = call.query.flag("force"), call.query.flag("v")
    subject = await work(lambda: lifecycle.inspect(daemon.root, call.name))
    await patiently(lambda: lifecycle.remove(daemon.root, subject.id, force, with_volumes))
    daemon.windows.pop(subject.id, None)
    return NO_CONTENT


async def prune(daemon: Daemon, call: Call) -> Reply:
    """POST /containers/prune: those that do not run."""
    wanted = call.query.filters(("label", "label!", "until"))
    pruned = await work(lambda: pruning.containers(daemon.root, wanted))
    return Reply({"ContainersDeleted": pruned.names or None, "SpaceReclaimed": pruned.reclaimed})


async def changes(daemon: Daemon, call: Call) -> Reply:
    """GET /containers/NAME/changes."""

    def find() -> list[Json]:
        container = lifecycle.inspect(daemon.root, call.name)
        creating.prepare_init_layer(container)
        layers = Layers(creating.lower_layers(container))
        found = differing.changes(container.upper, layers)
        return [
            {"Path": change.path.decode("utf-8", "replace"), "Kind": _KINDS[change.kind]} for change in found
        ]

    return Reply(await work(find))
