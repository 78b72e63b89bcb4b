"""/_ping, /version, /info, /events, /system/df."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version as installed_version
from pathlib import Path

import trio

from runtime.api import event_log
from runtime.api.containers import summary
from runtime.api.daemon import Daemon
from runtime.api.errors import ApiError
from runtime.api.http import Call, Reply, Write
from runtime.api.images import image_summary
from runtime.api.pipes import work
from runtime.api.router import API_VERSION, MIN_API_VERSION
from runtime.api.values import Json
from runtime.containers import present, volumes
from runtime.containers.logs import instant
from runtime.containers.settle import settle_all
from runtime.images.platforms import host_platform

_NO_CACHE = {"Cache-Control": "no-cache, no-store, must-revalidate", "Pragma": "no-cache"}


async def ping(daemon: Daemon, call: Call) -> Reply:
    """GET and HEAD /_ping: OK; the headers say which API this is."""
    return Reply(b"OK", headers={**_NO_CACHE, "Builder-Version": "1", "Swarm": "inactive"})


async def version(daemon: Daemon, call: Call) -> Reply:
    """GET /version."""
    ours = installed_version("unionfs")
    kernel = platform.release()
    details = {
        "ApiVersion": API_VERSION,
        "MinAPIVersion": MIN_API_VERSION,
        "Arch": host_platform().architecture,
        "Os": "linux",
        "KernelVersion": kernel,
    }
    return Reply(
        {
            "Platform": {"Name": "unionctl"},
            "Components": [{"Name": "Engine", "Version": ours, "Details": details}],
            "Version": ours,
            **details,
            "GitCommit": "",
            "GoVersion": "",
            "BuildTime": "",
        }
    )


async def info(daemon: Daemon, call: Call) -> Reply:
    """GET /info."""
    return Reply(await work(lambda: _info(daemon)))


def _info(daemon: Daemon) -> Json:
    containers = settle_all(daemon.root)
    states = [container.state.status for container in containers]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "ID": Path("/etc/machine-id").read_text().strip() if Path("/etc/machine-id").exists() else "",
        "Containers": len(states),
        "ContainersRunning": states.count("running"),
        "ContainersPaused": states.count("paused"),
        "ContainersStopped": len(states) - states.count("running") - states.count("paused"),
        "Images": len(daemon.store.images()),
        "Driver": "unionfs",
        "DriverStatus": [["State root", str(daemon.root.path)]],
        "Plugins": {
            "Volume": ["local"],
            "Network": ["host", "null"],
            "Authorization": None,
            "Log": ["json-file"],
        },
        "MemoryLimit": True,
        "SwapLimit": True,
        "CpuCfsPeriod": True,
        "CpuCfsQuota": True,
        "CPUShares": True,
        "CPUSet": True,
        "PidsLimit": True,
        "IPv4Forwarding": True,
        "Debug": False,
        "NFd": len(os.listdir("/proc/self/fd")),
        "OomKillDisable": False,
        "NGoroutines": 0,
        "SystemTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "LoggingDriver": "json-file",
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": "2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "1",
        "NEventsListener": 0,
        "KernelVersion": platform.release(),
        "OperatingSystem": _distribution(),
        "OSVersion": "",
        "OSType": "linux",
        "Architecture": platform.machine(),
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": {"IndexConfigs": {}, "InsecureRegistryCIDRs": [], "Mirrors": []},
        "NCPU": os.cpu_count() or 1,
        "MemTotal": memory,
        "GenericResources": None,
        "DockerRootDir": str(daemon.root.path),
        "HttpProxy": "",
        "HttpsProxy": "",
        "NoProxy": "",
        "Name": platform.node(),
        "Labels": [],
        "ExperimentalBuild": False,
        "ServerVersion": installed_version("unionfs"),
        "Runtimes": {"crun": {"path": "crun"}, "runc": {"path": "runc"}},
        "DefaultRuntime": "crun",
        "Swarm": {"NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": False},
        "LiveRestoreEnabled": True,
        "Isolation": "",
        "InitBinary": "",
        "ContainerdCommit": {"ID": ""},
        "RuncCommit": {"ID": ""},
        "InitCommit": {"ID": ""},
        "SecurityOptions": ["name=seccomp,profile=builtin"],
        "CDISpecDirs": [],
        "Warnings": None,
    }


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"


async def events(daemon: Daemon, call: Call) -> None:
    """GET /events: a JSON object for each event, from `since` and to `until`."""
    filters = call.query.filters(event_log.FILTERS)
    since, until = _moment(call, "since"), _moment(call, "until")
    async with call.streaming() as write:
        await _until(until, lambda: _tell(daemon, write, filters, since, until))


async def _until(until: int | None, listen: Callable[[], Awaitable[None]]) -> None:
    left = trio.CancelScope()
    if until is not None:
        left.deadline = trio.current_time() + max(0.0, (until - time.time_ns()) / 10**9) + 0.2
    with left:
        await listen()


async def _tell(
    daemon: Daemon, write: Write, filters: dict[str, list[str]], since: int | None, until: int | None
) -> None:
    async for event in daemon.events.follow(since):
        if event is None:
            if until is not None and until <= time.time_ns():
                return
        elif event.passes(filters) and (until is None or event.nanoseconds <= until):
            await write(json.dumps(event.to_json()).encode() + b"\n")


def _moment(call: Call, key: str) -> int | None:
    text = call.query.text(key)
    if not text or text == "0":
        return None
    stamp = instant(text)
    try:
        seconds = time.mktime(time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
    except ValueError:
        raise ApiError(400, f'invalid value for "{key}": {text}') from None
    return int(seconds) * 10**9 + int(stamp[20:29])


async def disk_usage(daemon: Daemon, call: Call) -> Reply:
    """GET /system/df."""
    return Reply(await work(lambda: _disk_usage(daemon, call.query.texts("type"))))


def _disk_usage(daemon: Daemon, kinds: list[str]) -> Json:
    containers = settle_all(daemon.root)
    images = daemon.store.images()
    used = [container.image_id for container in containers]
    layers = {str(layer.path): layer.size for image in images for layer in image.layers}
    answer: Json = {"LayersSize": sum(layers.values())}
    if not kinds or "image" in kinds:
        answer["Images"] = [{**image_summary(image), "Containers": used.count(image.id)} for image in images]
    if not kinds or "container" in kinds:
        answer["Containers"] = [summary(daemon.root, container, size=True) for container in containers]
    if not kinds or "volume" in kinds:
        answer["Volumes"] = [
            {
                **present.volume(volume),
                "UsageData": {
                    "Size": volumes.disk_usage(volume.data),
                    "RefCount": len(volumes.users(daemon.root, volume.name)),
                },
            }
            for volume in volumes.list_all(daemon.root)
        ]
    if not kinds or "build-cache" in kinds:
        answer["BuildCache"] = []
    return answer
