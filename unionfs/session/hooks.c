/*
 * Session I/O: the requests that libfuse or pyfuse3 have no handler for.
 *
 * libfuse lets the owner of a session supply its read and writev (fuse_session_custom_io). pyfuse3 keeps
 * its session to itself, but finds fuse_session_mount by name: this object is loaded before libfuse with
 * RTLD_GLOBAL, so ours is found, which calls the real one and then installs the hooks.
 *
 * The read hook runs on the thread that decides, inside pyfuse3's own call and with the interpreter's lock
 * held. What needs only a descriptor it answers itself and reads on; most else the fast path answers
 * (fastpath.pyx), if there is one; the rest is left to libfuse.
 * A file handle of the kernel *is* the descriptor of the layer's file (see operations.py).
 *
 * Structures are those of <linux/fuse.h>, written out because the headers of Debian 12 are older than
 * some of them.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ledger.h"

struct fuse_session;

struct custom_io {
	ssize_t (*writev)(int fd, struct iovec *iov, int count, void *userdata);
	ssize_t (*read)(int fd, void *buf, size_t size, void *userdata);
	ssize_t (*splice_receive)(int, off_t *, int, off_t *, size_t, unsigned int, void *);
	ssize_t (*splice_send)(int, off_t *, int, off_t *, size_t, unsigned int, void *);
	int (*clone_fd)(int);
};

enum {
	OP_FORGET = 2,
	OP_SETXATTR = 21,
	OP_INIT = 26,
	OP_CREATE = 35,
	OP_FALLOCATE = 43,
	OP_LSEEK = 46,
	OP_INTERRUPT = 36,
	OP_DESTROY = 38,
	OP_BATCH_FORGET = 42,
	OP_COPY_FILE_RANGE = 47,
	OP_TMPFILE = 51,
};

struct in_header {
	uint32_t len, opcode;
	uint64_t unique, nodeid;
	uint32_t uid, gid, pid;
	uint16_t total_extlen, padding;
};

struct out_header {
	uint32_t len;
	int32_t error;
	uint64_t unique;
};

struct lseek_in {
	uint64_t fh, offset;
	uint32_t whence, padding;
};

struct fallocate_in {
	uint64_t fh, offset, length;
	uint32_t mode, padding;
};

struct copy_file_range_in {
	uint64_t fh_in, off_in, nodeid_out, fh_out, off_out, len, flags;
};

/* The beginning of what the kernel offers, and of what it is answered. */
struct init_in {
	uint32_t major, minor, max_readahead, flags, flags2;
};

struct init_out {
	uint32_t major, minor, max_readahead, flags;
	uint16_t max_background, congestion_threshold;
	uint32_t max_write, time_gran;
	uint16_t max_pages, map_alignment;
	uint32_t flags2, max_stack_depth;
};

#define INIT_EXT (1u << 30)
#define INIT_PASSTHROUGH (1ull << 37)
#define INIT_HAS_RESEND (1ull << 39)

/* A notification: the kernel is to send again what it has no answer to. */
#define NOTIFY_RESEND 7

/* Bytes that one COPY_FILE_RANGE copies at most: all other requests wait for it. */
#define COPY_AT_MOST (16u << 20)

/* Requests that are answered one after another before everybody else gets a turn. */
#define IN_A_ROW 512

/*
 * After an answer the next request is often a few microseconds away, and two wake-ups cost more than that.
 * So the hook looks again for a while; when that was in vain too often, only now and then.
 */
#define POLL_NS 40000
#define VAIN_AT_MOST 4
#define TRY_AGAIN_EVERY 32

/* Then it sleeps for so long at most: going back to trio's loop costs ten times as much as a wake-up here. */
#define SLEEP_MS 5

static int hooked;

/* Becomes readable when trio has something to do: its epoll descriptor, -1 while that is not known. */
static int loop_fd = -1;

/* Requests that trio works on: while there are any, the hook does not sleep. */
static int in_flight;

/* What was asked, by opcode; how much of it was answered where it was read; how long that took. */
#define OPCODES 64
static struct {
	uint64_t asked, native, ns, longest_ns;
} counts[OPCODES];

/* When requests came that trio works on, in the slot of their number; who comes later takes it. */
#define SLOTS 64
static struct {
	uint64_t unique, since;
	uint32_t opcode;
} waiting[SLOTS];

/* Answers a request: 0 leaves it to libfuse, 2 says that other tasks have work. Set by the fast path. */
static int (*server)(int fd, char *buffer, size_t size);

/* What the next server has to know, and whether we are a next one; NULL where there will be none. */
static struct ledger_head *ledger;
static int takes_over;

