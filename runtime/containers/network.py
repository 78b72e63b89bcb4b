"""The files by which a container knows itself and others: hosts, hostname and resolv.conf, as docker's."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from runtime.containers.container import Container
from runtime.containers.namespaces import JOIN, joined
from runtime.containers.spec import hostname
from runtime.errors import RuntimeFailure
from runtime.root import Root

NETWORKS = ("none", "host")

_FILES = ("hostname", "hosts", "resolv.conf")

_LOCALHOST = """127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


def check_network(name: str) -> str:
    """`name` itself when there is such a network.

    Raises RuntimeFailure when there is not.
    """
    if name not in NETWORKS and not name.startswith(JOIN):
        raise RuntimeFailure(f"network {name} not found: there is {' and '.join(NETWORKS)}", 125)
    return name


def check_host(entry: str) -> str:
    """`entry` itself when it is HOST:IP, what --add-host takes.

    Raises RuntimeFailure when it is not.
    """
    host, _, address = entry.partition(":")
    if not host or not address or any(char.isspace() for char in host):
        raise RuntimeFailure(f"bad format for add-host: '{entry}' (expected HOST:IP)", 125)
    check_address(address.removeprefix("[").removesuffix("]"), "add-host")
    return entry


def check_address(text: str, what: str) -> str:
    """`text` itself when it is an IP address; `what` says whose.

    Raises RuntimeFailure when it is none.
    """
    try:
        ipaddress.ip_address(text)
    except ValueError as error:
        raise RuntimeFailure(f"invalid IP address in {what}: '{text}'", 125) from error
    return text


def write_files(root: Root, container: Container) -> dict[str, Path]:
    """Write the files into the container's directory, and return them by their path in the container.

    They are the container's to change as long as it is there; a later start writes them anew. One that is in
    another's network has that one's files.
    """
    other = joined(root, container.request.network)
    if other is not None:
        return {f"/etc/{name}": other.directory / name for name in _FILES}
    name = hostname(container)
    host_network = container.request.network == "host"
    hosts = _host_file("/etc/hosts") if host_network else f"{_LOCALHOST}127.0.0.1\t{name}\n"
    for entry in container.request.extra_hosts:
        host, _, address = entry.partition(":")
        hosts += f"{address.removeprefix('[').removesuffix(']')}\t{host}\n"
    contents = {"hostname": f"{name}\n", "hosts": hosts, "resolv.conf": _resolver(container)}
    files = {}
    for file_name, content in contents.items():
        path = container.directory / file_name
        path.write_text(content)
        path.chmod(0o644)
        files[f"/etc/{file_name}"] = path
    return files


def _resolver(container: Container) -> str:
    """resolv.conf(5): the host's, with what was asked for in the place of its own lines."""
    request = container.request
    wanted = {"nameserver": request.dns, "search": request.dns_search, "options": request.dns_options}
    lines = [
        line
        for line in _host_file("/etc/resolv.conf").splitlines(keepends=True)
        if not wanted.get((line.split() or [""])[0])
    ]
    lines += [f"nameserver {address}\n" for address in request.dns]
    if request.dns_search and request.dns_search != (".",):
        lines.append(f"search {' '.join(request.dns_search)}\n")
    if request.dns_options:
        lines.append(f"options {' '.join(request.dns_options)}\n")
    return "".join(lines)


def _host_file(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
