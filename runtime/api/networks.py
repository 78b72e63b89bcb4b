"""/networks."""

from __future__ import annotations

from runtime import prune as pruning
from runtime.api.creation import endpoint_of
from runtime.api.daemon import Daemon
from runtime.api.errors import ApiError, NotImplementedHere
from runtime.api.http import NO_CONTENT, Call, Reply
from runtime.api.pipes import work
from runtime.api.values import Filters, Json, has_labels, truth
from runtime.containers import networks, present
from runtime.containers.networks import Network
from runtime.root import Root

_FILTERS = ("dangling", "driver", "id", "label", "name", "scope", "type")


def _passes(root: Root, network: Network, filters: Filters) -> bool:
    custom = network.name not in networks.BUILT_IN
    kinds, dangling = filters.get("type"), truth(filters, "dangling")
    return (
        ("name" not in filters or any(name in network.name for name in filters["name"]))
        and ("id" not in filters or any(network.id.startswith(text) for text in filters["id"]))
        and ("driver" not in filters or network.driver in filters["driver"])
        and ("scope" not in filters or "local" in filters["scope"])
        and (kinds is None or ("custom" if custom else "builtin") in kinds)
        and has_labels(network.labels, filters.get("label", []))
        and (dangling is None or dangling is not bool(networks.users(root, network)))
    )


async def list_(daemon: Daemon, call: Call) -> Reply:
    """GET /networks."""
    filters = call.query.filters(_FILTERS)

    def found() -> list[Json]:
        kept = [one for one in networks.list_all(daemon.root) if _passes(daemon.root, one, filters)]
        return [{**present.network(daemon.root, network), "Containers": {}} for network in kept]

    return Reply(await work(found))


async def inspect(daemon: Daemon, call: Call) -> Reply:
    """GET /networks/NAME."""
    return Reply(await work(lambda: present.network(daemon.root, networks.find(daemon.root, call.name))))


async def create(daemon: Daemon, call: Call) -> Reply:
    """POST /networks/create."""
    wanted = await call.fields()
    driver = wanted.text("Driver") or "bridge"
    if driver != "bridge":
        raise NotImplementedHere(f"the network driver {driver}")
    if wanted.flag("EnableIPv6"):
        raise NotImplementedHere("IPv6 in networks")
    pools = wanted.fields("IPAM").list("Config")
    if len(pools) > 1:
        raise NotImplementedHere("a network with several subnets")
    subnet, gateway = (pools[0].text("Subnet"), pools[0].text("Gateway")) if pools else ("", "")
    name = wanted.text("Name")
    if not name:
        raise ApiError(400, "invalid name: name is empty")
    network = await work(
        lambda: networks.create(
            daemon.root,
            name,
            subnet,
            gateway,
            wanted.flag("Internal"),
            wanted.mapping("Labels"),
            wanted.mapping("Options"),
        )
    )
    return Reply({"Id": network.id, "Warning": ""}, 201)


async def remove(daemon: Daemon, call: Call) -> Reply:
    """DELETE /networks/NAME."""
    await work(lambda: networks.remove(daemon.root, call.name))
    return NO_CONTENT


async def connect(daemon: Daemon, call: Call) -> Reply:
    """POST /networks/NAME/connect."""
    wanted = await call.fields()
    container, endpoint = wanted.text("Container"), endpoint_of("", wanted.fields("EndpointConfig"))
    await work(lambda: networks.connect(daemon.root, call.name, container, endpoint))
    return Reply(b"")


async def disconnect(daemon: Daemon, call: Call) -> Reply:
    """POST /networks/NAME/disconnect."""
    wanted = await call.fields()
    container = wanted.text("Container")
    await work(lambda: networks.disconnect(daemon.root, call.name, container))
    return Reply(b"")


async def prune(daemon: Daemon, call: Call) -> Reply:
    """POST /networks/prune."""
    filters = call.query.filters(("label", "label!", "until"))
    pruned = await work(lambda: pruning.networks_(daemon.root, filters))
    return Reply({"NetworksDeleted": pruned.names or None})