static struct {
	uint64_t wanted, offered, agreed;
	uint64_t unique;
	int pending;
} negotiation;

static void answer(int fd, const struct in_header *in, int error, const void *body, size_t size)
{
	struct out_header out = {
		.len = sizeof out + (error ? 0 : size),
		.error = -error,
		.unique = in->unique,
	};
	struct iovec parts[2] = {{&out, sizeof out}, {(void *)body, error ? 0 : size}};

	if (writev(fd, parts, 2) < 0)
		return; /* ENOENT: the caller was killed. ENODEV: the mount is gone. Nobody waits in either case. */
}

static void answer_lseek(int fd, const struct in_header *in, const struct lseek_in *body)
{
	off_t found = lseek((int)body->fh, (off_t)body->offset, (int)body->whence);
	uint64_t reply = (uint64_t)found;

	answer(fd, in, found < 0 ? errno : 0, &reply, sizeof reply);
}

static void answer_fallocate(int fd, const struct in_header *in, const struct fallocate_in *body)
{
	int result = fallocate((int)body->fh, (int)body->mode, (off_t)body->offset, (off_t)body->length);

	answer(fd, in, result < 0 ? errno : 0, NULL, 0);
}

static void answer_copy(int fd, const struct in_header *in, const struct copy_file_range_in *body)
{
	off_t from = (off_t)body->off_in, to = (off_t)body->off_out;
	size_t length = body->len < COPY_AT_MOST ? (size_t)body->len : COPY_AT_MOST;
	ssize_t copied = copy_file_range((int)body->fh_in, &from, (int)body->fh_out, &to, length, 0);
	uint32_t reply[2] = {copied < 0 ? 0 : (uint32_t)copied, 0};

	answer(fd, in, copied < 0 ? errno : 0, reply, sizeof reply);
}

static void note_offer(const struct in_header *in, const struct init_in *body, size_t left)
{
	if (left < sizeof *body)
		return;
	negotiation.unique = in->unique;
	negotiation.pending = 1;
	negotiation.offered = body->flags;
	if (body->flags & INIT_EXT)
		negotiation.offered |= (uint64_t)body->flags2 << 32;
	if (ledger && in->len <= INIT_SIZE) {
		memcpy(ledger->init, in, in->len);
		ledger->init_size = in->len;
		ledger->can_resend = !!(negotiation.offered & INIT_HAS_RESEND);
	}
}

/* An answer went out: nothing is under way any more. */
static void note_answer(void)
{
	if (ledger)
		ledger->steps[0].kind = 0;
}

/*
 * What the kernel sends again comes before all else that it sends; after that nobody will ask for what an
 * earlier server was at.
 */
static void note_request(struct in_header *in)
{
	if (in->unique & RESENT) {
		ledger->resent++;
		return;
	}
	ledger->fresh++;
	if (ledger->interrupted) {
		for (int step = 1; step < STEPS; step++)
			ledger->steps[step].kind = 0;
		ledger->interrupted = 0;
	}
}

/* XATTR_CREATE of what an earlier server has made, and could not answer: it is there by right. */
static void allow_existing(const struct in_header *in, uint32_t *body, size_t left)
{
	for (int step = 1; ledger && ledger->interrupted && left >= 8 && step < STEPS; step++)
		if (ledger->steps[step].kind == STEP_XATTR_MADE && ledger->steps[step].parent == in->nodeid)
			body[1] = 0;
}

/* The first request of all, for a server that comes later. Returns as read(2) does. */
static ssize_t first_request(void *buffer, size_t size)
{
	if (size < ledger->init_size) {
		errno = EINVAL;
		return -1;
	}
	memcpy(buffer, ledger->init, ledger->init_size);
	return ledger->init_size;
}

/* Answer a request, or make of it one that pyfuse3 knows. Returns what `server` does. */
static int serve(int fd, char *buffer, size_t size)
{
	struct in_header *in = (struct in_header *)buffer;
	const void *body = buffer + sizeof *in;
	size_t left;

	if (size < sizeof *in || in->len != size)
		return 0;
	left = size - sizeof *in;
	switch (in->opcode) {
	case OP_INIT:
		note_offer(in, body, left);
		return 0;
	case OP_SETXATTR:
		allow_existing(in, (uint32_t *)(buffer + sizeof *in), left);
		return server ? server(fd, buffer, size) : 0;
	case OP_LSEEK:
		if (left < sizeof(struct lseek_in))
			return 0;
		answer_lseek(fd, in, body);
		return 1;
	case OP_FALLOCATE:
		if (left < sizeof(struct fallocate_in))
			return 0;
		if (server && in->uid && server(fd, buffer, size)) /* refused */
			return 1;
		answer_fallocate(fd, in, body);
		return 1;
	case OP_COPY_FILE_RANGE:
		if (left < sizeof(struct copy_file_range_in))
			return 0;
		if (server && in->uid && server(fd, buffer, size)) /* refused */
			return 1;
		answer_copy(fd, in, body);
		return 1;
	case OP_TMPFILE:
		if (server)
			return server(fd, buffer, size);
		/* The same as CREATE, and the name the kernel sends, "/", is one no other request can have. */
		in->opcode = OP_CREATE;
		return 0;
	default:
		return server ? server(fd, buffer, size) : 0;
	}
}

