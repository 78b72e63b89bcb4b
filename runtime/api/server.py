"""Sockets: which ones are listened on, who may connect, and how it ends."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import signal
import socket
import ssl
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import trio

from runtime.about import API_VERSION
from runtime.api.daemon import Daemon
from runtime.api.http import Call, Connection, Reply
from runtime.api.routes import router
from runtime.containers.lifecycle import start_all_wanted
from runtime.errors import RuntimeFailure
from runtime.root import Root

log = logging.getLogger(__name__)

_FIRST_PASSED = 3  # sd_listen_fds(3)
_GRACE = 5.0  # seconds that requests have to come to their end
_HEADERS = {
    "Api-Version": API_VERSION,
    "Docker-Experimental": "false",
    "Ostype": "linux",
    "Server": "unionctl",
}


@dataclass(frozen=True)
class Tls:
    """The server's certificate and key, and the authority that has to have signed those of clients."""

    authority: Path
    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """TLS 1.2 and later, for clients with a certificate alone.

        Raises RuntimeFailure when a file cannot be read or is no such thing.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(self.authority)
            context.load_cert_chain(self.certificate, self.key)
        except OSError as error:
            files = ", ".join(map(str, (self.authority, self.certificate, self.key)))
            raise RuntimeFailure(f"cannot use the certificates {files}: {error}") from error
        return context


def serve(root: Root, addresses: Sequence[str], tls: Tls | None, group: str) -> None:
    """Serve the API on `addresses` (unix://PATH, tcp://HOST:PORT, fd://) until SIGTERM or SIGINT.

    Sockets are made before anything is answered, and removed at the end. Sockets that systemd passed are used
    as they are.

    Raises RuntimeFailure for an address that is none, is in use, or would be open to the network without TLS.
    """
    context = tls.context() if tls else None
    with contextlib.ExitStack() as stack:
        bound = [
            (listener, context if listener.family != socket.AF_UNIX else None)
            for address in addresses
            for listener in stack.enter_context(_listening(address, context is not None, group))
        ]
        trio.run(_serve, root, bound)


async def _serve(root: Root, sockets: list[tuple[socket.socket, ssl.SSLContext | None]]) -> None:
    async with trio.open_nursery() as background:
        daemon = Daemon(root, background)
        background.start_soon(trio.to_thread.run_sync, start_all_wanted, root)
        ending = trio.Event()
        async with trio.open_nursery() as connections, trio.open_nursery() as listeners:
            handler = partial(_connection, daemon, ending)
            for plain, context in sockets:
                listener: trio.abc.Listener[trio.abc.Stream] = trio.SocketListener(
                    trio.socket.from_stdlib_socket(plain)
                )
                if context:
                    listener = trio.SSLListener(listener, context, https_compatible=True)
                listeners.start_soon(
                    partial(trio.serve_listeners, handler, [listener], handler_nursery=connections)
                )
                log.info("API listen on %s", _name(plain))
            await _told_to_end()
            listeners.cancel_scope.cancel()
            ending.set()
            connections.cancel_scope.deadline = trio.current_time() + _GRACE
        background.cancel_scope.cancel()


async def _told_to_end() -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            return


async def _connection(daemon: Daemon, ending: trio.Event, stream: trio.abc.Stream) -> None:
    """Serve one client; while it has nothing to ask, the end of the server is its end."""

    async def handle(call: Call) -> Reply | None:
        return await router(daemon, call)

    async with stream, trio.open_nursery() as nursery:
        waiting = True

        def idle(now: bool) -> None:
            nonlocal waiting
            waiting = now
            if waiting and ending.is_set():
                nursery.cancel_scope.cancel()

        async def end() -> None:
            await ending.wait()
            if waiting:
                nursery.cancel_scope.cancel()

        nursery.start_soon(end)
        await Connection(stream, _HEADERS).serve(handle, idle)
        nursery.cancel_scope.cancel()


@contextlib.contextmanager
def _listening(address: str, tls: bool, group: str) -> Iterator[list[socket.socket]]:
    """The listening sockets of one address."""
    kind, separator, rest = address.partition("://")
    if not separator or kind not in ("unix", "tcp", "fd"):
        raise RuntimeFailure(f"invalid address '{address}': it is unix://PATH, tcp://HOST:PORT or fd://")
    if kind == "fd":
        yield passed_sockets(address)
    elif kind == "tcp":
        listener = _tcp(address, tls)
        with listener:
            yield [listener]
    else:
        with _unix(Path(rest), group) as listener:
            yield [listener]


def passed_sockets(address: str = "fd://") -> list[socket.socket]:
    """The sockets that systemd passed to this process (sd_listen_fds(3)).

    Raises RuntimeFailure when there are none.
    """
    mine = os.environ.get("LISTEN_PID") == str(os.getpid())
    count = int(os.environ.get("LISTEN_FDS", "0")) if mine else 0
    if not count:
        raise RuntimeFailure(f"{address}: no socket was passed to this process (LISTEN_PID, LISTEN_FDS)")
    sockets = [socket.socket(fileno=fd) for fd in range(_FIRST_PASSED, _FIRST_PASSED + count)]
    for passed in sockets:
        os.set_inheritable(passed.fileno(), False)
        passed.setblocking(False)
    return sockets


def _tcp(address: str, tls: bool) -> socket.socket:
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "127.0.0.1", parts.port
        if port is None or parts.path.strip("/"):
            raise ValueError("it is tcp://HOST:PORT")
    except ValueError as error:
        raise RuntimeFailure(f"invalid address '{address}': {error}") from error
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if not tls and not ipaddress.ip_address(place[0]).is_loopback:
            raise RuntimeFailure(
                f"{address}: whoever can connect is root here, so any address but the loopback's needs "
                "--tlsverify with --tlscacert, --tlscert and --tlskey"
            )
        listener = socket.create_server(place[:2], family=family, backlog=128)
    except OSError as error:
        raise RuntimeFailure(f"cannot listen on {address}: {error.strerror}") from error
    listener.setblocking(False)
    return listener


@contextlib.contextmanager
def _unix(path: Path, group: str) -> Iterator[socket.socket]:
    """A socket at `path` for root and `group`; one that a dead server left there is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    with listener:
        _remove_stale(path)
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            before = os.umask(0o117)
            try:
                listener.bind(str(path))
            finally:
                os.umask(before)
            _give_to(path, group)
            listener.listen(128)
        except OSError as error:
            raise RuntimeFailure(f"cannot listen on unix://{path}: {error.strerror or error}") from error
        ours = os.lstat(path).st_ino
        try:
            yield listener
        finally:
            with contextlib.suppress(FileNotFoundError):
                if os.lstat(path).st_ino == ours:
                    path.unlink()


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise RuntimeFailure(f"cannot listen on unix://{path}: there is a file, and it is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise RuntimeFailure(f"cannot listen on unix://{path}: {error.strerror}") from error
    raise RuntimeFailure(f"cannot listen on unix://{path}: another server listens there")


def _give_to(path: Path, group: str) -> None:
    """Let the group `group` connect; where there is no such group, root alone may."""
    import grp

    try:
        number = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        log.warning("there is no group %s: only root can connect to %s", group, path)
        return
    if os.geteuid() == 0:
        os.chown(path, -1, number)


def _name(listener: socket.socket) -> str:
    place = listener.getsockname()
    return str(place) if isinstance(place, str) else f"{place[0]}:{place[1]}"
