"""The files by which a container knows itself and others: hosts, hostname and resolv.conf, as docker's."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from runtime.containers import networks
from runtime.containers.container import Container
from runtime.containers.namespaces import joined
from runtime.containers.spec import hostname
from runtime.errors import RuntimeFailure
from runtime.root import Root

#: In --add-host: the host, as the container reaches it.
_GATEWAY = "host-gateway"

_FILES = ("hostname", "hosts", "resolv.conf")

_LOCALHOST = """127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


def check_host(entry: str) -> str:
    """`entry` itself when it is HOST:IP (or HOST=IP), what --add-host takes; IP may be host-gateway.

    Raises RuntimeFailure when it is not.
    """
    host, address = _host_entry(entry)
    if not host or not address or any(char.isspace() for char in host):
        raise RuntimeFailure(f"bad format for add-host: '{entry}' (expected HOST:IP)", 125)
    if address != _GATEWAY:
        check_address(address.removeprefix("[").removesuffix("]"), "add-host")
    return entry


def _host_entry(entry: str) -> tuple[str, str]:
    split = "=" if "=" in entry else ":"
    host, _, address = entry.partition(split)
    return host, address


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
    contents = {
        "hostname": f"{name}\n",
        "hosts": _hosts(container, name),
        "resolv.conf": _resolver(root, container),
    }
    files = {}
    for file_name, content in contents.items():
        path = container.directory / file_name
        path.write_text(content)
        path.chmod(0o644)
        files[f"/etc/{file_name}"] = path
    return files


def _hosts(container: Container, name: str) -> str:
    """hosts(5)."""
    request = container.request
    gateway = next((end.gateway for end in container.endpoints if end.gateway), "")
    if request.network == "host":
        text, gateway = _host_file("/etc/hosts"), "127.0.0.1"
    else:
        names = f"{name}.{request.domainname} {name}" if request.domainname else name
        addresses = [end.address for end in container.endpoints if end.address] or ["127.0.0.1"]
        text = _LOCALHOST + "".join(f"{address}\t{names}\n" for address in addresses)
    for entry in request.extra_hosts:
        host, address = _host_entry(entry)
        address = gateway if address == _GATEWAY else address.removeprefix("[").removesuffix("]")
        text += f"{address}\t{host}\n" if address else ""
    return text


def _resolver(root: Root, container: Container) -> str:
    """resolv.conf(5): the host's, with what was asked for in the place of its own lines.

    In networks with names their server comes first; it asks the host's servers what it does not know. A
    server on the host's loopback, which is not the container's, is left out.
    """
    request = container.request
    asked = list(request.dns)
    ours = [
        end.gateway
        for end in container.endpoints
        if end.gateway and networks.find(root, end.network).has_names
    ]
    own_network = bool(container.endpoints)
    text = _host_file("/etc/resolv.conf")
    if own_network and not _servers(text, own_network):
        text = _host_file("/run/systemd/resolve/resolv.conf")
    servers = [*ours, *asked] if ours else asked or _servers(text, own_network)
    lines = [f"nameserver {address}" for address in servers]
    kept = {"search": request.dns_search, "options": request.dns_options}
    for line in text.splitlines():
        word = (line.split() or [""])[0]
        if word != "nameserver" and not kept.get(word):
            lines.append(line)
    if request.dns_search and request.dns_search != (".",):
        lines.append(f"search {' '.join(request.dns_search)}")
    if request.dns_options:
        lines.append(f"options {' '.join(request.dns_options)}")
    return "".join(f"{line}\n" for line in lines)


def _servers(text: str, without_loopback: bool) -> list[str]:
    found = [
        line.split()[1] for line in text.splitlines() if line.startswith("nameserver ") and line.split()[1:]
    ]
    return [address for address in found if not (without_loopback and address.startswith(("127.", "::1")))]


def _host_file(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
