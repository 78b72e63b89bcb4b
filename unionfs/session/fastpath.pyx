# cython: language_level=3, binding=False, embedsignature=False, annotation_typing=False
"""The fast path: requests answered where they are read (hooks.c), without pyfuse3 and without trio.

It runs on the thread that decides, inside pyfuse3's own call, so what it does is atomic to all others and
needs no lock. It decides nothing: names, copy-ups and changes are the business of the same tree, changes and
copyup that pyfuse3's handlers (operations.py) call. What has to wait (a copy-up in a worker thread) becomes a
task, after which the request is served anew; what is rare is left to pyfuse3.

Structures are those of <linux/fuse.h>.
"""

import errno as errnos
import fcntl
import logging
import os
import stat as stats

import trio

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.pycapsule cimport PyCapsule_New
from libc.errno cimport errno
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from unionfs.ledger cimport RESENT, Ledger
from unionfs.nodes cimport Node, NodeTable

from unionfs.handles import BACKING_FLAGS, WRITES_THROUGH, OpenDirectory, OpenFile
from unionfs.layer import open_noatime
from unionfs.ledger import RELEASED
from unionfs.session import _hooks, pyfuse3
from unionfs.passthrough import Policy, is_program
from unionfs.upper import Caller

log = logging.getLogger(__name__)

cdef extern from "<sys/types.h>":
    ctypedef long off_t

cdef extern from "<string.h>":
    size_t strnlen(const char *text, size_t size) nogil

cdef extern from "<sys/uio.h>":
    struct iovec:
        void *iov_base
        size_t iov_len
    long writev(int fd, const iovec *parts, int count) nogil

cdef extern from "<unistd.h>":
    long pread(int fd, void *buffer, size_t size, off_t offset) nogil
    long pwrite(int fd, const void *buffer, size_t size, off_t offset) nogil
    int ftruncate(int fd, off_t length) nogil
    int fchownat(int fd, const char *name, unsigned int uid, unsigned int gid, int flags) nogil

cdef extern from "<sys/xattr.h>":
    long getxattr(const char *path, const char *name, void *value, size_t size) nogil
    long lgetxattr(const char *path, const char *name, void *value, size_t size) nogil

cdef extern from "<sys/ioctl.h>":
    int ioctl(int fd, unsigned long request, ...) nogil

cdef extern from "<linux/fs.h>":
    const unsigned int FS_IOC_GETFLAGS
    const unsigned int FS_IOC_SETFLAGS
    const unsigned int FS_IOC_FSGETXATTR
    const unsigned int FS_IOC_FSSETXATTR

cdef extern from "<time.h>":
    struct timespec:
        long tv_sec
        long tv_nsec

cdef extern from "<fcntl.h>":
    int AT_SYMLINK_NOFOLLOW
    int AT_EMPTY_PATH

cdef extern from "<sys/stat.h>":
    struct c_stat "stat":
        uint64_t st_dev
        uint64_t st_ino
        uint64_t st_nlink
        uint32_t st_mode
        uint32_t st_uid
        uint32_t st_gid
        uint64_t st_rdev
        int64_t st_size
        int64_t st_blksize
        int64_t st_blocks
        timespec st_atim
        timespec st_mtim
        timespec st_ctim
    int c_fstat "fstat" (int fd, c_stat *status) nogil
    int fstatat(int fd, const char *name, c_stat *status, int flags) nogil
    int utimensat(int fd, const char *name, const timespec *times, int flags) nogil
    long UTIME_NOW
    long UTIME_OMIT

cdef struct in_header:
    uint32_t len, opcode
    uint64_t unique, nodeid
    uint32_t uid, gid, pid
    uint16_t total_extlen, padding

cdef struct out_header:
    uint32_t len
    int32_t error
    uint64_t unique

cdef struct attributes:
    uint64_t ino, size, blocks, atime, mtime, ctime
    uint32_t atimensec, mtimensec, ctimensec, mode, nlink, uid, gid, rdev, blksize, flags

cdef struct entry_out:
    uint64_t nodeid, generation, entry_valid, attr_valid
    uint32_t entry_valid_nsec, attr_valid_nsec
    attributes attr

cdef struct attr_out:
    uint64_t attr_valid
    uint32_t attr_valid_nsec, padding
    attributes attr

cdef struct open_out:
    uint64_t fh
    uint32_t open_flags
    int32_t backing_id

cdef struct create_out:
    entry_out entry
    open_out open

cdef struct dirent:
    uint64_t ino, off
    uint32_t namelen, type

cdef struct setattr_in:
    uint32_t valid, padding
    uint64_t fh, size, lock_owner, atime, mtime, ctime
    uint32_t atimensec, mtimensec, ctimensec, mode, unused4, uid, gid, unused5

cdef struct io_in:  # READ and WRITE
    uint64_t fh, offset
    uint32_t size, io_flags
    uint64_t lock_owner
    uint32_t flags, padding

cdef struct ioctl_in:
    uint64_t fh
    uint32_t flags, cmd
    uint64_t arg
    uint32_t in_size, out_size

cdef struct ioctl_out:
    int32_t result
    uint32_t flags, in_iovs, out_iovs

cdef struct fh_in:  # the beginning of RELEASE and of all else that has an open file
    uint64_t fh

