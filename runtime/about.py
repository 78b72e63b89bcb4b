"""What this program and this machine are: docker's info and version.

The field names are those of the Docker Engine API (SystemInfo, SystemVersion).
"""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from runtime.containers import cgroups, netavark, oci
from runtime.containers.settle import settle_all
from runtime.errors import RuntimeFailure
from runtime.images.platforms import host_platform
from runtime.images.store import ImageStore
from runtime.root import Root

Json = dict[str, Any]

API_VERSION = "1.48"
#: dockerd's own; clients as old as Compose 1.29 ask for it.
MIN_API_VERSION = "1.24"


def version() -> Json:
    """What docker version shows of a server."""
    ours = installed_version("unionfs")
    details = {
        "ApiVersion": API_VERSION,
        "MinAPIVersion": MIN_API_VERSION,
        "Arch": host_platform().architecture,
        "Os": "linux",
        "KernelVersion": platform.release(),
    }
    return {
        "Platform": {"Name": "unionctl"},
        "Components": [{"Name": "Engine", "Version": ours, "Details": details}],
        "Version": ours,
        **details,
        "GitCommit": "",
        "GoVersion": "",
        "BuildTime": "",
    }


def info(root: Root, store: ImageStore) -> Json:
    """What docker info shows of a server."""
    containers = settle_all(root)
    states = [container.state.status for container in containers]
    try:
        programs = oci.candidates(root, "")
    except RuntimeFailure:
        programs = []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "ID": Path("/etc/machine-id").read_text().strip() if Path("/etc/machine-id").exists() else "",
        "Containers": len(states),
        "ContainersRunning": states.count("running"),
        "ContainersPaused": states.count("paused"),
        "ContainersStopped": len(states) - states.count("running") - states.count("paused"),
        "Images": len(store.images()),
        "Driver": "unionfs",
        "DriverStatus": [["State root", str(root.path)]],
        "Plugins": {
            "Volume": ["local"],
            "Network": [*(["bridge"] if netavark.program() else []), "host", "null"],
            "Authorization": None,
            "Log": ["json-file"],
        },
        "MemoryLimit": cgroups.has_controller("memory"),
        "SwapLimit": cgroups.can_limit_swap(),
        "CpuCfsPeriod": cgroups.has_controller("cpu"),
        "CpuCfsQuota": cgroups.has_controller("cpu"),
        "CPUShares": cgroups.has_controller("cpu"),
        "CPUSet": cgroups.has_controller("cpuset"),
        "PidsLimit": cgroups.has_controller("pids"),
        "IPv4Forwarding": True,
        "Debug": False,
        "NFd": len(os.listdir("/proc/self/fd")),
        "OomKillDisable": False,
        "NGoroutines": 0,
        "SystemTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "LoggingDriver": "json-file",
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": "2" if cgroups.is_v2() else "1",
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
        "DockerRootDir": str(root.path),
        "HttpProxy": "",
        "HttpsProxy": "",
        "NoProxy": "",
        "Name": platform.node(),
        "Labels": [],
        "ExperimentalBuild": False,
        "ServerVersion": installed_version("unionfs"),
        "Runtimes": {os.path.basename(path): {"path": path} for path in programs},
        "DefaultRuntime": os.path.basename(programs[0]) if programs else "",
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
