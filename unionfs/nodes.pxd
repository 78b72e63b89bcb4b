# C structures for the classes of nodes.py.

from libc.stdint cimport uint64_t

from unionfs.ledger cimport Ledger


cdef class Entry:
    cdef public unsigned int kind
    cdef public bint upper
    cdef public tuple lowers
    cdef public Node node


cdef class Listing:
    cdef public dict names
    cdef public dict below
    cdef public set whiteouts
    cdef public set marked


cdef class Node:
    cdef public uint64_t ino
    cdef public uint64_t id
    cdef public unsigned int kind
    cdef public tuple lowers
    cdef public bint upper
    cdef public uint64_t upper_ino
    cdef public list names
    cdef public Listing listing
    cdef public long lookups
    cdef public long old_lookups
    cdef public long pins
    cdef public list handles
    cdef public int orphan
    cdef public object copying
    cdef public object backing
    cdef public int writers
    cdef public bint written
    cdef public bint stale
    cdef public int metacopy
    cdef public bint unsettled
    cdef public unsigned int record


cdef class NodeTable:
    cdef public Node root
    cdef public Ledger ledger
    cdef public object revival
    cdef public dict _nodes
    cdef public uint64_t _second_names

    cpdef Node find(self, uint64_t ino)
    cpdef Node get(self, uint64_t ino)
