"""/networks: those that are always there."""

from __future__ import annotations

from runtime.api.daemon import Daemon
from runtime.api.errors import ApiError
from runtime.api.http import Call, Reply
from runtime.api.values import Json
from runtime.containers.network import NETWORKS

_FILTERS = ("dangling", "driver", "id", "label", "name", "scope", "type")


def _network(name: str) -> Json:
    return {
        "Name": name,
        "Id": name.encode().hex().ljust(64, "0"),
        "Created": "0001-01-01T00:00:00Z",
        "Scope": "local",
        "Driver": "null" if name == "none" else name,
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": None, "Config": None},
        "Internal": False,
        "Attachable": False,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {},
        "Options": {},
        "Labels": {},
    }


async def list_(daemon: Daemon, call: Call) -> Reply:
    """GET /networks."""
    filters = call.query.filters(_FILTERS)
    found = [_network(name) for name in NETWORKS]
    if names := filters.get("name"):
        found = [network for network in found if any(name in network["Name"] for name in names)]
    if identifiers := filters.get("id"):
        found = [network for network in found if any(network["Id"].startswith(id_) for id_ in identifiers)]
    if drivers := filters.get("driver"):
        found = [network for network in found if network["Driver"] in drivers]
    if "custom" in filters.get("type", []) or filters.get("label"):
        found = []
    return Reply(found)


async def inspect(daemon: Daemon, call: Call) -> Reply:
    """GET /networks/NAME."""
    for name in NETWORKS:
        network = _network(name)
        if call.name in (name, network["Id"]):
            return Reply(network)
    raise ApiError(404, f"network {call.name} not found")
