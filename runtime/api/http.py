"""HTTP/1.1 on a trio stream: one request after the other, until one of them takes the stream over.

attach and exec make of the connection two byte streams ("hijack it", Docker Engine API, "Attach to a
container"): after `101 UPGRADED`, or `200 OK` for a client that asks for no upgrade, HTTP is over.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import h11
import trio

from runtime.api.errors import ApiError, status_of
from runtime.api.values import Fields, Query
from runtime.errors import RuntimeFailure, one_line

log = logging.getLogger(__name__)

_CHUNK = 64 << 10
#: docker puts credentials and build arguments into headers and the request line.
_HEAD_MAX = 1 << 20
_JSON_MAX = 8 << 20

RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"

Write = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True)
class Reply:
    """An answer that is sent whole; `value` is sent as JSON unless it is bytes, None as nothing."""

    value: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def content(self) -> tuple[str, bytes]:
        """The content type and the bytes."""
        if isinstance(self.value, bytes):
            return "text/plain; charset=utf-8", self.value
        if self.value is None:
            return "", b""
        return "application/json", json.dumps(self.value).encode() + b"\n"


NO_CONTENT = Reply(status=204)


class Hijacked:
    """A connection that is HTTP no more."""

    def __init__(self, stream: trio.abc.Stream, received: bytes) -> None:
        self._stream = stream
        self._received = received  # what came behind the request

    async def receive(self) -> bytes:
        """The next bytes; empty when the client has shut its side down, or is gone."""
        if self._received:
            data, self._received = self._received, b""
            return data
        try:
            return bytes(await self._stream.receive_some(_CHUNK))
        except trio.BrokenResourceError:
            return b""

    async def send(self, data: bytes) -> None:
        """Send `data`; raises trio.BrokenResourceError when the client is gone."""
        await self._stream.send_all(data)


class Call:
    """One request, and the means to answer it. A handler returns a Reply, or None when it has answered."""

    def __init__(self, connection: Connection, request: h11.Request) -> None:
        self._connection = connection
        self.method = request.method.decode("ascii")
        path, _, query = request.target.decode("utf-8", "replace").partition("?")
        self.path = unquote(path)
        self.query = Query(query)
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}
        self.arguments: dict[str, str] = {}  # the router's
        self.version = (0, 0)  # the router's
        self.begun = False

    @property
    def name(self) -> str:
        """What `{name}` stands for in the path."""
        return self.arguments["name"]

    @property
    def upgrade(self) -> bool:
        """Whether the client asks for a raw stream in place of HTTP."""
        return "upgrade" in self.headers

    async def body(self) -> AsyncIterator[bytes]:
        """The request's body, as it comes."""
        async for data in self._connection.body():
            yield data

    async def fields(self) -> Fields:
        """The request's body as a JSON object; nothing at all is an empty one.

        Raises ApiError 400 when it is neither.
        """
        data = b""
        async for part in self.body():
            data += part
            if len(data) > _JSON_MAX:
                raise ApiError(413, f"the request's JSON is longer than {_JSON_MAX} bytes")
        try:
            return Fields.of(json.loads(data) if data.strip() else None)
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"invalid JSON: {error}") from error
        except RuntimeFailure as error:
            raise ApiError(400, error.message) from error

    @asynccontextmanager
    async def streaming(
        self, content_type: str = "application/json", more_headers: dict[str, str] | None = None
    ) -> AsyncIterator[Write]:
        """Answer with what the block writes, each piece at once; it is cancelled when the client goes."""
        await self._connection.skip_body()
        self.begun = True
        headers = [("Content-Type", content_type), *(more_headers or {}).items()]
        await self._connection.send(h11.Response(status_code=200, headers=headers, reason=b"OK"))

        async def write(data: bytes) -> None:
            if data:
                await self._connection.send(h11.Data(data=data))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._connection.watch, nursery.cancel_scope)
            yield write
            nursery.cancel_scope.cancel()
        if nursery.cancel_scope.cancelled_caught and self._connection.gone:
            raise trio.BrokenResourceError("the client has gone")
        await self._connection.send(h11.EndOfMessage())

    async def hijack(self, content_type: str) -> Hijacked:
        """Take the connection over, saying that a stream of `content_type` follows."""
        self.begun = True
        return await self._connection.hijack(self.upgrade, content_type)


Handler = Callable[[Call], Awaitable[Reply | None]]


