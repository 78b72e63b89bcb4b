"""After a server died: the next one goes on where it was, from the ledger and the disk.

The ledger (ledger.pyx) says which numbers the kernel knows and where they are in the tree; what they are
there is read from the layers again, when somebody asks for them (`wake`): a hundred thousand nodes are no
reason to be late. At once come back only those that an open file or directory stands on, and those that the
disk may not have yet.

One change may have been under way, for one thread makes them all. The disk says whether it was made
(`finish_step`): then the names in the ledger follow, and the request, which the kernel sends again, is
answered without making it twice (changes.py).
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable
from typing import TYPE_CHECKING

from unionfs import ledger, origin
from unionfs.copyup import CopyUp
from unionfs.handles import OpenDirectory, OpenFile
from unionfs.layer import join
from unionfs.nodes import Listing, Node
from unionfs.operations import Operations
from unionfs.passthrough import Backing
from unionfs.syscalls import RENAME_EXCHANGE
from unionfs.tree import Tree

if TYPE_CHECKING:
    from unionfs.ledger import Ledger, Step

log = logging.getLogger(__name__)


class Revival:
    """What an earlier server has left of one tree."""

    def __init__(self, tree: Tree, book: Ledger, copyup: CopyUp | None) -> None:
        """Take the ledger over, and finish what was under way. Raises OSError."""
        self._tree = tree
        self._book = book
        self._copyup = copyup
        step = book.take_over()
        #: Records of the nodes that nobody has asked for yet, by each of their numbers.
        self._by_number, self._in_directory = book.numbers()
        self._by_name: dict[int, dict[bytes, int]] = {}
        self._unsettled = [record for record in set(self._by_number.values()) if book.node(record)[6]]
        tree.nodes.revival = self
        if step is not None:
            book.settle_step(self._finish_step(step))

    # Nodes -----------------------------------------------------------------------------------------

    def wake(self, number: int) -> Node | None:
        """The node of that number, in the table again; None when no earlier server knew it.

        Raises OSError.
        """
        record = self._by_number.get(number)
        if record is None:
            return None
        ino, second, kind, lookups, old_lookups, orphan, _, _ = self._book.node(record)
        for each in (ino, second):
            self._by_number.pop(each, None)
        try:
            node = self._node(record, ino, kind, orphan)
        except BaseException:
            self._by_number[ino] = self._by_number[second] = record
            raise
        if node is None:
            log.error("node %d has gone from the layers", ino)
            return None
        node.id = second
        node.lookups, node.old_lookups = lookups, old_lookups
        node.pins += len(self._in_directory.get(ino, ()))
        if node.upper and kind == stat.S_IFREG:
            # Somebody may write, or have mapped, what is passed through: that is found out (fastpath.pyx).
            node.written = node.stale = True
        self._tree.nodes.add_again(node, record)
        return node

    def wake_name(self, parent: Node, name: bytes) -> bool:
        """Wake the node that a name led to; False when there was none, or none is left. Raises OSError."""
        if parent.ino not in self._by_name:
            self._by_name[parent.ino] = dict(self._in_directory.get(parent.ino, ()))
        record = self._by_name[parent.ino].pop(name, None)
        if record is None:
            return False
        ino = self._book.node(record)[0]
        if self._by_number.get(ino) != record or (parent.ino, name) not in self._book.names(record):
            return False
        return self.wake(ino) is not None

    def _node(self, record: int, ino: int, kind: int, orphan: int) -> Node | None:
        node: Node | None = None
        for parent_ino, name in self._book.names(record):
            parent = self._tree.nodes.get(parent_ino)
            entry = self._tree.listing(parent).names.get(name) if parent is not None else None
            if parent is None or entry is None or entry.kind != kind or entry.node is not None:
                continue
            if node is None:
                node = self._tree.node_again(parent, name, entry, ino)
            entry.node = node
            node.names.append((parent, name))
        if node is not None:
            return node
        if orphan >= 0:
            node = Node(ino, kind, ())
            node.upper, node.orphan = True, orphan
            node.upper_ino = os.fstat(orphan).st_ino
            node.metacopy = 0
        else:
            place = self._book.place(record)
            layer = self._tree.layer_of(place[0]) if place is not None else None
            if place is None or layer is None:
                return None
            node = Node(ino, kind, ((layer, place[1]),))
        if kind == stat.S_IFDIR:
            node.listing = Listing({}, {}, set(), set())
        return node

    # Open files ------------------------------------------------------------------------------------

    def reopen(self, operations: Operations) -> None:
        """Bring back what is open: the descriptors are still there, and this is what they stand for."""
        backings: dict[int, Backing] = {}
        files: dict[int, OpenFile] = {}
        directories: dict[int, OpenDirectory] = {}
        for fd, ino, flags, backing_id in self._book.open_files():
            try:
                node = self._tree.nodes.get(ino)
            except OSError as error:
                log.error("an open file of node %d is lost: %s", ino, error.strerror)
                continue
            if node is None:
                continue
            file = OpenFile(node, flags)
            if backing_id:
                file.backing = backings.setdefault(backing_id, Backing(backing_id))
                file.backing.users += 1
                if self._book.node(node.record)[7] == backing_id:
                    node.backing = file.backing
                if flags & os.O_ACCMODE:
                    node.writers += 1
            node.handles.append(fd)
            files[fd] = file
        for handle, ino, names in self._book.open_directories():
            directory = self._tree.nodes.get(ino)
            if directory is not None:
                directories[handle] = OpenDirectory(directory)
                directories[handle].names = names
        operations.reopen(files, directories)
        if self._copyup is not None:
            for node in {file.node for file in files.values()}:
                self._copyup.follow(node)

    def resettle(self) -> None:
        """Let the disk have what it may not have yet. For a task of trio.run."""
        if self._copyup is None:
            return
        self._copyup.settling.take_over()
        for record in self._unsettled:
            node = self._tree.nodes.get(self._book.node(record)[0])
            if node is not None and not node.unsettled:
                self._copyup.settling.add(node)

    # What was under way ------------------------------------------------------------------------------

    def _finish_step(self, step: Step) -> bool:
        """Make the ledger say what the disk says; returns whether the step was made. Raises OSError."""
        kind = step["kind"]
        if kind == ledger.RELEASED:
            return step["parent"] not in (fd for fd, *_ in self._book.open_files())
        if kind == ledger.RELEASED_DIRECTORY:
            return step["parent"] not in (handle for handle, *_ in self._book.open_directories())
        parent = self._tree.nodes.get(step["parent"])
        if parent is None:
            return False
        if kind == ledger.MADE:
            return step["name"] in self._tree.listing(parent).names
        if kind == ledger.REMOVED:
            return self._finish_removal(step, parent)
        if kind == ledger.LINKED:
            return self._finish_link(step, parent)
        if kind == ledger.RENAMED:
            return self._finish_rename(step, parent)
        if kind == ledger.COPIED:
            self._finish_copy(parent)
            return False
        if kind == ledger.XATTR_REMOVED:
            path = self._tree.proc_path(parent)
            listed: Iterable[str] = os.listxattr(path, follow_symlinks=parent.orphan >= 0)
            return os.fsdecode(step["name"]) not in listed
        return kind == ledger.XATTR_MADE

    def _finish_removal(self, step: Step, parent: Node) -> bool:
        if step["name"] in self._tree.listing(parent).names:
            return False
        self._loses(step["node"], parent, step["name"], step["orphan"])
        return True

    def _finish_link(self, step: Step, parent: Node) -> bool:
        if self._upper_inode(parent, step["name"]) != step["inode"]:
            return False
        self._gains(step["other_parent"], parent, step["name"])
        record = self._by_number.get(step["other_parent"], 0)
        if record:
            self._book.set_orphan(record, -1)
        return True

    def _finish_rename(self, step: Step, old_parent: Node) -> bool:
        new_parent = self._tree.nodes.get(step["other_parent"])
        if new_parent is None or self._upper_inode(new_parent, step["other"]) != step["inode"]:
            return False
        exchanged = bool(step["flags"] & RENAME_EXCHANGE)
        old, new = (old_parent, step["name"]), (new_parent, step["other"])
        if not exchanged and old[1] in self._tree.listing(old_parent).names:
            self._hide_old(*old)
        if step["replaced"]:
            self._loses(step["replaced"], *new, step["orphan"])
            if exchanged:
                self._gains(step["replaced"], *old)
        self._gains(step["node"], *new)
        self._loses(step["node"], *old, -1)
        return True

    def _hide_old(self, parent: Node, name: bytes) -> None:
        """The last part was missing of a rename that has no single call for all of it (Upper.rename)."""
        upper = self._tree.upper
        assert upper is not None
        kind = self._tree.listing(parent).names[name].kind
        hides = self._tree.lower_place(parent, name) is not None
        path = join(self._tree.path(parent), name)
        if hides:
            upper.white_out(path, present=kind)
        else:
            upper.remove(path, directory=kind == stat.S_IFDIR)
        parent.listing = None

    def _finish_copy(self, node: Node) -> None:
        """A copy that is to be settled (settling.py) may have got its name."""
        if node.upper and node.kind == stat.S_IFREG:
            said = origin.read(self._tree.proc_path(node))
            if said is not None and said.boot:
                self._unsettled.append(node.record)

    def _upper_inode(self, parent: Node, name: bytes) -> int:
        """st_ino of a name in the upper layer, 0 without."""
        assert self._tree.upper is not None
        try:
            return self._tree.upper.stat(join(self._tree.path(parent), name)).st_ino
        except FileNotFoundError:
            return 0

    def _gains(self, ino: int, parent: Node, name: bytes) -> None:
        record = self._by_number.get(ino, 0)
        if record and (parent.ino, name) not in self._book.names(record):
            self._book.add_name(record, parent.ino, name)
            self._in_directory.setdefault(parent.ino, []).append((name, record))
            parent.pins += 1

    def _loses(self, ino: int, parent: Node, name: bytes, orphan: int) -> None:
        """A node has lost a name; it is held by the descriptor `orphan` if that was its last."""
        record = self._by_number.get(ino, 0)
        if not record:
            return
        if (parent.ino, name) in self._book.names(record):
            self._book.drop_name(record, parent.ino, name)
            self._in_directory[parent.ino].remove((name, record))
            parent.pins -= 1
        if self._book.names(record):
            return
        if orphan >= 0:
            self._book.set_orphan(record, orphan)
        elif self._book.node(record)[5] < 0:
            place = self._tree.lower_place(parent, name)
            if place is not None:
                self._book.set_place(record, self._tree.tag(place[0]), place[1])
