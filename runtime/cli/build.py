"""unionctl build and builder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import click

from runtime.build.builder import build as run_build
from runtime.build.contexts import open_context
from runtime.build.request import EPOCH, BuildRequest, key_values, parse_secret
from runtime.cli import pass_root
from runtime.cli.images import open_store
from runtime.cli.output import size
from runtime.cli.pulling import have_image
from runtime.containers.mounts import size_in_bytes
from runtime.errors import RuntimeFailure
from runtime.images.platforms import host_platform
from runtime.images.reference import parse
from runtime.images.store import Image
from runtime.root import Root

_SHORT = 12


class Console:
    """What a build does, line by line on stderr; when it is quiet, only what a failed command has said."""

    def __init__(self, quiet: bool, colour: bool) -> None:
        self._quiet = quiet
        self._colour = colour
        self._kept: list[bytes] = []

    def step(self, number: int, total: int, text: str) -> None:
        """A line with the instruction."""
        self._kept = []
        self._say(click.style(f"Step {number}/{total} : {text}", bold=True))

    def cached(self) -> None:
        """docker's words for it."""
        self._say(" ---> Using cache")

    def output(self, stream: int, data: bytes) -> None:
        """As the command wrote it."""
        if self._quiet:
            self._kept.append(data)
            return
        sys.stderr.buffer.write(data)
        sys.stderr.buffer.flush()

    def stepped(self, layer: str) -> None:
        """The topmost layer, shortened."""
        self._say(f" ---> {layer.removeprefix('sha256:')[:_SHORT] or 'nothing'}")

    def note(self, text: str) -> None:
        """docker's words for it."""
        click.echo(f"[Warning] {text}", err=True)

    def check(self) -> None:
        """Whoever does not want it any more presses Ctrl-C."""

    def failed(self) -> None:
        """Show what the command that failed has written, if that was not shown."""
        sys.stderr.buffer.write(b"".join(self._kept))
        sys.stderr.buffer.flush()

    def _say(self, text: str) -> None:
        if not self._quiet:
            click.echo(text if self._colour else click.unstyle(text), err=True)


class RawJson(Console):
    """The same as JSON, one object a line."""

    def __init__(self) -> None:
        super().__init__(quiet=False, colour=False)

    def step(self, number: int, total: int, text: str) -> None:
        """An object with the instruction."""
        self._object(step=number, total=total, instruction=text)

    def cached(self) -> None:
        """An object that says so."""
        self._object(cached=True)

    def output(self, stream: int, data: bytes) -> None:
        """An object with the text."""
        self._object(stream=stream, data=data.decode(errors="replace"))

    def stepped(self, layer: str) -> None:
        """An object with the diff ID."""
        self._object(layer=layer)

    def note(self, text: str) -> None:
        """An object with the text."""
        self._object(warning=text)

    @staticmethod
    def _object(**fields: Any) -> None:
        click.echo(json.dumps(fields), err=True)


