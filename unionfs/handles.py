"""Open files and directories: what a file handle of the kernel stands for."""

from __future__ import annotations

import os
from typing import Generic, TypeVar

from unionfs.nodes import Node
from unionfs.passthrough import Backing

T = TypeVar("T")

#: Open flags that mean something to the layer's file; the kernel has dealt with the others. O_APPEND is
#: not among them (the kernel sends the offset), nor O_DIRECT (our buffers are not aligned).
BACKING_FLAGS = os.O_ACCMODE | os.O_SYNC | os.O_DSYNC | os.O_NOATIME

#: Open flags by which each write is on the disk when it returns.
WRITES_THROUGH = os.O_SYNC | os.O_DSYNC


class OpenFile:
    """A file opened once. Its handle is its descriptor."""

    __slots__ = ("backing", "flags", "node")

    def __init__(self, node: Node, flags: int) -> None:
        self.node = node
        self.flags = flags
        #: What the kernel passes it through to, if it does.
        self.backing: Backing | None = None


class OpenDirectory:
    """A directory opened once. `names` is what it held when reading began from the start.

    So each name that was there all the time is given exactly once, whatever others add, remove or rename
    meanwhile, and a position told by telldir(3) stays good.
    """

    __slots__ = ("names", "node")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.names: list[bytes] = []


class HandleTable(Generic[T]):
    """Numbers for open things, the lowest free one first."""

    def __init__(self) -> None:
        self._open: dict[int, T] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._open)

    def __getitem__(self, handle: int) -> T:
        return self._open[handle]

    def restore(self, things: dict[int, T]) -> None:
        """Begin with things that are open, under their numbers."""
        self._open = things
        self._free = [handle for handle in range(1, max(things, default=0)) if handle not in things]

    def add(self, thing: T) -> int:
        """Number an open thing."""
        handle = self._free.pop() if self._free else len(self._open) + 1
        self._open[handle] = thing
        return handle

    def pop(self, handle: int) -> T:
        """Take it out; the number may be used again."""
        self._free.append(handle)
        return self._open.pop(handle)
