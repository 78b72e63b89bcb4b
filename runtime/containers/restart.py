"""Restart policies: whether a container that has ended is started again, and when; docker's rules.

The record of a container that waits for its restart says `restarting`. One process waits and then starts it:
`python -m runtime.containers.restart ROOT ID`, a companion of the container.

The first restart comes after 0.1 s; the wait doubles each time up to a minute, and is 0.1 s again once the
container has run for ten seconds (moby, restartmanager). A container that was stopped or killed by hand stays
as it is, whatever its policy.
"""

from __future__ import annotations

import contextlib
import sys
import time
from datetime import datetime
from pathlib import Path

from runtime.containers import companions
from runtime.containers.container import Container, load
from runtime.errors import RuntimeFailure
from runtime.root import Root

_FIRST, _LONGEST, _STEADY = 0.1, 60.0, 10.0
_LOOK = 0.2  # how soon it is noticed that nobody wants the restart any more

NAMES = ("no", "always", "unless-stopped", "on-failure")


def parse(text: str) -> tuple[str, int]:
    """A policy as (name, maximum): `no`, `always`, `unless-stopped`, `on-failure[:MAXIMUM]` (0: no maximum).

    Raises RuntimeFailure when it is none.
    """
    name, colon, maximum = text.partition(":")
    name = name or "no"
    if name not in NAMES:
        raise RuntimeFailure(
            f"invalid restart policy: unknown policy '{name}'; there are {', '.join(NAMES)}", 125
        )
    if colon and (name != "on-failure" or not maximum.isdecimal()):
        what = "maximum retry count must be a number" if name == "on-failure" else "it takes no maximum"
        raise RuntimeFailure(f"invalid restart policy '{text}': {what}", 125)
    return name, int(maximum or 0)


def wanted(container: Container, exit_code: int) -> bool:
    """Whether the policy starts the container again after it ended with `exit_code`."""
    name, maximum = parse(container.request.restart)
    state = container.state
    if state.stopped:
        return False
    if name == "on-failure":
        return exit_code != 0 and (maximum == 0 or state.restarts < maximum)
    return name != "no"


def delay(container: Container) -> float:
    """How long to wait before the next restart of a container that has just ended, in seconds."""
    state = container.state
    ran = datetime.fromisoformat(state.finished_at) - datetime.fromisoformat(state.started_at)
    if ran.total_seconds() >= _STEADY or not state.restart_delay:
        return _FIRST
    return min(state.restart_delay * 2, _LONGEST)


def bring_back(root: Root, container: Container) -> None:
    """Have a container that is to be restarted waited for and started, unless somebody is at it."""
    companions.spawn("restart", _lock(container), str(root.path), container.id)


def is_waited_for(container: Container) -> bool:
    """Whether a process waits to restart the container."""
    return companions.is_at_work(_lock(container))


def _lock(container: Container) -> Path:
    return container.directory / "restart-lock"


def main(root: Root, container_id: str) -> None:
    """Wait, and start the container if it still is to be restarted; again as long as it cannot be started."""
    from runtime.containers import lifecycle  # which needs this module

    while container := _awaited(root.containers / container_id):
        # A start that fails leaves the record as settle.abandon_restart has it: to be tried again, or not.
        with contextlib.suppress(RuntimeFailure, OSError):
            lifecycle.start_again(root, container)


def _awaited(directory: Path) -> Container | None:
    """The container when its time has come; None when it is not to be restarted any more."""
    try:
        container = load(directory)
        if container.state.status != "restarting":
            return None
        due = datetime.fromisoformat(container.state.finished_at).timestamp() + container.state.restart_delay
        while (left := due - time.time()) > 0:
            time.sleep(min(left, _LOOK))
            container = load(directory)
            if container.state.status != "restarting":
                return None
    except FileNotFoundError:
        return None
    return container


if __name__ == "__main__":
    main(Root(Path(sys.argv[1])), sys.argv[2])
