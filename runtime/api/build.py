"""POST /build: the classic builder's endpoint. A tar with the context comes in, a stream of JSON goes out."""

from __future__ import annotations

import base64
import codecs
import json
import select
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from runtime.api.daemon import Daemon
from runtime.api.errors import ApiError, NotImplementedHere
from runtime.api.event_log import of_image
from runtime.api.http import Call, Reply
from runtime.api.pipes import patiently, reported, work
from runtime.api.registry import Stream, failed
from runtime.api.values import Fields, Json
from runtime.build.builder import build as run_build
from runtime.build.contexts import Context, open_context, unpacked_context
from runtime.build.dockerfile import DockerfileError
from runtime.build.pruning import prune as run_prune
from runtime.build.request import BuildRequest
from runtime.errors import NotFound, RuntimeFailure
from runtime.images.platforms import host_platform, parse_platform
from runtime.images.reference import parse
from runtime.images.store import Image
from runtime.registry.client import Client
from runtime.registry.credentials import ANONYMOUS, Credentials
from runtime.registry.pull import pull

_SHORT = 12


async def build(daemon: Daemon, call: Call) -> None:
    """POST /build?t=…&dockerfile=…&buildargs=…: the body is the context, unless `remote` names one."""
    request = _request(call)
    client = _client(call)
    remote, dockerfile = call.query.text("remote"), call.query.text("dockerfile")
    quiet = call.query.flag("q")
    built: list[Image] = []
    with tempfile.TemporaryFile(dir=daemon.root.tmp) as body:
        async for data in call.body():
            await work(lambda data=data: body.write(data))  # type: ignore[misc]
        body.seek(0)

        def open_(place: Path) -> Context:
            if remote:
                return open_context(remote, dockerfile, None, place)
            return unpacked_context(body, dockerfile, place)

        def run(file: BinaryIO) -> None:
            stream = Stream(file)
            report = _Report(stream, file, quiet)
            find = _finder(daemon, call.query.flag("pull"), client, stream)
            image = run_build(daemon.root, daemon.store, request, open_, report, find)
            built.append(image)
            report.done(image, [name.familiar for name in request.names])

        try:
            await reported(call, run, failed)
        except DockerfileError as error:
            raise ApiError(400, f"dockerfile parse error: {error.message}") from error
    for image in built:
        for name in request.names:
            daemon.events.add(of_image("tag", image.id, name.familiar))


async def prune(daemon: Daemon, call: Call) -> Reply:
    """POST /build/prune."""
    freed = await patiently(lambda: run_prune(daemon.root, daemon.store))
    return Reply({"CachesDeleted": None, "SpaceReclaimed": freed})


class _Report:
    """A build's report as docker's stream; a quiet one has but the image's ID."""

    def __init__(self, stream: Stream, file: BinaryIO, quiet: bool) -> None:
        self._stream = stream
        self._quiet = quiet
        self._decoders = {
            number: codecs.getincrementaldecoder("utf-8")(errors="replace") for number in (1, 2)
        }
        self._poll = select.poll()
        self._poll.register(file, 0)  # its reader's end is always told

    def _say(self, text: str) -> None:
        if text and not self._quiet:
            self._stream.tell({"stream": text})

    def step(self, number: int, total: int, text: str) -> None:
        """As the classic builder says it."""
        self._say(f"Step {number}/{total} : {text}\n")

    def cached(self) -> None:
        """As the classic builder says it."""
        self._say(" ---> Using cache\n")

    def output(self, stream: int, data: bytes) -> None:
        """Text of a command; of both streams, since the classic builder does not tell them apart."""
        self._say(self._decoders[stream].decode(data))

    def stepped(self, layer: str) -> None:
        """The topmost layer, where the classic builder has an image for each step."""
        self._say(f" ---> {layer.removeprefix('sha256:')[:_SHORT]}\n" if layer else " ---> \n")

    def note(self, text: str) -> None:
        """As the classic builder says it."""
        self._say(f"[Warning] {text}\n")

    def check(self) -> None:
        """The client that has gone wants no image."""
        if self._poll.poll(0):
            raise BrokenPipeError("the client has gone")

    def done(self, image: Image, names: list[str]) -> None:
        """The image's ID, and what it is called."""
        self._stream.tell({"aux": {"ID": image.id}})
        if self._quiet:
            self._stream.tell({"stream": f"{image.id}\n"})
        self._say(f"Successfully built {image.short_id}\n")
        for name in names:
            self._say(f"Successfully tagged {name}\n")


