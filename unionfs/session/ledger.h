/*
 * The ledger: what outlives a server that is killed. See ledger.pyx, which keeps it.
 *
 * It is memory that the keeper shares with each server in turn. A server is killed between any two stores, so
 * what says that a thing is there (`ino`, `used`, `kind`) is stored last, and taken away first.
 */
#ifndef UNIONFS_LEDGER_H
#define UNIONFS_LEDGER_H

#include <stdint.h>

/* The compiler must not move stores across it; the processor that ran them has all of them done. */
#define LEDGER_ORDER() __asm__ volatile("" ::: "memory")

/* Set in the number of a request that the kernel sends once more (FUSE_UNIQUE_RESEND). */
#define RESENT (1ull << 63)

#define STEPS 8
#define STEP_XATTR_MADE 9 /* as in ledger.pyx */
#define NAME_SIZE 256
#define INIT_SIZE 256
#define MESSAGE_SIZE 1024

/* One change under way: what it is, and what it needs to be recognised by afterwards. */
struct ledger_step {
	uint32_t kind; /* 0: none */
	int32_t orphan;
	uint64_t parent, other_parent, node, replaced, inode;
	uint32_t flags;
	uint16_t name_size, other_size;
	char name[NAME_SIZE], other[NAME_SIZE];
};

struct ledger_head {
	/* The session: its descriptor, 0 while there is none, and the first request of all. */
	int32_t session_fd;
	uint32_t init_size, init_answered, can_resend;
	char init[INIT_SIZE];

	/* Whether something could not be written down: then nobody can go on from here. */
	uint32_t incomplete;

	uint64_t restarts, resent;
	/* Requests that came for the first time: whether a server got anywhere. */
	uint64_t fresh;

	/* The request that the fast path serves, and the last one that opened something. */
	uint64_t current, opened_by;
	int32_t opened_fd;

	uint32_t nodes_end, files_end, directories_end;
	uint64_t blocks_end;

	/* steps[0] is under way; the others were when an earlier server died, and may be asked for again. */
	uint32_t interrupted;
	struct ledger_step steps[STEPS];

	/* Why the first server could not begin. */
	char message[MESSAGE_SIZE];
};

struct ledger_node {
	uint64_t ino; /* 0: free */
	uint64_t id;
	int64_t lookups, old_lookups;
	uint32_t kind;
	int32_t orphan;
	uint32_t names, place; /* blocks */
	uint32_t unsettled;
	int32_t backing;
};

/* A name or other bytes. Its place is counted in units of 16 bytes; 0 is none. */
struct ledger_block {
	uint32_t next;
	uint16_t order, used;
	uint64_t number; /* of a name, the directory's; of a place, the layer's */
	uint32_t size;
	char bytes[];
};

struct ledger_file {
	uint64_t ino; /* 0: not open */
	uint32_t flags;
	int32_t backing;
};

struct ledger_directory {
	uint64_t ino; /* 0: not open */
	uint32_t names; /* block */
	uint32_t unused;
};

#endif