static uint64_t clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Look for a request for a while. Returns as read(2) does. */
static ssize_t poll_for_next(int fd, void *buffer, size_t size)
{
	static unsigned int in_vain, skipped;
	uint64_t end;
	ssize_t got;

	if (in_vain >= VAIN_AT_MOST && ++skipped % TRY_AGAIN_EVERY)
		return -1;
	end = clock_ns() + POLL_NS;
	do {
		got = read(fd, buffer, size);
		if (got >= 0 || errno != EAGAIN) {
			in_vain = 0;
			return got;
		}
		sched_yield(); /* to a client that waits for this very processor */
	} while (clock_ns() < end);
	in_vain++;
	errno = EAGAIN;
	return -1;
}

/* Sleep until there is a request, or trio has something to do. Returns as read(2) does. */
static ssize_t sleep_for_next(int fd, void *buffer, size_t size)
{
	struct pollfd sources[2] = {{.fd = fd, .events = POLLIN}, {.fd = loop_fd, .events = POLLIN}};

	Py_BEGIN_ALLOW_THREADS
	poll(sources, 2, SLEEP_MS);
	Py_END_ALLOW_THREADS
	if (sources[0].revents)
		return read(fd, buffer, size);
	errno = EAGAIN;
	return -1;
}

static void count_answer(uint32_t opcode, uint64_t since)
{
	uint64_t took = clock_ns() - since;

	counts[opcode].ns += took;
	if (took > counts[opcode].longest_ns)
		counts[opcode].longest_ns = took;
}

static void count_waiting(const struct in_header *in, uint64_t since)
{
	/* The kernel counts by two; the lowest bit marks a notification. */
	unsigned int slot = in->unique / 2 % SLOTS;

	waiting[slot].unique = in->unique;
	waiting[slot].since = since;
	waiting[slot].opcode = in->opcode;
}

/* A request that trio worked on is answered. */
static void no_longer_waiting(uint64_t unique)
{
	unsigned int slot = unique / 2 % SLOTS;

	if (in_flight > 0)
		in_flight--;
	if (waiting[slot].unique == unique && waiting[slot].since) {
		count_answer(waiting[slot].opcode, waiting[slot].since);
		waiting[slot].since = 0;
	}
}

static int is_answered(const struct in_header *in)
{
	return in->opcode != OP_FORGET && in->opcode != OP_BATCH_FORGET && in->opcode != OP_INTERRUPT &&
	       in->opcode != OP_DESTROY;
}

static ssize_t read_hook(int fd, void *buffer, size_t size, void *userdata)
{
	int served = 0;

	(void)userdata;
	for (;;) {
		int replays = takes_over == 1;
		ssize_t got = replays ? first_request(buffer, size) : read(fd, buffer, size);
		struct in_header *in = buffer;
		uint32_t opcode;
		uint64_t since;
		int result;

		if (got < 0 && errno == EAGAIN && served && server)
			got = poll_for_next(fd, buffer, size);
		if (got < 0 && errno == EAGAIN && served && server && loop_fd >= 0 && !in_flight)
			got = sleep_for_next(fd, buffer, size);
		if (got < 0) {
			/* pyfuse3 goes back to waiting on EINTR, and raises on anything else. */
			if (errno == EAGAIN)
				errno = EINTR;
			/* The mount ended while a request was being handed over: an end like any other. */
			if (errno == ECONNABORTED)
				errno = ENODEV;
			return -1;
		}
		if (replays)
			takes_over = 2;
		else if (ledger && is_answered(in))
			note_request(in);
		since = clock_ns();
		opcode = in->opcode < OPCODES ? in->opcode : 0;
		counts[opcode].asked++;
		result = serve(fd, buffer, (size_t)got);
		if (result == 1) {
			counts[opcode].native++;
			count_answer(opcode, since);
		} else if (is_answered(in)) {
			in_flight++;
			count_waiting(in, since);
		}
		if (!result)
			return got;
		if (result == 2 || ++served >= IN_A_ROW) {
			errno = EINTR;
			return -1;
		}
	}
}

