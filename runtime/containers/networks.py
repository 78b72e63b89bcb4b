"""Networks: bridges that containers are connected to, by netavark.

Each is a file `networks/NAME.json`. `bridge` is made when it is first used; `host` and `none` are always
there and are no bridges. Containers of one network reach each other by name, except on `bridge`, as with
docker. An address is a container's as long as it runs: it is in its record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import ipaddress
import json
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime import events, rootless
from runtime.containers import container as records
from runtime.containers import netavark, ports, uplink
from runtime.containers.container import Container, Endpoint, load_all, locked, now, write_atomically
from runtime.containers.names import check_name, new_id, short
from runtime.containers.ports import Port
from runtime.errors import NotFound, RuntimeFailure
from runtime.events import Event
from runtime.root import Root

BUILT_IN = ("bridge", "host", "none")
_DEFAULT = "UNIONCTL_NETWORK"
_POOL = ipaddress.IPv4Network("10.89.0.0/16"), 24


@dataclass(frozen=True)
class Network:
    """One network."""

    name: str
    id: str
    driver: str  # bridge, host or null
    created: str
    subnet: str = ""
    gateway: str = ""
    interface: str = ""
    internal: bool = False  # nothing but its own containers can be reached
    labels: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)

    @property
    def has_names(self) -> bool:
        """Whether containers find each other by name."""
        return self.name != "bridge" and netavark.program("aardvark-dns") is not None


def default_network() -> str:
    """The network when none is asked for: UNIONCTL_NETWORK, else bridge, and none where netavark is not."""
    if asked := os.environ.get(_DEFAULT):
        return asked
    has_way_out = uplink.program() is not None or rootless.owns_network()
    return "bridge" if netavark.program() and has_way_out else "none"


@contextlib.contextmanager
def _locked(root: Root) -> Iterator[None]:
    fd = os.open(root.networks / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def list_all(root: Root) -> list[Network]:
    """All networks, by name; those that are always there first."""
    found = {network.name: network for network in _made(root)}
    always = [found.pop("bridge", _unmade_bridge()), _plain("host"), _plain("none")]
    return [*always, *(found[name] for name in sorted(found))]


def _made(root: Root) -> list[Network]:
    networks = []
    for file in root.networks.glob("*.json"):
        with contextlib.suppress(FileNotFoundError):
            networks.append(Network(**json.loads(file.read_text())))
    return networks


def _plain(name: str) -> Network:
    driver = "null" if name == "none" else "host"
    return Network(name, name.encode().hex().ljust(64, "0"), driver, "0001-01-01T00:00:00Z")


def _unmade_bridge() -> Network:
    return Network("bridge", b"bridge".hex().ljust(64, "0"), "bridge", "0001-01-01T00:00:00Z")


def find(root: Root, reference: str) -> Network:
    """The network that `reference` means: a name, an ID or the beginning of one.

    Raises NotFound when there is none, RuntimeFailure when it begins several IDs.
    """
    networks = list_all(root)
    for network in networks:
        if reference in (network.name, network.id):
            return network
    matches = [network for network in networks if reference and network.id.startswith(reference)]
    if len(matches) > 1:
        raise RuntimeFailure(f"network {reference} is ambiguous ({len(matches)} matches found on name)")
    if not matches:
        raise NotFound(f"network {reference} not found", 125)
    return matches[0]


def create(
    root: Root,
    name: str,
    subnet: str = "",
    gateway: str = "",
    internal: bool = False,
    labels: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
) -> Network:
    """Make a bridge network; without `subnet` it gets one that nothing here uses.

    Raises RuntimeFailure when the name is taken or none, or the addresses make no sense or overlap others.
    """
    netavark.needed()
    check_name(name, "network")
    if name in BUILT_IN:
        raise RuntimeFailure(f"operation is not permitted on predefined {name} network")
    with _locked(root):
        if any(network.name == name for network in _made(root)):
            raise RuntimeFailure(f"network with name {name} already exists")
        network = _create(root, name, subnet, gateway, internal, labels or {}, options or {})
    events.record(root, Event("network", "create", network.id, {"name": name, "type": "bridge"}))
    return network


def _create(
    root: Root,
    name: str,
    subnet: str,
    gateway: str,
    internal: bool,
    labels: dict[str, str],
    options: dict[str, str],
) -> Network:
    """Make the network; the lock is held."""
    taken = [*_routes(), *(ipaddress.IPv4Network(network.subnet) for network in _made(root))]
    if subnet:
        try:
            chosen = ipaddress.IPv4Network(subnet)
        except ValueError as error:
            raise RuntimeFailure(f"invalid subnet '{subnet}': {error}") from error
        if any(chosen.overlaps(other) for other in taken):
            raise RuntimeFailure(f"Pool overlaps with other one on this address space: {subnet}")
    else:
        pool, length = _POOL
        free = (net for net in pool.subnets(new_prefix=length) if not any(net.overlaps(one) for one in taken))
        found = next(free, None)
        if found is None:
            raise RuntimeFailure("all predefined address pools have been fully subnetted: give a --subnet")
        chosen = found
    try:
        first = ipaddress.IPv4Address(gateway) if gateway else chosen.network_address + 1
    except ValueError as error:
        raise RuntimeFailure(f"invalid gateway '{gateway}': {error}") from error
    if first not in chosen or chosen.num_addresses < 4:
        raise RuntimeFailure(f"invalid network: gateway {first} and a container must fit into {chosen}")
    identifier = new_id()
    interface = options.get("com.docker.network.bridge.name") or f"un-{identifier[:11]}"
    if len(interface) > 15:
        raise RuntimeFailure(f"invalid bridge name '{interface}': it has more than 15 letters")
    network = Network(
        name, identifier, "bridge", now(), str(chosen), str(first), interface, internal, labels, options
    )
    write_atomically(root.networks / f"{name}.json", json.dumps(dataclasses.asdict(network), indent=1))
    return network


def _routes() -> list[ipaddress.IPv4Network]:
    """The networks that this machine has routes to, the default route apart (proc(5), /proc/net/route)."""
    found = []
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        fields = line.split()
        address, mask = (socket.inet_ntoa(struct.pack("<L", int(fields[place], 16))) for place in (1, 7))
        if mask != "0.0.0.0":
            found.append(ipaddress.IPv4Network(f"{address}/{mask}", strict=False))
    return found


def _ensured(root: Root, name: str) -> Network:
    """The bridge network `name`; `bridge` itself is made when it is not there yet. The lock is held."""
    if name == "bridge" and not (root.networks / "bridge.json").exists():
        return _create(root, name, "", "", False, {}, {})
    return find(root, name)


def remove(root: Root, reference: str) -> Network:
    """Remove a network. Raises RuntimeFailure when a running container is in it, or it is always there."""
    with _locked(root):
        network = find(root, reference)
        if network.name in BUILT_IN:
            raise RuntimeFailure(f"{network.name} is a pre-defined network and cannot be removed")
        holders = members(root, network)
        if holders:
            names = ", ".join(container.name for container, _ in holders)
            raise RuntimeFailure(
                f"error while removing network: network {network.name} has active endpoints ({names})"
            )
        (root.networks / f"{network.name}.json").unlink(missing_ok=True)
    events.record(root, Event("network", "destroy", network.id, {"name": network.name, "type": "bridge"}))
    return network


def members(root: Root, network: Network) -> list[tuple[Container, Endpoint]]:
    """The running containers of a network."""
    return [
        (container, endpoint)
        for container in load_all(root)
        if container.state.live
        for endpoint in container.endpoints
        if endpoint.network == network.name and endpoint.address
    ]


def users(root: Root, network: Network) -> list[Container]:
    """The containers, running or not, that are to be in a network."""
    return [
        container
        for container in load_all(root)
        if any(endpoint.network == network.name for endpoint in container.endpoints)
    ]


def attach(root: Root, container: Container) -> Container:
    """Connect a container that is being started to its networks; its lock is held.

    Returns it with its addresses and published ports, saved.

    Raises RuntimeFailure when a network is gone, an address or a port is taken, or netavark cannot.
    """
    netavark.make_namespace(container.netns)
    with _locked(root):
        networks = [_ensured(root, endpoint.network) for endpoint in container.endpoints]
        others = [other for other in load_all(root) if other.state.live and other.id != container.id]
        endpoints = tuple(
            _addressed(network, endpoint, number, others)
            for number, (network, endpoint) in enumerate(zip(networks, container.endpoints, strict=True))
        )
        published = ports.choose(_to_publish(container), [port for one in others for port in one.state.ports])
        container = dataclasses.replace(container, endpoints=endpoints).with_state(ports=published).save()
    for number, (network, endpoint) in enumerate(zip(networks, container.endpoints, strict=True)):
        container = _connect(root, container, network, endpoint, published if number == 0 else ())
    return container


def _to_publish(container: Container) -> list[Port]:
    wanted = [port for text in container.request.ports for port in ports.parse(text)]
    if container.request.publish_all:
        known = {port.key for port in wanted}
        for key in container.exposed:
            number, _, protocol = key.partition("/")
            if key not in known:
                wanted.append(Port(int(number), protocol))
    return wanted


def _addressed(network: Network, endpoint: Endpoint, number: int, others: Sequence[Container]) -> Endpoint:
    """`endpoint` with an address that none of `others` has, if it can be the one it had before."""
    subnet = ipaddress.IPv4Network(network.subnet)
    used = {
        other_end.address
        for other in others
        for other_end in other.endpoints
        if other_end.network == network.name
    }
    used |= {network.gateway, str(subnet.network_address), str(subnet.broadcast_address)}
    wanted = endpoint.wanted_address or endpoint.last_address
    if endpoint.wanted_address:
        if wanted in used or ipaddress.IPv4Address(wanted) not in subnet:
            raise RuntimeFailure(f"Address {wanted} is already in use, or not in {subnet}", 125)
    elif not wanted or wanted in used or ipaddress.IPv4Address(wanted) not in subnet:
        found = next((str(host) for host in subnet.hosts() if str(host) not in used), None)
        if found is None:
            raise RuntimeFailure(f"no available IPv4 addresses in network {network.name}", 125)
        wanted = found
    return dataclasses.replace(
        endpoint,
        address=wanted,
        last_address=wanted,
        prefix=subnet.prefixlen,
        gateway=network.gateway,
        network_id=network.id,
        interface=f"eth{number}",
    )


def _connect(
    root: Root, container: Container, network: Network, endpoint: Endpoint, published: Sequence[Port]
) -> Container:
    """Let netavark make the connection; returns the container with its MAC address, saved."""
    joined: dict[str, Any] = {
        "static_ips": [endpoint.address],
        "interface_name": endpoint.interface,
        "aliases": [*endpoint.aliases, short(container.id)],
    }
    if endpoint.wanted_mac:
        joined["static_mac"] = endpoint.wanted_mac
    options = {
        "container_id": container.id,
        "container_name": container.name,
        "networks": {network.name: joined},
        "network_info": {
            network.name: {
                "name": network.name,
                "id": network.id,
                "driver": "bridge",
                "network_interface": network.interface,
                "subnets": [{"subnet": network.subnet, "gateway": network.gateway}],
                "ipv6_enabled": False,
                "internal": network.internal,
                "dns_enabled": network.has_names,
                "ipam_options": {"driver": "host-local"},
                "options": {"mtu": network.options["com.docker.network.driver.mtu"]}
                if "com.docker.network.driver.mtu" in network.options
                else {},
            }
        },
        "port_mappings": [
            {
                "container_port": port.container,
                "host_port": port.host,
                "host_ip": "" if port.host_ip == "0.0.0.0" else port.host_ip,
                "protocol": port.protocol,
                "range": 1,
            }
            for port in published
        ],
    }
    answer = netavark.connect(root, container.directory, container.netns, network.name, options)
    mac = answer.get("interfaces", {}).get(endpoint.interface, {}).get("mac_address", "")
    ends = tuple(
        dataclasses.replace(one, mac=mac) if one.network == network.name else one
        for one in container.endpoints
    )
    attributes = {"name": network.name, "type": "bridge", "container": container.id}
    events.record(root, Event("network", "connect", network.id, attributes))
    return dataclasses.replace(container, endpoints=ends).save()


def connect(root: Root, reference: str, container_name: str, wanted: Endpoint | None = None) -> None:
    """Put a container into one more network, at once if it runs; `wanted` may have aliases and an address.

    Raises RuntimeFailure when it is in it, or in none that can be joined by others.
    """
    network = find(root, reference)
    if network.driver != "bridge":
        raise RuntimeFailure(f"container cannot be connected to network {network.name}")
    with locked(records.find(root, container_name).directory) as container:
        if not container.endpoints and container.request.network in ("host", "none"):
            mode = container.request.network
            if mode == "host" or container.state.live:
                raise RuntimeFailure(f"container cannot be connected to a network: it is in {mode}")
        if any(endpoint.network == network.name for endpoint in container.endpoints):
            raise RuntimeFailure(f"endpoint with name {container.name} already exists in {network.name}")
        endpoint = dataclasses.replace(wanted or Endpoint(""), network=network.name)
        if container.state.status in ("running", "paused"):
            with _locked(root):
                network = _ensured(root, network.name)
                others = [one for one in load_all(root) if one.state.live and one.id != container.id]
                names = {one.interface for one in container.endpoints}
                number = next(n for n in range(len(names) + 1) if f"eth{n}" not in names)
                endpoint = _addressed(network, endpoint, number, others)
                container = dataclasses.replace(container, endpoints=(*container.endpoints, endpoint)).save()
            try:
                _connect(root, container, network, endpoint, ())
            except BaseException:
                netavark.disconnect(container.directory, container.netns, network.name)
                dataclasses.replace(container, endpoints=container.endpoints[:-1]).save()
                raise
        else:
            dataclasses.replace(container, endpoints=(*container.endpoints, endpoint)).save()


def disconnect(root: Root, reference: str, container_name: str) -> None:
    """Take a container out of a network, at once if it runs. Raises RuntimeFailure when it is not in it."""
    network = find(root, reference)
    with locked(records.find(root, container_name).directory) as container:
        kept = tuple(one for one in container.endpoints if one.network != network.name)
        if len(kept) == len(container.endpoints):
            raise RuntimeFailure(f"container {container.id} is not connected to network {network.name}")
        if container.state.live:
            netavark.disconnect(container.directory, container.netns, network.name)
        dataclasses.replace(container, endpoints=kept).save()
    attributes = {"name": network.name, "type": "bridge", "container": container.id}
    events.record(root, Event("network", "disconnect", network.id, attributes))


def unused(root: Root) -> list[Network]:
    """The networks that somebody made and no container is to be in."""
    return [
        network for network in list_all(root) if network.name not in BUILT_IN and not users(root, network)
    ]
