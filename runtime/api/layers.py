"""Layers as files, and files as layers: commit, save, export, import."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from runtime.api.daemon import Daemon
from runtime.api.errors import ApiError
from runtime.api.event_log import of_image
from runtime.api.http import Call, Reply
from runtime.api.pipes import body_file, patiently, produced, work
from runtime.api.values import Json
from runtime.build.fetching import fetch, is_url
from runtime.build.settings import changer
from runtime.containers import commit as committing
from runtime.containers import lifecycle
from runtime.images.importing import import_tar
from runtime.images.reference import Reference, parse
from runtime.images.save import save as write_archive
from runtime.images.store import Image

#: Of the config that a client sends with a commit, what an image has.
_SETTINGS = ("Cmd", "Entrypoint", "Env", "ExposedPorts", "Healthcheck", "Labels", "OnBuild", "StopSignal")
_MORE_SETTINGS = ("User", "Volumes", "WorkingDir")


async def commit(daemon: Daemon, call: Call) -> Reply:
    """POST /commit?container=…&repo=…&tag=…&comment=…&author=…&pause=…&changes=…"""
    query = call.query
    config = (await call.fields()).value
    apply = changer(_changes(call))

    def change(document: Json) -> None:
        given = {key: config[key] for key in (*_SETTINGS, *_MORE_SETTINGS) if config.get(key)}
        document["config"] = {**document.get("config", {}), **given}
        apply(document)

    wanted = committing.Commit(
        _name(call), query.text("author"), query.text("comment"), query.flag("pause", True), change
    )
    image = await patiently(
        lambda: committing.commit(daemon.root, daemon.store, query.text("container"), wanted)
    )
    _tell(daemon, "commit", image)
    return Reply({"Id": image.id}, 201)


async def save(daemon: Daemon, call: Call) -> None:
    """GET /images/get?names=…, and GET /images/NAME/get."""
    names = [call.name] if "name" in call.arguments else call.query.texts("names")
    if not names:
        raise ApiError(400, "no image was named")
    for name in names:  # what is not there is told before an archive begins
        image = await work(lambda name=name: daemon.store.resolve(name))  # type: ignore[misc]
        daemon.events.add(of_image("save", image.id, name))
    await _tar(call, lambda file: write_archive(daemon.store, names, file))


async def export(daemon: Daemon, call: Call) -> None:
    """GET /containers/NAME/export."""
    subject = await work(lambda: lifecycle.inspect(daemon.root, call.name))
    await _tar(call, lambda file: committing.export(daemon.root, daemon.store, subject.id, file))


async def _tar(call: Call, function: Callable[[BinaryIO], object]) -> None:
    async with call.streaming("application/x-tar") as send:
        await produced(call, send, lambda file: _buffered(file, function))


def _buffered(file: BinaryIO, function: Callable[[BinaryIO], object]) -> None:
    """A pipe takes what it has room for; a buffer passes on all of it."""
    with open(file.fileno(), "wb", buffering=1 << 20, closefd=False) as whole:
        function(whole)


async def import_(daemon: Daemon, call: Call) -> Reply:
    """POST /images/create?fromSrc=…&repo=…&tag=…&message=…&changes=…; `-` is the body, else it is a URL."""
    source, message = call.query.text("fromSrc"), call.query.text("message")
    change = changer(_changes(call))
    name = _name(call)
    if source == "-":
        async with body_file(call) as file:
            image = await patiently(lambda: import_tar(daemon.store, file, "-", name, message, change))
    else:
        if not is_url(source):
            raise ApiError(400, f"{source!r} is neither - nor a URL")
        image = await patiently(lambda: _import_url(daemon, source, name, message, change))
    _tell(daemon, "import", image)
    line = json.dumps({"status": image.id}).encode() + b"\r\n"
    return Reply(line, headers={"Content-Type": "application/json"})


def _import_url(
    daemon: Daemon, url: str, name: Reference | None, message: str, change: Callable[[dict[str, Any]], None]
) -> Image:
    with tempfile.TemporaryDirectory(dir=daemon.root.tmp) as place:
        path = Path(place) / "tar"
        fetch(url, path)
        with path.open("rb") as file:
            return import_tar(daemon.store, file, url, name, message, change)


def _name(call: Call) -> Reference | None:
    repository, tag = call.query.text("repo"), call.query.text("tag")
    if not repository:
        return None
    return parse(f"{repository}:{tag}" if tag else repository).tagged()


def _changes(call: Call) -> list[str]:
    """Instructions: one each, or (of old clients) several on lines of one."""
    return [line for text in call.query.texts("changes") for line in text.splitlines() if line.strip()]


def _tell(daemon: Daemon, action: str, image: Image) -> None:
    name = image.names[0].familiar if image.names else image.id
    daemon.events.add(of_image(action, image.id, name))
