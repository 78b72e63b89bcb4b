"""A client's hijacked connection joined to a process's console.

To the client the two output streams go in frames, unless there is a terminal: a byte for the stream (1 is
stdout, 2 stderr), three zeros, the length in four bytes, big-endian, and the data (Docker Engine API, "Stream
format"). What comes from the client is stdin as it is; when it shuts its side down, that is the end of stdin.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import trio

from runtime.api.errors import ApiError
from runtime.api.http import MULTIPLEXED, RAW, Call, Hijacked
from runtime.containers.attach import DETACH_KEYS, FROM_CONTAINER, PACKET, STDERR, Attachment, DetachKeys

_FRAME = struct.Struct(">BxxxL")
_SINCE_STREAM_TYPES = (1, 42)  # older clients get `raw-stream`, whatever it is


@dataclass(frozen=True)
class Wanted:
    """Which streams the client joins, and how they are sent."""

    stdin: bool
    stdout: bool
    stderr: bool
    terminal: bool
    detach_keys: bytes = DETACH_KEYS

    def content_type(self, version: tuple[int, int]) -> str:
        """The media type that says how the output is sent."""
        return RAW if self.terminal or version < _SINCE_STREAM_TYPES else MULTIPLEXED


def frame(stream: int, data: bytes) -> bytes:
    """`data` of stream 1 (stdout) or 2 (stderr), with the header that tells."""
    return _FRAME.pack(stream, len(data)) + data


def detach_keys(text: str) -> bytes:
    """The bytes of docker's `detachKeys`: keys with commas between, each a letter or ctrl-LETTER.

    Raises ApiError 400 when it is no such list.
    """
    if not text:
        return DETACH_KEYS
    keys = b""
    for key in text.split(","):
        control = key.removeprefix("ctrl-")
        if len(key) == 1 and key.isascii():
            keys += key.encode()
        elif control != key and len(control) == 1 and control in "abcdefghijklmnopqrstuvwxyz@[\\]^_":
            keys += bytes([ord(control.upper()) - ord("@")])
        else:
            raise ApiError(400, f"invalid detach keys ({text}): unknown key {key!r}")
    return keys


def wanted_streams(call: Call, terminal: bool, has_stdin: bool) -> Wanted:
    """What the query of an attach asks for."""
    return Wanted(
        stdin=call.query.flag("stdin") and has_stdin,
        stdout=call.query.flag("stdout"),
        stderr=call.query.flag("stderr"),
        terminal=terminal,
        detach_keys=detach_keys(call.query.text("detachKeys")),
    )


async def join(client: Hijacked, attachment: Attachment, wanted: Wanted) -> bool:
    """Pass data both ways until the process ends (True), or the client detaches or is gone (False)."""
    with trio.socket.from_stdlib_socket(attachment.take()) as console:
        async with trio.open_nursery() as nursery:
            detached = trio.Event()

            async def typed() -> None:
                if await _to_process(client, console, wanted):
                    detached.set()
                    nursery.cancel_scope.cancel()

            nursery.start_soon(typed)
            try:
                await _to_client(client, console, wanted)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return False
            finally:
                nursery.cancel_scope.cancel()
        return not detached.is_set()


async def _to_client(client: Hijacked, console: trio.socket.SocketType, wanted: Wanted) -> None:
    while True:
        try:
            message = await console.recv(FROM_CONTAINER)
        except ConnectionResetError:  # it ended with some of our stdin unread
            return
        if not message:
            return
        is_error = message[0] == STDERR
        if not (wanted.stderr if is_error else wanted.stdout):
            continue
        data = message[1:]
        await client.send(data if wanted.terminal else frame(2 if is_error else 1, data))


async def _to_process(client: Hijacked, console: trio.socket.SocketType, wanted: Wanted) -> bool:
    """Pass stdin on to its end; True when the detach keys were typed."""
    keys = DetachKeys(wanted.detach_keys) if wanted.terminal else None
    try:
        while data := await client.receive():
            if not wanted.stdin:
                continue
            if keys:
                data, detached = keys.filter(data)
                if detached:
                    return True
            for start in range(0, len(data), PACKET):
                await console.send(data[start : start + PACKET])
        if wanted.stdin:
            if keys and (rest := keys.rest()):
                await console.send(rest)
            console.shutdown(trio.socket.SHUT_WR)
    except OSError:  # the process has ended: what it left to be read still comes
        pass
    return False
