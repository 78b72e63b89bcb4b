"""Copies that the disk may not have yet: nobody waits for it, and nothing is lost.

A copy-up that waited until its content was on the disk would cost a journal commit for each file: chown -R of
an image would take minutes. One that did not would, after a crash of the machine, leave an empty file where
the lower layer had a full one. So the copy is marked before it gets its name (`trusted.unionfs.unsettled`),
and a journal keeps mark and name together. A mark that another boot of the machine has left means that the
content cannot be trusted, and that the lower layer's counts instead, as with a metacopy (metacopy.py):
nothing was lost but what nobody had asked to be kept. A mark of this boot means nothing: memory has what the
disk has not, however the server ended.

A little later all marked copies are settled together: the disk is waited for once (syncfs(2)), the marks are
taken away, and that is waited for too. fsync(2) settles one file at once. Until then the kernel does not pass
the file through (passthrough.py), or it would make promises of msync(2) itself, without taking the mark away.

`workdir/unsettled` says that there may be marks. Who mounts an upper layer whose last server was killed finds
it, and settles what is left.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat

import trio

from unionfs import syscalls, xattr
from unionfs.layer import join
from unionfs.nodes import Node
from unionfs.tree import Tree
from unionfs.upper import Upper

log = logging.getLogger(__name__)

XATTRS = ("trusted.unionfs.unsettled", "user.unionfs.unsettled")

_NOTE = b"unsettled"

#: Bytes of the longest path that a mark may hold: a disk may have 4 KiB for all attributes of a file.
_LONGEST = 1024

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
        #: False once the disk was found to have no attributes: then a copy has to wait for it.
        self.possible = True

    def mark(self, path: bytes, number: int, content: bytes) -> bool:
        """Mark a copy at `path`, inode `number`, of what the lower layers have at `content`.

        Returns False where that cannot be: then the copy has to wait for the disk. Raises OSError.
        """
        if not self.possible or len(content) > _LONGEST:
            return False
        if not self._noted:
            flags = os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            os.close(os.open(_NOTE, flags, 0o600, dir_fd=self._upper.work_fd))
            self._noted = True
        value = b"%b %x /%b" % (syscalls.boot_id(), number, content)
        for name in XATTRS:
            try:
                os.setxattr(path, name, value, follow_symlinks=False)
                return True
            except OSError as error:
                if error.errno == errno.ENOSPC:  # the file's own attributes take all the room there is
                    return False
                if error.errno not in (*xattr.NONE, errno.EACCES):
                    raise
                if error.errno == errno.ENOTSUP:
                    self.possible = False
        return False

    def add(self, node: Node) -> None:
        """A marked copy is the node's now."""
        node.unsettled = True
        node.pins += 1
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
            self._tree.nodes.release(node)

    async def settle(self, node: Node, fd: int) -> None:
        """Let the disk have a marked file that is open as `fd`, and know that it has. Raises OSError."""
        await trio.to_thread.run_sync(os.fsync, fd)
        unmark(fd)
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
                self._unmark_all(pending)
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
                self._unmark_all(list(self._pending))
                self._pending.clear()
                self._sync()
            if self._noted:
                os.unlink(_NOTE, dir_fd=self._upper.work_fd)
        except OSError as error:
            log.error("copies are not on the disk yet: %s", error.strerror)

    def _sync(self) -> None:
        syscalls.syncfs(self._upper.staging_fd)

    def _unmark_all(self, nodes: list[Node]) -> None:
        for node in nodes:
            if node in self._pending:
                with contextlib.suppress(FileNotFoundError):  # somebody was in the upper layer itself
                    unmark(self._tree.proc_path(node), follow=node.orphan >= 0)

    # After a server was killed -----------------------------------------------------------------------

    def left(self) -> list[bytes]:
        """The files of the upper layer that an earlier server has left marked."""
        try:
            os.stat(_NOTE, dir_fd=self._upper.work_fd)
        except FileNotFoundError:
            return []
        self._noted = True
        found = []
        for directory in self._upper.walk():
            for entry in self._upper.entries(directory):
                path = join(directory, entry.name)
                if entry.kind == stat.S_IFREG and xattr.has(self._upper.proc_path(path), XATTRS):
                    found.append(path)
        return found

    def settle_left(self, paths: list[bytes]) -> None:
        """Settle marked files of the upper layer that have their content. Raises OSError."""
        if paths:
            self._sync()
            for path in paths:
                unmark(self._upper.proc_path(path))
            self._sync()


def lost_content(path: bytes) -> bytes | None:
    """Where the lower layers have the content of a marked file that the machine has crashed over.

    None when the mark at `path` is of this boot, or came there by copying another file with all its xattrs.
    """
    boot, _, rest = (xattr.first(path, XATTRS) or b"").partition(b" ")
    number, _, content = rest.partition(b" ")
    if boot == syscalls.boot_id() or not content.startswith(b"/"):
        return None
    with contextlib.suppress(ValueError):
        if int(number, 16) == os.stat(path, follow_symlinks=False).st_ino:
            return content
    return None


def unmark(path: bytes | int, *, follow: bool = False) -> None:
    """The disk has the content of a file, given by its path or descriptor. Raises OSError."""
    for name in XATTRS:
        try:
            if isinstance(path, int):
                os.removexattr(path, name)
            else:
                os.removexattr(path, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in xattr.NONE:
                raise
