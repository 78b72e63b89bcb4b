# cython: language_level=3, binding=False, embedsignature=False, annotation_typing=False
"""The ledger: memory that outlives a server, in which each says what the next one has to know.

The keeper (keeper.py) makes it, and shares it with the servers it starts one after another. It has what
the kernel holds us to by number: nodes with their names and how often the kernel was told of them, open files
and directories, the first request of the session, and the change that is under way. What is on the disk is not
in it: that is read again (revival.py).

All is written before the answer that it is about goes out, so what the kernel knows is in it. There is one
server at a time, and one thread of it that writes.
"""

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset, strncpy

import os

cdef extern from "<sys/mman.h>":
    void *mmap(void *address, size_t size, int protection, int flags, int fd, long offset) nogil
    int PROT_READ, PROT_WRITE, MAP_SHARED, MAP_ANONYMOUS, MAP_NORESERVE
    void *MAP_FAILED

#: Numbers of records there is room for. Memory is used as records are.
cdef enum:
    UNIT = 16
    FILES = 1 << 20
    DIRECTORIES = 1 << 20
    NODES = 1 << 24
    ORDERS = 24

cdef size_t HEAD_SIZE = 1 << 16
cdef size_t BLOCKS_SIZE = <size_t>2 << 30

#: Kinds of steps.
MADE, REMOVED, RENAMED, LINKED, COPIED, RELEASED, RELEASED_DIRECTORY, XATTR_REMOVED, XATTR_MADE = range(1, 10)


