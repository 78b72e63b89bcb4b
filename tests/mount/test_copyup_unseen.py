"""What was taken before a copy-up goes on after it: watches, locks, appending writers, maps, open files."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import subprocess
import sys

import pytest
from support.layers import HardLink
from support.union import errno_of, tick, wait_until

pytestmark = pytest.mark.root

#: Small ones are copied at once, large ones by a worker; one has a second name.
FILES = {
    "small": {"d": {"f": "content"}},
    "large": {"d": {"f": "content" + "\0" * 2_000_000}},
    "linked": {"d": {"f": "content"}, "other": HardLink("d/f")},
}

EVENTS = {
    0x2: "modify",
    0x4: "attrib",
    0x8: "close written",
    0x10: "close",
    0x20: "open",
    0x40: "moved from",
    0x80: "moved to",
    0x100: "create",
    0x200: "delete",
    0x400: "delete self",
    0x800: "move self",
    0x2000: "unmount",
    0x8000: "ignored",
}

CHANGES = {
    "write": lambda path: path.write_text("changed"),
    "append": lambda path: append(path, b"more"),
    "chmod": lambda path: path.chmod(0o600),
    "truncate": lambda path: os.truncate(path, 3),
    "setxattr": lambda path: os.setxattr(path, "user.a", b"b"),
    "utime": lambda path: os.utime(path, ns=(1, 2)),
    "rename": lambda path: path.rename(path.with_name("moved")),
    "unlink": lambda path: path.unlink(),
}


def append(path, words):
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, words)
    finally:
        os.close(fd)


@pytest.fixture(params=FILES)
def file(request, make_union):
    """d/f of a lower layer, not yet copied up."""
    return make_union(FILES[request.param]).root / "d" / "f"


# Watches ------------------------------------------------------------------------------------------


class Watches:
    """inotify(7) on some paths."""

    def __init__(self, *paths):
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self.fd >= 0
        self.names = {}
        for path in paths:
            watch = libc.inotify_add_watch(self.fd, os.fsencode(path), 0xFFF & ~0x1)
            assert watch >= 0, os.strerror(ctypes.get_errno())
            self.names[watch] = os.path.basename(path)

    def seen(self):
        """(what is watched, the name in it, the event) of all that happened."""
        found = []
        try:
            said = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return found
        while said:
            watch, mask, _, length = struct.unpack_from("iIII", said)
            name = said[16 : 16 + length].rstrip(b"\0").decode()
            happened = [word for bit, word in EVENTS.items() if mask & bit]
            found.append((self.names[watch], name, *happened))
            said = said[16 + length :]
        return found

    def close(self):
        os.close(self.fd)


def events_of(directory, change):
    watches = Watches(directory / "f", directory)
    try:
        change(directory / "f")
        seen = watches.seen()
        (directory / "sign").touch()
        assert ("d", "sign", "create") in watches.seen()
        return seen
    finally:
        watches.close()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_watches_on_a_file_and_its_directory(file, place, change):
    """The same events in the same order as on the disk, none of them of the copy-up itself."""
    (place / "disk" / "d").mkdir(parents=True)
    (place / "disk" / "d" / "f").write_bytes(file.read_bytes())
    if (file.parent.parent / "other").exists():
        os.link(place / "disk" / "d" / "f", place / "disk" / "other")
    expected = events_of(place / "disk" / "d", change)
    assert expected
    assert events_of(file.parent, change) == expected


def test_a_watch_goes_on_with_later_changes(file):
    watches = Watches(file)
    try:
        file.chmod(0o640)
        assert watches.seen() == [("f", "", "attrib")]
        append(file, b"x")
        assert ("f", "", "modify") in watches.seen()
        os.rename(file, file.with_name("g"))
        assert watches.seen() == [("f", "", "move self")]
    finally:
        watches.close()


# Locks --------------------------------------------------------------------------------------------

#: Takes a lock by a descriptor that may only read, says so, holds it until its stdin ends.
_HOLDER = """
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
if sys.argv[2] == "flock":
    fcntl.flock(fd, fcntl.LOCK_EX)
else:
    lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 2, 3, 0)
    fcntl.fcntl(fd, fcntl.F_SETLK if sys.argv[2] == "posix" else fcntl.F_OFD_SETLK, lock)
print("held", flush=True)
sys.stdin.read()
"""


def take(fd, kind, start=2, length=3):
    """Ask for what the holder's lock forbids; "" when it is had."""
    if kind == "flock":
        return errno_of(fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, start, length, 0)
    return errno_of(fcntl.fcntl, fd, fcntl.F_SETLK if kind == "posix" else fcntl.F_OFD_SETLK, lock)


