"""Copy-up: a file of a lower layer becomes a file of the upper one, all at once or not at all.

The copy is made in the staging directory, with content, holes, owner, mode, xattrs, ACLs and times, and
gets its name by one rename. So whoever looks sees the lower file or the whole copy, and so does who looks
after a crash of the machine (settling.py). Nobody can tell from the parent directories: those are copied up
first, and keep their times.

Long copies run in a worker thread; nothing else does. Until the copy is adopted nothing of the tree
depends on it, so the file may be renamed or removed meanwhile: the adopting step, which does not await,
looks at how things are then. Two who want the same file wait for one copy (`Node.copying`).

A lower file with several names stays one file (hardlinks.py).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass

import trio

from unionfs import ledger, metacopy, origin, redirect, syscalls, xattr
from unionfs.hardlinks import HardLinks
from unionfs.layer import Layer, join
from unionfs.nodes import Entry, Node
from unionfs.origin import Origin
from unionfs.redirect import Place
from unionfs.session import pyfuse3
from unionfs.settling import Settling
from unionfs.tree import Tree
from unionfs.upper import Upper

log = logging.getLogger(__name__)

#: Files up to this many bytes are copied on the thread that decides: a worker costs more than they do.
INLINE_SIZE = 256 * 1024

_COPY_CHUNK = 64 * 1024 * 1024


@dataclass
class _Copy:
    """One copy-up under way."""

    node: Node
    #: Where its attributes are, and what they are.
    place: Place
    status: os.stat_result
    #: Where its content is; elsewhere if the lower file is a metacopy itself.
    content: Place
    staged: bytes
    #: Bytes of content to copy.
    size: int = 0
    is_metacopy: bool = False
    #: Whether there is content to lose.
    is_filled: bool = False
    #: Whether it is to be settled later (settling.py).
    marked: bool = False


class CopyUp:
    """Brings nodes of one tree into its upper layer."""

    def __init__(self, tree: Tree, upper: Upper, *, sync: bool, metacopies: bool = False) -> None:
        """`sync`: a crash of the machine loses no content. Off for volatile mounts.

        `metacopies`: what needs no content is copied up without it (metacopy=on).
        """
        self.metacopies = metacopies
        self.tree = tree
        self.upper = upper
        self.sync = sync
        self.hard_links = HardLinks(tree, upper, self.directory)
        self.settling = Settling(tree, upper)
        #: What was copied up so far.
        self.copied_files = 0
        self.copied_bytes = 0

    def close(self) -> None:
        """Let the disk have everything, and give back descriptors."""
        self.settling.finish()
        self.hard_links.close()

    def recover(self) -> None:
        """Complete what an earlier server has left half done. Raises OSError."""
        self.hard_links.finish_interrupted()
        left = self.settling.left()
        lost = {path: said.number for path, said in left.items() if self.settling.is_lost(path, said)}
        sources = self.settling.sources(set(lost.values()))
        for path, number in lost.items():
            try:
                if number not in sources:
                    raise OSError(errno.ENOENT, "no lower layer has it any more")
                self._fill_again(path, *sources[number])
            except OSError as error:
                log.error("'%s' may have lost content in a crash: %s", os.fsdecode(path), error.strerror)
                del left[path]
        self.settling.settle_left(list(left))

    def finish_links(self) -> None:
        """Complete the hard links that an earlier server has left half done. Raises OSError."""
        self.hard_links.finish_interrupted()

    def _fill_again(self, path: bytes, layer: Layer, content: bytes) -> None:
        """Give a file of the upper layer the content that a lower one has. The rest of it stays."""
        if metacopy.is_metacopy(layer.proc_path(content)):
            below = self.tree.lowers[self.tree.position(layer) + 1 :]
            named = [(lower, content) for lower in below]
            layer, content = metacopy.find_content(redirect.read(layer.proc_path(content)), named, below)
        source = layer.open(content, os.O_RDONLY)
        try:
            target = self.upper.open(path, os.O_RDWR)
            try:
                status = os.fstat(target)
                os.ftruncate(target, 0)
                size = os.fstat(source).st_size
                self._fill(source, target, size, size)
                os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
            finally:
                os.close(target)
        finally:
            os.close(source)

    # Directories -----------------------------------------------------------------------------------

    def directory(self, node: Node) -> None:
        """Make sure that the upper layer has a directory, and its parents, with all their attributes.

        Raises OSError from the disk; FileNotFoundError when the directory was removed.
        """
        pending = []
        while not node.upper:
            if not node.names:
                raise FileNotFoundError(errno.ENOENT, "removed")
            pending.append(node)
            node = node.names[0][0]
        for missing in reversed(pending):
            staged = self._stage_directory(missing)
            try:
                upper_ino = self._staged_stat(staged).st_ino
                self.upper.adopt(staged, self.tree.path(missing))
            except BaseException:
                self.upper.discard(staged)
                raise
            self._now_upper(missing, upper_ino)
            if missing.listing is not None:
                # From now on what is seen and what lies below may differ.
                missing.listing.names = dict(missing.listing.below)

    def _stage_directory(self, node: Node) -> bytes:
        layer, path = node.lowers[0]
        staged = self.upper.staged_name()
        os.mkdir(staged, 0o700, dir_fd=self.upper.staging_fd)
        try:
            self._copy_attributes((layer, path), staged, node.ino, layer.stat(path))
        except BaseException:
            self.upper.discard(staged)
            raise
        return staged

    def _removed_directory(self, node: Node) -> None:
        """Give a removed directory that somebody still has open an inode to keep its attributes in."""
        staged = self._stage_directory(node)
        try:
            node.orphan = os.open(staged, os.O_PATH | os.O_CLOEXEC, dir_fd=self.upper.staging_fd)
        finally:
            self.upper.discard(staged)
        node.upper = True
        self.tree.nodes.note(node)

    # Everything else -------------------------------------------------------------------------------

    async def file(self, node: Node, length: int | None = None) -> None:
        """Make sure that the upper layer has a node of any kind, with at most `length` bytes of content.

        Raises OSError: ENOSPC and what else the disk says; then nothing has changed.
        """
        await self._bring_up(node, length, with_content=True)
        await self._bring_content(node, length)

    async def attributes(self, node: Node) -> None:
        """Make sure that the upper layer has a node of any kind, if need be without its content.

        Raises OSError as `file` does.
        """
        await self._bring_up(node, None, with_content=not self.metacopies)

    def is_immediate(self, node: Node, length: int | None = None) -> bool:
        """Whether `attributes` (or `file`, for as many bytes) does not wait for anything."""
        if node.copying is not None:
            return False
        if node.kind == stat.S_IFDIR:
            return True
        if node.upper:
            return node.kind != stat.S_IFREG or node.metacopy == 0
        layer, path = node.lowers[0]
        status = layer.stat(path)
        if status.st_nlink > 1 and not self.hard_links.knows(layer):
            return False
        if node.kind != stat.S_IFREG:
            return True
        size = status.st_size if length is None else min(length, status.st_size)
        return not size or (size <= INLINE_SIZE and not self.metacopies)

    async def _bring_up(self, node: Node, length: int | None, *, with_content: bool) -> None:
        while node.copying is not None:
            await node.copying.wait()
        if node.upper:
            return
        if node.kind != stat.S_IFDIR:
            await self._copy(node, length, with_content=with_content)
        elif node.names:
            self.directory(node)
        else:
            self._removed_directory(node)

    async def _copy(self, node: Node, length: int | None, *, with_content: bool) -> None:
        layer, path = node.lowers[0]
        status = layer.stat(path)
        regular = node.kind == stat.S_IFREG
        content = (self.tree.content_place(node) if regular else None) or (layer, path)
        copy = _Copy(node, (layer, path), status, content, self.upper.staged_name())
        copy.size = status.st_size if length is None else min(length, status.st_size)
        copy.is_metacopy = regular and not with_content and copy.size > 0
        copy.is_filled = regular and copy.size > 0 and not copy.is_metacopy
        long = copy.is_filled and copy.size > INLINE_SIZE
        unknown_names = status.st_nlink > 1 and not self.hard_links.knows(layer)
        if not long and not unknown_names:
            self._stage_and_adopt(copy)
            return
        async with self._copying(node):
            if unknown_names:
                await trio.to_thread.run_sync(self.hard_links.walk, layer)
            if long:
                await self._stage_long_and_adopt(copy)
            else:
                self._stage_and_adopt(copy)

    @contextlib.asynccontextmanager
    async def _copying(self, node: Node) -> AsyncIterator[None]:
        """Let others who want the same node wait."""
        node.copying = trio.Event()
        try:
            yield
        finally:
            node.copying.set()
            node.copying = None
            self.tree.nodes.release(node)

    async def _stage_long_and_adopt(self, copy: _Copy) -> None:
        source = copy.content[0].open(copy.content[1], os.O_RDONLY)
        try:
            fd = self._create_staged(copy.staged)
            try:
                await trio.to_thread.run_sync(self._fill, source, fd, copy.size, copy.status.st_size)
                if not self._finish_staged(copy):
                    await trio.to_thread.run_sync(os.fsync, fd)
            finally:
                os.close(fd)
            self._adopt(copy)
        except BaseException:
            self._discard_quietly(copy.staged)
            raise
        finally:
            os.close(source)

    async def _bring_content(self, node: Node, length: int | None) -> None:
        """Give a metacopy of the upper layer its content.

        It is written into the file itself: until the mark is taken away, nobody reads it there.
        """
        if node.kind != stat.S_IFREG:
            return
        content = self.tree.content_place(node)
        if content is None:
            return
        status = self.tree.stat(node)
        size = status.st_size if length is None else min(length, status.st_size)
        async with self._copying(node):
            source = content[0].open(content[1], os.O_RDONLY)
            target = self.tree.open(node, os.O_RDWR)
            try:
                await trio.to_thread.run_sync(self._fill, source, target, size, status.st_size)
                os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
                if self.sync:
                    await trio.to_thread.run_sync(os.fsync, target)
                readers = self._open_readers(node, b"/proc/self/fd/%d" % target)
                metacopy.unmark(self.tree.proc_path(node), follow=node.orphan >= 0)
                if self.sync:  # or the mark could come back, over what is written from now on
                    await trio.to_thread.run_sync(os.fsync, target)
                node.metacopy = 0
                self._replace_descriptors(readers)
            finally:
                os.close(source)
                os.close(target)

    def _stage_and_adopt(self, copy: _Copy) -> None:
        try:
            self._stage(copy)
            if not self._finish_staged(copy):
                self._sync_staged(copy)
            if copy.is_metacopy:
                metacopy.mark(self._staged_path(copy.staged), copy.content[1])
                syscalls.utimensat(
                    self.upper.staging_fd, copy.staged, copy.status.st_atime_ns, copy.status.st_mtime_ns
                )
            self._adopt(copy)
        except BaseException:
            self._discard_quietly(copy.staged)
            raise

    def _finish_staged(self, copy: _Copy) -> bool:
        """Give a copy its attributes. Returns False when it has to wait for the disk."""
        boot = self.settling.mark() if self.sync and copy.is_filled else b""
        written = self._copy_attributes(copy.place, copy.staged, copy.node.ino, copy.status, boot)
        copy.marked = bool(boot) and written
        return copy.marked or not boot

    def _sync_staged(self, copy: _Copy) -> None:
        fd = os.open(copy.staged, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.upper.staging_fd)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _staged_path(self, staged: bytes) -> bytes:
        return b"/proc/self/fd/%d/%s" % (self.upper.staging_fd, staged)

    def _stage(self, copy: _Copy) -> None:
        """Make the copy's inode, and its content if that is short."""
        staging_fd = self.upper.staging_fd
        kind = stat.S_IFMT(copy.status.st_mode)
        if kind == stat.S_IFREG:
            fd = self._create_staged(copy.staged)
            try:
                if copy.is_metacopy:
                    os.ftruncate(fd, copy.size)
                elif copy.size:
                    source = copy.content[0].open(copy.content[1], os.O_RDONLY)
                    try:
                        self._fill(source, fd, copy.size, copy.status.st_size)
                    finally:
                        os.close(source)
            finally:
                os.close(fd)
        elif kind == stat.S_IFLNK:
            os.symlink(copy.place[0].readlink(copy.place[1]), copy.staged, dir_fd=staging_fd)
        else:
            os.mknod(copy.staged, kind | 0o600, copy.status.st_rdev, dir_fd=staging_fd)

    def _create_staged(self, staged: bytes) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(staged, flags, 0o600, dir_fd=self.upper.staging_fd)

    def _staged_stat(self, staged: bytes) -> os.stat_result:
        return os.stat(staged, dir_fd=self.upper.staging_fd, follow_symlinks=False)

    def _discard_quietly(self, staged: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.upper.discard(staged)

    def _fill(self, source: int, target: int, size: int, whole: int) -> None:
        """Copy the first `size` bytes: shared with the source where the disk can, holes kept."""
        if size == whole:
            try:
                fcntl.ioctl(target, syscalls.FICLONE, source)
                return
            except OSError:
                pass  # another filesystem, or one that cannot share
        position = 0
        while position < size:
            try:
                start = os.lseek(source, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break  # a hole to the end
            end = min(os.lseek(source, start, os.SEEK_HOLE), size)
            if start >= size:
                break
            _copy_range(source, target, start, end)
            position = end
        os.ftruncate(target, size)

    # Attributes ------------------------------------------------------------------------------------

    def _copy_attributes(
        self, place: Place, staged: bytes, number: int, status: os.stat_result, boot: bytes = b""
    ) -> bool:
        """Returns whether the origin is among them: if not, its number is another after the next mount."""
        layer, path = place
        staging_fd = self.upper.staging_fd
        kind = stat.S_IFMT(status.st_mode)
        own = self._staged_stat(staged)
        if (own.st_uid, own.st_gid) != (status.st_uid, status.st_gid):
            os.chown(staged, status.st_uid, status.st_gid, dir_fd=staging_fd, follow_symlinks=False)
        if kind != stat.S_IFLNK:
            syscalls.fchmodat(staging_fd, staged, stat.S_IMODE(status.st_mode))
        target = self._staged_path(staged)
        xattr.copy(layer.proc_path(path), target)
        written = origin.write(target, Origin(number, own.st_ino, boot))
        syscalls.utimensat(staging_fd, staged, status.st_atime_ns, status.st_mtime_ns)
        return written

    # Adopting --------------------------------------------------------------------------------------

    def _adopt(self, copy: _Copy) -> None:
        """Give the finished copy the node's names. Does not await: what it finds stays true."""
        node, staged = copy.node, copy.staged
        staging_fd = self.upper.staging_fd
        upper_ino = self._staged_stat(staged).st_ino
        book = self.tree.nodes.ledger
        if book is not None:
            book.begin(ledger.COPIED, node.ino, b"")
        readers: dict[int, int] = {}
        if not copy.is_metacopy:
            readers = self._open_readers(node, self._staged_path(staged))
        try:
            if not node.names:
                node.orphan = os.open(staged, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=staging_fd)
                os.unlink(staged, dir_fd=staging_fd)
                self.tree.nodes.note(node)
            elif copy.status.st_nlink > 1:
                self.hard_links.adopt(node, staged, copy.place[0], copy.status.st_ino)
            else:
                path = self.tree.path(node)
                self.directory(node.names[0][0])
                self.upper.adopt(staged, path)
        except BaseException:
            for reader in readers.values():
                os.close(reader)
            raise
        self._replace_descriptors(readers)
        self._now_upper(node, upper_ino)
        self.copied_files += 1
        if not copy.is_metacopy:
            self.copied_bytes += copy.size
        node.lowers = ()
        node.metacopy = int(copy.is_metacopy)
        if copy.marked:
            self.settling.add(node)
        if node.backing is not None:
            # Who has it open stays with the lower file; others get the copy.
            node.backing = None
            if book is not None:
                book.set_backing(node.record, 0)
            self.tree.nodes.rename_for_kernel(node)
            pyfuse3.invalidate_inode(pyfuse3.InodeT(node.ino), attr_only=True)

    @staticmethod
    def _open_readers(node: Node, path: bytes) -> dict[int, int]:
        """The copy opened once for each open file of the node, to take the place of its descriptor."""
        readers: dict[int, int] = {}
        try:
            for fd in node.handles:
                kept = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NOATIME
                readers[fd] = os.open(path, os.O_RDONLY | os.O_CLOEXEC | kept)
        except BaseException:
            for reader in readers.values():
                os.close(reader)
            raise
        return readers

    @staticmethod
    def _replace_descriptors(readers: dict[int, int]) -> None:
        for fd, reader in readers.items():
            os.dup2(reader, fd, inheritable=False)
            os.close(reader)

    def follow(self, node: Node) -> None:
        """Let open files of a copied file be its copy's: a server may have died before they were.

        Raises OSError.
        """
        if not node.upper or node.kind != stat.S_IFREG or self.tree.content_place(node) is not None:
            return
        status = self.tree.stat(node)
        if all(os.path.samestat(os.fstat(fd), status) for fd in node.handles):
            return
        self._replace_descriptors(self._open_readers(node, self.tree.proc_path(node)))
        if node.backing is not None:
            node.backing = None
            self.tree.nodes.rename_for_kernel(node)

    def _now_upper(self, node: Node, upper_ino: int) -> None:
        node.upper = True
        node.upper_ino = upper_ino
        for parent, name in node.names:
            assert parent.listing is not None
            entry = parent.listing.names[name]
            # Replaced, not changed: the same entry says in `below` what the lower layers have.
            fresh = Entry(entry.kind, True, entry.lowers if entry.kind == stat.S_IFDIR else ())
            fresh.node = node
            parent.listing.names[name] = fresh

    def upper_path(self, parent: Node, name: bytes) -> bytes:
        """The path in the upper layer of a name in a directory."""
        return join(self.tree.path(parent), name)


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    """Copy bytes [start, end) of a file to the same place in another."""
    os.lseek(target, start, os.SEEK_SET)
    position = start
    while position < end:
        count = min(end - position, _COPY_CHUNK)
        try:
            done = os.copy_file_range(source, target, count, position, position)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
                raise
            done = os.pwrite(target, os.pread(source, min(count, 1 << 20), position), position)
        if done == 0:
            return  # shorter than it was
        position += done