def _finder(daemon: Daemon, always: bool, client: Client, stream: Stream) -> Callable[[str], Image]:
    def find(name: str) -> Image:
        if not always:
            try:
                return daemon.store.resolve(name)
            except NotFound:
                pass
        return pull(daemon.store, parse(name), client, stream).image

    return find


def _request(call: Call) -> BuildRequest:
    query = call.query
    if query.text("version", "1") == "2":
        raise NotImplementedHere("BuildKit: set DOCKER_BUILDKIT=0; POST /build?version=2")
    if query.flag("squash"):
        raise NotImplementedHere("POST /build?squash=1")
    platform = query.text("platform")
    if platform and not host_platform().runs(parse_platform(platform)):
        raise ApiError(400, f"{platform} cannot be built here, only {host_platform()}")
    arguments = {name: value for name, value in _json(call, "buildargs", {}).items() if value is not None}
    ulimits = [
        f"{limit.string('Name')}={limit.number('Soft')}:{limit.number('Hard')}"
        for limit in (Fields.of(value, "ulimits") for value in _json(call, "ulimits", []) or [])
    ]
    return BuildRequest(
        names=tuple(parse(name).tagged() for name in query.texts("t") if name),
        arguments=_strings("buildargs", arguments),
        labels=_strings("labels", _json(call, "labels", {})),
        target=query.text("target"),
        no_cache=query.flag("nocache"),
        network=query.text("networkmode") or "default",
        extra_hosts=tuple(query.text("extrahosts").split(",")) if query.text("extrahosts") else (),
        ulimits=tuple(ulimits),
        memory=query.number("memory") or 0,
        shm_size=query.number("shmsize") or 64 << 20,
    )


def _json(call: Call, key: str, empty: Any) -> Any:
    """A parameter that is JSON of the same type as `empty`."""
    text = call.query.text(key)
    try:
        value = json.loads(text) if text else empty
    except ValueError:
        raise ApiError(400, f"invalid {key}: not JSON") from None
    if value is None:
        return empty
    if not isinstance(value, type(empty)):
        raise ApiError(400, f"invalid {key}: {text!r}")
    return value


def _strings(key: str, values: Json) -> dict[str, str]:
    if not all(isinstance(value, str) for value in values.values()):
        raise ApiError(400, f"invalid {key}: its values are not strings")
    return dict(values)


def _client(call: Call) -> Client:
    """Registries as the client may use them: X-Registry-Config is base64 of JSON, credentials by registry."""
    text = call.headers.get("x-registry-config", "").translate(str.maketrans("-_", "+/", "="))
    known: dict[str, Credentials] = {}
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        for server, value in (json.loads(data) if data.strip() else {}).items():
            said = Fields.of(value, "X-Registry-Config")
            known[_host(server)] = Credentials(
                said.text("username"),
                said.text("password"),
                said.text("identitytoken"),
                said.text("registrytoken"),
            )
    except (ValueError, AttributeError, RecursionError, RuntimeFailure) as error:
        raise ApiError(400, f"invalid X-Registry-Config: {error}") from error
    return Client(credentials=lambda domain: known.get(_host(domain), ANONYMOUS))


def _host(server: str) -> str:
    """A registry's name, however a config.json spells it."""
    host = server.removeprefix("https://").removeprefix("http://").partition("/")[0]
    return "docker.io" if host == "index.docker.io" else host
