"""Published ports: -p and --expose, parsed into data and given free ports of the host; docker's rules."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from runtime.errors import RuntimeFailure

_PROTOCOLS = ("tcp", "udp", "sctp")
_ANY = "0.0.0.0"


@dataclass(frozen=True)
class Port:
    """A port of the container and where it is published; the host's port is 0 until one is chosen."""

    container: int
    protocol: str = "tcp"
    host_ip: str = ""
    host: int = 0

    @property
    def key(self) -> str:
        """docker's word for the container's side: 80/tcp."""
        return f"{self.container}/{self.protocol}"


def parse(text: str) -> list[Port]:
    """Parse the argument of -p: [[IP:][HOST]:]CONTAINER[/PROTOCOL], where ports may be ranges A-B.

    Raises RuntimeFailure when it is none, or the ranges differ in length.
    """
    body, _, protocol = text.partition("/")
    protocol = protocol.lower() or "tcp"
    bracket = re.fullmatch(r"\[([^\]]*)\]:(.*)", body)
    parts = [bracket[1], *bracket[2].split(":")] if bracket else body.split(":")
    if len(parts) > 3 or (bracket and len(parts) != 3) or protocol not in _PROTOCOLS:
        raise RuntimeFailure(f"invalid port specification: '{text}' ([[IP:]HOST:]CONTAINER[/tcp|udp])", 125)
    address, host_text, container_text = [""] * (3 - len(parts)) + parts
    if address:
        try:
            ipaddress.ip_address(address)
        except ValueError as error:
            raise RuntimeFailure(f"invalid IP address in port specification: '{text}'", 125) from error
    inner = _range(container_text, text)
    outer = _range(host_text, text) if host_text else [0] * len(inner)
    if len(outer) != len(inner):
        raise RuntimeFailure(f"invalid port specification: '{text}': the ranges differ in length", 125)
    return [Port(container, protocol, address, host) for container, host in zip(inner, outer, strict=True)]


def parse_exposed(text: str) -> list[str]:
    """Parse --expose or an image's exposed port, PORT[-PORT][/PROTOCOL], as keys like 80/tcp.

    Raises RuntimeFailure when it is none.
    """
    numbers, _, protocol = text.partition("/")
    if (protocol or "tcp").lower() not in _PROTOCOLS:
        raise RuntimeFailure(f"invalid port: '{text}'", 125)
    return [f"{number}/{(protocol or 'tcp').lower()}" for number in _range(numbers, text)]


def _range(text: str, whole: str) -> list[int]:
    first, _, last = text.partition("-")
    if not first.isdecimal() or (last and not last.isdecimal()):
        raise RuntimeFailure(f"invalid port specification: '{whole}'", 125)
    begin, end = int(first), int(last or first)
    if not 0 < begin <= end < 1 << 16:
        raise RuntimeFailure(f"invalid port specification: '{whole}': ports are from 1 to 65535", 125)
    return list(range(begin, end + 1))


def choose(wanted: Iterable[Port], taken: Iterable[Port]) -> tuple[Port, ...]:
    """`wanted` with a free port of the host for each; `taken` are those of other containers.

    Raises RuntimeFailure when one is not free.
    """
    used = list(taken)
    chosen: list[Port] = []
    for port in wanted:
        address = port.host_ip or _ANY
        if port.host:
            if _clashes(port, used) or not _is_free(address, port.host, port.protocol):
                raise RuntimeFailure(f"Bind for {address}:{port.host} failed: port is already allocated", 125)
            found = Port(port.container, port.protocol, address, port.host)
        else:
            found = port
            while not found.host or _clashes(found, used):
                found = Port(port.container, port.protocol, address, _free(address, port.protocol))
        used.append(found)
        chosen.append(found)
    return tuple(chosen)


def _clashes(port: Port, used: Iterable[Port]) -> bool:
    return any(
        port.host == other.host
        and port.protocol == other.protocol
        and (port.host_ip == other.host_ip or {port.host_ip or _ANY, other.host_ip or _ANY} & {_ANY, "::"})
        for other in used
    )


def _socket(address: str, protocol: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM)
    if protocol != "udp":
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made


def _is_free(address: str, number: int, protocol: str) -> bool:
    with _socket(address, protocol) as probe:
        try:
            probe.bind((address, number))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise RuntimeFailure(f"cannot publish on {address}: no such address here", 125) from error
            return False
    return True


def _free(address: str, protocol: str) -> int:
    with contextlib.closing(_socket(address, protocol)) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
