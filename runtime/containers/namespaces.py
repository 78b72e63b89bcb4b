"""Which namespaces a container has of its own, and whose it shares: --pid, --ipc, --uts, --network.

A mode is docker's word: "" (the default), `private`, `host`, `container:NAME`; for ipc also `shareable` (a
private one whose /dev/shm can be shared) and `none` (one without /dev/shm).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime.containers import cgroups
from runtime.containers.container import Container, Request, find
from runtime.errors import RuntimeFailure
from runtime.root import Root

_MODES = {
    "pid": ("", "private", "host"),
    "ipc": ("", "private", "host", "shareable", "none"),
    "uts": ("", "private", "host"),
    "cgroupns": ("", "private", "host"),
    "userns": ("", "host"),
}
_JOINABLE = ("pid", "ipc")
_FILES = {"network": "net", "pid": "pid", "ipc": "ipc"}
JOIN = "container:"


def check(request: Request) -> None:
    """Raises RuntimeFailure for a mode that there is not."""
    for kind, modes in _MODES.items():
        mode = getattr(request, kind)
        joins = kind in _JOINABLE and mode.startswith(JOIN) and mode != JOIN
        if mode not in modes and not joins:
            raise RuntimeFailure(f"--{kind}: invalid {kind.upper()} mode: {mode}", 125)
    if request.uts == "host" and request.hostname:
        raise RuntimeFailure("conflicting options: hostname and the UTS mode host", 125)
    if request.network == "host" and any(name.startswith("net.") for name in request.sysctls):
        raise RuntimeFailure("sysctl 'net.…' is not allowed in the host's network namespace", 125)


def joined(root: Root, mode: str) -> Container | None:
    """The running container that `mode` says to join, or None when it says no such thing.

    Raises RuntimeFailure when there is none, or it does not run.
    """
    if not mode.startswith(JOIN):
        return None
    other = find(root, mode.removeprefix(JOIN))
    if other.state.status not in ("running", "paused"):
        raise RuntimeFailure(f"cannot join namespace of a non running container: {other.name}", 125)
    return other


def settled(root: Root, mode: str, kind: str) -> str:
    """`mode` with the ID of the container it names, so that a later rename changes nothing.

    Raises RuntimeFailure when there is no such container, or its namespace is not to be shared.
    """
    if not mode.startswith(JOIN):
        return mode
    other = find(root, mode.removeprefix(JOIN))
    if kind == "ipc" and other.request.ipc not in ("shareable", "host"):
        raise RuntimeFailure(
            f"can't join IPC of container {other.name}: non-shareable IPC (create it with --ipc shareable)",
            125,
        )
    return f"{JOIN}{other.id}"


def namespaces(root: Root, container: Container, network: Path | None) -> list[dict[str, Any]]:
    """linux.namespaces (config-linux.md); `network` is the file of a network namespace made for it.

    Raises RuntimeFailure when a container whose namespace is to be shared does not run.
    """
    request = container.request
    found: list[dict[str, Any]] = [{"type": "mount"}]
    modes = {"pid": request.pid, "ipc": request.ipc, "uts": request.uts, "network": request.network}
    for kind, mode in modes.items():
        other = joined(root, mode)
        if other is not None:
            found.append({"type": kind, "path": f"/proc/{other.state.pid}/ns/{_FILES[kind]}"})
        elif kind == "network" and network is not None:
            found.append({"type": kind, "path": str(network)})
        elif mode != "host":
            found.append({"type": kind})
    cgroupns = request.cgroupns or ("private" if cgroups.is_v2() and not request.privileged else "host")
    if cgroupns == "private" and Path("/proc/self/ns/cgroup").exists():
        found.append({"type": "cgroup"})
    return found
