# C structures of the ledger (session/ledger.h), for the fast path.

from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t


cdef extern from "session/ledger.h":
    const uint64_t RESENT
    int STEPS
    int NAME_SIZE
    int MESSAGE_SIZE
    void LEDGER_ORDER() nogil

    struct ledger_step:
        uint32_t kind
        int32_t orphan
        uint64_t parent, other_parent, node, replaced, inode
        uint32_t flags
        uint16_t name_size, other_size
        char name[256]
        char other[256]

    struct ledger_head:
        int32_t session_fd
        uint32_t init_size, init_answered, can_resend, incomplete
        uint64_t restarts, resent, fresh, current, opened_by
        int32_t opened_fd
        uint32_t nodes_end, files_end, directories_end
        uint64_t blocks_end
        uint32_t interrupted
        ledger_step steps[8]
        char message[1024]

    struct ledger_node:
        uint64_t ino, id
        int64_t lookups, old_lookups
        uint32_t kind
        int32_t orphan
        uint32_t names, place, unsettled
        int32_t backing

    struct ledger_block:
        uint32_t next
        uint16_t order, used
        uint64_t number
        uint32_t size
        char bytes[]

    struct ledger_file:
        uint64_t ino
        uint32_t flags
        int32_t backing

    struct ledger_directory:
        uint64_t ino
        uint32_t names, unused


cdef class Ledger:
    cdef ledger_head *head
    cdef ledger_node *nodes
    cdef ledger_file *files
    cdef ledger_directory *directories
    cdef char *blocks
    cdef list free_nodes
    cdef list free_blocks

    cpdef unsigned int add_node(self, uint64_t ino, uint64_t id, unsigned int kind)
    cpdef drop_node(self, unsigned int record)
    cpdef note(self, unsigned int record, uint64_t id, long lookups, long old_lookups, int orphan, bint unsettled)
    cpdef add_name(self, unsigned int record, uint64_t parent, bytes name)
    cpdef drop_name(self, unsigned int record, uint64_t parent, bytes name)
    cpdef begin(
        self, unsigned int kind, uint64_t parent, bytes name, uint64_t other_parent=*, bytes other=*,
        uint64_t node=*, uint64_t replaced=*, uint64_t inode=*, int orphan=*, unsigned int flags=*
    )
    cpdef bint repeats(
        self, unsigned int kind, uint64_t parent, bytes name, uint64_t other_parent=*, bytes other=*
    ) except -1
    cpdef add_file(self, uint64_t fd, uint64_t ino, unsigned int flags, int backing)
    cpdef drop_file(self, uint64_t fd)
    cpdef add_directory(self, uint64_t handle, uint64_t ino)
    cpdef keep_names(self, uint64_t handle, list names)
    cpdef drop_directory(self, uint64_t handle)
    cdef uint32_t take(self, size_t size, uint64_t number, const char *bytes) except? 0
    cdef ledger_block *block(self, uint32_t unit) noexcept
    cdef void release(self, uint32_t unit)
