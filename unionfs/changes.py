"""Changes of names: create, link, unlink, rename. Each is one atomic step in the upper layer, then in memory.

What a change has to do follows from two questions about a name, which the merged listing answers: does the
upper layer have it (`Entry.upper`), and would the layers below show something there if it had not
(`Listing.below`)? A name with something below is never just removed: it is whited out. A directory put
where something lies below is made opaque first, so that it shows nothing of it.

Methods that are not `async` are atomic to everybody else. Those that are await only to copy a file up,
before they look at the names they act on; the kernel holds both directories locked the whole time, so
nobody else changes those.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Coroutine, Iterator
from typing import TypeVar

from unionfs import ledger, redirect, whiteout
from unionfs.copyup import CopyUp
from unionfs.nodes import Entry, Node
from unionfs.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE
from unionfs.tree import Tree
from unionfs.upper import Caller, Maker, Upper
from unionfs.whiteout import Convention

T = TypeVar("T")


def run_now(coroutine: Coroutine[object, object, None]) -> None:
    """Run a coroutine that turns out not to wait for anything."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")


class Changes:
    """What users do to the names of one tree."""

    def __init__(self, tree: Tree, upper: Upper, copyup: CopyUp, *, redirects: bool) -> None:
        """`redirects`: directories that lower layers take part in can be renamed (redirect_dir=on)."""
        self.redirects = redirects
        self.tree = tree
        self.upper = upper
        self.copyup = copyup
        #: Where each step is written down before it is made; None where no other server goes on from it.
        self.ledger = tree.nodes.ledger

    # Making ----------------------------------------------------------------------------------------

    def create(self, parent: Node, name: bytes, kind: int, make: Maker[T], caller: Caller) -> tuple[Node, T]:
        """Make a new name by `make(directory_fd, name)`; returns its node and what `make` gave.

        Raises OSError: EEXIST, EPERM for a name that would be a whiteout marker, and the disk's.
        """
        self._must_be_new(parent, name)
        self.copyup.directory(parent)
        listing = self.tree.listing(parent)
        path = self.tree.path(parent)
        if self.ledger is not None:
            self.ledger.begin(ledger.MADE, parent.ino, name)
        marked = name in listing.marked
        if name in listing.whiteouts or marked or name in listing.below:
            made = self.upper.create_over_whiteout(path, name, make, caller, marked=marked)
        else:
            made = self.upper.create(path, name, make, caller)
        return self.tree.new_node(parent, name, self._appeared(parent, name, kind)), made

    def made_before(self, parent: Node, name: bytes) -> Node | None:
        """What an earlier server made when it was asked for this, and died before it could answer.

        None when it had not; then `create` it. The name cannot be anyone else's: the kernel holds the
        directory locked until there is an answer.
        """
        return self.tree.lookup(parent, name) if self._is_done(ledger.MADE, parent, name) else None

    def create_unnamed(self, parent: Node, mode: int, caller: Caller) -> tuple[Node, int]:
        """Make a file without a name in the filesystem of a directory, which link(2) may name later.

        Returns its node and a descriptor to read and write it. open(2), O_TMPFILE.
        Raises OSError: EOPNOTSUPP where the upper layer's disk has no such files.
        """
        self.copyup.directory(parent)

        def make(directory: int, here: bytes) -> int:
            return os.open(here, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=directory)

        fd = self.upper.create_unnamed(self.tree.path(parent), make, caller)
        try:
            return self.tree.unnamed(os.open(b"/proc/self/fd/%d" % fd, os.O_PATH | os.O_CLOEXEC)), fd
        except BaseException:
            os.close(fd)
            raise

    async def link(self, node: Node, parent: Node, name: bytes) -> None:
        """Give a file one more name.

        Raises OSError: EEXIST, EPERM (marker name), ENOENT when it was removed meanwhile, EMLINK.
        """
        if self._is_done(ledger.LINKED, parent, name, node.ino):
            return
        self._must_be_new(parent, name)
        await self.copyup.attributes(node)
        self.copyup.directory(parent)
        listing = self.tree.listing(parent)
        if self.ledger is not None:
            self.ledger.begin(ledger.LINKED, parent.ino, name, node.ino, inode=node.upper_ino)
        self.upper.link(
            self.tree.proc_path(node),
            self.copyup.upper_path(parent, name),
            follow=node.orphan >= 0,
            over_whiteout=name in listing.whiteouts,
            marked=name in listing.marked,
        )
        self.tree.nodes.name(node, parent, name, self._appeared(parent, name, node.kind))
        self.tree.drop_orphan(node)

    def _is_done(
        self, kind: int, parent: Node, name: bytes, other_parent: int = 0, other: bytes = b""
    ) -> bool:
        """Whether an earlier server has made this change, and died before it could answer (revival.py)."""
        return self.ledger is not None and self.ledger.repeats(kind, parent.ino, name, other_parent, other)

    def _must_be_new(self, parent: Node, name: bytes) -> None:
        if whiteout.is_reserved(name):
            raise PermissionError(errno.EPERM, "the name would be a whiteout")
        if name in self.tree.listing(parent).names:
            raise FileExistsError(errno.EEXIST, "exists")

    def _appeared(self, parent: Node, name: bytes, kind: int) -> Entry:
        """The upper layer has a new name that hides all below it."""
        listing = self.tree.listing(parent)
        entry = listing.names[name] = Entry(kind, True, ())
        listing.whiteouts.discard(name)
        listing.marked.discard(name)
        return entry

    # Removing --------------------------------------------------------------------------------------

    async def unlink(self, parent: Node, name: bytes) -> None:
        """Remove a name that is not a directory's.

        Raises OSError: ENOENT, EISDIR, and the disk's.
        """
        if self._is_done(ledger.REMOVED, parent, name):
            return
        node = self._existing(parent, name)
        if node.kind == stat.S_IFDIR:
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        await self._keep_link_count(node)
        self._remove(parent, name, node)

    def unlink_now(self, parent: Node, name: bytes) -> bool:
        """`unlink` where nothing has to be copied up before; False, and nothing done, where something has."""
        if self._is_done(ledger.REMOVED, parent, name):
            return True
        node = self._existing(parent, name)
        if node.kind == stat.S_IFDIR:
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        if self._loses_link(node):
            return False
        self._remove(parent, name, node)
        return True

    def rmdir(self, parent: Node, name: bytes) -> None:
        """Remove a directory in which nothing is seen.

        Raises OSError: ENOENT, ENOTDIR, ENOTEMPTY, and the disk's.
        """
        if self._is_done(ledger.REMOVED, parent, name):
            return
        node = self._existing(parent, name)
        if self.tree.listing(node).names:
            raise OSError(errno.ENOTEMPTY, "not empty")
        self._remove(parent, name, node)

    def _remove(self, parent: Node, name: bytes, node: Node) -> None:
        if not node.upper:
            self.copyup.directory(parent)
        hides = name in self.tree.listing(parent).below
        path = self.copyup.upper_path(parent, name)
        with self._surviving(node) as orphan:
            if self.ledger is not None:
                self.ledger.begin(ledger.REMOVED, parent.ino, name, node=node.ino, orphan=orphan)
            if hides:
                self.upper.white_out(path, present=node.kind if node.upper else None)
            else:
                self.upper.remove(path, directory=node.kind == stat.S_IFDIR)
        self._disappeared(parent, name, node, hides=hides)

    async def _keep_link_count(self, node: Node) -> None:
        """Copy up a lower file that is about to lose one of its names, so that the others count right."""
        if self._loses_link(node):
            await self.copyup.attributes(node)

    def _loses_link(self, node: Node) -> bool:
        return not node.upper and node.kind != stat.S_IFDIR and self.tree.stat(node).st_nlink > 1

    @contextlib.contextmanager
    def _surviving(self, node: Node | None) -> Iterator[int]:
        """Hold on to an upper file that may lose its last name: it can be open, or a working directory.

        Gives the descriptor it is held by, -1 where there is none.
        """
        if node is None or not node.upper or len(node.names) > 1:
            yield -1
            return
        orphan = self.upper.open(self.tree.path(node), os.O_PATH)
        try:
            yield orphan
        except BaseException:
            os.close(orphan)
            raise
        node.orphan = orphan

    def _disappeared(self, parent: Node, name: bytes, node: Node, *, hides: bool) -> None:
        """A name is gone from the union, and is whited out if it `hides` something."""
        listing = self.tree.listing(parent)
        if node.record and not node.upper and len(node.names) == 1:
            assert self.ledger is not None
            layer, path = node.lowers[0]
            self.ledger.set_place(node.record, self.tree.tag(layer), path)
        self.tree.nodes.unname(node, parent, name, listing.names.pop(name))
        if hides:
            by_marker = self.upper.convention is Convention.MARKER
            (listing.marked if by_marker else listing.whiteouts).add(name)
        if node.unsettled and node.orphan >= 0 and not os.fstat(node.orphan).st_nlink:
            self.copyup.settling.drop(node)
        self.tree.nodes.release(node)

    def _existing(self, parent: Node, name: bytes) -> Node:
        node = self.tree.lookup(parent, name)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "no such name")
        return node

    # Renaming --------------------------------------------------------------------------------------

    async def rename(
        self, old_parent: Node, old_name: bytes, new_parent: Node, new_name: bytes, flags: int
    ) -> None:
        """renameat2(2) with RENAME_NOREPLACE or RENAME_EXCHANGE.

        Raises OSError: EXDEV for a directory that lower layers take part in (as overlayfs without
        redirect_dir), ENOTEMPTY, EEXIST, EINVAL for other flags, EPERM for a marker name.
        """
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise OSError(errno.EINVAL, "flags")
        if whiteout.is_reserved(new_name):
            raise PermissionError(errno.EPERM, "the name would be a whiteout")
        if self._is_done(ledger.RENAMED, old_parent, old_name, new_parent.ino, new_name):
            return
        node = self._existing(old_parent, old_name)
        replaced = self.tree.lookup(new_parent, new_name)
        if replaced is node:
            return
        if replaced is not None and flags & RENAME_NOREPLACE:
            raise FileExistsError(errno.EEXIST, "exists")
        if flags & RENAME_EXCHANGE:
            if replaced is None:
                raise FileNotFoundError(errno.ENOENT, "nothing to exchange with")
            await self._exchange(old_parent, old_name, node, new_parent, new_name, replaced)
            return
        if replaced is not None:
            if replaced.kind == stat.S_IFDIR and self.tree.listing(replaced).names:
                raise OSError(errno.ENOTEMPTY, "not empty")
            await self._keep_link_count(replaced)
        await self._make_movable(node)
        self.copyup.directory(old_parent)
        self.copyup.directory(new_parent)
        self._move(old_parent, old_name, node, new_parent, new_name, replaced)

    def rename_now(
        self, old_parent: Node, old_name: bytes, new_parent: Node, new_name: bytes, flags: int
    ) -> bool:
        """`rename` where no file has to be copied up before; False, and nothing done, where one has."""
        if self._is_done(ledger.RENAMED, old_parent, old_name, new_parent.ino, new_name):
            return True
        ends = [self.tree.lookup(old_parent, old_name), self.tree.lookup(new_parent, new_name)]
        moving, replaced = ends if flags & RENAME_EXCHANGE else (ends[0], None)
        for node in (moving, replaced):
            if node is not None and node.kind != stat.S_IFDIR and not node.upper:
                return False
        if any(node is not None and (node.copying is not None or self._loses_link(node)) for node in ends):
            return False
        run_now(self.rename(old_parent, old_name, new_parent, new_name, flags))
        return True

    async def _make_movable(self, node: Node) -> None:
        """Bring a node into the upper layer, so that moving it there moves all of it."""
        if node.kind != stat.S_IFDIR:
            await self.copyup.attributes(node)
        elif node.lowers and not self.redirects:
            raise OSError(errno.EXDEV, "lower layers take part in this directory")
        elif node.lowers:
            self.copyup.directory(node)
            # In its old place it says what is so anyway.
            redirect.write(self.tree.proc_path(node), node.lowers[0][1])
            self.tree.redirected = True

    def _move(
        self,
        old_parent: Node,
        old_name: bytes,
        node: Node,
        new_parent: Node,
        new_name: bytes,
        replaced: Node | None,
    ) -> None:
        old = self.copyup.upper_path(old_parent, old_name)
        new = self.copyup.upper_path(new_parent, new_name)
        target = self.tree.listing(new_parent)
        hides_old = old_name in self.tree.listing(old_parent).below
        self._hide_below(node, new_name, new_parent)
        over_directory = replaced is not None and replaced.kind == stat.S_IFDIR and replaced.upper
        with self._surviving(replaced) as orphan:
            self._begin_rename(old_parent, old_name, node, new_parent, new_name, replaced, orphan, 0)
            if over_directory:
                self.upper.empty(new)
            hides_old = self.upper.rename(
                old, new, hides_old=hides_old, over_whiteout=new_name in target.whiteouts
            )
        if new_name in target.marked or (over_directory and self.upper.convention is Convention.MARKER):
            self.upper.unmark(self.tree.path(new_parent), new_name)
        if replaced is not None:
            self._disappeared(new_parent, new_name, replaced, hides=False)
        # Named anew before the old name goes, or the node would have no holder for a moment.
        target.whiteouts.discard(new_name)
        target.marked.discard(new_name)
        entry = target.names[new_name] = Entry(node.kind, True, ())
        self.tree.nodes.name(node, new_parent, new_name, entry)
        self._disappeared(old_parent, old_name, node, hides=hides_old)
        self._directory_moved(node)

    def _begin_rename(
        self,
        old_parent: Node,
        old_name: bytes,
        node: Node,
        new_parent: Node,
        new_name: bytes,
        replaced: Node | None,
        orphan: int,
        flags: int,
    ) -> None:
        if self.ledger is not None:
            self.ledger.begin(
                ledger.RENAMED,
                old_parent.ino,
                old_name,
                new_parent.ino,
                new_name,
                node.ino,
                replaced.ino if replaced is not None else 0,
                node.upper_ino,
                orphan,
                flags,
            )

    def _hide_below(self, node: Node, name: bytes, parent: Node) -> None:
        """Before a directory comes to a name: it must not be merged with what lies below there.

        One with lower places of its own is not, since its redirect says where they are.
        """
        if node.kind == stat.S_IFDIR and not node.lowers and name in self.tree.listing(parent).below:
            self.upper.make_opaque(self.tree.path(node))

    def _directory_moved(self, node: Node) -> None:
        if node.kind == stat.S_IFDIR:
            self.copyup.hard_links.renamed()

    async def _exchange(
        self, one_parent: Node, one_name: bytes, one: Node, other_parent: Node, other_name: bytes, other: Node
    ) -> None:
        await self._make_movable(one)
        await self._make_movable(other)
        self.copyup.directory(one_parent)
        self.copyup.directory(other_parent)
        ends = ((one_parent, one_name, one, other), (other_parent, other_name, other, one))
        for parent, name, _, comes in ends:
            self._hide_below(comes, name, parent)
        self._begin_rename(one_parent, one_name, one, other_parent, other_name, other, -1, RENAME_EXCHANGE)
        self.upper.exchange(*(self.copyup.upper_path(parent, name) for parent, name, _, _ in ends))
        fresh = [Entry(comes.kind, True, ()) for *_, comes in ends]
        for (parent, name, _, comes), entry in zip(ends, fresh, strict=True):
            self.tree.nodes.name(comes, parent, name, entry)
        for (parent, name, goes, _), entry in zip(ends, fresh, strict=True):
            names = self.tree.listing(parent).names
            self.tree.nodes.unname(goes, parent, name, names[name])
            names[name] = entry
        self._directory_moved(one)
        self._directory_moved(other)