cdef struct four_words:  # OPEN (flags, open_flags), CREATE (and mode, umask), MKDIR, MKNOD
    uint32_t a, b, c, d

cdef struct two_longs:
    uint64_t a, b

cdef enum:
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    RELEASE = 18
    GETXATTR = 22
    LISTXATTR = 23
    OPENDIR = 27
    RELEASEDIR = 29
    CREATE = 35
    INTERRUPT = 36
    IOCTL = 39
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    COPY_FILE_RANGE = 47
    TMPFILE = 51

    FATTR_MODE = 1
    FATTR_UID = 2
    FATTR_GID = 4
    FATTR_SIZE = 8
    FATTR_ATIME = 16
    FATTR_MTIME = 32
    FATTR_FH = 64
    FATTR_ATIME_NOW = 128
    FATTR_MTIME_NOW = 256
    FATTR_KILL_SUIDGID = 2048

    OPEN_KILL_SUIDGID = 1
    WRITE_KILL_SUIDGID = 4

    FOPEN_KEEP_CACHE = 2
    FOPEN_CACHE_DIR = 8
    FOPEN_NOFLUSH = 32
    FOPEN_PASSTHROUGH = 128
    UNKNOWN_INO = 0xffffffff  # as libfuse says it

    HANDLE_KILLPRIV_V2 = 1 << 28

    FSXATTR_SIZE = 28

    REPLY_SIZE = 1 << 20

cdef uint64_t PASSTHROUGH = <uint64_t>1 << 37

#: What a handler says: leave the request to libfuse; it is answered; answered or to be, and trio has work.
cdef enum:
    LEFT = 0
    DONE = 1
    WAITING = 2

cdef char reply_buffer[REPLY_SIZE + 64]


class _Context:
    """What of pyfuse3.RequestContext its handlers use."""

    __slots__ = ("gid", "pid", "uid", "umask")

    def __init__(self, uid, gid, pid, umask):
        self.uid, self.gid, self.pid, self.umask = uid, gid, pid, umask


