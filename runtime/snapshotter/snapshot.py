"""What is known of a snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What can be done with a snapshot; the values are the words of containerd's filters."""

    #: Read only, for a caller to look at.
    VIEW = "view"
    #: Writable.
    ACTIVE = "active"
    #: For ever as it is, and what others stand on.
    COMMITTED = "committed"


@dataclass(frozen=True, slots=True)
class Usage:
    """What a snapshot adds to its parent."""

    #: Bytes on the disk.
    size: int
    #: Files, one with several names counted once.
    inodes: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One snapshot as containerd sees it."""

    #: The key while it is written or viewed, the name once it is committed.
    name: str
    #: The name of what it stands on, "" for nothing.
    parent: str
    kind: Kind
    #: Nanoseconds since 1970.
    created: int
    updated: int
    labels: Mapping[str, str]
