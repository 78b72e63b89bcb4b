"""How a snapshot is mounted, in containerd's words.

containerd mounts by itself: a type `fuse3.PROGRAM` makes it run `mount.fuse3 SOURCE TARGET -o … -t PROGRAM`,
and that runs PROGRAM. So a mount belongs to the container's shim, and goes on when the snapshotter ends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.snapshotter.errors import InvalidArgument

#: By these labels containerd asks for ids of a user namespace: CONTAINER:HOST:COUNT, several after commas.
ID_LABELS = {
    "containerd.io/snapshot/uidmapping": "uidmapping",
    "containerd.io/snapshot/gidmapping": "gidmapping",
}

_ID_RANGES = re.compile(r"\d+:\d+:[1-9]\d*(?:,\d+:\d+:[1-9]\d*)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Mount:
    """containerd's types.Mount."""

    type: str
    source: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Directories:
    """What a snapshot's tree is made of."""

    #: Committed layers, the topmost first.
    lowers: Sequence[Path]
    #: Where changes go, and where they are prepared; None for a view.
    upper: Path | None = None
    work: Path | None = None


def id_options(labels: Mapping[str, str]) -> tuple[str, ...]:
    """The options that show a snapshot with the ids its labels name.

    Layers keep an image's own ids, so nothing is changed on the disk. Raises InvalidArgument.
    """
    options = []
    for label, option in ID_LABELS.items():
        ranges = labels.get(label, "")
        if ranges and not _ID_RANGES.fullmatch(ranges):
            raise InvalidArgument(
                f"label {label}='{ranges}': it is CONTAINER:HOST:COUNT, several after commas"
            )
        if ranges:
            options.append(f"{option}={ranges.replace(',', ':')}")
    return tuple(options)


def mounts(program: str, directories: Directories, ids: Sequence[str] = ()) -> list[Mount]:
    """What to mount for the tree of `directories`: a bind mount where one layer is all of it, else a union.

    There is at least one directory, and none has a character in its path that options give a meaning.
    `program` is a name in containerd's PATH, or a path.
    """
    lowers, upper, work = directories.lowers, directories.upper, directories.work
    if not ids and len(lowers) + (upper is not None) == 1:
        only = lowers[0] if upper is None else upper
        return [Mount("bind", str(only), ("ro" if upper is None else "rw", "rbind"))]
    options = [f"lowerdir={':'.join(map(str, lowers))}", *ids]
    if upper is not None:
        options += [f"upperdir={upper}", f"workdir={work}"]
    return [Mount(f"fuse3.{program}", "overlay", tuple(options))]
