"""The node table: what the kernel knows by number, and what we know of it.

A node is one file of the union. Its number (`ino`) is the st_ino a user sees; it stays the same through
copy-up, rename and remount (see `Tree._number`). The kernel's name for the node (`id`) is the same number,
until a file of a lower layer is copied up that the kernel has open by passthrough: then the kernel needs a
second name for it, and both lead here until it gave the first one back (`NodeTable.rename_for_kernel`).
Names lead to nodes through the `Entry` that a directory keeps for each name; an entry has a node only while
somebody holds one.

nodes.pxd makes C structures of these classes, so that the fast path (session/fastpath.pyx) reads them as
such.

A node stays in the table while the kernel holds a reference (`lookups`), a file is open on it (`handles`)
or the node of a child is in the table (`pins`), so that a child always finds its parent.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trio

    from unionfs.layer import Layer
    from unionfs.ledger import Ledger
    from unionfs.passthrough import Backing
    from unionfs.revival import Revival

ROOT = 1

#: Second names for the kernel are above all numbers of files.
_SECOND_NAMES = 1 << 63


class Entry:
    """What one name in a merged directory means.

    `kind` is S_IFMT of what is seen; `upper` says that the upper layer has it; `lowers` are the positions
    of the lower layers it is seen in, topmost first (several only for a directory).
    """

    def __init__(self, kind: int, upper: bool, lowers: tuple[int, ...]) -> None:
        self.kind = kind
        self.upper = upper
        self.lowers = lowers
        self.node: Node | None = None


class Listing:
    """A directory, merged: decided once, then changed by our own operations alone.

    `names` is what is seen. `below` is what the lower layers alone would show, so that a name in it needs
    a whiteout to go; it is the same object as `names` until the upper has the directory. `whiteouts` are
    the names at which the upper holds a whiteout, `marked` those beside which it holds a marker.
    """

    def __init__(
        self,
        names: dict[bytes, Entry],
        below: dict[bytes, Entry],
        whiteouts: set[bytes],
        marked: set[bytes],
    ) -> None:
        self.names = names
        self.below = below
        self.whiteouts = whiteouts
        self.marked = marked


class Node:
    """One file of the union, of any kind."""

    def __init__(self, ino: int, kind: int, lowers: tuple[tuple[Layer, bytes], ...]) -> None:
        self.ino = ino
        #: What the kernel calls it now.
        self.id = ino
        self.kind = kind
        #: Where lower layers have it, topmost first: fixed for life. One place unless a directory.
        self.lowers = lowers
        #: Whether the upper layer has it. Changes once, by copy-up.
        self.upper = False
        #: st_ino in the upper layer, to tell hard links from look-alikes; 0 while not upper.
        self.upper_ino = 0
        #: Every (directory, name) known to lead here. Empty once all of those were removed.
        self.names: list[tuple[Node, bytes]] = []
        #: The merged directory, once somebody asked for it.
        self.listing: Listing | None = None
        #: References the kernel holds by `id`, and by `ino` where that is another.
        self.lookups = 0
        self.old_lookups = 0
        self.pins = 0
        #: Descriptors of its open files, all in the layer the node is in; copy-up replaces what they are.
        self.handles: list[int] = []
        #: O_PATH descriptor of an upper file that lost its last known name; -1 otherwise. While it is
        #: held, the disk cannot give the file's inode number to another.
        self.orphan = -1
        #: Set while a worker thread copies it up; others wait for it.
        self.copying: trio.Event | None = None
        #: What its open files are passed through to (passthrough.py), None while there is none.
        self.backing: Backing | None = None
        #: How many of those may write.
        self.writers = 0
        #: Whether one of them, or a mapping that it left, may change times that the kernel does not know of.
        self.written = False
        #: Whether the kernel may have kept content that they have changed since.
        self.stale = False
        #: Whether its content is elsewhere (metacopy.py): -1 while nobody has looked.
        self.metacopy = -1
        #: Whether the disk may not have its content yet (settling.py).
        self.unsettled = False
        #: Where the ledger has it, 0 for nowhere.
        self.record = 0

    def __repr__(self) -> str:
        return f"<Node {self.ino} {self.names[:1]}>"


class NodeTable:
    """Node ids to nodes, and when to let go of one."""

    def __init__(self, root: Node, ledger: Ledger | None = None) -> None:
        """`ledger`: what the next server has to know is written there."""
        self.root = root
        self.ledger = ledger
        #: Brings back nodes that an earlier server has left, one by one; None once there are none.
        self.revival: Revival | None = None
        self._nodes: dict[int, Node] = {ROOT: root}
        self._second_names = _SECOND_NAMES
        root.lookups = 1  # the kernel never forgets the root

    def __len__(self) -> int:
        return len(self._nodes)

    def __getitem__(self, ino: int) -> Node:
        return self.find(ino)

    def find(self, ino: int) -> Node:
        """The node of that number. Raises KeyError; OSError when its layer cannot be read (revival.py)."""
        node = self.get(ino)
        if node is None:
            raise KeyError(ino)
        return node

    def get(self, ino: int) -> Node | None:
        """The node of that number, if it is in the table. Raises OSError as `find` does."""
        node = self._nodes.get(ino)
        if node is None and self.revival is not None:
            node = self.revival.wake(ino)
        return node

    def add(self, node: Node) -> None:
        """Put a new node in."""
        self._nodes[node.ino] = node
        if self.ledger is not None:
            node.record = self.ledger.add_node(node.ino, node.id, node.kind)
            self.note(node)

    def add_again(self, node: Node, record: int) -> None:
        """Put one in that an earlier server knew, under both names that the kernel has for it."""
        node.record = record
        self._nodes[node.ino] = self._nodes[node.id] = node
        if node.id >= self._second_names:
            self._second_names = node.id + 1

    def note(self, node: Node) -> None:
        """Write down what may have changed of a node: second name, references, orphan, whether unsettled."""
        if node.record:
            assert self.ledger is not None
            self.ledger.note(
                node.record, node.id, node.lookups, node.old_lookups, node.orphan, node.unsettled
            )

    def name(self, node: Node, parent: Node, name: bytes, entry: Entry) -> None:
        """Note that `name` in `parent` leads to `node`."""
        entry.node = node
        node.names.append((parent, name))
        parent.pins += 1
        if node.record:
            assert self.ledger is not None
            self.ledger.add_name(node.record, parent.ino, name)

    def unname(self, node: Node, parent: Node, name: bytes, entry: Entry) -> None:
        """Note that it does so no longer."""
        entry.node = None
        node.names.remove((parent, name))
        parent.pins -= 1
        if node.record:
            assert self.ledger is not None
            self.note(node)
            self.ledger.drop_name(node.record, parent.ino, name)
        self.release(parent)

    def forget(self, ino: int, lookups: int) -> None:
        """The kernel gave back that many references."""
        node = self.get(ino)
        if node is not None:
            if ino == node.id:
                node.lookups -= lookups
            else:
                node.old_lookups -= lookups
            self.note(node)
            self.release(node)

    def rename_for_kernel(self, node: Node) -> None:
        """Give the node a second name, under which the kernel finds it from the next lookup on.

        What the kernel knows under the first one still leads here.
        """
        node.old_lookups = node.lookups
        node.lookups = 0
        node.id = self._second_names
        self._second_names += 1
        self._nodes[node.id] = node
        self.note(node)

    def release(self, node: Node) -> None:
        """Take a node out of the table if nothing holds it, and then perhaps its parents."""
        pending = [node]
        while pending:
            node = pending.pop()
            held = node.lookups > 0 or node.old_lookups > 0 or node.pins or node.handles or node.copying
            if held or self._nodes.get(node.ino) is not node:
                continue
            del self._nodes[node.ino]
            if node.id != node.ino:
                del self._nodes[node.id]
            if node.record:
                assert self.ledger is not None
                self.ledger.drop_node(node.record)
                node.record = 0
            if node.orphan >= 0:
                os.close(node.orphan)
                node.orphan = -1
            for parent, name in node.names:
                listing = parent.listing
                if listing is not None and name in listing.names:
                    listing.names[name].node = None
                parent.pins -= 1
                pending.append(parent)
            node.names.clear()
