"""/exec: one more process in a container, made first and started later."""

from __future__ import annotations

import secrets
from pathlib import Path

import trio

from runtime.api.consoles import window
from runtime.api.daemon import Daemon, ExecRecord
from runtime.api.errors import ApiError
from runtime.api.hijack import Wanted, detach_keys, frame, join
from runtime.api.http import Call, Reply
from runtime.api.pipes import patiently, work
from runtime.containers import attach as attaching
from runtime.containers import execs, lifecycle
from runtime.containers.attach import Attachment
from runtime.containers.execs import Exec, ExecRequest
from runtime.containers.telling import of_container
from runtime.errors import RuntimeFailure

_KEPT = 1000  # ended ones, whose exit code may still be asked for


async def create(daemon: Daemon, call: Call) -> Reply:
    """POST /containers/NAME/exec."""
    wanted = await call.fields()
    subject = await work(lambda: lifecycle.inspect(daemon.root, call.name))
    if subject.state.status == "paused":
        raise ApiError(409, f"container {call.name} is paused, unpause the container before exec")
    if subject.state.status != "running":
        raise ApiError(409, f"container {subject.id} is not running")
    command = wanted.words("Cmd") or ()
    if not command:
        raise ApiError(400, "No exec command specified")
    request = ExecRequest(
        args=command,
        env=wanted.texts("Env"),
        working_dir=wanted.text("WorkingDir"),
        user=wanted.text("User"),
        tty=wanted.flag("Tty"),
        stdin=wanted.flag("AttachStdin"),
        privileged=wanted.flag("Privileged"),
    )
    streams = Wanted(
        stdin=request.stdin,
        stdout=wanted.flag("AttachStdout"),
        stderr=wanted.flag("AttachStderr"),
        terminal=request.tty,
        detach_keys=detach_keys(wanted.text("DetachKeys")),
    )
    _forget_old(daemon)
    record = ExecRecord(secrets.token_hex(32), subject.id, request, streams)
    daemon.execs[record.id] = record
    daemon.events.add(of_container(subject, f"exec_create: {' '.join(command)}", execID=record.id))
    return Reply({"Id": record.id}, 201)


def _forget_old(daemon: Daemon) -> None:
    ended = [record.id for record in daemon.execs.values() if record.exit_code is not None]
    for identifier in ended[: max(0, len(ended) - _KEPT)]:
        del daemon.execs[identifier]


def _find(daemon: Daemon, identifier: str) -> ExecRecord:
    try:
        return daemon.execs[identifier]
    except KeyError:
        raise ApiError(404, f"No such exec instance: {identifier}") from None


async def start(daemon: Daemon, call: Call) -> Reply | None:
    """POST /exec/ID/start: detached, or with the connection as its streams."""
    record = _find(daemon, call.name)
    wanted = await call.fields()
    if record.running or record.exit_code is not None:
        raise ApiError(409, f"Error: Exec command {record.id} has already run")
    size = wanted.value.get("ConsoleSize")
    first_size = (int(size[0]), int(size[1])) if isinstance(size, list) and len(size) == 2 else None
    detached = wanted.flag("Detach")
    attachments: list[Attachment] = []

    def on_ready(directory: Path) -> None:
        record.directory = directory
        attachments.append(Attachment(directory))

    record.running = True
    try:
        process = await work(
            lambda: execs.start(
                daemon.root, record.container, record.request, None if detached else on_ready, first_size
            )
        )
    except RuntimeFailure as error:
        record.running = False
        record.exit_code = error.exit_code or 126
        if detached or error.exit_code not in (126, 127):
            raise
        # docker says it on the stream, and in the exit code.
        client = await call.hijack(record.streams.content_type(call.version))
        words = f"{error.message}\r\n".encode()
        await client.send(words if record.streams.terminal else frame(1, words))
        return None
    record.pid = process.pid
    subject = await work(lambda: lifecycle.inspect(daemon.root, record.container))
    command = " ".join(record.request.args)
    daemon.events.add(of_container(subject, f"exec_start: {command}", execID=record.id))
    ended = trio.Event()
    daemon.background.start_soon(_follow, daemon, record, process, ended)
    if detached:
        return Reply(b"")
    client = await call.hijack(record.streams.content_type(call.version))
    # A client asks for the exit code as soon as the streams end.
    if await join(client, attachments[0], record.streams):
        await ended.wait()
    return None


async def _follow(daemon: Daemon, record: ExecRecord, process: Exec, ended: trio.Event) -> None:
    """Keep the exit code of a process when it is known."""
    # What conmon says last may have been read with what it said first; then it has shut the pipe by now.
    await trio.lowlevel.wait_readable(process.answers.fileno())
    record.exit_code = await patiently(process.wait)
    record.running = False
    record.directory = None
    ended.set()
    try:
        subject = await work(lambda: lifecycle.inspect(daemon.root, record.container))
    except Exception:  # removed meanwhile
        return
    daemon.events.add(of_container(subject, "exec_die", execID=record.id, exitCode=str(record.exit_code)))


async def inspect(daemon: Daemon, call: Call) -> Reply:
    """GET /exec/ID/json."""
    record = _find(daemon, call.name)
    request, streams = record.request, record.streams
    return Reply(
        {
            "ID": record.id,
            "Running": record.running,
            "ExitCode": record.exit_code,
            "ProcessConfig": {
                "tty": request.tty,
                "entrypoint": request.args[0],
                "arguments": list(request.args[1:]),
                "privileged": request.privileged,
                "user": request.user,
            },
            "OpenStdin": streams.stdin,
            "OpenStderr": streams.stderr,
            "OpenStdout": streams.stdout,
            "CanRemove": False,
            "ContainerID": record.container,
            "DetachKeys": "",
            "Pid": record.pid,
        }
    )


async def resize(daemon: Daemon, call: Call) -> Reply:
    """POST /exec/ID/resize?h=…&w=…"""
    rows, columns = window(call)
    record = _find(daemon, call.name)
    directory = record.directory
    if directory is None:
        raise ApiError(409, f"exec {record.id} is not running")
    await work(lambda: attaching.resize(directory, rows, columns))
    return Reply(b"")
