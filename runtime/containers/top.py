"""The processes of a container, as the host's ps(1) shows them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.containers import cgroups, lifecycle
from runtime.errors import RuntimeFailure
from runtime.root import Root


@dataclass(frozen=True)
class Processes:
    """A table of processes, one row for each."""

    titles: list[str]
    rows: list[list[str]]


def top(root: Root, reference: str, options: Sequence[str] = ()) -> Processes:
    """The processes of a running container, with the columns that ps shows for `options` (by default -ef).

    Raises RuntimeFailure when it does not run, or ps does not take the options or show a PID.
    """
    container = lifecycle.inspect(root, reference)
    if container.state.status not in ("running", "paused"):
        raise RuntimeFailure(f"container {container.id} is not running")
    result = subprocess.run(
        ["ps", *(options or ("-ef",))],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if result.returncode != 0:
        words = result.stderr.strip().splitlines() or ["it failed"]
        raise RuntimeFailure(f"ps {' '.join(options)}: {words[0]}")
    titles, *lines = result.stdout.splitlines()
    columns = titles.split()
    if "PID" not in columns:
        raise RuntimeFailure("Couldn't find PID field in ps output")
    place = columns.index("PID")
    members = set(map(str, cgroups.processes(container.id)))
    rows = [line.split(maxsplit=len(columns) - 1) for line in lines]
    return Processes(columns, [row for row in rows if len(row) > place and row[place] in members])
