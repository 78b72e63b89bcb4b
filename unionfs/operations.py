"""The FUSE requests: each is translated, handed to the part that decides, and answered.

Errors are mapped once, in errors.py.

All requests run on the trio thread. One that does not await is atomic; see changes.py and copyup.py for
those that do.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import time
from collections.abc import Iterator, Sequence

import trio

from unionfs import inspection, ledger, whiteout, xattr
from unionfs.changes import Changes
from unionfs.copyup import CopyUp
from unionfs.errors import answers_errors
from unionfs.handles import BACKING_FLAGS, WRITES_THROUGH, HandleTable, OpenDirectory, OpenFile
from unionfs.idmap import UNMAPPED, IdMaps
from unionfs.layer import open_noatime
from unionfs.nodes import Node
from unionfs.session import NO_NAME, pyfuse3
from unionfs.tree import Tree
from unionfs.upper import Caller, Maker, Upper

log = logging.getLogger(__name__)

#: Seconds the kernel may keep names and attributes: for ever, since only requests change them.
FOREVER = 1e9

#: Seconds after which relatime moves an atime anyway.
_DAY = 24 * 60 * 60

#: Setting it does to setgid what chmod(2) does; the kernel leaves that to us.
_ACCESS_ACL = b"system.posix_acl_access"

_CREATE_FLAGS = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def _spare_descriptor() -> Iterator[None]:
    """Keep a descriptor free for what follows. Raises OSError (EMFILE) when there is none."""
    spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        os.close(spare)


def _is_in_group(ctx: pyfuse3.RequestContext, gid: int) -> bool:
    """Whether the caller is in a group, by proc(5) where it is not the first one."""
    if ctx.gid == gid:
        return True
    try:
        with open(f"/proc/{ctx.pid}/status", encoding="ascii", errors="replace") as status:
            groups = next((line for line in status if line.startswith("Groups:")), "Groups:")
    except OSError:
        return False
    return str(gid) in groups.split()[1:]


@answers_errors
class Operations(pyfuse3.Operations):
    """pyfuse3's face of one union."""

    enable_writeback_cache = False
    supports_dot_lookup = False

    def __init__(
        self,
        tree: Tree,
        upper: Upper | None,
        copyup: CopyUp | None,
        *,
        acl: bool = True,
        xattrs: bool = True,
        sync: bool = True,
        timeout: float = FOREVER,
        static_nlink: bool = False,
        redirects: bool = False,
        idmaps: IdMaps = UNMAPPED,
    ) -> None:
        """`sync`: fsync reaches the disk. `timeout`: seconds the kernel keeps names and attributes."""
        super().__init__()
        self.enable_acl = acl and xattrs
        self._tree = tree
        self._nodes = tree.nodes
        #: What the next server has to know of open files is written there (ledger.pyx).
        self.ledger = tree.nodes.ledger
        self._upper = upper
        self._copyup = copyup
        self._changes = None
        if upper is not None and copyup is not None:
            self._changes = Changes(tree, upper, copyup, redirects=redirects)
        self._xattrs = xattrs
        self._sync = sync
        self._timeout = timeout
        self._static_nlink = static_nlink
        self._ids = idmaps
        #: By descriptor: a file's handle is the descriptor itself, which session/hooks.c works on.
        self._files: dict[int, OpenFile] = {}
        self._directories: HandleTable[OpenDirectory] = HandleTable()
        #: Answers questions about the union itself, once it is set.
        self.inspection: inspection.Inspection | None = None

    # Answers ---------------------------------------------------------------------------------------

    def _attributes(self, node: Node) -> pyfuse3.EntryAttributes:
        status = self._tree.stat(node)
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = node.ino
        attributes.st_mode = status.st_mode
        attributes.st_nlink = 1 if self._static_nlink else self._tree.link_count(node, status)
        attributes.st_uid = self._ids.uid.shown(status.st_uid)
        attributes.st_gid = self._ids.gid.shown(status.st_gid)
        attributes.st_rdev = status.st_rdev
        attributes.st_size = status.st_size
        attributes.st_blocks = status.st_blocks
        attributes.st_blksize = status.st_blksize
        attributes.st_atime_ns = status.st_atime_ns
        attributes.st_mtime_ns = status.st_mtime_ns
        attributes.st_ctime_ns = status.st_ctime_ns
        attributes.entry_timeout = self._timeout
        attributes.attr_timeout = 0 if node.written else self._timeout
        return attributes

    def _entry(self, node: Node) -> pyfuse3.EntryAttributes:
        """Attributes that also tell the kernel of the node: one more reference it will give back."""
        attributes = self._attributes(node)
        node.lookups += 1
        self._nodes.note(node)
        return attributes

    def _absent(self) -> pyfuse3.EntryAttributes:
        """Inode 0: the kernel may remember that there is no such name."""
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = 0
        attributes.entry_timeout = self._timeout
        return attributes

    def _writable(self) -> tuple[Changes, CopyUp, Upper]:
        if self._changes is None or self._copyup is None or self._upper is None:
            raise OSError(errno.EROFS, "no upper layer")
        return self._changes, self._copyup, self._upper

    def _caller(self, ctx: pyfuse3.RequestContext) -> Caller:
        return Caller(*self._ids.caller_stored(ctx.uid, ctx.gid), ctx.umask)

    def reopen(self, files: dict[int, OpenFile], directories: dict[int, OpenDirectory]) -> None:
        """Begin with what an earlier server has left open: by descriptor, and by number."""
        self._files.update(files)
        self._directories.restore(directories)

    # Names -----------------------------------------------------------------------------------------

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """LOOKUP."""
        node = self._tree.lookup(self._nodes[parent_inode], name)
        return self._absent() if node is None else self._entry(node)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """FORGET and BATCH_FORGET. Nobody waits for an answer, so there is no error to give."""
        for inode, lookups in inode_list:
            try:
                self._nodes.forget(inode, lookups)
            except Exception:
                log.exception("forget of node %d failed", inode)

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """OPENDIR."""
        node = self._nodes[inode]
        self._tree.listing(node)
        handle = self._directories.add(OpenDirectory(node))
        if self.ledger is not None:
            self.ledger.add_directory(handle, node.ino)
        return handle

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """READDIRPLUS. Offsets 1 and 2 are `.` and `..`; then positions in the names of the first read."""
        directory = self._directories[fh]
        node = directory.node
        listing = self._tree.listing(node)
        if start_id == 0:
            directory.names = list(listing.names)
            if self.ledger is not None:
                self.ledger.keep_names(fh, directory.names)
            self._note_reading(node)
            if not pyfuse3.readdir_reply(token, b".", self._attributes(node), 1):
                return
        if start_id <= 1:
            parent = node.names[0][0] if node.names else node
            if not pyfuse3.readdir_reply(token, b"..", self._attributes(parent), 2):
                return
        for position in range(max(start_id - 2, 0), len(directory.names)):
            name = directory.names[position]
            if name not in listing.names:
                continue  # removed since
            try:
                child = self._tree.lookup(node, name)
                assert child is not None
                attributes = self._attributes(child)
            except OSError as error:
                if error.errno != errno.ELOOP:
                    log.warning("readdir: cannot look at %r: %s", name, error)
                continue
            if not pyfuse3.readdir_reply(token, name, attributes, position + 3):
                self._nodes.release(child)
                return
            child.lookups += 1
            self._nodes.note(child)

    def _note_reading(self, node: Node) -> None:
        """Let the disk move an upper directory's atime, if it would at all (relatime, mount(8))."""
        if not node.upper or not node.names:
            return
        status = self._tree.stat(node)
        changed_ns = max(status.st_mtime_ns, status.st_ctime_ns)
        if status.st_atime_ns > changed_ns and status.st_atime > time.time() - _DAY:
            return
        fd = self._tree.open(node, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(fd) as entries:
                next(entries, None)
        finally:
            os.close(fd)

    async def releasedir(self, fh: int) -> None:
        """RELEASEDIR."""
        self.release_directory(fh)

    def release_directory(self, fh: int) -> None:
        """What RELEASEDIR does."""
        if self.ledger is not None:
            if self.ledger.repeats(ledger.RELEASED_DIRECTORY, fh, b""):
                return
            self.ledger.begin(ledger.RELEASED_DIRECTORY, fh, b"")
            self.ledger.drop_directory(fh)
        self._directories.pop(fh)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """FSYNCDIR."""
        node = self._directories[fh].node
        if self._sync and node.upper and node.names:
            fd = self._tree.open(node, os.O_RDONLY | os.O_DIRECTORY)
            try:
                await trio.to_thread.run_sync(os.fsync, fd)
            finally:
                os.close(fd)

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """MKDIR."""
        return self._entry(self.make_directory(self._nodes[parent_inode], name, mode, self._caller(ctx)))

    def make_directory(self, parent: Node, name: bytes, mode: int, caller: Caller) -> Node:
        """What MKDIR does. Raises OSError."""
        return self._make(
            parent, name, stat.S_IFDIR, lambda fd, at: os.mkdir(at, mode & 0o7777, dir_fd=fd), caller
        )

    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """MKNOD."""
        return self._entry(self.make_special(self._nodes[parent_inode], name, mode, rdev, self._caller(ctx)))

    def make_special(self, parent: Node, name: bytes, mode: int, rdev: int, caller: Caller) -> Node:
        """What MKNOD does. Raises OSError (EPERM for a 0:0 character device, a whiteout)."""
        if whiteout.is_device_whiteout(mode, rdev):
            raise OSError(errno.EPERM, "a whiteout")
        return self._make(
            parent, name, stat.S_IFMT(mode), lambda fd, at: os.mknod(at, mode, rdev, dir_fd=fd), caller
        )

    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """SYMLINK."""
        return self._entry(self.make_symlink(self._nodes[parent_inode], name, target, self._caller(ctx)))

    def make_symlink(self, parent: Node, name: bytes, target: bytes, caller: Caller) -> Node:
        """What SYMLINK does. Raises OSError."""
        return self._make(
            parent, name, stat.S_IFLNK, lambda fd, at: os.symlink(target, at, dir_fd=fd), caller
        )

    def _make(self, parent: Node, name: bytes, kind: int, make: Maker[None], caller: Caller) -> Node:
        changes, _, _ = self._writable()
        return changes.made_before(parent, name) or changes.create(parent, name, kind, make, caller)[0]

    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """LINK."""
        changes, _, _ = self._writable()
        node = self._nodes[inode]
        await changes.link(node, self._nodes[new_parent_inode], new_name)
        return self._entry(node)

    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """UNLINK."""
        changes, _, _ = self._writable()
        await changes.unlink(self._nodes[parent_inode], name)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """RMDIR."""
        changes, _, _ = self._writable()
        changes.rmdir(self._nodes[parent_inode], name)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        """RENAME and RENAME2."""
        changes, _, _ = self._writable()
        await changes.rename(
            self._nodes[parent_inode_old], name_old, self._nodes[parent_inode_new], name_new, flags
        )

    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        """READLINK."""
        node = self._nodes[inode]
        if node.orphan >= 0:
            return os.readlink(b"", dir_fd=node.orphan)
        layer, path = self._tree.place(node)
        return layer.readlink(path)

    # Attributes ------------------------------------------------------------------------------------

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """GETATTR."""
        return self._attributes(self._nodes[inode])

    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """SETATTR. The owner goes first, because chown(2) clears setuid; the times last."""
        _, copyup, upper = self._writable()
        node = self._nodes[inode]
        if fields.update_size:
            await copyup.file(node, attr.st_size)
        else:
            await copyup.attributes(node)
        orphan = b"/proc/self/fd/%d" % node.orphan if node.orphan >= 0 else None
        path = b"" if orphan else self._tree.path(node)
        if fields.update_uid or fields.update_gid:
            uid = self._ids.uid.stored(attr.st_uid) if fields.update_uid else -1
            gid = self._ids.gid.stored(attr.st_gid) if fields.update_gid else -1
            if orphan:
                os.chown(orphan, uid, gid)
            else:
                upper.chown(path, uid, gid)
        if fields.update_mode:
            self._chmod(node, stat.S_IMODE(attr.st_mode))
        if fields.update_size:
            self._truncate(node, fh, attr.st_size)
        if fields.update_atime or fields.update_mtime:
            atime = attr.st_atime_ns if fields.update_atime else None
            mtime = attr.st_mtime_ns if fields.update_mtime else None
            if orphan:
                kept = os.fstat(node.orphan)
                atime = kept.st_atime_ns if atime is None else atime
                os.utime(orphan, ns=(atime, kept.st_mtime_ns if mtime is None else mtime))
            else:
                upper.utime(path, atime, mtime)
        try:
            return self._attributes(node)
        except OSError:
            # Done it is; only what the kernel remembers is old.
            pyfuse3.invalidate_inode(pyfuse3.InodeT(node.id), attr_only=True)
            raise

    def _chmod(self, node: Node, mode: int) -> None:
        if node.orphan >= 0:
            os.chmod(b"/proc/self/fd/%d" % node.orphan, mode)
        else:
            self._writable()[2].chmod(self._tree.path(node), mode)

    def _truncate(self, node: Node, fh: int | None, size: int) -> None:
        if fh is not None and self._files[fh].flags & os.O_ACCMODE != os.O_RDONLY:
            os.ftruncate(fh, size)
            return
        fd = self._tree.open(node, os.O_WRONLY)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """STATFS: of the upper layer, which is what can fill up; of the topmost one without it."""
        status = (self._upper or self._tree.lowers[0]).statvfs()
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = status.f_bsize
        answer.f_frsize = status.f_frsize
        answer.f_blocks = status.f_blocks
        answer.f_bfree = status.f_bfree
        answer.f_bavail = status.f_bavail
        answer.f_files = status.f_files
        answer.f_ffree = status.f_ffree
        answer.f_favail = status.f_favail
        answer.f_namemax = status.f_namemax
        return answer

    # Extended attributes ---------------------------------------------------------------------------

    def _xattr_path(self, node: Node) -> tuple[bytes, bool]:
        """The path, and whether it is to be followed."""
        return self._tree.proc_path(node), node.orphan >= 0

    def _stored_name(self, name: bytes) -> bytes:
        if not self._xattrs:
            raise OSError(errno.ENOTSUP, "noxattrs")
        return xattr.stored(name)

    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """GETXATTR."""
        if name.startswith(inspection.PREFIX) and self.inspection is not None:
            return self.inspection.answer(self._nodes[inode], name, ctx)
        name = self._stored_name(name)
        path, follow = self._xattr_path(self._nodes[inode])
        try:
            return os.getxattr(path, name, follow_symlinks=follow)
        except OSError as error:
            # A disk without ACLs has none: any other answer would fail the kernel's permission check.
            if error.errno == errno.ENOTSUP and name.startswith(b"system.posix_acl_"):
                raise OSError(errno.ENODATA, "no ACL") from None
            raise

    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        """LISTXATTR."""
        if not self._xattrs:
            return []
        path, follow = self._xattr_path(self._nodes[inode])
        listed = (xattr.shown(os.fsencode(name)) for name in os.listxattr(path, follow_symlinks=follow))
        names = [name for name in listed if name is not None]
        if ctx.uid != 0:  # xattr(7): without CAP_SYS_ADMIN they are not seen
            names = [name for name in names if not name.startswith(b"trusted.")]
        return names

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        """SETXATTR."""
        _, copyup, _ = self._writable()
        name = self._stored_name(name)
        node = self._nodes[inode]
        await copyup.attributes(node)
        path, follow = self._xattr_path(node)
        if self.ledger is not None:
            self.ledger.begin(ledger.XATTR_MADE, node.id, name)
        os.setxattr(path, name, value, follow_symlinks=follow)
        if name == _ACCESS_ACL and ctx.uid != 0:
            status = self._tree.stat(node)
            if status.st_mode & stat.S_ISGID and not _is_in_group(ctx, self._ids.gid.shown(status.st_gid)):
                self._chmod(node, stat.S_IMODE(status.st_mode) & ~stat.S_ISGID)

    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """REMOVEXATTR."""
        _, copyup, _ = self._writable()
        name = self._stored_name(name)
        node = self._nodes[inode]
        if self.ledger is not None and self.ledger.repeats(ledger.XATTR_REMOVED, node.ino, name):
            return
        path, follow = self._xattr_path(node)
        if not node.upper:
            os.getxattr(path, name, follow_symlinks=follow)  # ENODATA is no reason to copy up
            await copyup.attributes(node)
            path, follow = self._xattr_path(node)
        if self.ledger is not None:
            os.getxattr(path, name, follow_symlinks=follow)
            self.ledger.begin(ledger.XATTR_REMOVED, node.ino, name)
        os.removexattr(path, name, follow_symlinks=follow)

    # Files -----------------------------------------------------------------------------------------

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """OPEN. Opening for writing copies up, without the content if that is cut off at once."""
        node = self._nodes[inode]
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            _, copyup, _ = self._writable()
            with _spare_descriptor():  # or content would be cut off by an open that then fails (EMFILE)
                await copyup.file(node, 0 if flags & os.O_TRUNC else None)
            if node.unsettled and flags & WRITES_THROUGH:
                await copyup.settling.settle_by_name(node)
        if flags & os.O_TRUNC and ctx.uid != 0:
            self._drop_setuid(node)
        backing = flags & (BACKING_FLAGS | os.O_TRUNC)
        content = self._tree.content_place(node) if node.kind == stat.S_IFREG else None
        if content is None:
            fd = open_noatime(lambda wanted: self._tree.open(node, wanted), backing)
        else:
            layer, path = content
            fd = open_noatime(lambda wanted: layer.open(path, wanted), backing)
        return self._opened(node, fd, flags)

    def _drop_setuid(self, node: Node) -> None:
        """Before a user's O_TRUNC, which the kernel leaves to us whole: as truncate(2) does (chmod(2))."""
        mode = stat.S_IMODE(self._tree.stat(node).st_mode)
        kept = mode & ~stat.S_ISUID
        if kept & stat.S_IXGRP:
            kept &= ~stat.S_ISGID
        if kept != mode:
            self._chmod(node, kept)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """CREATE, and TMPFILE as its nameless kind."""
        changes, _, _ = self._writable()
        parent = self._nodes[parent_inode]
        if name == NO_NAME:
            node, fd = changes.create_unnamed(parent, mode & 0o7777, self._caller(ctx))
        else:
            node, fd = self.make_file(parent, name, mode, flags, self._caller(ctx))
        return self._opened(node, fd, flags), self._entry(node)

    def make_file(self, parent: Node, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[Node, int]:
        """What CREATE does: the file's node and a descriptor to it. Raises OSError."""
        changes, _, _ = self._writable()
        before = changes.made_before(parent, name)
        if before is not None:
            return before, self._tree.open(before, flags & BACKING_FLAGS)
        backing = (flags & BACKING_FLAGS) | _CREATE_FLAGS
        return changes.create(
            parent,
            name,
            stat.S_IFREG,
            lambda directory, at: os.open(at, backing, mode & 0o7777, dir_fd=directory),
            caller,
        )

    def _opened(self, node: Node, fd: int, flags: int) -> pyfuse3.FileInfo:
        self._files[fd] = OpenFile(node, flags)
        node.handles.append(fd)
        if self.ledger is not None:
            self.ledger.add_file(fd, node.ino, flags, 0)
        return pyfuse3.FileInfo(fh=fd, keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """READ."""
        return os.pread(fh, size, off)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """WRITE."""
        return os.pwrite(fh, buf, off)

    async def flush(self, fh: int) -> None:
        """FLUSH: nothing is kept back here, so the kernel need not ask again."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def fsync(self, fh: int, datasync: bool) -> None:
        """FSYNC. The file is as durable as its layer makes it, name and all."""
        if not self._sync:
            return
        node = self._files[fh].node
        if node.unsettled:
            assert self._copyup is not None
            await self._copyup.settling.settle(node, fh)
        else:
            await trio.to_thread.run_sync(os.fdatasync if datasync else os.fsync, fh)

    async def release(self, fh: int) -> None:
        """RELEASE."""
        if self.ledger is not None:
            if self.ledger.repeats(ledger.RELEASED, fh, b""):
                return
            self.ledger.begin(ledger.RELEASED, fh, b"")
            self.ledger.drop_file(fh)
        file = self._files.pop(fh)
        file.node.handles.remove(fh)
        os.close(fh)
        self._nodes.release(file.node)
