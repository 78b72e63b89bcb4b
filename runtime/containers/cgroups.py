"""What this machine's cgroups can limit, and what they counted.

Version 1, version 2 and the hybrid of both; see cgroups(7) and Documentation/admin-guide/cgroup-v1.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")


def is_v2() -> bool:
    """Whether cgroup2 alone is mounted."""
    return (MOUNT / "cgroup.controllers").exists()


def path_of(container_id: str) -> str:
    """The cgroup of a container, for linux.cgroupsPath.

    At the top and not under a common parent: nothing is left when the container is gone.
    """
    return f"/unionfs-{container_id}"


def can_be_made() -> bool:
    """Whether this user may make cgroups: root may, others as a rule not."""
    return os.access(MOUNT if is_v2() else MOUNT / "pids", os.W_OK)


def has_controller(name: str) -> bool:
    """Whether the controller `name` (memory, cpu, pids, …) can be used here, and by this user."""
    if is_v2():
        there = name in (MOUNT / "cgroup.controllers").read_text().split()
        return there and os.access(MOUNT, os.W_OK)
    return (MOUNT / name / "cgroup.procs").exists() and os.access(MOUNT / name, os.W_OK)


def can_limit_swap() -> bool:
    """Whether the kernel accounts for swap."""
    if is_v2():
        return has_controller("memory")
    return (MOUNT / "memory" / "memory.memsw.limit_in_bytes").exists()


def oom_kills(container_id: str) -> int:
    """How many processes the kernel killed for want of memory; known as long as the cgroup is there."""
    group = path_of(container_id).lstrip("/")
    if is_v2():
        counter = MOUNT / group / "memory.events"
    else:
        counter = MOUNT / "memory" / group / "memory.oom_control"
    with contextlib.suppress(OSError):
        for line in counter.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0


def processes(container_id: str) -> list[int]:
    """The host's numbers of the processes in the container's cgroup."""
    group = path_of(container_id).lstrip("/")
    base = MOUNT if is_v2() else MOUNT / "pids"
    with contextlib.suppress(OSError):
        return [int(line) for line in (base / group / "cgroup.procs").read_text().split()]
    return []
