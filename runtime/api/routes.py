"""The paths of the API and their handlers: all that this server answers."""

from __future__ import annotations

from runtime.api import (
    archives,
    build,
    consoles,
    containers,
    execs,
    images,
    layers,
    networks,
    registry,
    stats,
    system,
    volumes,
)
from runtime.api.router import Handler, Router

# docker inspect asks for a container first, whatever the name is: one with slashes is no other path.
_TABLE: list[tuple[str, str, Handler]] = [
    ("GET", "/_ping", system.ping),
    ("HEAD", "/_ping", system.ping),
    ("GET", "/version", system.version),
    ("GET", "/info", system.info),
    ("POST", "/auth", registry.auth),
    ("GET", "/events", system.events),
    ("GET", "/system/df", system.disk_usage),
    ("POST", "/build", build.build),
    ("POST", "/build/prune", build.prune),
    ("POST", "/commit", layers.commit),
    ("GET", "/images/json", images.list_),
    ("GET", "/images/get", layers.save),
    ("POST", "/images/create", images.create),
    ("POST", "/images/load", images.load),
    ("POST", "/images/prune", images.prune),
    ("GET", "/images/{name...}/json", images.inspect),
    ("GET", "/images/{name...}/history", images.history),
    ("GET", "/images/{name...}/get", layers.save),
    ("POST", "/images/{name...}/tag", images.tag),
    ("POST", "/images/{name...}/push", registry.push),
    ("GET", "/distribution/{name...}/json", registry.distribution),
    ("DELETE", "/images/{name...}", images.remove),
    ("GET", "/containers/json", containers.list_),
    ("POST", "/containers/create", containers.create),
    ("POST", "/containers/prune", containers.prune),
    ("GET", "/containers/{name...}/json", containers.inspect),
    ("POST", "/containers/{name}/start", containers.start),
    ("POST", "/containers/{name}/stop", containers.stop),
    ("POST", "/containers/{name}/restart", containers.restart),
    ("POST", "/containers/{name}/kill", containers.kill),
    ("POST", "/containers/{name}/rename", containers.rename),
    ("POST", "/containers/{name}/update", containers.update),
    ("GET", "/containers/{name}/top", stats.top),
    ("GET", "/containers/{name}/stats", stats.get),
    ("HEAD", "/containers/{name}/archive", archives.head),
    ("GET", "/containers/{name}/archive", archives.get),
    ("PUT", "/containers/{name}/archive", archives.put),
    ("POST", "/containers/{name}/pause", containers.pause),
    ("POST", "/containers/{name}/unpause", containers.unpause),
    ("GET", "/containers/{name}/changes", containers.changes),
    ("GET", "/containers/{name}/export", layers.export),
    ("DELETE", "/containers/{name}", containers.remove),
    ("POST", "/containers/{name}/attach", consoles.attach),
    ("GET", "/containers/{name}/logs", consoles.get_logs),
    ("POST", "/containers/{name}/wait", consoles.wait),
    ("POST", "/containers/{name}/resize", consoles.resize),
    ("POST", "/containers/{name}/exec", execs.create),
    ("POST", "/exec/{name}/start", execs.start),
    ("POST", "/exec/{name}/resize", execs.resize),
    ("GET", "/exec/{name}/json", execs.inspect),
    ("GET", "/networks", networks.list_),
    ("POST", "/networks/create", networks.create),
    ("POST", "/networks/prune", networks.prune),
    ("GET", "/networks/{name...}", networks.inspect),
    ("DELETE", "/networks/{name}", networks.remove),
    ("POST", "/networks/{name}/connect", networks.connect),
    ("POST", "/networks/{name}/disconnect", networks.disconnect),
    ("GET", "/volumes", volumes.list_),
    ("POST", "/volumes/create", volumes.create),
    ("POST", "/volumes/prune", volumes.prune),
    ("GET", "/volumes/{name...}", volumes.inspect),
    ("DELETE", "/volumes/{name}", volumes.remove),
]

#: The first segments of all paths of docker's API: what is not in the table is answered with 501.
_DOCKERS = """
auth build commit configs containers distribution events exec grpc images info networks nodes plugins secrets
services session swarm system tasks version volumes
"""

router = Router(_TABLE, _DOCKERS.split())
