"""What goes between the store and registries: a pull, /images/NAME/push, /auth, /distribution/NAME/json.

A transfer is answered with a stream of JSON objects, one for each thing that happens; a failure in the middle
of it is the last of them. Credentials come with each request, from the client's config.json: ours has no say.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

from runtime.api.daemon import Daemon
from runtime.api.errors import ApiError
from runtime.api.event_log import of_image
from runtime.api.http import Call, Reply
from runtime.api.pipes import reported, work
from runtime.api.values import Fields, Json
from runtime.errors import RuntimeFailure, Unauthorized, one_line
from runtime.images.platforms import parse_platform
from runtime.images.reference import is_digest, parse
from runtime.registry.client import Client
from runtime.registry.credentials import Credentials
from runtime.registry.describe import describe, tags
from runtime.registry.login import login, server_name
from runtime.registry.pull import pull as pull_image
from runtime.registry.push import push as push_image
from runtime.registry.report import Report

#: Seconds between two objects on the bytes of one layer, as docker's.
_OFTEN = 0.1


async def pull(daemon: Daemon, call: Call) -> None:
    """POST /images/create?fromImage=…&tag=…&platform=…; without a tag every tag of the repository."""
    image, tag = call.query.text("fromImage"), call.query.text("tag")
    name = parse(f"{image}{'@' if is_digest(tag) else ':'}{tag}" if tag else image)
    every = not tag and not name.digest and ":" not in image.rpartition("/")[2]
    platform = call.query.text("platform")
    wanted = parse_platform(platform) if platform else None
    client = _client(call)

    def run(report: Stream) -> None:
        for one in tags(name, client) if every else [name]:
            pull_image(daemon.store, one, client, report, wanted)

    if await _transfer(call, run):
        daemon.events.add(of_image("pull", name.familiar, name.repository))


async def push(daemon: Daemon, call: Call) -> None:
    """POST /images/NAME/push?tag=…; without a tag every tag of the repository."""
    tag = call.query.text("tag")
    name = parse(f"{call.name}:{tag}" if tag else call.name)
    names = [name]
    if not tag:
        known = {known for image in await work(daemon.store.images) for known in image.names if known.tag}
        names = sorted((one for one in known if one.repository == name.repository), key=str) or names
    client = _client(call)

    def run(report: Stream) -> None:
        for one in names:
            done = push_image(daemon.store, one, client, report)
            report.tell({"aux": {"Tag": one.tag, "Digest": done.digest, "Size": done.size}})

    if await _transfer(call, run):
        daemon.events.add(of_image("push", name.familiar, name.repository))


async def auth(daemon: Daemon, call: Call) -> Reply:
    """POST /auth: docker login asks whether a registry takes the credentials; it keeps them itself."""
    said = await call.fields()
    credentials = _credentials(said)
    try:
        await work(lambda: login(server_name(said.text("serveraddress")), credentials, _as(credentials)))
    except Unauthorized as error:
        # Only here: for a 401 of a pull the docker command would ask its user who he is, and try once more.
        raise ApiError(401, error.message) from error
    return Reply({"Status": "Login Succeeded", "IdentityToken": ""})


async def distribution(daemon: Daemon, call: Call) -> Reply:
    """GET /distribution/NAME/json: what the registry has by this name."""
    client = _client(call)
    described = await work(lambda: describe(parse(call.name), client))
    descriptor = described.descriptor
    return Reply(
        {
            "Descriptor": {
                "mediaType": descriptor.media_type,
                "digest": descriptor.digest,
                "size": descriptor.size,
            },
            "Platforms": [platform.to_json() for platform in described.platforms],
        }
    )


def _client(call: Call) -> Client:
    """Registries as the client of this call may use them: X-Registry-Auth is base64 of JSON."""
    # Clients differ in the alphabet, and in whether they pad.
    text = call.headers.get("x-registry-auth", "").translate(str.maketrans("-_", "+/", "="))
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        said = Fields.of(json.loads(data) if data.strip() else None, "X-Registry-Auth")
        return _as(_credentials(said))
    except (ValueError, RecursionError, RuntimeFailure) as error:
        raise ApiError(400, f"invalid X-Registry-Auth: {error}") from error


def _as(credentials: Credentials) -> Client:
    return Client(credentials=lambda domain: credentials)


def _credentials(said: Fields) -> Credentials:
    username, password = said.text("username"), said.text("password")
    return Credentials(username, password, said.text("identitytoken"), said.text("registrytoken"))


async def _transfer(call: Call, function: Callable[[Stream], object]) -> bool:
    """Answer with what `function` reports; gives whether it came to its end.

    Raises what it raises, unless its report had begun.
    """
    done = []

    def run(file: BinaryIO) -> None:
        function(Stream(file))
        done.append(True)

    await reported(call, run, failed)
    return bool(done)


def failed(error: Exception) -> bytes:
    """The last object of a stream, when it is a failure; a command's exit code goes with it."""
    message = one_line(error) or type(error).__name__
    detail: Json = {"message": message}
    if isinstance(error, RuntimeFailure) and error.exit_code:
        detail["code"] = error.exit_code
    return _line({"errorDetail": detail, "error": message})


def _line(value: Json) -> bytes:
    return json.dumps(value).encode() + b"\r\n"


class Stream(Report):
    """A Report that is docker's stream of JSON."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}

    def tell(self, value: Json) -> None:
        """Send one object."""
        with self._lock:
            self._file.write(_line(value))

    def say(self, text: str, part: str = "") -> None:
        self.tell({"status": text, "progressDetail": {}, "id": part} if part else {"status": text})

    def advance(self, text: str, part: str, current: int, total: int) -> None:
        now = time.monotonic()
        if current < total and now - self._last.get(part, 0) < _OFTEN:
            return
        self._last[part] = now
        detail = {"current": current, "total": total}
        self.tell({"status": text, "progressDetail": detail, "id": part})
