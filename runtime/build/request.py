"""What a build is asked for, and whom it reports to."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from runtime.errors import RuntimeFailure
from runtime.images.reference import Reference

#: Variables that a build may be given without an ARG; they reach RUN and neither history nor cache.
PREDEFINED = {
    name
    for word in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
    for name in (word, word.lower())
}
EPOCH = "SOURCE_DATE_EPOCH"


@dataclass(frozen=True)
class Secret:
    """A secret by its ID: a file's content, or a variable's."""

    id: str
    data: bytes


@dataclass(frozen=True)
class BuildRequest:
    """The options of docker build. The Dockerfile and the files come with the context."""

    names: tuple[Reference, ...] = ()
    arguments: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    target: str = ""
    no_cache: bool = False
    network: str = "default"
    extra_hosts: tuple[str, ...] = ()
    ulimits: tuple[str, ...] = ()
    memory: int = 0
    shm_size: int = 64 << 20
    compression: str = "gzip"

    @property
    def epoch(self) -> int | None:
        """SOURCE_DATE_EPOCH in seconds, by which the same input gives the same image; None when it is not
        given.

        Raises RuntimeFailure when it is not a number.
        """
        text = self.arguments.get(EPOCH, "")
        if not text:
            return None
        if not text.isdecimal():
            raise RuntimeFailure(f"{EPOCH} is not a number of seconds: {text!r}")
        return int(text)


class Report(Protocol):
    """Who is told what a build does."""

    def step(self, number: int, total: int, text: str) -> None:
        """An instruction begins."""
        ...

    def cached(self) -> None:
        """What it makes was there already."""
        ...

    def output(self, stream: int, data: bytes) -> None:
        """A command wrote `data` to its stream 1 or 2."""
        ...

    def stepped(self, layer: str) -> None:
        """The instruction is done; `layer` is the diff ID of the topmost layer, "" when there is none."""
        ...

    def note(self, text: str) -> None:
        """Something the user should know that is no failure."""
        ...

    def check(self) -> None:
        """Called now and then while a command runs; raises when nobody wants the image any more."""
        ...


def parse_secret(text: str) -> Secret:
    """Read `id=ID[,src=FILE][,env=NAME][,type=file|env]`; without a source it is the variable or the file ID.

    Raises RuntimeFailure when it makes no sense, or its source is missing.
    """
    fields = dict(part.partition("=")[::2] for part in text.split(","))
    identifier = fields.get("id", "")
    unknown = fields.keys() - {"id", "src", "source", "env", "type"}
    if not identifier or unknown:
        raise RuntimeFailure(f"invalid secret {text!r}: it is id=ID and src=FILE or env=NAME")
    source = fields.get("src") or fields.get("source")
    variable = fields.get("env") or (
        source if fields.get("type") == "env" else None if source else _same_variable(identifier)
    )
    if variable is not None:
        if variable not in os.environ:
            raise RuntimeFailure(f"secret {identifier}: the variable {variable} is not set")
        return Secret(identifier, os.environ[variable].encode("utf-8", "surrogateescape"))
    path = Path(source or identifier)
    try:
        return Secret(identifier, path.read_bytes())
    except OSError as error:
        raise RuntimeFailure(f"secret {identifier}: {path}: {error.strerror}") from error


def _same_variable(identifier: str) -> str | None:
    return identifier if identifier in os.environ else None


def key_values(texts: Sequence[str], what: str) -> dict[str, str]:
    """NAME=VALUE words; NAME alone takes our own variable, and is left out when there is none.

    Raises RuntimeFailure for an empty name.
    """
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name:
            raise RuntimeFailure(f"invalid {what}: {text!r}")
        if equals:
            values[name] = value
        elif name in os.environ:
            values[name] = os.environ[name]
    return values
