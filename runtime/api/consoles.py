"""/containers/NAME/attach, logs, wait, resize: what lasts as long as a container."""

from __future__ import annotations

import json
from typing import BinaryIO

import trio

from runtime.api.daemon import Daemon, Expected
from runtime.api.errors import ApiError
from runtime.api.hijack import Wanted, frame, join, wanted_streams
from runtime.api.http import Call, Hijacked, Reply
from runtime.api.pipes import produced, work
from runtime.containers import attach as attaching
from runtime.containers import lifecycle, logs
from runtime.containers.attach import Attachment
from runtime.containers.container import Container, load
from runtime.containers.logs import Entry
from runtime.containers.settle import UNKNOWN_EXIT, needs_mending, settle_by_path
from runtime.containers.telling import of_container

_POLL = 0.02, 0.25  # seconds: the first and the longest


async def attach(daemon: Daemon, call: Call) -> None:
    """POST /containers/NAME/attach: to one that runs, or to one that is going to be started."""
    subject = await work(lambda: lifecycle.inspect(daemon.root, call.name))
    wanted = wanted_streams(call, subject.request.tty, subject.request.stdin)
    if subject.state.status == "paused":
        raise ApiError(409, f"container {call.name} is paused, unpause the container before attach")
    stream, running = call.query.flag("stream"), subject.state.status == "running"
    # Connected before the log is read and the client hears of it: nothing is missed between them.
    attachment = await work(lambda: Attachment(subject.bundle)) if stream and running else None
    expected = daemon.expect(subject.id) if stream and not running else None
    client = await call.hijack(wanted.content_type(call.version))
    try:
        if call.query.flag("logs"):
            await produced(call, client.send, lambda file: _write_log(file, subject, wanted))
        if expected:
            attachment = await _arrival(daemon, subject, expected, client)
        if attachment and not await join(client, attachment, wanted):
            daemon.events.add(of_container(subject, "detach"))
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return


async def _arrival(
    daemon: Daemon, subject: Container, expected: Expected, client: Hijacked
) -> Attachment | None:
    try:
        await expected.arrived.wait()
    finally:
        daemon.forget(subject.id, expected)
    return expected.attachment


async def get_logs(daemon: Daemon, call: Call) -> Reply | None:
    """GET /containers/NAME/logs."""
    query = call.query
    subject = await work(lambda: lifecycle.inspect(daemon.root, call.name))
    wanted = Wanted(False, query.flag("stdout"), query.flag("stderr"), subject.request.tty)
    if not (wanted.stdout or wanted.stderr):
        raise ApiError(400, "Bad parameters: you must choose at least one stream")
    tail = query.text("tail")
    count = int(tail) if tail.isdecimal() else None
    since, until = (text if text != "0" else "" for text in (query.text("since"), query.text("until")))
    watch = lifecycle.Watch(daemon.root, subject) if query.flag("follow") else None

    def going() -> bool:
        trio.from_thread.check_cancelled()  # the client has gone
        return watch is not None and watch.wait(0) is None

    def write(file: BinaryIO) -> None:
        writer = _LogWriter(file, wanted, query.flag("timestamps"))
        for entry in logs.read(subject.log, going if watch else None, count, since, until):
            writer.write(entry)

    async with call.streaming(wanted.content_type(call.version)) as send:
        await produced(call, send, write)
    return None


def _write_log(file: BinaryIO, subject: Container, wanted: Wanted) -> None:
    writer = _LogWriter(file, wanted, timestamps=False)
    for entry in logs.read(subject.log):
        writer.write(entry)


class _LogWriter:
    """Writes the entries of a log as a client wants them."""

    def __init__(self, file: BinaryIO, wanted: Wanted, timestamps: bool) -> None:
        self._file = file
        self._wanted = wanted
        self._timestamps = timestamps
        self._begins = {"stdout": True, "stderr": True}

    def write(self, entry: Entry) -> None:
        """Write `entry`, if its stream is wanted."""
        is_error = entry.stream == "stderr"
        if not (self._wanted.stderr if is_error else self._wanted.stdout):
            return
        stamp = f"{entry.time} ".encode() if self._timestamps and self._begins[entry.stream] else b""
        self._begins[entry.stream] = entry.data.endswith(b"\n")
        data = stamp + entry.data
        data = data if self._wanted.terminal else frame(2 if is_error else 1, data)
        while data:
            data = data[self._file.write(data) :]


async def wait(daemon: Daemon, call: Call) -> None:
    """POST /containers/NAME/wait?condition=…: the headers at once, the exit code when it is known."""
    condition = call.query.text("condition") or "not-running"
    if condition not in ("not-running", "next-exit", "removed"):
        raise ApiError(400, f'invalid condition: "{condition}"')
    subject = await work(lambda: lifecycle.inspect(daemon.root, call.name))
    with open(subject.directory / "lock") as lock:  # tells the exit code also when the rest is gone
        async with call.streaming() as write:
            await write(b"")
            code = await _end(daemon, subject, condition)
            if code is None:
                lock.seek(0)
                code = int(lock.read() or (UNKNOWN_EXIT if subject.state.live else subject.state.exit_code))
            await write(json.dumps({"StatusCode": code}).encode() + b"\n")


async def _end(daemon: Daemon, subject: Container, condition: str) -> int | None:
    """The exit code once `condition` is met; None when the record does not tell it any more."""
    ends = subject.state.starts + (not subject.state.live)  # the start whose end is the next one
    pause, longest = _POLL
    while True:
        try:
            container = load(subject.directory)
        except FileNotFoundError:
            return None
        if needs_mending(container):
            await work(lambda: settle_by_path(daemon.root, subject.directory))
            continue
        ended = not container.state.live
        if condition == "not-running" and not container.state.active:
            return container.state.exit_code
        if condition == "next-exit" and container.state.starts > ends:
            return None  # started again since: the last exit code is left
        if condition == "next-exit" and ended and container.state.starts == ends:
            return container.state.exit_code
        await trio.sleep(pause)
        pause = min(pause * 1.1, longest)


async def resize(daemon: Daemon, call: Call) -> Reply:
    """POST /containers/NAME/resize?h=…&w=…"""
    rows, columns = window(call)
    subject = await work(lambda: lifecycle.inspect(daemon.root, call.name))
    if subject.state.status != "running":
        raise ApiError(409, f"container {subject.id} is not running")
    await work(lambda: attaching.resize(subject.bundle, rows, columns))
    return Reply(b"")


def window(call: Call) -> tuple[int, int]:
    """The (rows, columns) that a resize asks for."""
    rows, columns = call.query.number("h"), call.query.number("w")
    if rows is None or columns is None or not (0 <= rows < 1 << 16 and 0 <= columns < 1 << 16):
        raise ApiError(400, "a resize needs h and w, each from 0 to 65535")
    return rows, columns