cdef object now(object coroutine):
    """Run a coroutine that does not wait for anything; returns what it returns."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


cdef class FastPath:
    """Serves one union. Made once, for the life of the process."""

    cdef object operations, tree, changes, copyup, upper, backings, directories
    cdef object ids, uid_shown, uid_stored, gid_shown, gid_stored
    cdef NodeTable table
    cdef Ledger ledger
    cdef dict files
    cdef bint plain_ids, static_nlink, begun
    #: Whether setuid is ours to clear.
    cdef bint killpriv
    cdef uint64_t valid
    cdef uint32_t valid_nsec
    cdef int fd
    cdef set tasks

    def __init__(self, operations, backings):
        self.operations = operations
        self.tree = operations._tree
        self.table = self.tree.nodes
        self.ledger = self.table.ledger
        self.changes = operations._changes
        self.copyup = operations._copyup
        self.upper = operations._upper
        self.files = operations._files
        self.directories = operations._directories
        ids = self.ids = operations._ids
        self.uid_shown, self.uid_stored = ids.uid.shown, ids.uid.stored
        self.gid_shown, self.gid_stored = ids.gid.shown, ids.gid.stored
        self.plain_ids = not (ids.uid.ranges or ids.gid.ranges) and ids.uid.squash is ids.gid.squash is None
        self.static_nlink = operations._static_nlink
        self.begun = False
        self.backings = backings
        self.valid = int(operations._timeout)
        self.valid_nsec = int((operations._timeout - self.valid) * 1e9)

    def install(self):
        """Answer from now on."""
        global _serving
        _serving = self
        _hooks.serve_by(PyCapsule_New(<void *>&serve, "unionfs.server", NULL))

    # Replies ---------------------------------------------------------------------------------------

    cdef int reply(self, in_header *request, const void *body, size_t size) except -1:
        """Answer with a body. Returns whether somebody still waited for it."""
        cdef out_header head
        cdef iovec parts[2]
        head.len = sizeof(out_header) + size
        head.error = 0
        head.unique = request.unique
        parts[0].iov_base, parts[0].iov_len = &head, sizeof(head)
        parts[1].iov_base, parts[1].iov_len = <void *>body, size
        return writev(self.fd, parts, 2) >= 0

    cdef int refuse(self, in_header *request, int error) except -1:
        cdef out_header head
        cdef iovec part
        head.len = sizeof(out_header)
        head.error = -error
        head.unique = request.unique
        part.iov_base, part.iov_len = &head, sizeof(head)
        writev(self.fd, &part, 1)
        return DONE

    cdef int fail(self, in_header *request, BaseException error) except -1:
        """Errors are mapped as in errors.py."""
        if isinstance(error, OSError):
            return self.refuse(request, error.errno or errnos.EIO)
        if isinstance(error, pyfuse3.FUSEError):
            return self.refuse(request, error.errno)
        log.error("request %d failed", request.opcode, exc_info=error)
        return self.refuse(request, errnos.ESTALE if isinstance(error, KeyError) else errnos.EIO)

    cdef int status(self, Node node, c_stat *status) except -1:
        """The attributes in the node's layer."""
        cdef int result
        if node.orphan >= 0:
            result = c_fstat(node.orphan, status)
        else:
            if node.upper:
                fd, name = self.upper._at(self.tree.path(node))
            else:
                layer, path = node.lowers[0]
                fd, name = layer._at(path)
            result = fstatat(fd, name, status, AT_SYMLINK_NOFOLLOW)
        if result < 0:
            raise OSError(errno, "stat")
        return 0

    cdef int fill(self, Node node, attributes *attr) except -1:
        cdef c_stat status
        self.status(node, &status)
        memset(attr, 0, sizeof(attributes))
        attr.ino = node.ino
        attr.size = status.st_size
        attr.blocks = status.st_blocks
        attr.atime, attr.atimensec = status.st_atim.tv_sec, status.st_atim.tv_nsec
        attr.mtime, attr.mtimensec = status.st_mtim.tv_sec, status.st_mtim.tv_nsec
        attr.ctime, attr.ctimensec = status.st_ctim.tv_sec, status.st_ctim.tv_nsec
        attr.mode = status.st_mode
        if self.static_nlink:
            attr.nlink = 1
        elif node.kind != 0o040000:
            attr.nlink = status.st_nlink if node.names or node.upper else 0
        else:
            attr.nlink = self.tree.directory_link_count(node, status.st_nlink)
        if self.plain_ids:
            attr.uid, attr.gid = status.st_uid, status.st_gid
        else:
            attr.uid, attr.gid = self.uid_shown(status.st_uid), self.gid_shown(status.st_gid)
        attr.rdev = status.st_rdev
        attr.blksize = status.st_blksize
        return 0

    cdef int fill_entry(self, Node node, entry_out *entry) except -1:
        """Also counts the reference that the kernel gets by it."""
        memset(entry, 0, sizeof(entry_out))
        self.fill(node, &entry.attr)
        entry.nodeid = node.id
        entry.entry_valid, entry.entry_valid_nsec = self.valid, self.valid_nsec
        if not self.may_be_written(node):
            entry.attr_valid, entry.attr_valid_nsec = self.valid, self.valid_nsec
        node.lookups += 1
        if node.record:
            self.ledger.nodes[node.record].lookups = node.lookups
        return 0

    cdef bint may_be_written(self, Node node) except -1:
        """Whether times change without a request: somebody writes, or has mapped, a file passed through."""
        if node.written and not node.writers:
            node.written = self.is_open_for_writing(node)
        return node.written

    cdef bint is_open_for_writing(self, Node node) except -1:
        """Whether anybody has the layer's file open for writing, or mapped: then no read lease is given."""
        cdef int fd
        try:
            fd = self.tree.open(node, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return True
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            return False
        except OSError:
            return True
        finally:
            os.close(fd)  # with it goes the lease

    cdef int reply_entry(self, in_header *request, Node node) except -1:
        cdef entry_out entry
        self.fill_entry(node, &entry)
        if not self.reply(request, &entry, sizeof(entry)):
            self.table.forget(node.id, 1)
        return DONE

    cdef int reply_attributes(self, in_header *request, Node node) except -1:
        cdef attr_out out
        memset(&out, 0, sizeof(out))
        self.fill(node, &out.attr)
        # By its old name nothing would tell the kernel of changes.
        if node.id == request.nodeid and not self.may_be_written(node):
            out.attr_valid, out.attr_valid_nsec = self.valid, self.valid_nsec
        self.reply(request, &out, sizeof(out))
        return DONE

    # Waiting ---------------------------------------------------------------------------------------

    cdef int later(self, in_header *request, object waiting) except -1:
        """Serve the request anew when `waiting` is done."""
        raw = PyBytes_FromStringAndSize(<char *>request, request.len)
        trio.lowlevel.spawn_system_task(self._later, raw, waiting)
        return WAITING

    async def _later(self, raw, waiting):
        cdef bytes request = raw
        if await self._served_after(waiting, raw) != WAITING:
            _hooks.done((<in_header *><char *>request).unique)

    async def _served_after(self, waiting, raw):
        """Returns WAITING when it has to wait once more."""
        cdef bytes request = raw
        cdef char *buffer = request
        cdef int result
        try:
            await waiting
        except BaseException as error:
            self.fail(<in_header *>buffer, error)
            if not isinstance(error, Exception):
                raise
            return DONE
        result = self.serve(self.fd, buffer, len(request))
        if result == LEFT:
            self.refuse(<in_header *>buffer, errnos.EIO)
        return result

    cdef object writable(self):
        if self.changes is None:
            raise OSError(errnos.EROFS, "no upper layer")
        return self.changes

    cdef bint has_content(self, Node node) except -1:
        """Whether the content of a regular file is where its attributes are."""
        if node.metacopy < 0:
            node.metacopy = self.tree.content_place(node) is not None
        return not node.metacopy

    # Serving ---------------------------------------------------------------------------------------

    cdef int begin(self, int fd) except -1:
        """With the first request: what INIT has agreed on is known now."""
        cdef uint64_t agreed = _hooks.agreed()
        self.begun = True
        self.fd = fd
        self.killpriv = agreed & HANDLE_KILLPRIV_V2 != 0
        if agreed & PASSTHROUGH:
            self.backings.session_fd = fd

    cdef int serve(self, int fd, char *buffer, size_t size) except -1:
        cdef in_header *request = <in_header *>buffer
        cdef int result
        if size < sizeof(in_header) or request.len != size or request.opcode >= 64:
            return LEFT
        try:
            if not self.begun:
                self.begin(fd)
            if self.ledger is not None:
                if request.unique & RESENT:
                    self.close_unanswered(request)
                self.ledger.head.current = request.unique
            result = self.dispatch(request, buffer + sizeof(in_header), size - sizeof(in_header))
        except BaseException as error:
            result = self.fail(request, error)
        if self.ledger is not None:
            if result == DONE:
                self.ledger.head.steps[0].kind = 0
            self.ledger.head.current = 0
        return result

    cdef int close_unanswered(self, in_header *request) except -1:
        """Close what an earlier server had opened for this request when it died: it is about to be opened anew."""
        cdef int fd = self.ledger.head.opened_fd
        if self.ledger.head.opened_by and (self.ledger.head.opened_by ^ request.unique) & ~RESENT == 0:
            self.ledger.head.opened_by = 0
            if fd in self.files:
                self.close(fd)
        return 0

    cdef int dispatch(self, in_header *request, char *body, size_t left) except -1:
        cdef uint32_t opcode = request.opcode
        if opcode == LOOKUP:
            return self.lookup(request, body, left)
        if opcode == GETATTR:
            return self.reply_attributes(request, self.table.find(request.nodeid))
        if opcode == WRITE:
            return self.write(request, <io_in *>body, left)
        if opcode == READ:
            return self.read(request, <io_in *>body, left)
        if opcode == OPEN:
            return self.open(request, <four_words *>body, left)
        if opcode == RELEASE:
            return self.release(request, <fh_in *>body, left)
        if opcode == FORGET:
            if left >= sizeof(uint64_t):
                self.table.forget(request.nodeid, (<uint64_t *>body)[0])
            return DONE
        if opcode == BATCH_FORGET:
            return self.forget_many(body, left)
        if opcode == SETATTR:
            return self.setattr(request, <setattr_in *>body, left)
        if opcode == CREATE or opcode == TMPFILE:
            return self.create(request, body, left)
        if opcode == OPENDIR:
            return self.opendir(request)
        if opcode == READDIRPLUS:
            return self.readdir(request, <io_in *>body, left)
        if opcode == RELEASEDIR:
            if left < sizeof(fh_in):
                return LEFT
            self.operations.release_directory((<fh_in *>body).fh)
            return self.refuse(request, 0)
        if opcode == READLINK:
            return self.readlink(request)
        if opcode == UNLINK or opcode == RMDIR:
            return self.remove(request, body, left)
        if opcode == MKDIR or opcode == MKNOD or opcode == SYMLINK:
            return self.make(request, body, left)
        if opcode == LINK:
            return self.link(request, body, left)
        if opcode == RENAME or opcode == RENAME2:
            return self.rename(request, body, left)
        if opcode == GETXATTR:
            return self.getxattr(request, body, left)
        if opcode == LISTXATTR:
            return self.listxattr(request, body, left)
        if opcode == IOCTL:
            return self.ioctl(request, <ioctl_in *>body, body + sizeof(ioctl_in), left)
        if opcode == FALLOCATE or opcode == COPY_FILE_RANGE:
            return self.written(request, <uint64_t *>body, left)
        if opcode == INTERRUPT:
            return DONE  # nothing here is long enough to be interrupted
        return LEFT

    # Names -----------------------------------------------------------------------------------------

    cdef int lookup(self, in_header *request, char *body, size_t left) except -1:
        cdef entry_out absent
        name = text(body, left)
        if name is None:
            return LEFT
        node = self.tree.lookup(self.table.find(request.nodeid), name)
        if node is not None:
            return self.reply_entry(request, node)
        memset(&absent, 0, sizeof(absent))
        absent.entry_valid, absent.entry_valid_nsec = self.valid, self.valid_nsec
        self.reply(request, &absent, sizeof(absent))
        return DONE

    cdef int forget_many(self, char *body, size_t left) except -1:
        cdef uint32_t count
        cdef two_longs *one
        if left < 8:
            return DONE
        count = min((<uint32_t *>body)[0], <uint32_t>((left - 8) // sizeof(two_longs)))
        one = <two_longs *>(body + 8)
        for index in range(count):
            self.table.forget(one[index].a, one[index].b)
        return DONE

    cdef int readlink(self, in_header *request) except -1:
        cdef bytes target = now(self.operations.readlink(request.nodeid, None))
        self.reply(request, <char *>target, len(target))
        return DONE

    cdef object context(self, in_header *request, uint32_t umask):
        if self.plain_ids:
            return Caller(request.uid, request.gid, umask)
        return Caller(*self.ids.caller_stored(request.uid, request.gid), umask)

    cdef int make(self, in_header *request, char *body, size_t left) except -1:
        """MKDIR, MKNOD and SYMLINK, by pyfuse3's handlers' own ways."""
        cdef four_words *words = <four_words *>body
        cdef size_t skipped = {MKDIR: 8, MKNOD: 16, SYMLINK: 0}[request.opcode]
        cdef uint32_t mode, umask
        if left < skipped:
            return LEFT
        name = text(body + skipped, left - skipped)
        if name is None:
            return LEFT
        operations = self.operations
        parent = self.table.find(request.nodeid)
        if request.opcode == SYMLINK:
            target = text(body + len(name) + 1, left - len(name) - 1)
            if target is None:
                return LEFT
            node = operations.make_symlink(parent, name, target, self.context(request, 0))
        elif request.opcode == MKDIR:
            node = operations.make_directory(parent, name, words.a, self.context(request, words.b))
        else:
            node = operations.make_special(parent, name, words.a, words.b, self.context(request, words.c))
        return self.reply_entry(request, node)

    cdef int link(self, in_header *request, char *body, size_t left) except -1:
        cdef Node node
        if left < 8:
            return LEFT
        name = text(body + 8, left - 8)
        if name is None:
            return LEFT
        changes = self.writable()
        node = self.table.find((<uint64_t *>body)[0])
        if node.copying is not None or (not node.upper and not self.copyup.is_immediate(node)):
            return self.later(request, self.copyup.attributes(node))
        now(changes.link(node, self.table.find(request.nodeid), name))
        return self.reply_entry(request, node)

    cdef int remove(self, in_header *request, char *body, size_t left) except -1:
        name = text(body, left)
        if name is None:
            return LEFT
        changes = self.writable()
        parent = self.table.find(request.nodeid)
        if request.opcode == RMDIR:
            changes.rmdir(parent, name)
        elif not changes.unlink_now(parent, name):
            return LEFT
        return self.refuse(request, 0)

    cdef int rename(self, in_header *request, char *body, size_t left) except -1:
        cdef size_t skipped = 8 if request.opcode == RENAME else 16
        cdef uint32_t flags = 0
        if left < skipped:
            return LEFT
        if request.opcode == RENAME2:
            flags = (<uint32_t *>(body + 8))[0]
        old = text(body + skipped, left - skipped)
        if old is None:
            return LEFT
        new = text(body + skipped + len(old) + 1, left - skipped - len(old) - 1)
        if new is None:
            return LEFT
        old_parent, new_parent = self.table.find(request.nodeid), self.table.find((<uint64_t *>body)[0])
        if not self.writable().rename_now(old_parent, old, new_parent, new, flags):
            return LEFT
        return self.refuse(request, 0)

    # Directories -----------------------------------------------------------------------------------

    cdef int opendir(self, in_header *request) except -1:
        cdef open_out out
        node = self.table.find(request.nodeid)
        self.tree.listing(node)
        out.fh = self.directories.add(OpenDirectory(node))
        if self.ledger is not None:
            self.ledger.add_directory(out.fh, (<Node>node).ino)
        out.open_flags = FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE
        out.backing_id = 0
        self.reply(request, &out, sizeof(out))
        return DONE

    cdef int readdir(self, in_header *request, io_in *body, size_t left) except -1:
        """Offsets are those of Operations.readdir."""
        cdef Node node, child
        cdef size_t room, used = 0
        cdef uint64_t start, position
        cdef list names
        cdef bytes name
        if left < sizeof(io_in):
            return LEFT
        directory = self.directories[body.fh]
        node = directory.node
        listing = self.tree.listing(node)
        seen = listing.names
        room = min(body.size, <uint32_t>REPLY_SIZE)
        start = body.offset
        if start == 0:
            directory.names = list(seen)
            if self.ledger is not None:
                self.ledger.keep_names(body.fh, directory.names)
            self.operations._note_reading(node)
            if not self.add_directory(node, b".", 1, room, &used):
                return self.reply_buffered(request, used)
        if start <= 1:
            parent = node.names[0][0] if node.names else node
            if not self.add_directory(parent, b"..", 2, room, &used):
                return self.reply_buffered(request, used)
        names = directory.names
        position = start - 2 if start > 2 else 0
        while position < <uint64_t>len(names):
            name = names[position]
            position += 1
            if name not in seen:
                continue  # removed since
            if used + entry_size(name) > room:
                break
            try:
                child = self.tree.lookup(node, name)
                self.add(child, name, position + 2, room, &used)
            except OSError as error:
                if error.errno != errnos.ELOOP:
                    log.warning("readdir: cannot look at %r: %s", name, error)
                    self.add_unknown(name, position + 2, &used)
        return self.reply_buffered(request, used)

    cdef int reply_buffered(self, in_header *request, size_t used) except -1:
        self.reply(request, reply_buffer, used)
        return DONE

    cdef bint add_directory(self, Node node, bytes name, uint64_t offset, size_t room, size_t* used) except -1:
        """`.` or `..`: of these the kernel takes no reference."""
        if used[0] + entry_size(name) > room:
            return False
        self.add(node, name, offset, room, used)
        node.lookups -= 1
        if node.record:
            self.ledger.nodes[node.record].lookups = node.lookups
        (<entry_out *>(reply_buffer + used[0] - entry_size(name))).nodeid = 0
        return True

    cdef int add_unknown(self, bytes name, uint64_t offset, size_t* used) except -1:
        """A name alone. The kernel keeps what it is given, so leaving the name out would be remembered."""
        cdef char *place = reply_buffer + used[0]
        cdef size_t size = entry_size(name)
        memset(place, 0, size)
        entry = <dirent *>(place + sizeof(entry_out))
        entry.ino = UNKNOWN_INO
        entry.off = offset
        entry.namelen = len(name)
        memcpy(place + sizeof(entry_out) + sizeof(dirent), <char *>name, len(name))
        used[0] += size
        return 0

    cdef int add(self, Node node, bytes name, uint64_t offset, size_t room, size_t* used) except -1:
        cdef char *place = reply_buffer + used[0]
        cdef dirent *entry = <dirent *>(place + sizeof(entry_out))
        cdef size_t size = entry_size(name)
        self.fill_entry(node, <entry_out *>place)
        entry.ino = node.ino
        entry.off = offset
        entry.namelen = len(name)
        entry.type = (node.kind >> 12) & 15
        memset(place + size - 8, 0, 8)
        memcpy(place + sizeof(entry_out) + sizeof(dirent), <char *>name, len(name))
        used[0] += size
        return 0

    # Attributes ------------------------------------------------------------------------------------

    cdef int setattr(self, in_header *request, setattr_in *body, size_t left) except -1:
        """The owner goes first, because chown(2) clears setuid; the times last."""
        cdef Node node
        cdef uint32_t valid
        cdef timespec times[2]
        if left < sizeof(setattr_in):
            return LEFT
        self.writable()
        node = self.table.find(request.nodeid)
        valid = body.valid
        if node.copying is not None:
            return self.later(request, node.copying.wait())
        if not node.upper and node.kind == 0o040000:
            now(self.copyup.attributes(node))
        if valid & FATTR_SIZE and node.kind == 0o100000:
            if not node.upper or not self.has_content(node):
                if not self.copyup.is_immediate(node, body.size):
                    return self.later(request, self.copyup.file(node, body.size))
                now(self.copyup.file(node, body.size))
        elif not node.upper:
            if not self.copyup.is_immediate(node):
                return self.later(request, self.copyup.attributes(node))
            now(self.copyup.attributes(node))
        if node.orphan < 0:
            path = self.tree.path(node)
            fd, name = self.upper._at(path)
        if valid & (FATTR_UID | FATTR_GID):
            uid = self.uid_stored(body.uid) if valid & FATTR_UID else 0xFFFFFFFF
            gid = self.gid_stored(body.gid) if valid & FATTR_GID else 0xFFFFFFFF
            if node.orphan >= 0:
                check(fchownat(node.orphan, b"", uid, gid, AT_EMPTY_PATH))
            else:
                check(fchownat(fd, name, uid, gid, AT_SYMLINK_NOFOLLOW))
        elif not valid & (FATTR_MODE | FATTR_SIZE | FATTR_ATIME | FATTR_MTIME) and node.orphan < 0:
            # chown(2) with both ids -1, which clears setuid all the same.
            check(fchownat(fd, name, 0xFFFFFFFF, 0xFFFFFFFF, AT_SYMLINK_NOFOLLOW))
        if valid & FATTR_MODE:
            self.operations._chmod(node, body.mode & 0o7777)
        if valid & FATTR_SIZE:
            if valid & FATTR_KILL_SUIDGID:
                self.operations._drop_setuid(node)
            self.operations._truncate(node, body.fh if valid & FATTR_FH else None, body.size)
        if valid & (FATTR_ATIME | FATTR_MTIME):
            set_time(&times[0], valid & FATTR_ATIME, valid & FATTR_ATIME_NOW, body.atime, body.atimensec)
            set_time(&times[1], valid & FATTR_MTIME, valid & FATTR_MTIME_NOW, body.mtime, body.mtimensec)
            if node.orphan >= 0:
                check(utimensat(-100, b"/proc/self/fd/%d" % node.orphan, times, 0))
            else:
                check(utimensat(fd, name, times, AT_SYMLINK_NOFOLLOW))
        try:
            return self.reply_attributes(request, node)
        except OSError:
            # Done it is; only what the kernel remembers is old.
            pyfuse3.invalidate_inode(node.id, True)
            raise

    cdef int getxattr(self, in_header *request, char *body, size_t left) except -1:
        """Errors are Operations.getxattr's."""
        cdef Node node
        cdef bytes path
        cdef uint32_t size, out[2]
        cdef long got
        if left < 8:
            return LEFT
        size = (<uint32_t *>body)[0]
        name = text(body + 8, left - 8)
        if name is None:
            return LEFT
        if name.startswith(b"unionfs."):
            return LEFT  # inspection.py
        name = self.operations._stored_name(name)
        node = self.table.find(request.nodeid)
        path = self.tree.proc_path(node)
        if node.orphan >= 0:
            got = getxattr(path, name, reply_buffer, min(size, <uint32_t>REPLY_SIZE))
        else:
            got = lgetxattr(path, name, reply_buffer, min(size, <uint32_t>REPLY_SIZE))
        if got < 0:
            if errno == errnos.ENOTSUP and name.startswith(b"system.posix_acl_"):
                return self.refuse(request, errnos.ENODATA)
            return self.refuse(request, errno)
        if size == 0:
            out[0], out[1] = <uint32_t>got, 0
            self.reply(request, out, sizeof(out))
        else:
            self.reply(request, reply_buffer, got)
        return DONE

    cdef int listxattr(self, in_header *request, char *body, size_t left) except -1:
        cdef uint32_t size, out[2]
        cdef bytes value
        if left < 8:
            return LEFT
        size = (<uint32_t *>body)[0]
        context = _Context(request.uid, request.gid, request.pid, 0)
        names = now(self.operations.listxattr(request.nodeid, context))
        value = b"".join([name + b"\0" for name in names])
        if size == 0:
            out[0], out[1] = len(value), 0
            self.reply(request, out, sizeof(out))
        elif <size_t>len(value) > size:
            return self.refuse(request, errnos.ERANGE)
        else:
            self.reply(request, <char *>value, len(value))
        return DONE

    cdef int ioctl(self, in_header *request, ioctl_in *body, char *given, size_t left) except -1:
        """Flags of files (chattr(1), ioctl_iflags(2)); a terminal is none of ours."""
        cdef Node node
        cdef char *reply = reply_buffer
        cdef ioctl_out *out = <ioctl_out *>reply
        cdef size_t size
        cdef int fd, result, error
        if left < sizeof(ioctl_in):
            return LEFT
        left -= sizeof(ioctl_in)
        if body.cmd == FS_IOC_GETFLAGS or body.cmd == FS_IOC_SETFLAGS:
            size = sizeof(int)
        elif body.cmd == FS_IOC_FSGETXATTR or body.cmd == FS_IOC_FSSETXATTR:
            size = FSXATTR_SIZE
        else:
            return self.refuse(request, errnos.ENOTTY)
        node = self.table.find(request.nodeid)
        if node.kind != 0o100000 and node.kind != 0o040000:
            return self.refuse(request, errnos.ENOTTY)
        sets = body.cmd == FS_IOC_SETFLAGS or body.cmd == FS_IOC_FSSETXATTR
        if (body.in_size if sets else body.out_size) < size or (sets and left < size):
            return self.refuse(request, errnos.EINVAL)
        if sets:
            self.writable()
            if node.copying is not None or not self.copyup.is_immediate(node):
                return self.later(request, self.copyup.file(node))
            now(self.copyup.file(node))
            memcpy(reply + sizeof(ioctl_out), given, size)
        fd = self.tree.open(node, os.O_RDONLY | os.O_NONBLOCK)
        result = ioctl(fd, body.cmd, reply + sizeof(ioctl_out))
        error = errno
        os.close(fd)
        if result < 0:
            return self.refuse(request, error)
        memset(out, 0, sizeof(ioctl_out))
        self.reply(request, reply, sizeof(ioctl_out) + (0 if sets else size))
        return DONE

    # Files -----------------------------------------------------------------------------------------

    cdef int open(self, in_header *request, four_words *body, size_t left) except -1:
        cdef Node node
        cdef uint32_t flags
        cdef open_out out
        if left < 8:
            return LEFT
        node = self.table.find(request.nodeid)
        if node.id != request.nodeid:
            return self.refuse(request, errnos.ESTALE)
        flags = body.a
        if node.copying is not None:
            return self.later(request, node.copying.wait())
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            self.writable()
            length = 0 if flags & os.O_TRUNC else None
            if not node.upper or not self.has_content(node):
                # Content must not be cut off by an open that then fails for want of a descriptor.
                os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
                if not self.copyup.is_immediate(node, length):
                    return self.later(request, self.copyup.file(node, length))
                now(self.copyup.file(node, length))
                if node.id != request.nodeid:
                    return self.refuse(request, errnos.ESTALE)
            if node.unsettled and flags & WRITES_THROUGH:
                return self.later(request, self.copyup.settling.settle_by_name(node))
        if flags & os.O_TRUNC and (body.b & OPEN_KILL_SUIDGID if self.killpriv else request.uid != 0):
            self.operations._drop_setuid(node)
        fd = self.open_content(node, flags & (BACKING_FLAGS | os.O_TRUNC))
        self.opened(node, fd, flags, &out)
        if not self.reply(request, &out, sizeof(out)):
            self.close(fd)
        return DONE

    cdef object open_content(self, Node node, object flags):
        if node.kind == 0o100000 and not self.has_content(node):
            layer, path = self.tree.content_place(node)
            return open_noatime(lambda wanted: layer.open(path, wanted), flags)
        if not flags & os.O_NOATIME:
            return self.tree.open(node, flags)
        return open_noatime(lambda wanted: self.tree.open(node, wanted), flags)

    cdef int opened(self, Node node, int fd, uint32_t flags, open_out *out) except -1:
        file = OpenFile(node, flags)
        self.files[fd] = file
        out.fh = fd
        out.backing_id = 0
        backing = self.backing_of(node, fd, flags)
        if backing is None:
            out.open_flags = FOPEN_NOFLUSH if node.stale else FOPEN_NOFLUSH | FOPEN_KEEP_CACHE
            node.stale = False
        else:
            file.backing = backing
            backing.users += 1
            out.open_flags = FOPEN_PASSTHROUGH | FOPEN_NOFLUSH
            out.backing_id = backing.id
            if flags & os.O_ACCMODE:
                if node.lookups and not node.written:
                    pyfuse3.invalidate_inode(node.id, True)
                node.writers += 1
                node.written = node.stale = True
        node.handles.append(fd)
        if self.ledger is not None:
            self.ledger.add_file(fd, node.ino, flags, out.backing_id)
            if node.record:
                self.ledger.nodes[node.record].backing = out.backing_id
        return 0

    cdef object backing_of(self, Node node, int fd, uint32_t flags):
        """What an open file is to be passed through to, None when it is not."""
        cdef c_stat status
        if node.backing is not None:
            return node.backing
        if self.backings.session_fd < 0 or node.handles or node.unsettled:
            return None
        if node.kind != 0o100000 or not self.has_content(node):
            return None
        policy = self.backings.policy
        if policy is Policy.OFF or c_fstat(fd, &status) < 0:
            return None
        if node.upper:
            # By passthrough the kernel would write as we, who may write without clearing setuid.
            if flags & os.O_ACCMODE and status.st_mode & 0o6000:
                return None
        elif policy is Policy.UPPER:
            return None
        elif policy is Policy.AUTO and not is_program(status.st_mode, node.names[0][1] if node.names else b""):
            return None
        node.backing = self.backings.open(fd)
        return node.backing

    cdef int create(self, in_header *request, char *body, size_t left) except -1:
        cdef four_words *words = <four_words *>body
        cdef create_out out
        cdef Node node
        if left < sizeof(four_words):
            return LEFT
        name = text(body + sizeof(four_words), left - sizeof(four_words))
        if name is None:
            return LEFT
        self.writable()
        caller = self.context(request, words.c)
        parent = self.table.find(request.nodeid)
        if request.opcode == TMPFILE:
            node, fd = self.changes.create_unnamed(parent, words.b & 0o7777, caller)
        else:
            node, fd = self.operations.make_file(parent, name, words.b, words.a, caller)
        self.opened(node, fd, words.a, &out.open)
        self.fill_entry(node, &out.entry)
        if not self.reply(request, &out, sizeof(out)):
            self.close(fd)
            self.table.forget(node.id, 1)
        return DONE

    cdef int read(self, in_header *request, io_in *body, size_t left) except -1:
        cdef long got
        if left < sizeof(io_in):
            return LEFT
        got = pread(<int>body.fh, reply_buffer, min(body.size, <uint32_t>REPLY_SIZE), body.offset)
        if got < 0:
            return self.refuse(request, errno)
        return self.reply_buffered(request, got)

    cdef int write(self, in_header *request, io_in *body, size_t left) except -1:
        cdef long done
        cdef uint32_t out[2]
        if left < sizeof(io_in) or left - sizeof(io_in) < body.size:
            return LEFT
        done = pwrite(<int>body.fh, <char *>body + sizeof(io_in), body.size, body.offset)
        if done < 0:
            return self.refuse(request, errno)
        if body.io_flags & WRITE_KILL_SUIDGID:
            self.operations._drop_setuid(self.table.find(request.nodeid))
        out[0], out[1] = done, 0
        self.reply(request, out, sizeof(out))
        return DONE

    cdef int written(self, in_header *request, uint64_t *body, size_t left) except -1:
        """Before FALLOCATE and COPY_FILE_RANGE, which hooks.c answers: users clear setuid by them."""
        if self.killpriv and request.uid != 0 and left >= 24:
            self.operations._drop_setuid(self.table.find(request.nodeid if request.opcode == FALLOCATE else body[2]))
        return LEFT

    cdef int release(self, in_header *request, fh_in *body, size_t left) except -1:
        if left < sizeof(fh_in):
            return LEFT
        if self.ledger is not None:
            if self.ledger.repeats(RELEASED, body.fh, b""):
                return self.refuse(request, 0)
            self.ledger.begin(RELEASED, body.fh, b"")
        self.close(body.fh)
        return self.refuse(request, 0)

    cdef int close(self, object fh) except -1:
        cdef Node node
        if self.ledger is not None:
            self.ledger.drop_file(fh)
        file = self.files.pop(fh)
        node = file.node
        node.handles.remove(fh)
        os.close(fh)
        backing = file.backing
        if backing is not None:
            backing.users -= 1
            if file.flags & os.O_ACCMODE:
                node.writers -= 1
            if not backing.users:
                if node.backing is backing:
                    node.backing = None
                    if node.record:
                        self.ledger.nodes[node.record].backing = 0
                self.backings.close(backing)
        self.table.release(node)
        return 0


cdef inline object text(char *body, size_t left):
    """The string at `body`, None when it does not end within the request."""
    cdef size_t length = strnlen(body, left)
    return PyBytes_FromStringAndSize(body, length) if length < left else None


cdef inline size_t entry_size(bytes name):
    return (sizeof(entry_out) + sizeof(dirent) + <size_t>len(name) + 7) & ~<size_t>7


cdef inline int check(int result) except -1:
    if result < 0:
        raise OSError(errno, "attributes")
    return 0


cdef inline void set_time(timespec *time, bint given, bint is_now, uint64_t seconds, uint32_t nanoseconds) noexcept:
    time.tv_sec = <long>seconds
    time.tv_nsec = UTIME_OMIT if not given else UTIME_NOW if is_now else nanoseconds


cdef FastPath _serving = None


cdef int serve(int fd, char *buffer, size_t size) noexcept:
    return _serving.serve(fd, buffer, size)
