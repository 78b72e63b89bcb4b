"""What of a container can be changed after it was created: its name, its limits, its restart policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from runtime.containers import lifecycle, restart, spec
from runtime.containers.container import Container, all_names_locked, locked
from runtime.containers.create import check_limits
from runtime.containers.names import check_name
from runtime.containers.settle import runtime_of
from runtime.containers.telling import tell
from runtime.errors import RuntimeFailure
from runtime.root import Root

#: The fields of a request that `update` can change.
LIMITS = (
    *("memory", "memory_reservation", "memory_swap", "nano_cpus", "cpu_shares", "cpuset_cpus"),
    *("cpuset_mems", "pids_limit"),
)


def rename(root: Root, reference: str, name: str) -> Container:
    """Give a container another name.

    Raises RuntimeFailure when that is none, is taken or is the one that it has.
    """
    name = check_name(name.removeprefix("/"))
    with locked(lifecycle.inspect(root, reference).directory) as container, all_names_locked(root) as others:
        if name == container.name:
            raise RuntimeFailure("Renaming a container with the same name as its current name")
        for other in others:
            if other.name == name:
                raise RuntimeFailure(
                    f'Conflict. The container name "/{name}" is already in use by container "{other.id}".'
                )
        renamed = dataclasses.replace(container, name=name).save()
    tell(root, renamed, "rename", oldName=f"/{container.name}")
    return renamed


def update(root: Root, reference: str, changes: Mapping[str, Any], warn: spec.Warn) -> Container:
    """Change limits and the restart policy (`restart`) of a container, of a running one at once.

    `changes` are fields of the request. `warn` is told what this machine cannot limit.

    Raises RuntimeFailure when a limit makes no sense, or cannot be had now; nothing is changed then.
    """
    name, _ = restart.parse(changes.get("restart", "no"))
    with locked(lifecycle.inspect(root, reference).directory) as container:
        if container.request.remove and name != "no":
            raise RuntimeFailure("Restart policy cannot be updated because AutoRemove is enabled")
        request = dataclasses.replace(container.request, **changes)
        if 0 < request.memory_swap < request.memory:
            raise RuntimeFailure("Memory limit should be smaller than already set memoryswap limit")
        check_limits(request)
        changed = dataclasses.replace(container, request=request)
        if changed.state.status in ("running", "paused") and changes.keys() & set(LIMITS):
            runtime_of(changed).update(changed.id, spec.limits(changed, warn))
        changed.save()
    tell(root, changed, "update")
    return changed
