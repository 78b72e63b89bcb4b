"""The journal of events, for those who listen by the API."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import trio

from runtime import events
from runtime.containers.names import short
from runtime.events import Event
from runtime.root import Root

_POLL = 0.1


class EventLog:
    """Events that the API's handlers tell, and all that anyone told, in order."""

    def __init__(self, root: Root) -> None:
        self._root = root

    def add(self, event: Event) -> None:
        """Tell all who listen."""
        events.record(self._root, event)

    async def follow(self, since: int | None) -> AsyncIterator[Event | None]:
        """The kept events from `since` (nanoseconds; None: none of them), None, and then each as it comes."""
        with contextlib.closing(events.Reader(self._root, since)) as reader:
            for event in reader.read():
                yield event
            yield None
            while True:
                await trio.sleep(_POLL)
                for event in reader.read():
                    yield event


def of_image(action: str, identifier: str, name: str) -> Event:
    """An event of an image."""
    return Event("image", action, identifier, {"name": name or short(identifier)})
