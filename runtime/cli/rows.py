"""The fields of docker's lists: ps and volume ls."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from runtime.cli.output import ago, duration
from runtime.containers import health
from runtime.containers.container import Container
from runtime.containers.names import short
from runtime.containers.volumes import Volume

_COMMAND_WIDTH = 20


def container_row(subject: Container, whole: bool) -> dict[str, Any]:
    """The fields of docker ps; `whole` leaves IDs and commands as long as they are."""
    command = " ".join(f"'{word}'" if " " in word else word for word in subject.process.args)
    if not whole and len(command) > _COMMAND_WIDTH:
        command = f"{command[: _COMMAND_WIDTH - 1]}…"
    created = _moment(subject.created)
    sources = [mount.source for mount in subject.mounts if mount.source]
    return {
        "ID": subject.id if whole else short(subject.id),
        "Image": subject.request.image,
        "Command": json.dumps(command, ensure_ascii=False),
        "CreatedAt": f"{created:%Y-%m-%d %H:%M:%S} +0000 UTC",
        "RunningFor": ago(created),
        "Ports": ", ".join(_ports(subject)),
        "State": "created" if subject.state.status == "starting" else subject.state.status,
        "Status": status(subject),
        "Names": subject.name,
        "Labels": _labels(subject.labels),
        "Mounts": ",".join(sources),
        "LocalVolumes": str(sum(mount.kind == "volume" for mount in subject.mounts)),
        "Networks": ",".join(end.network for end in subject.endpoints) or subject.request.network,
        "Size": "0B",
    }


def status(subject: Container) -> str:
    """docker ps's STATUS: `Up 3 minutes`, `Exited (0) 2 hours ago`, `Created`."""
    state = subject.state
    now = datetime.now(UTC)
    if state.status in ("running", "paused"):
        up = f"Up {duration((now - _moment(state.started_at)).total_seconds())}"
        if state.status == "paused":
            return f"{up} (Paused)"
        found = health.read(subject)
        if found is None:
            return up
        return f"{up} ({'health: starting' if found.status == 'starting' else found.status})"
    if state.status == "restarting":
        return f"Restarting ({state.exit_code}) {ago(_moment(state.finished_at), now)}"
    if state.status == "exited":
        return f"Exited ({state.exit_code}) {ago(_moment(state.finished_at), now)}"
    return "Created"


def _ports(subject: Container) -> list[str]:
    """docker ps's PORTS: where those of a running container are published, and what else it has."""
    if not subject.state.live:
        return []
    shown = []
    for port in subject.state.ports:
        host = f"[{port.host_ip}]" if ":" in port.host_ip else port.host_ip
        shown.append(f"{host}:{port.host}->{port.key}")
    known = {port.key for port in subject.state.ports}
    return [*shown, *(key for key in subject.exposed if key not in known)]


def _moment(stamp: str) -> datetime:
    """One of our times as a datetime."""
    return datetime.fromisoformat(stamp)


def volume_row(subject: Volume) -> dict[str, Any]:
    """The fields of docker volume ls."""
    return {
        "Driver": "local",
        "Name": subject.name,
        "Mountpoint": str(subject.data),
        "Labels": _labels(subject.labels),
        "Scope": "local",
    }


def _labels(labels: dict[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in labels.items())