class Connection:
    """One client's connection."""

    def __init__(self, stream: trio.abc.Stream, headers: dict[str, str]) -> None:
        self._stream = stream
        self._headers = list(headers.items())  # of every answer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_MAX)
        self._ahead = b""  # received while an answer was streamed
        self.gone = False
        self._hijacked = False

    async def serve(self, handle: Handler, idle: Callable[[bool], None]) -> None:
        """Answer requests until the client goes, or a handler has hijacked the connection.

        `idle` is told whether the connection waits for a request.
        """
        try:
            while True:
                idle(True)
                request = await self._next_event()
                if not isinstance(request, h11.Request):
                    return
                idle(False)
                await self._answer(Call(self, request), handle)
                if self._hijacked or self._http.our_state is not h11.DONE:
                    return
                if self._http.their_state is not h11.DONE:
                    return
                self._http.start_next_cycle()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        except h11.RemoteProtocolError as error:
            if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                await self._reply(Reply({"message": f"bad request: {error}"}, error.error_status_hint), "GET")

    async def _answer(self, call: Call, handle: Handler) -> None:
        try:
            reply = await handle(call)
        except Exception as raised:
            error = _innermost(raised)
            if isinstance(error, (trio.BrokenResourceError, h11.RemoteProtocolError)):
                raise error from None
            if status_of(error) == 500 and not isinstance(error, (RuntimeFailure, OSError)):
                log.exception("%s %s", call.method, call.path)
            if call.begun:
                log.warning("%s %s: %s", call.method, call.path, one_line(error))
                self._http.send_failed()
                return
            reply = Reply({"message": one_line(error) or type(error).__name__}, status_of(error))
        if reply is not None:
            await self.skip_body()
            await self._reply(reply, call.method)

    async def _reply(self, reply: Reply, method: str) -> None:
        content_type, data = reply.content
        headers = dict(reply.headers)
        if content_type:
            headers.setdefault("Content-Type", content_type)
        if reply.status != 204:
            headers.setdefault("Content-Length", str(len(data)))
        await self.send(h11.Response(status_code=reply.status, headers=list(headers.items())))
        if data and method != "HEAD":
            await self.send(h11.Data(data=data))
        await self.send(h11.EndOfMessage())

    async def send(self, event: h11.Event) -> None:
        """Send one of h11's events."""
        if isinstance(event, h11.Response):
            event = h11.Response(
                status_code=event.status_code,
                headers=[*_pairs(event), *self._headers],
                reason=event.reason,
            )
        data = self._http.send(event)
        if data:
            await self._stream.send_all(data)

    async def body(self) -> AsyncIterator[bytes]:
        """The body of the present request."""
        while True:
            if self._http.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            event = await self._next_event()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            else:
                return

    async def skip_body(self) -> None:
        """Read what is left of the request; one that nobody asked to send is not waited for."""
        if self._http.their_state is h11.SEND_BODY and not self._http.they_are_waiting_for_100_continue:
            async for _ in self.body():
                pass

    async def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self._ahead:
                data, self._ahead = self._ahead, b""
            else:
                data = bytes(await self._stream.receive_some(_CHUNK))
            self._http.receive_data(data)

    async def watch(self, scope: trio.CancelScope) -> None:
        """Cancel `scope` when the client goes; what it sends meanwhile is kept for the next request."""
        while len(self._ahead) < _HEAD_MAX:
            try:
                data = bytes(await self._stream.receive_some(_CHUNK))
            except trio.BrokenResourceError:
                data = b""
            if not data:
                self.gone = True
                scope.cancel()
                return
            self._ahead += data

    async def hijack(self, upgrade: bool, content_type: str) -> Hijacked:
        """End HTTP on this connection, in the way that the client asked for."""
        await self.skip_body()
        headers = [("Content-Type", content_type), *self._headers]
        if upgrade and self._http.our_state is h11.SEND_RESPONSE:
            headers += [("Connection", "Upgrade"), ("Upgrade", "tcp")]
            await self.send(h11.InformationalResponse(status_code=101, headers=headers, reason=b"UPGRADED"))
        else:
            # An answer that ends with the connection, without a length and in no chunks.
            head = "".join(f"{name}: {value}\r\n" for name, value in headers)
            await self._stream.send_all(f"HTTP/1.1 200 OK\r\n{head}\r\n".encode("latin-1"))
        self._hijacked = True
        received, _ = self._http.trailing_data
        return Hijacked(self._stream, bytes(received))


def _innermost(error: Exception) -> Exception:
    """The one exception that nurseries have wrapped."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _pairs(event: h11.Response) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers]