static ssize_t writev_hook(int fd, struct iovec *parts, int count, void *userdata)
{
	const struct out_header *out = parts[0].iov_base;
	struct init_out reply;
	ssize_t written;
	uint64_t also;

	(void)userdata;
	if (out->unique) /* not a notification */
		no_longer_waiting(out->unique);
	if (!negotiation.pending || count != 2 || out->unique != negotiation.unique ||
	    parts[1].iov_len < sizeof reply) {
		ssize_t written = writev(fd, parts, count);

		if (out->unique)
			note_answer();
		return written;
	}
	negotiation.pending = 0;
	memcpy(&reply, parts[1].iov_base, sizeof reply);
	also = negotiation.wanted & negotiation.offered;
	if (also >> 32 && negotiation.offered & INIT_EXT)
		reply.flags |= INIT_EXT;
	reply.flags |= (uint32_t)also;
	reply.flags2 |= (uint32_t)(also >> 32);
	if (also & INIT_PASSTHROUGH)
		reply.max_stack_depth = 1;
	negotiation.agreed = reply.flags | (uint64_t)reply.flags2 << 32;
	memcpy(parts[1].iov_base, &reply, sizeof reply);
	if (takes_over) /* the kernel was answered long ago */
		return (ssize_t)out->len;
	written = writev(fd, parts, count);
	if (ledger && written > 0)
		ledger->init_answered = 1;
	return written;
}

static const struct custom_io hooks = {.writev = writev_hook, .read = read_hook};

/* libfuse's own, found among the libraries that pyfuse3 was loaded with. */
static struct {
	int (*mount)(struct fuse_session *, const char *);
	int (*descriptor)(struct fuse_session *);
	int (*version)(void);
	void *custom_io;
} libfuse;

/* libfuse 3.17 put a size before the descriptor. */
static int install(struct fuse_session *session, int fd)
{
	if (!libfuse.custom_io)
		return 0;
	if (libfuse.version() >= 317)
		return ((int (*)(struct fuse_session *, const struct custom_io *, size_t, int))libfuse.custom_io)(
			       session, &hooks, sizeof hooks, fd) == 0;
	return ((int (*)(struct fuse_session *, const struct custom_io *, int))libfuse.custom_io)(session, &hooks,
												   fd) == 0;
}

__attribute__((visibility("default"))) int fuse_session_mount(struct fuse_session *session, const char *target)
{
	int result = libfuse.mount ? libfuse.mount(session, target) : -1;
	int fd, flags;

	if (result != 0)
		return result;
	fd = libfuse.descriptor(session);
	flags = fcntl(fd, F_GETFL);
	/* A blocking read would not come back from the hook's loop. */
	if (flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0)
		hooked = install(session, fd);
	if (ledger && hooked)
		ledger->session_fd = fd;
	return result;
}

static PyObject *py_bind(PyObject *self, PyObject *path)
{
	const char *name = PyBytes_AsString(path);
	void *library;

	(void)self;
	if (!name)
		return NULL;
	library = dlopen(name, RTLD_NOW | RTLD_NOLOAD);
	if (!library)
		return PyErr_Format(PyExc_ImportError, "%s", dlerror());
	libfuse.mount = (int (*)(struct fuse_session *, const char *))dlsym(library, "fuse_session_mount");
	libfuse.descriptor = (int (*)(struct fuse_session *))dlsym(library, "fuse_session_fd");
	libfuse.version = (int (*)(void))dlsym(library, "fuse_version");
	libfuse.custom_io = dlsym(library, "fuse_session_custom_io");
	dlclose(library);
	if (!libfuse.mount || !libfuse.descriptor || !libfuse.version)
		return PyErr_Format(PyExc_ImportError, "%s was not linked with libfuse 3", name);
	Py_RETURN_NONE;
}

static PyObject *py_hooked(PyObject *self, PyObject *unused)
{
	(void)self, (void)unused;
	return PyBool_FromLong(hooked);
}

static PyObject *py_wake_by(PyObject *self, PyObject *descriptor)
{
	long fd = PyLong_AsLong(descriptor);

	(void)self;
	if (PyErr_Occurred())
		return NULL;
	loop_fd = (int)fd;
	Py_RETURN_NONE;
}

static PyObject *py_done(PyObject *self, PyObject *unique)
{
	uint64_t number = PyLong_AsUnsignedLongLong(unique);

	(void)self;
	if (PyErr_Occurred())
		return NULL;
	no_longer_waiting(number);
	Py_RETURN_NONE;
}

