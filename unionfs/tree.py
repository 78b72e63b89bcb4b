"""The merged tree: decides what a name means.

A directory is merged from its layers the first time it is asked for and then kept. Layers do not change
beneath a mount, and the upper one changes by our own operations alone, so what is kept stays true: a
name that is absent is known to be absent.

The merge, from the topmost layer down: a name is seen in the first layer that has it. A directory goes on
into the layers below until one of them has something else at its name, whites it out, or is opaque.
A whiteout acts on the layers below its own.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat

import xxhash

from unionfs import metacopy, origin, redirect, whiteout
from unionfs.layer import DirectoryEntry, Layer, join
from unionfs.ledger import Ledger
from unionfs.nodes import ROOT, Entry, Listing, Node, NodeTable
from unionfs.redirect import Place
from unionfs.upper import Upper
from unionfs.whiteout import Opaque

#: Inode numbers of a layer below this are used as they are, above the layer's own number.
_INO_BITS = 48


class Tree:
    """The union of some lower layers, topmost first, and at most one upper layer."""

    def __init__(self, lowers: list[Layer], upper: Upper | None, ledger: Ledger | None = None) -> None:
        """`ledger`: what the next server has to know of nodes is written there."""
        self.lowers = lowers
        self.upper = upper
        # Counted from the bottom, so that numbers stay when layers are put on top.
        self._tags = {layer: len(lowers) - index for index, layer in enumerate(lowers)}
        #: Whether a redirected directory was met, or made: then paths differ from layer to layer.
        self.redirected = False
        root = Node(ROOT, stat.S_IFDIR, tuple((layer, b"") for layer in lowers))
        if upper is not None:
            root.upper = True
            root.upper_ino = upper.stat(b"").st_ino
            if self.is_opaque(upper, b""):
                root.lowers = ()
        self.nodes = NodeTable(root, ledger)
        #: Directories that must not be seen through a lower layer they lie in: they change beneath it.
        self._hidden = upper.own_directories() if upper is not None else frozenset()

    @property
    def root(self) -> Node:
        """The root directory."""
        return self.nodes.root

    # Places ----------------------------------------------------------------------------------------

    def path(self, node: Node) -> bytes:
        """Where the node is in the union, which is where the upper layer has or would have it.

        Raises FileNotFoundError when it has no name any more.
        """
        parts: list[bytes] = []
        while node.ino != ROOT:
            if not node.names:
                raise FileNotFoundError(errno.ENOENT, "removed")
            node, name = node.names[0]
            parts.append(name)
        parts.reverse()
        return b"/".join(parts)

    def place(self, node: Node) -> Place:
        """The layer and the path in it where the node's content and attributes are.

        Not for orphans, which have no path.
        """
        if node.upper:
            assert self.upper is not None
            return self.upper, self.path(node)
        return node.lowers[0]

    def proc_path(self, node: Node) -> bytes:
        """A path for system calls that take no descriptor; good until the next call to a layer.

        For an orphan it must be followed, for others it must not.
        """
        if node.orphan >= 0:
            return b"/proc/self/fd/%d" % node.orphan
        layer, path = self.place(node)
        return layer.proc_path(path)

    def open(self, node: Node, flags: int) -> int:
        """Open the node's content in its layer; the caller owns the descriptor."""
        if node.orphan >= 0:
            return os.open(b"/proc/self/fd/%d" % node.orphan, flags | os.O_CLOEXEC)
        layer, path = self.place(node)
        return layer.open(path, flags)

    def content_place(self, node: Node) -> Place | None:
        """Where the content of a regular file is, if not where its attributes are (metacopy.py).

        Raises OSError (EIO) when it ought to be somewhere and is not.
        """
        path, orphaned = self.proc_path(node), node.orphan >= 0
        if not metacopy.is_metacopy(path, follow=orphaned):
            return None
        target = redirect.read(path, follow=orphaned)
        position = -1 if node.upper else self.position(node.lowers[0][0])
        named: list[Place] = []
        if node.names:
            parent, name = node.names[0]
            named = [(layer, join(path, target or name)) for layer, path in parent.lowers]
        below = [place for place in named if self.position(place[0]) > position]
        return metacopy.find_content(target, below, self.lowers[position + 1 :])

    def stat(self, node: Node) -> os.stat_result:
        """The attributes of the node as its layer has them: st_ino and st_nlink are not the union's."""
        if node.orphan >= 0:
            return os.fstat(node.orphan)
        layer, path = self.place(node)
        return layer.stat(path)

    def link_count(self, node: Node, status: os.stat_result) -> int:
        """st_nlink of the node, given its attributes.

        A file's is its layer's: a lower file with several names is copied up before it loses one.
        A directory's is two and the directories in it.
        """
        if node.kind != stat.S_IFDIR:
            return status.st_nlink if node.names or node.upper else 0
        return self.directory_link_count(node, status.st_nlink)

    def directory_link_count(self, node: Node, in_layer: int) -> int:
        """st_nlink of a directory, given that of its topmost layer."""
        if not node.names and node.ino != ROOT:
            return 0
        if len(node.lowers) + node.upper == 1:
            return in_layer
        return 2 + sum(entry.kind == stat.S_IFDIR for entry in self.listing(node).names.values())

    # Names -----------------------------------------------------------------------------------------

    def lookup(self, parent: Node, name: bytes) -> Node | None:
        """The node that `name` in a directory leads to, None when there is no such name.

        Raises OSError from the layer (a name too long for it is ENAMETOOLONG).
        """
        entry = self.listing(parent).names.get(name)
        if entry is None:
            if len(name) > 255:
                raise OSError(errno.ENAMETOOLONG, "name too long")
            return None
        return entry.node or self._make_node(parent, name, entry)

    def resolve(self, path: bytes) -> Node | None:
        """The node at a path of the union, not following symlinks; None when there is none.

        Release it after use: the kernel may not know of it.
        """
        node = self.root
        for name in path.split(b"/") if path else ():
            parent = node
            found = self.lookup(parent, name) if parent.kind == stat.S_IFDIR else None
            if found is None:
                self.nodes.release(parent)
                return None
            node = found
        return node

    def _make_node(self, parent: Node, name: bytes, entry: Entry) -> Node:
        """The node that a name of a merged directory leads to: a new one, or that of another hard link."""
        if self.nodes.revival is not None and self.nodes.revival.wake_name(parent, name):
            assert entry.node is not None
            return entry.node
        places = self._lower_places(parent, name, entry)
        layer, path = self._upper_place(parent, name) if entry.upper else places[0]
        status = layer.stat(path)
        if (status.st_dev, status.st_ino) in self._hidden:
            raise OSError(errno.ELOOP, "the upper or the work directory itself")
        wanted = [self.number(layer, status)]
        if entry.upper:
            wanted.insert(0, self._origin(path, status))
        upper_ino = status.st_ino if entry.upper else 0
        ino, node = self._claim(wanted, entry.kind, upper_ino)
        if node is None:
            node = self._node_at((layer, path), places, parent, entry, ino, upper_ino)
            self.nodes.add(node)
        else:
            self.drop_orphan(node)
        self.nodes.name(node, parent, name, entry)
        return node

    def _node_at(
        self, top: Place, places: list[Place], parent: Node, entry: Entry, ino: int, upper_ino: int
    ) -> Node:
        if entry.kind == stat.S_IFDIR:
            places = self._directory_places(parent, top, places)
        node = Node(ino, entry.kind, tuple(places))
        node.upper = entry.upper
        node.upper_ino = upper_ino
        return node

    def node_again(self, parent: Node, name: bytes, entry: Entry, ino: int) -> Node:
        """A node of a number that it had before, for what a name leads to; it is not in the table.

        Raises OSError.
        """
        places = self._lower_places(parent, name, entry)
        layer, path = self._upper_place(parent, name) if entry.upper else places[0]
        inode = layer.stat(path).st_ino
        return self._node_at((layer, path), places, parent, entry, ino, inode if entry.upper else 0)

    def drop_orphan(self, node: Node) -> None:
        """The node has a name again."""
        if node.orphan >= 0:
            orphan, node.orphan = node.orphan, -1
            self.nodes.note(node)
            os.close(orphan)

    def _lower_places(self, parent: Node, name: bytes, entry: Entry) -> list[Place]:
        return [(layer, join(path, name)) for layer, path in self._below(parent, entry)]

    def lower_place(self, parent: Node, name: bytes) -> Place | None:
        """Where the lower layers have a name of a directory, seen or not."""
        entry = self.listing(parent).below.get(name)
        return self._lower_places(parent, name, entry)[0] if entry is not None else None

    def new_node(self, parent: Node, name: bytes, entry: Entry) -> Node:
        """The node of a name that was made in the upper layer just now: it has neither origin nor others."""
        layer, path = self._upper_place(parent, name)
        status = layer.stat(path)
        ino, node = self._claim([self.number(layer, status)], entry.kind, status.st_ino)
        if node is not None:
            return self._make_node(parent, name, entry)
        node = Node(ino, entry.kind, ())
        node.upper = True
        node.upper_ino = status.st_ino
        node.metacopy = 0
        self.nodes.add(node)
        self.nodes.name(node, parent, name, entry)
        return node

    def _directory_places(self, parent: Node, top: Place, named: list[Place]) -> list[Place]:
        """Where lower layers have a directory whose topmost place is `top`: under its name, or redirected."""
        if top[0] is self.upper and named and self.is_opaque(*top):
            return []
        places: list[Place] = []
        pending = [top] if top[0] is self.upper else []
        pending += named
        while pending:
            layer, path = pending.pop(0)
            if layer is not self.upper:
                places.append((layer, path))
            target = redirect.read(layer.proc_path(path))
            if target is not None:
                self.redirected = True
                position = -1 if layer is self.upper else self.position(layer)
                parents = [place for place in parent.lowers if self.position(place[0]) > position]
                pending = redirect.follow_down(target, parents, self.lowers[position + 1 :])
        return places

    def unnamed(self, orphan: int) -> Node:
        """A node for an upper file that has no name; takes over its O_PATH descriptor."""
        assert self.upper is not None
        status = os.fstat(orphan)
        ino, _ = self._claim([self.number(self.upper, status)], stat.S_IFMT(status.st_mode), -1)
        node = Node(ino, stat.S_IFMT(status.st_mode), ())
        node.upper = True
        node.upper_ino = status.st_ino
        node.orphan = orphan
        node.metacopy = 0
        self.nodes.add(node)
        return node

    def _upper_place(self, parent: Node, name: bytes) -> Place:
        assert self.upper is not None
        return self.upper, join(self.path(parent), name)

    def _claim(self, wanted: list[int], kind: int, upper_ino: int) -> tuple[int, Node | None]:
        """The first of the wanted numbers that is free, or the node there if it is the same file."""
        for ino in itertools.chain(wanted, (_hashed(wanted[0], salt) for salt in itertools.count())):
            node = self.nodes.get(ino)
            if ino and node is None:
                return ino, None
            if node is not None and kind == node.kind != stat.S_IFDIR and node.upper_ino == upper_ino:
                return ino, node
        raise AssertionError("unreachable")

    def _below(self, parent: Node, entry: Entry) -> list[Place]:
        """The lower places of the parent in whose layers the entry is seen."""
        if not entry.lowers:
            return []
        wanted = set(entry.lowers)
        return [(layer, path) for layer, path in parent.lowers if self.position(layer) in wanted]

    def position(self, layer: Layer) -> int:
        """Where a lower layer is in the stack; the topmost is 0."""
        return len(self.lowers) - self._tags[layer]

    def tag(self, layer: Layer) -> int:
        """The number of a lower layer, counted from 1 at the bottom."""
        return self._tags[layer]

    def layer_of(self, tag: int) -> Layer | None:
        """The lower layer of that number."""
        return self.lowers[-tag] if 1 <= tag <= len(self.lowers) else None

    # Numbers ---------------------------------------------------------------------------------------

    def number(self, layer: Layer, status: os.stat_result) -> int:
        """The number of a file by its layer and its inode there: the same at every mount."""
        tag = self._tags.get(layer, 0)
        if status.st_dev == layer.device and status.st_ino < 1 << _INO_BITS and (tag or status.st_ino > ROOT):
            return tag << _INO_BITS | status.st_ino
        return _hashed(tag, status.st_dev, status.st_ino)

    def _origin(self, path: bytes, status: os.stat_result) -> int:
        """The number an upper file had before it was copied up; 0 when it was not, or is a copy of such."""
        assert self.upper is not None
        said = origin.read(self.upper.proc_path(path))
        return said.number if said is not None and said.inode == status.st_ino else 0

    # Merging ---------------------------------------------------------------------------------------

    def listing(self, directory: Node) -> Listing:
        """The merged directory, read from its layers if this is the first time.

        Raises OSError: ENOTDIR, ENOENT for a removed one, or what a layer says.
        """
        if directory.listing is None:
            if directory.kind != stat.S_IFDIR:
                raise NotADirectoryError(errno.ENOTDIR, "not a directory")
            directory.listing = self._merge(directory)
        return directory.listing

    def _merge(self, directory: Node) -> Listing:
        below: dict[bytes, Entry] = {}
        stopped: set[bytes] = set()
        places: list[Place] = []
        for layer, path in directory.lowers:
            places.append((layer, path))
            contents = _Contents(layer, path)
            self._merge_lower(contents, self.position(layer), below, stopped)
            if contents.opaque:
                break
        directory.lowers = tuple(places)
        if not directory.upper:
            return Listing(below, below, set(), set())
        assert self.upper is not None
        contents = _Contents(self.upper, self.path(directory))
        names = {} if contents.opaque else dict(below)
        if contents.opaque:
            below = {}
            directory.lowers = ()
        for name in (*contents.whiteouts, *contents.marked):
            names.pop(name, None)
        for name, kind in contents.kinds.items():
            lower = below.get(name)
            merges = kind == stat.S_IFDIR and lower is not None and lower.kind == stat.S_IFDIR
            if merges and name not in contents.marked:
                assert lower is not None
                names[name] = Entry(kind, True, lower.lowers)
            else:
                names[name] = Entry(kind, True, ())
        return Listing(names, below, contents.whiteouts, contents.marked)

    @staticmethod
    def _merge_lower(
        contents: _Contents, position: int, below: dict[bytes, Entry], stopped: set[bytes]
    ) -> None:
        """Put one lower layer's directory under what higher lower layers show."""
        for name, kind in contents.kinds.items():
            if name in stopped:
                continue
            seen = below.get(name)
            if seen is None:
                below[name] = Entry(kind, False, (position,))
            elif kind == stat.S_IFDIR:
                seen.lowers += (position,)
            if kind != stat.S_IFDIR:
                stopped.add(name)
        stopped |= contents.whiteouts
        stopped |= contents.marked

    @staticmethod
    def is_opaque(layer: Layer, path: bytes) -> bool:
        """Whether a directory hides the layers below, by xattr or by marker."""
        if _opaque_state(layer, path) is Opaque.YES:
            return True
        try:
            layer.stat(join(path, whiteout.OPAQUE_MARKER))
        except FileNotFoundError:
            return False
        return True