cdef class Ledger:
    """The memory, and the free places in it as this server knows them."""

    def __init__(self):
        """Raises OSError when there is no memory to be had."""
        cdef size_t size = (
            HEAD_SIZE
            + sizeof(ledger_file) * FILES
            + sizeof(ledger_directory) * DIRECTORIES
            + sizeof(ledger_node) * NODES
            + BLOCKS_SIZE
        )
        cdef char *start = <char *>mmap(
            NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
        )
        if start == <char *>MAP_FAILED:
            raise OSError(errno, os.strerror(errno))
        self.head = <ledger_head *>start
        start += HEAD_SIZE
        self.files = <ledger_file *>start
        start += sizeof(ledger_file) * FILES
        self.directories = <ledger_directory *>start
        start += sizeof(ledger_directory) * DIRECTORIES
        self.nodes = <ledger_node *>start
        start += sizeof(ledger_node) * NODES
        self.blocks = start
        self.head.nodes_end = 1  # record 0 is none
        self.head.blocks_end = 1
        self.head.opened_fd = -1
        self.free_nodes = []
        self.free_blocks = [[] for _ in range(ORDERS)]

    @property
    def address(self):
        """Where the head is, for hooks.c."""
        return <uint64_t>self.head

    @property
    def session_fd(self):
        """The session's descriptor, 0 before there is one."""
        return self.head.session_fd

    @property
    def can_go_on(self):
        """Whether a new server can take the mount over."""
        return bool(self.head.init_answered and self.head.can_resend and not self.head.incomplete)

    @property
    def restarts(self):
        """How many servers took over from a dead one."""
        return self.head.restarts

    @property
    def resent(self):
        """How many requests came once more."""
        return self.head.resent

    @property
    def fresh(self):
        """How many requests came for the first time."""
        return self.head.fresh

    @property
    def message(self):
        """Why a server could not begin; empty when none said so."""
        cdef bytes said = self.head.message
        return said.decode("utf-8", "surrogateescape")

    def say(self, text):
        """Leave a message for the keeper."""
        cdef bytes said = text.encode("utf-8", "surrogateescape")
        strncpy(self.head.message, said, MESSAGE_SIZE - 1)

    # Nodes -----------------------------------------------------------------------------------------

    cpdef unsigned int add_node(self, uint64_t ino, uint64_t id, unsigned int kind):
        """Write a node down; returns its record, 0 when there is no room."""
        cdef uint32_t record
        cdef ledger_node *node
        if self.free_nodes:
            record = self.free_nodes.pop()
        elif self.head.nodes_end < NODES:
            record = self.head.nodes_end
            self.head.nodes_end = record + 1
        else:
            self.head.incomplete = True
            return 0
        node = &self.nodes[record]
        memset(node, 0, sizeof(ledger_node))
        node.id = id
        node.kind = kind
        node.orphan = -1
        LEDGER_ORDER()
        node.ino = ino
        return record

    cpdef drop_node(self, unsigned int record):
        """The node is let go of."""
        cdef ledger_node *node = &self.nodes[record]
        cdef uint32_t unit, following
        if not record:
            return
        node.ino = 0
        LEDGER_ORDER()
        unit = node.names
        while unit:
            following = self.block(unit).next
            self.release(unit)
            unit = following
        if node.place:
            self.release(node.place)
        self.free_nodes.append(record)

    cpdef note(
        self, unsigned int record, uint64_t id, long lookups, long old_lookups, int orphan, bint unsettled
    ):
        """What may have changed of a node."""
        cdef ledger_node *node = &self.nodes[record]
        if record:
            node.lookups = lookups
            node.old_lookups = old_lookups
            node.id = id
            node.orphan = orphan
            node.unsettled = unsettled

    cpdef add_name(self, unsigned int record, uint64_t parent, bytes name):
        """`name` in the directory `parent` leads to the node."""
        cdef uint32_t unit
        if record:
            unit = self.take(len(name), parent, name)
            if unit:
                self.block(unit).next = self.nodes[record].names
                LEDGER_ORDER()
                self.nodes[record].names = unit

    cpdef drop_name(self, unsigned int record, uint64_t parent, bytes name):
        """It does so no longer."""
        cdef uint32_t *link = &self.nodes[record].names
        cdef uint32_t unit
        cdef ledger_block *block
        if not record:
            return
        while link[0]:
            unit = link[0]
            block = self.block(unit)
            if block.number == parent and block.size == <uint32_t>len(name):
                if memcmp(block.bytes, <const char *>name, block.size) == 0:
                    link[0] = block.next
                    LEDGER_ORDER()
                    self.release(unit)
                    return
            link = &block.next

    def set_place(self, unsigned int record, layer, bytes path):
        """The node has no name, and is a lower layer's: the layer's number, and the path there."""
        if record and not self.nodes[record].place:
            self.nodes[record].place = self.take(len(path), layer, path)

    def place(self, unsigned int record):
        """That layer and path, None without."""
        cdef ledger_block *block
        if not self.nodes[record].place:
            return None
        block = self.block(self.nodes[record].place)
        return block.number, block.bytes[: block.size]

    def names(self, unsigned int record):
        """The names of a node: (number of the directory, name)."""
        found = []
        cdef uint32_t unit = self.nodes[record].names
        cdef ledger_block *block
        while unit:
            block = self.block(unit)
            found.append((block.number, block.bytes[: block.size]))
            unit = block.next
        return found

    def node(self, unsigned int record):
        """(ino, id, kind, lookups, old lookups, orphan, unsettled, backing) of a record."""
        cdef ledger_node *node = &self.nodes[record]
        return (
            node.ino,
            node.id,
            node.kind,
            node.lookups,
            node.old_lookups,
            node.orphan,
            bool(node.unsettled),
            node.backing,
        )

    def set_orphan(self, unsigned int record, int orphan):
        """A descriptor by which the node is held, that has no name."""
        self.nodes[record].orphan = orphan

    def set_backing(self, unsigned int record, int backing):
        """What its files are passed through to, 0 for none."""
        if record:
            self.nodes[record].backing = backing

    # Blocks ----------------------------------------------------------------------------------------

    cdef ledger_block *block(self, uint32_t unit) noexcept:
        return <ledger_block *>(self.blocks + <size_t>unit * UNIT)

    cdef uint32_t take(self, size_t size, uint64_t number, const char *bytes) except? 0:
        """A block with these bytes, 0 when there is no room."""
        cdef uint32_t order = 0, unit
        cdef size_t whole = 2 * UNIT
        cdef ledger_block *block
        while whole < sizeof(ledger_block) + size:
            whole *= 2
            order += 1
        if order >= ORDERS:
            self.head.incomplete = True
            return 0
        free = <list>(self.free_blocks[order])
        if free:
            unit = free.pop()
        elif self.head.blocks_end * UNIT + whole <= BLOCKS_SIZE:
            unit = self.head.blocks_end
            self.block(unit).order = order
            LEDGER_ORDER()
            self.head.blocks_end += whole // UNIT
        else:
            self.head.incomplete = True
            return 0
        block = self.block(unit)
        block.next = 0
        block.number = number
        block.size = size
        memcpy(block.bytes, bytes, size)
        LEDGER_ORDER()
        block.used = True
        return unit

    cdef void release(self, uint32_t unit):
        cdef ledger_block *block = self.block(unit)
        block.used = False
        (<list>self.free_blocks[block.order]).append(unit)

    # Open files and directories --------------------------------------------------------------------

    cpdef add_file(self, uint64_t fd, uint64_t ino, unsigned int flags, int backing):
        """An open file of a node."""
        cdef ledger_file *file
        if fd >= FILES:
            self.head.incomplete = True
            return
        file = &self.files[fd]
        if fd >= self.head.files_end:
            self.head.files_end = fd + 1
        file.flags = flags
        file.backing = backing
        self.head.opened_by = 0
        LEDGER_ORDER()
        self.head.opened_fd = <int32_t>fd
        self.head.opened_by = self.head.current
        LEDGER_ORDER()
        file.ino = ino

    cpdef drop_file(self, uint64_t fd):
        """It is about to be closed."""
        if fd < FILES:
            self.files[fd].ino = 0

    cpdef add_directory(self, uint64_t handle, uint64_t ino):
        """An open directory."""
        if handle >= DIRECTORIES:
            self.head.incomplete = True
            return
        if handle >= self.head.directories_end:
            self.head.directories_end = handle + 1
        self.directories[handle].names = 0
        LEDGER_ORDER()
        self.directories[handle].ino = ino

    cpdef keep_names(self, uint64_t handle, list names):
        """What an open directory held when reading began: positions are counted in it."""
        cdef uint32_t before
        cdef bytes joined
        if handle < DIRECTORIES:
            joined = b"/".join(names)
            before = self.directories[handle].names
            self.directories[handle].names = self.take(len(joined), 0, joined)
            if before:
                self.release(before)

    cpdef drop_directory(self, uint64_t handle):
        """It is closed."""
        if handle < DIRECTORIES:
            self.directories[handle].ino = 0
            LEDGER_ORDER()
            if self.directories[handle].names:
                self.release(self.directories[handle].names)

    def open_files(self):
        """All open files: (fd, ino, flags, backing)."""
        cdef uint32_t fd
        found = []
        for fd in range(self.head.files_end):
            if self.files[fd].ino:
                found.append((fd, self.files[fd].ino, self.files[fd].flags, self.files[fd].backing))
        return found

    def open_directories(self):
        """All open directories: (handle, ino, names)."""
        cdef uint32_t handle
        cdef ledger_block *block
        found = []
        for handle in range(self.head.directories_end):
            if self.directories[handle].ino:
                names = []
                if self.directories[handle].names:
                    block = self.block(self.directories[handle].names)
                    names = block.bytes[: block.size].split(b"/") if block.size else []
                found.append((handle, self.directories[handle].ino, names))
        return found

    # Steps -----------------------------------------------------------------------------------------

    cpdef begin(
        self, unsigned int kind, uint64_t parent, bytes name, uint64_t other_parent=0, bytes other=b"",
        uint64_t node=0, uint64_t replaced=0, uint64_t inode=0, int orphan=-1, unsigned int flags=0
    ):
        """A change is about to be made. It ends with the next answer (hooks.c)."""
        cdef ledger_step *step = &self.head.steps[0]
        step.kind = 0
        LEDGER_ORDER()
        step.parent, step.other_parent = parent, other_parent
        step.node, step.replaced, step.inode = node, replaced, inode
        step.orphan, step.flags = orphan, flags
        step.name_size = <uint16_t>min(len(name), NAME_SIZE)
        memcpy(step.name, <const char *>name, step.name_size)
        step.other_size = <uint16_t>min(len(other), NAME_SIZE)
        memcpy(step.other, <const char *>other, step.other_size)
        LEDGER_ORDER()
        step.kind = kind

    cpdef bint repeats(
        self, unsigned int kind, uint64_t parent, bytes name, uint64_t other_parent=0, bytes other=b""
    ) except -1:
        """Whether an earlier server had begun this very change when it died.

        The kernel sends again what it has no answer to before it sends anything else; after that nothing is
        asked for again, and this is false (hooks.c).
        """
        cdef int index
        cdef ledger_step *step
        if not self.head.interrupted:
            return False
        for index in range(1, STEPS):
            step = &self.head.steps[index]
            if (
                step.kind == kind
                and step.parent == parent
                and step.other_parent == other_parent
                and step.name[: step.name_size] == name
                and step.other[: step.other_size] == other
            ):
                return True
        return False

    # After a death ---------------------------------------------------------------------------------

    def take_over(self):
        """Begin after a server that died: learn what is free, and keep in mind what it had begun.

        Returns that step as a dict, None when there was none. `settle_step` has to follow.
        """
        cdef uint32_t record, unit
        cdef ledger_step *step = &self.head.steps[0]
        cdef ledger_block *block
        cdef int index
        self.free_nodes = [record for record in range(1, self.head.nodes_end) if not self.nodes[record].ino]
        self.free_blocks = [[] for _ in range(ORDERS)]
        used = self.used_blocks()
        unit = 1
        while unit < self.head.blocks_end:
            block = self.block(unit)
            if unit not in used:
                block.used = False
                (<list>self.free_blocks[block.order]).append(unit)
            unit += 2 << block.order
        self.head.restarts += 1
        if not step.kind:
            return None
        return {
            "kind": step.kind,
            "parent": step.parent,
            "name": step.name[: step.name_size],
            "other_parent": step.other_parent,
            "other": step.other[: step.other_size],
            "node": step.node,
            "replaced": step.replaced,
            "inode": step.inode,
            "orphan": step.orphan,
            "flags": step.flags,
        }

    def held(self):
        """The descriptors that a server leaves to the next."""
        cdef uint32_t record, fd
        found = {self.head.session_fd, self.head.steps[0].orphan}
        for record in range(1, self.head.nodes_end):
            if self.nodes[record].ino and self.nodes[record].orphan >= 0:
                found.add(self.nodes[record].orphan)
        for fd in range(self.head.files_end):
            if self.files[fd].ino:
                found.add(fd)
        return found

    def settle_step(self, is_done):
        """It is known whether the step that `take_over` gave was made; if so, it may be asked for again."""
        cdef int index
        cdef ledger_step *step = &self.head.steps[0]
        if is_done:
            for index in range(1, STEPS):
                if not self.head.steps[index].kind or index == STEPS - 1:
                    self.head.steps[index] = step[0]
                    break
            LEDGER_ORDER()
            self.head.interrupted = True
            LEDGER_ORDER()
        step.kind = 0

    def used_blocks(self):
        cdef uint32_t record, unit
        used = set()
        for record in range(1, self.head.nodes_end):
            if self.nodes[record].ino:
                unit = self.nodes[record].names
                while unit:
                    used.add(unit)
                    unit = self.block(unit).next
                if self.nodes[record].place:
                    used.add(self.nodes[record].place)
        for record in range(self.head.directories_end):
            if self.directories[record].ino and self.directories[record].names:
                used.add(self.directories[record].names)
        return used

    def numbers(self):
        """Every number of a node to its record; and every directory's to the records of what is named in it."""
        cdef uint32_t record, unit
        cdef uint64_t parent
        cdef ledger_block *block
        cdef dict found = {}
        cdef dict children = {}
        for record in range(1, self.head.nodes_end):
            if not self.nodes[record].ino:
                continue
            found[self.nodes[record].ino] = record
            found[self.nodes[record].id] = record
            unit = self.nodes[record].names
            while unit:
                block = self.block(unit)
                parent = block.number
                children.setdefault(parent, []).append((block.bytes[: block.size], record))
                unit = block.next
        return found, children
