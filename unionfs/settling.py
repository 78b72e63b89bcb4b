"""Copies that the disk may not have yet: nobody waits for it, and nothing is lost.

A copy-up that waited until its content was on the disk would cost a journal commit for each file: chown -R of
an image would take minutes. One that did not would, after a crash of the machine, leave an empty file where
the lower layer had a full one. So the copy is marked before it gets its name (origin.py), and a journal keeps
mark and name together. A mark that another boot of the machine has left means that the content cannot be
trusted, and the next mount takes the lower layer's again: nothing was lost but what nobody had asked to be
kept. A mark of this boot means nothing: memory has what the disk has not, however the server ended.

A little later all marked copies are settled together: the disk is waited for once (syncfs(2)), the marks are
taken away, and that is waited for too. fsync(2) settles one file at once. Until then the kernel does not pass
the file through (passthrough.py), or it would make promises of msync(2) itself, without taking the mark away.

`workdir/unsettled` says that there may be marks. Who mounts an upper layer whose last server was killed finds
it, and settles what is left.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat

import trio

from unionfs import origin, syscalls
from unionfs.layer import join
from unionfs.nodes import Node
from unionfs.origin import Origin
from unionfs.redirect import Place
from unionfs.tree import Tree
from unionfs.upper import Upper

log = logging.getLogger(__name__)

_NOTE = b"unsettled"

#: Seconds until copies are settled: many then wait for the disk once.
DELAY = 2.0


class Settling:
    """The marked copies of one upper layer."""

    def __init__(self, tree: Tree, upper: Upper) -> None:
        self._tree = tree
        self._upper = upper
        self._pending: set[Node] = set()
        self._noted = False
        self._running = False

    @property
    def pending(self) -> int:
        """How many copies are marked."""
        return len(self._pending)

    def mark(self) -> bytes:
        """The mark for a new copy's origin (Origin.boot). Raises OSError."""
        if not self._noted:
            flags = os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            os.close(os.open(_NOTE, flags, 0o600, dir_fd=self._upper.work_fd))
            self._noted = True
        return origin.this_boot()

    def add(self, node: Node) -> None:
        """A marked copy is the node's now."""
        node.unsettled = True
        node.pins += 1
        self._tree.nodes.note(node)
        self._pending.add(node)
        if not self._running:
            self._running = True
            trio.lowlevel.spawn_system_task(self._run)

    def drop(self, node: Node) -> None:
        """The node's file is gone, or settled."""
        if node in self._pending:
            self._pending.discard(node)
            node.unsettled = False
            node.pins -= 1
            self._tree.nodes.note(node)
            self._tree.nodes.release(node)

    async def settle(self, node: Node, fd: int) -> None:
        """Let the disk have a marked file that is open as `fd`, and know that it has. Raises OSError."""
        await trio.to_thread.run_sync(os.fsync, fd)
        origin.settle(b"/proc/self/fd/%d" % fd, follow=True)
        await trio.to_thread.run_sync(os.fsync, fd)
        self.drop(node)

    async def settle_by_name(self, node: Node) -> None:
        """`settle` of a file that is not open."""
        fd = self._tree.open(node, os.O_RDONLY)
        try:
            await self.settle(node, fd)
        finally:
            os.close(fd)

    async def _run(self) -> None:
        while self._pending:
            await trio.sleep(DELAY)
            pending = list(self._pending)
            try:
                await trio.to_thread.run_sync(self._sync, abandon_on_cancel=True)
                self._unmark(pending)
                await trio.to_thread.run_sync(self._sync, abandon_on_cancel=True)
            except OSError as error:
                log.error("copies are not on the disk yet: %s", error.strerror)
                continue
            for node in pending:
                self.drop(node)
        self._running = False

    def finish(self) -> None:
        """At the end of the mount: settle what is left. Waits for the disk."""
        try:
            if self._pending:
                self._sync()
                self._unmark(list(self._pending))
                self._pending.clear()
                self._sync()
            if self._noted:
                os.unlink(_NOTE, dir_fd=self._upper.work_fd)
        except OSError as error:
            log.error("copies are not on the disk yet: %s", error.strerror)

    def _sync(self) -> None:
        syscalls.syncfs(self._upper.staging_fd)

    def _unmark(self, nodes: list[Node]) -> None:
        for node in nodes:
            if node in self._pending:
                with contextlib.suppress(FileNotFoundError):  # somebody was in the upper layer itself
                    origin.settle(self._tree.proc_path(node), follow=node.orphan >= 0)

    def take_over(self) -> None:
        """Go on with what a server that was killed has noted. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.stat(_NOTE, dir_fd=self._upper.work_fd)
            self._noted = True

    # After a server was killed -----------------------------------------------------------------------

    def left(self) -> dict[bytes, Origin]:
        """The files of the upper layer that an earlier server has left marked."""
        try:
            os.stat(_NOTE, dir_fd=self._upper.work_fd)
        except FileNotFoundError:
            return {}
        self._noted = True
        found = {}
        for directory in self._upper.walk():
            for entry in self._upper.entries(directory):
                path = join(directory, entry.name)
                said = origin.read(self._upper.proc_path(path)) if entry.kind == stat.S_IFREG else None
                if said is not None and said.boot:
                    found[path] = said
        return found

    def is_lost(self, path: bytes, said: Origin) -> bool:
        """Whether a marked file's content cannot be trusted: the machine has crashed, and it is no copy."""
        return said.boot != origin.this_boot() and said.inode == self._upper.stat(path).st_ino

    def sources(self, numbers: set[int]) -> dict[int, Place]:
        """Where lower layers have the files of some numbers. Walks the layers."""
        found: dict[int, Place] = {}
        for layer in self._tree.lowers if numbers else ():
            for directory in layer.walk():
                for entry in layer.entries(directory):
                    path = join(directory, entry.name)
                    if entry.kind == stat.S_IFREG:
                        number = self._tree.number(layer, layer.stat(path))
                        if number in numbers:
                            found[number] = layer, path
        return found

    def settle_left(self, paths: list[bytes]) -> None:
        """Settle marked files of the upper layer that have their content. Raises OSError."""
        if paths:
            self._sync()
            for path in paths:
                origin.settle(self._upper.proc_path(path))
            self._sync()