@click.command()
@click.argument("context", metavar="PATH|URL|-")
@click.option("-t", "--tag", "tags", multiple=True, metavar="NAME[:TAG]", help="Give the image a name.")
@click.option("-f", "--file", default="", metavar="FILE", help="The Dockerfile; - is standard input.")
@click.option("--build-arg", "build_args", multiple=True, metavar="K[=V]", help="Set an ARG.")
@click.option("--target", default="", metavar="STAGE", help="Build that stage.")
@click.option("--no-cache", is_flag=True, help="Do every step anew.")
@click.option(
    "--pull/--no-pull",
    default=None,
    help="Look for newer images to begin with; or not even for those that are missing.",
)
@click.option("--label", "labels", multiple=True, metavar="K[=V]", help="Set metadata.")
@click.option("--secret", "secrets", multiple=True, metavar="id=ID,src=FILE", help="For RUN --mount.")
@click.option("--network", default="default", metavar="NAME|none|host", help="That RUN is in.")
@click.option("--add-host", "hosts", multiple=True, metavar="HOST:IP", help="A line for /etc/hosts.")
@click.option("-m", "--memory", default="0", metavar="SIZE", help="No more memory than SIZE for a RUN.")
@click.option("--shm-size", default="64m", metavar="SIZE", help="The size of /dev/shm.")
@click.option("--ulimit", "ulimits", multiple=True, metavar="NAME=SOFT[:HARD]", help="For RUN.")
@click.option("--compression", type=click.Choice(["gzip", "zstd", "none"]), default="gzip", help="Of layers.")
@click.option("--iidfile", metavar="FILE", help="Write the image's ID to FILE.")
@click.option("-q", "--quiet", is_flag=True, help="Only the image's ID.")
@click.option(
    "--progress",
    type=click.Choice(["auto", "plain", "tty", "quiet", "rawjson"]),
    default="auto",
    help="How it is shown.",
)
@click.option("--platform", default="", metavar="OS/ARCH", help="Only that of this machine.")
@click.option("--rm/--no-rm", "_rm", default=True, hidden=True)
@click.option("--force-rm", "_force_rm", is_flag=True, hidden=True)
@click.option("--load", "_load", is_flag=True, hidden=True)
@pass_root
def build(root: Root, /, context: str, **options: Any) -> None:
    """Build an image from a Dockerfile and the files in PATH.

    \b
    unionctl build -t app .
    unionctl build -t app:test --target test --build-arg VERSION=2 -f docker/Dockerfile .
    tar -c Dockerfile src | unionctl build -t app -
    """
    request = _request(options)
    quiet = options["quiet"] or options["progress"] == "quiet"
    console = Console(quiet, options["progress"] == "tty" or sys.stderr.isatty())
    if options["progress"] == "rawjson" and not quiet:
        console = RawJson()
    store = open_store(root)
    when = {None: "missing", True: "always", False: "never"}[options["pull"]]

    def find_image(name: str) -> Image:
        have_image(store, name, when, quiet=quiet)
        return store.resolve(name)

    stdin = sys.stdin.buffer
    if "-" in (context, options["file"]) and stdin.isatty():
        raise click.UsageError("the build context comes from stdin, but stdin is a terminal")
    with _ended_by_signals(), _id_file(options["iidfile"]) as write_id:
        try:
            image = run_build(
                root,
                store,
                request,
                lambda work: open_context(context, options["file"], stdin, work),
                console,
                find_image,
            )
        except RuntimeFailure:
            if quiet:
                console.failed()
            raise
        write_id(image.id)
    if quiet:
        click.echo(image.id)
        return
    click.echo(f"Successfully built {image.short_id}")
    for name in request.names:
        click.echo(f"Successfully tagged {name.familiar}")


def _request(options: dict[str, Any]) -> BuildRequest:
    arguments = key_values(options["build_args"], "build argument")
    if EPOCH in os.environ:
        arguments.setdefault(EPOCH, os.environ[EPOCH])
    platform = options["platform"]
    host = host_platform()
    if platform and platform.split("/")[:2] != [host.os, host.architecture]:
        raise RuntimeFailure(f"{platform} cannot be built here, only {host}")
    secrets = [parse_secret(text) for text in options["secrets"]]
    return BuildRequest(
        names=tuple(parse(tag).tagged() for tag in options["tags"]),
        arguments=arguments,
        labels=dict(label.partition("=")[::2] for label in options["labels"]),
        secrets={secret.id: secret for secret in secrets},
        target=options["target"],
        no_cache=options["no_cache"],
        network=options["network"],
        extra_hosts=options["hosts"],
        ulimits=options["ulimits"],
        memory=size_in_bytes(options["memory"]),
        shm_size=size_in_bytes(options["shm_size"]),
        compression=options["compression"],
    )


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that nothing is left mounted."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _id_file(name: str | None) -> Iterator[Any]:
    """A function that writes the file `name`; an older one does not stay when the build fails."""
    if name:
        Path(name).unlink(missing_ok=True)
    yield lambda identifier: Path(name).write_text(identifier) if name else None


@click.group()
def builder() -> None:
    """What builds keep to be fast."""


@builder.command()
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.option("-a", "--all", "_all", is_flag=True, hidden=True)
@pass_root
def prune(root: Root, force: bool, _all: bool) -> None:
    """Forget all steps of builds, and the directories of RUN --mount=type=cache."""
    from runtime.build.pruning import prune as run_prune

    if not force:
        click.confirm("WARNING! This will remove all build cache. Go on?", abort=True)
    click.echo(f"Total reclaimed space: {size(run_prune(root, open_store(root)))}")
