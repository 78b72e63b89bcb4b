"""What happens to containers, images, volumes and networks, as docker's events.

What happens to containers is read from their records, so that it is seen whoever did it: this server, the
command, or a monitor. All else is told by the handlers that do it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TextIO

import trio

from runtime.api.values import Filters, Json
from runtime.containers.container import Container, load
from runtime.containers.names import short
from runtime.containers.settle import UNKNOWN_EXIT
from runtime.errors import RuntimeFailure
from runtime.root import Root

_KEPT = 256  # docker's
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

    def to_json(self) -> Json:
        """The event in docker's words, with the fields of old clients."""
        value: Json = {
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

    def passes(self, filters: Filters) -> bool:
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


def of_container(container: Container, action: str, **attributes: str) -> Event:
    """An event of a container, with the attributes that docker gives it."""
    common = {**container.labels, "image": container.request.image, "name": container.name}
    return Event("container", action, container.id, {**common, **attributes})


class EventLog:
    """The last events, and those to come."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._events: deque[Event] = deque(maxlen=_KEPT)
        self._count = 0  # of all events ever
        self._more = trio.Event()
        self._known: dict[str, tuple[int, Container]] = {}  # directory → its record's mtime, and the record
        # Of containers that have not ended: it tells the exit code also of one that is removed at its end.
        self._locks: dict[str, TextIO] = {}

    def add(self, event: Event) -> None:
        """Tell all who listen."""
        self._events.append(event)
        self._count += 1
        self._more.set()
        self._more = trio.Event()

    async def follow(self, since: int | None) -> AsyncIterator[Event | None]:
        """The kept events from `since` (nanoseconds; None: none of them), None, and then each as it comes."""
        seen = self._count
        if since is not None:
            for event in list(self._events):
                if event.nanoseconds >= since:
                    yield event
        yield None
        while True:
            fresh = min(self._count - seen, len(self._events))
            seen = self._count
            if not fresh:
                await self._more.wait()
            for event in list(self._events)[len(self._events) - fresh :] if fresh else ():
                yield event

    async def watch(self) -> None:
        """Look after the containers' records, for ever."""
        self._look()  # what is there already is no event
        self._events.clear()
        while True:
            await trio.sleep(_POLL)
            self._look()

    def _look(self) -> None:
        present = set()
        with contextlib.suppress(FileNotFoundError), os.scandir(self._root.containers) as entries:
            for entry in entries:
                with contextlib.suppress(OSError, RuntimeFailure):  # gone meanwhile, or damaged
                    changed = os.stat(f"{entry.path}/container.json").st_mtime_ns
                    present.add(entry.name)
                    known = self._known.get(entry.name)
                    if known is None or known[0] != changed:
                        record = load(self._root.containers / entry.name)
                        self._known[entry.name] = changed, record
                        self._keep_lock(entry.name, record)
                        self._compare(known[1] if known else None, record)
        for name in self._known.keys() - present:
            self._gone(self._known.pop(name)[1])

    def _keep_lock(self, name: str, record: Container) -> None:
        if record.state.status == "exited":
            self._drop_lock(name)
        elif name not in self._locks:
            self._locks[name] = open(record.directory / "lock")  # noqa: SIM115 - closed by _drop_lock

    def _drop_lock(self, name: str) -> str:
        """Close it; its content, which is the exit code if there is one."""
        lock = self._locks.pop(name, None)
        if lock is None:
            return ""
        with lock:
            return lock.read()

    def _compare(self, before: Container | None, after: Container) -> None:
        """Tell what must have happened between two states of a record."""
        if before is None:
            self.add(of_container(after, "create"))
            before = after.with_state(status="created", starts=0)
        if before.name != after.name:
            self.add(of_container(after, "rename", oldName=f"/{before.name}"))
        was, now = before.state, after.state
        started = now.starts > was.starts or was.status == "starting"
        if was.live and was.status != "starting" and now.starts > was.starts:
            self._died(before)
        if started and now.status in ("running", "paused", "exited"):
            self.add(of_container(after, "start"))
        if now.status == "paused" and was.status != "paused":
            self.add(of_container(after, "pause"))
        if now.status == "running" and was.status == "paused" and not started:
            self.add(of_container(after, "unpause"))
        if now.status == "exited" and (was.status != "exited" or started):
            if now.oom_killed:
                self.add(of_container(after, "oom"))
            self._died(after)

    def _gone(self, last: Container) -> None:
        """A container was removed; one of --rm may never have been seen to end."""
        code = self._drop_lock(last.id)
        if last.state.live:
            if last.state.status == "starting":
                self.add(of_container(last, "start"))
            self._died(last.with_state(exit_code=int(code or UNKNOWN_EXIT)))
        self.add(of_container(last, "destroy"))

    def _died(self, container: Container) -> None:
        self.add(of_container(container, "die", exitCode=str(container.state.exit_code)))


def of_image(action: str, identifier: str, name: str) -> Event:
    """An event of an image."""
    return Event("image", action, identifier, {"name": name or short(identifier)})
