"""What happened to containers, images, volumes and networks: docker's events, kept in a journal.

Whoever does something appends a line of JSON to `events` in the state root, by one write(2) to a file opened
with O_APPEND: lines never mix, and nobody has to be asked. A journal that has grown long becomes `events.1`,
in the place of the one before; so what is older than that is forgotten.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from runtime.root import Root

_LONG = 4 << 20  # bytes
_POLL = 0.1

#: The keys of --filter for events.
FILTERS = ("container", "daemon", "event", "image", "label", "network", "scope", "type", "volume")


@dataclass(frozen=True)
class Event:
    """One thing that happened."""

    kind: str  # container, image, volume, network
    action: str
    subject: str
    attributes: dict[str, str] = field(default_factory=dict)
    nanoseconds: int = field(default_factory=time.time_ns)

    def to_json(self) -> dict[str, Any]:
        """The event in docker's words, with the fields of old clients."""
        value: dict[str, Any] = {
            "Type": self.kind,
            "Action": self.action,
            "Actor": {"ID": self.subject, "Attributes": self.attributes},
            "scope": "local",
            "time": self.nanoseconds // 10**9,
            "timeNano": self.nanoseconds,
        }
        if self.kind in ("container", "image"):
            value |= {"status": self.action, "id": self.subject}
        if self.kind == "container":
            value["from"] = self.attributes.get("image", "")
        return value

    def passes(self, filters: Mapping[str, list[str]]) -> bool:
        """Whether it is one of those that `filters` want; several values of one key are alternatives."""
        return all(any(self._is(key, value) for value in values) for key, values in filters.items())

    def _is(self, key: str, value: str) -> bool:
        if key == "type":
            return self.kind == value
        if key == "event":
            return self.action == value or self.action.partition(":")[0] == value
        if key == "label":
            name, equals, wanted = value.partition("=")
            return name in self.attributes and (not equals or self.attributes[name] == wanted)
        if key in ("scope", "daemon"):
            return value in ("local", "unionctl")
        if key == "image" and self.kind == "container":
            return self.attributes.get("image", "").partition(":")[0] == value.partition(":")[0]
        names = (self.subject, self.attributes.get("name", ""), self.attributes.get("container", ""))
        return (self.kind == key and value in names) or (
            self.kind == key and len(value) >= 12 and self.subject.removeprefix("sha256:").startswith(value)
        )


def record(root: Root, event: Event) -> None:
    """Write an event down. A journal that cannot be written stops nobody."""
    line = json.dumps(asdict(event)).encode() + b"\n"
    with contextlib.suppress(OSError):
        fd = os.open(_path(root), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, line)
            if os.fstat(fd).st_size > _LONG:
                os.replace(_path(root), _older(root))
        finally:
            os.close(fd)


def _path(root: Root) -> Path:
    return root.path / "events"


def _older(root: Root) -> Path:
    return root.path / "events.1"


class Reader:
    """Reads the journal from its present end on, or from an instant in the past."""

    def __init__(self, root: Root, since: int | None = None) -> None:
        """`since` is in nanoseconds; None begins now."""
        self._root = root
        self._past: list[Event] = []
        self._file: BinaryIO | None = None
        self._since = since
        if since is not None:
            with contextlib.suppress(FileNotFoundError), open(_older(root), "rb") as file:
                self._past = list(_lines(file))
        self._open()
        if since is None and self._file is not None:
            self._file.seek(0, os.SEEK_END)

    def read(self) -> list[Event]:
        """The events that there are since the last call."""
        found, self._past = self._past, []
        if self._file is None:
            self._open()
        while self._file is not None:
            found += _lines(self._file)
            if self._is_current():
                break
            found += _lines(self._file)  # what came before it was replaced
            self._file.close()
            self._open()
        since = self._since or 0
        return [event for event in found if event.nanoseconds >= since]

    def close(self) -> None:
        """Let go of the journal."""
        if self._file is not None:
            self._file.close()

    def _open(self) -> None:
        try:
            self._file = open(_path(self._root), "rb")  # noqa: SIM115 - closed by close
        except FileNotFoundError:
            self._file = None

    def _is_current(self) -> bool:
        assert self._file is not None
        try:
            return os.stat(_path(self._root)).st_ino == os.fstat(self._file.fileno()).st_ino
        except FileNotFoundError:
            return True


def _lines(file: BinaryIO) -> Iterator[Event]:
    for line in file:
        if not line.endswith(b"\n"):
            file.seek(-len(line), os.SEEK_CUR)
            return
        with contextlib.suppress(ValueError, TypeError):  # a damaged line is not an event
            yield Event(**json.loads(line))


def follow(
    root: Root,
    since: int | None = None,
    until: int | None = None,
    going: Callable[[], bool] = lambda: True,
) -> Iterator[Event]:
    """The events from `since` to `until` (nanoseconds since the epoch), as they come; for ever without it."""
    reader = Reader(root, since)
    with contextlib.closing(reader):
        while True:
            ended = until is not None and time.time_ns() > until
            for event in reader.read():
                if until is None or event.nanoseconds <= until:
                    yield event
            if ended or not going():
                return
            time.sleep(_POLL)