@pytest.mark.parametrize("kind", ["flock", "posix", "ofd"])
def test_locks_of_another_process_are_held_across(file, kind):
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, file, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    fd = -1
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        fd = os.open(file, os.O_RDWR)  # the copy-up
        os.pwrite(fd, b"C", 0)
        assert take(fd, kind) == "EAGAIN"
        if kind != "flock":
            assert take(fd, kind, 0, 2) == ""
            assert take(fd, kind, 5, 0) == ""
        holder.communicate()
        wait_until(lambda: take(fd, kind) == "", "the lock is free")
    finally:
        holder.kill()
        holder.communicate()
        if fd >= 0:
            os.close(fd)


def test_the_holder_itself_may_copy_up(file):
    holder = os.open(file, os.O_RDONLY)
    other = os.open(file, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        append(file, b"x")
        assert take(other, "flock") == "EAGAIN"
        fcntl.flock(holder, fcntl.LOCK_UN)
        assert take(other, "flock") == ""
    finally:
        os.close(holder)
        os.close(other)


# Descriptors and maps -----------------------------------------------------------------------------


def test_a_descriptor_becomes_an_appending_writer(file):
    """open(2) of /proc/self/fd copies up what another descriptor holds; both append at the true end."""
    size = file.stat().st_size
    reader = os.open(file, os.O_RDONLY)
    writers = []
    try:
        writers += [os.open(f"/proc/self/fd/{reader}", os.O_WRONLY | os.O_APPEND) for _ in range(2)]
        for round_ in range(5):
            for writer, word in zip(writers, (b"one", b"two"), strict=True):
                os.write(writer, word)
            assert os.fstat(reader).st_size == size + 6 * (round_ + 1)
        assert os.pread(reader, 100, size) == b"onetwo" * 5
    finally:
        for fd in (reader, *writers):
            os.close(fd)
    assert file.read_bytes()[size:] == b"onetwo" * 5


def test_a_shared_map_shows_what_is_written_later(file):
    reader = os.open(file, os.O_RDONLY)
    try:
        with mmap.mmap(reader, 7, mmap.MAP_SHARED, mmap.PROT_READ) as view:
            assert view[:] == b"content"
            with open(file, "r+b") as writer:
                writer.write(b"CON")
            assert view[:] == b"CONtent"
            writing = os.open(file, os.O_RDWR)
            try:
                with mmap.mmap(writing, 7) as other:
                    other[3:] = b"TENT"
                    assert view[:] == b"CONTENT"
            finally:
                os.close(writing)
    finally:
        os.close(reader)
    assert file.read_bytes()[:7] == b"CONTENT"


def test_a_private_map_never_written_shows_whole_words(file):
    """mmap(2) leaves open whether a private map shows later writes; it may not show anything else."""
    reader = os.open(file, os.O_RDONLY)
    try:
        with mmap.mmap(reader, 7, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as view:
            view[0] = ord("P")
            with open(file, "r+b") as writer:
                writer.write(b"CONTENT")
            assert view[:] == b"Pontent"
        assert file.read_bytes()[:7] == b"CONTENT"
    finally:
        os.close(reader)


@pytest.mark.parametrize("how", ["unlink", "rename over"])
def test_a_deleted_open_file_is_one_file_for_all_its_holders(file, how):
    """Brought up without a name: descriptors, a map and a lock of before go on with it."""
    linked = (file.parent.parent / "other").exists()
    first, second = os.open(file, os.O_RDONLY), os.open(file, os.O_RDONLY)
    again = -1
    try:
        number = os.fstat(first).st_ino
        fcntl.flock(first, fcntl.LOCK_EX)
        with mmap.mmap(second, 7, mmap.MAP_SHARED, mmap.PROT_READ) as view:
            if how == "unlink":
                file.unlink()
            else:
                (file.parent / "new").write_text("another")
                os.rename(file.parent / "new", file)
            tick()
            os.fchmod(first, 0o600)
            again = os.open(f"/proc/self/fd/{second}", os.O_RDWR)
            os.pwrite(again, b"CON", 0)
            assert view[:] == b"CONtent"
            assert {os.pread(fd, 7, 0) for fd in (first, second, again)} == {b"CONtent"}
            assert {os.fstat(fd).st_ino for fd in (first, second, again)} == {number}
            assert {os.fstat(fd).st_nlink for fd in (first, second, again)} == {int(linked)}
            assert take(again, "flock") == "EAGAIN"
    finally:
        for fd in (first, second, again):
            if fd >= 0:
                os.close(fd)
    if how == "unlink":
        assert errno_of(os.stat, file) == "ENOENT"
    else:
        assert file.read_text() == "another"
    if linked:
        assert (file.parent.parent / "other").read_text() == "CONtent"
