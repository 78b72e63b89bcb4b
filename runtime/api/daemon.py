"""What one server knows: the state root, and what lives only as long as the server does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from runtime.api.event_log import EventLog
from runtime.api.hijack import Wanted
from runtime.containers.attach import Attachment
from runtime.containers.container import images_in_use
from runtime.containers.execs import ExecRequest
from runtime.images.store import ImageStore
from runtime.root import Root


@dataclass
class ExecRecord:
    """A process that a client asked to have executed; the API makes it first and starts it later."""

    id: str
    container: str
    request: ExecRequest
    streams: Wanted
    directory: Path | None = None  # where its terminal is told its size
    pid: int = 0
    running: bool = False
    exit_code: int | None = None


@dataclass
class Expected:
    """A client that attached to a container which is not started yet."""

    arrived: trio.Event = field(default_factory=trio.Event)
    attachment: Attachment | None = None


class Daemon:
    """The state of one server; handlers get it and the call."""

    def __init__(self, root: Root, background: trio.Nursery) -> None:
        self.root = root.prepare()
        self.store = ImageStore(self.root, lambda: images_in_use(self.root))
        self.events = EventLog(self.root)
        self.execs: dict[str, ExecRecord] = {}
        self.background = background  # for what goes on when the client has gone
        self.windows: dict[str, tuple[int, int]] = {}  # container → its terminal's size before it is started
        self._expected: dict[str, list[Expected]] = {}

    def expect(self, container: str) -> Expected:
        """Wait for the container's next start by this server."""
        expected = Expected()
        self._expected.setdefault(container, []).append(expected)
        return expected

    @contextmanager
    def starting(self, container: str) -> Iterator[Callable[[Path], None]]:
        """A function that lets those who wait see all of the start; it is called in a worker thread.

        After the block nobody waits any more: those for whom it was not called have nothing to attach to.
        """
        waiting = self._expected.pop(container, [])

        def on_created(directory: Path) -> None:
            for expected in waiting:
                expected.attachment = Attachment(directory)
                trio.from_thread.run_sync(expected.arrived.set)

        try:
            yield on_created
        finally:
            for expected in waiting:
                expected.arrived.set()

    def forget(self, container: str, expected: Expected) -> None:
        """The client does not wait any more."""
        waiting = self._expected.get(container, [])
        if expected in waiting:
            waiting.remove(expected)
        if not waiting:
            self._expected.pop(container, None)