static PyObject *py_counts(PyObject *self, PyObject *unused)
{
	PyObject *list = PyList_New(0);

	(void)self, (void)unused;
	for (unsigned int opcode = 0; list && opcode < OPCODES; opcode++) {
		PyObject *one;

		if (!counts[opcode].asked)
			continue;
		one = Py_BuildValue("(IKKKK)", opcode, counts[opcode].asked, counts[opcode].native,
				    counts[opcode].ns, counts[opcode].longest_ns);
		if (!one || PyList_Append(list, one) < 0)
			Py_CLEAR(list);
		Py_XDECREF(one);
	}
	return list;
}

static PyObject *py_serve_by(PyObject *self, PyObject *capsule)
{
	(void)self;
	server = (int (*)(int, char *, size_t))PyCapsule_GetPointer(capsule, "unionfs.server");
	if (!server)
		return NULL;
	Py_RETURN_NONE;
}

static PyObject *py_negotiate(PyObject *self, PyObject *wanted)
{
	(void)self;
	negotiation.wanted = PyLong_AsUnsignedLongLong(wanted);
	if (PyErr_Occurred())
		return NULL;
	Py_RETURN_NONE;
}

static PyObject *py_agreed(PyObject *self, PyObject *unused)
{
	(void)self, (void)unused;
	return PyLong_FromUnsignedLongLong(negotiation.agreed);
}

static PyObject *py_keep(PyObject *self, PyObject *address)
{
	(void)self;
	ledger = (struct ledger_head *)PyLong_AsVoidPtr(address);
	if (PyErr_Occurred())
		return NULL;
	takes_over = ledger->session_fd > 0;
	Py_RETURN_NONE;
}

static PyObject *py_resend(PyObject *self, PyObject *unused)
{
	struct out_header out = {.len = sizeof out, .error = NOTIFY_RESEND};

	(void)self, (void)unused;
	if (write(ledger->session_fd, &out, sizeof out) < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	Py_RETURN_NONE;
}

/*
 * fork(2), but that both have one table of descriptors. The C library's own fork cannot be asked for that;
 * what else it does for a process of one thread is to note the thread's new number where it keeps that.
 */
static PyObject *py_fork_sharing_descriptors(PyObject *self, PyObject *unused)
{
	unsigned long flags = CLONE_FILES | SIGCHLD;
	int *number = NULL;
	long pid;

	(void)self, (void)unused;
	if (prctl(PR_GET_TID_ADDRESS, &number) == 0 && number)
		flags |= CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;
	PyOS_BeforeFork();
#ifdef __x86_64__
	pid = syscall(SYS_clone, flags, NULL, NULL, number, 0);
#else
	pid = syscall(SYS_clone, flags, NULL, NULL, 0, number);
#endif
	if (pid == 0) {
		PyOS_AfterFork_Child();
	} else {
		int error = errno;

		PyOS_AfterFork_Parent();
		errno = error;
	}
	if (pid < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	return PyLong_FromLong(pid);
}

static PyMethodDef methods[] = {
	{"keep", py_keep, METH_O, "Write down what the next server has to know in the ledger at an address."},
	{"resend", py_resend, METH_NOARGS, "Let the kernel send again what it has no answer to. Raises OSError."},
	{"fork_sharing_descriptors", py_fork_sharing_descriptors, METH_NOARGS,
	 "fork(2) with one table of descriptors for both (CLONE_FILES). Raises OSError."},
	{"serve_by", py_serve_by, METH_O, "Let the fast path answer, given as a capsule \"unionfs.server\"."},
	{"wake_by", py_wake_by, METH_O, "Sleep in the hooks, unless a descriptor is readable by which trio wakes."},
	{"done", py_done, METH_O, "The request of that number, which the fast path had left waiting, is answered."},
	{"negotiate", py_negotiate, METH_O, "FUSE_* bits to agree on at INIT beyond libfuse's, where offered."},
	{"agreed", py_agreed, METH_NOARGS, "The FUSE_* bits that were agreed on; 0 before INIT was answered."},
	{"bind", py_bind, METH_O, "Find libfuse among the libraries of pyfuse3's extension, given its path."},
	{"hooked", py_hooked, METH_NOARGS, "Whether the session's input passes through the hooks."},
	{"counts", py_counts, METH_NOARGS, "(opcode, asked, answered where read, ns, longest ns) of each opcode seen."},
	{NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
	PyModuleDef_HEAD_INIT,
	.m_name = "_hooks",
	.m_doc = "Session I/O; see hooks.c.",
	.m_size = -1,
	.m_methods = methods,
};

PyMODINIT_FUNC PyInit__hooks(void)
{
	return PyModule_Create(&module);
}