class _Contents:
    """One layer's directory, read once: what it shows, what it hides."""

    def __init__(self, layer: Layer, path: bytes) -> None:
        self.kinds: dict[bytes, int] = {}
        self.whiteouts: set[bytes] = set()
        self.marked: set[bytes] = set()
        state = _opaque_state(layer, path)
        self.opaque = state is Opaque.YES
        for entry in layer.entries(path):
            if whiteout.is_reserved(entry.name):
                if entry.name == whiteout.OPAQUE_MARKER:
                    self.opaque = True
                elif (hidden := whiteout.marked_name(entry.name)) is not None:
                    self.marked.add(hidden)
            elif _is_whiteout(layer, path, entry, state):
                self.whiteouts.add(entry.name)
            else:
                self.kinds[entry.name] = entry.kind


def _opaque_state(layer: Layer, path: bytes) -> Opaque:
    return whiteout.opaque_state(layer.proc_path(path))


def _is_whiteout(layer: Layer, directory: bytes, entry: DirectoryEntry, state: Opaque) -> bool:
    if entry.kind == stat.S_IFCHR:
        status = layer.stat(join(directory, entry.name))
        return whiteout.is_device_whiteout(status.st_mode, status.st_rdev)
    if state is Opaque.HOLDS_XATTR_WHITEOUTS and entry.kind == stat.S_IFREG:
        path = join(directory, entry.name)
        if layer.stat(path).st_size == 0:
            return bool(set(layer.listxattr(path)) & set(whiteout.WHITEOUT_XATTRS))
    return False


def _hashed(*parts: int) -> int:
    """A number beyond all that `_number` gives as they are."""
    return 1 << 62 | xxhash.xxh3_64_intdigest(repr(parts).encode()) >> 2
