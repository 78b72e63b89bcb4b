"""flock(2), POSIX and OFD locks of fcntl(2), leases."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.union import errno_of

from conformance.system import F_OFD_GETLK, F_OFD_SETLK, opened


def in_child(action: Callable[[], Any]) -> str:
    """The errno that an action meets in another process, "" if none."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, errno_of(action).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(child, 0)
    return answer


def lock_in_child(path: Path, kind: int, start: int = 0, length: int = 0) -> str:
    def action() -> None:
        with opened(path, os.O_RDWR) as fd:
            fcntl.lockf(fd, kind | fcntl.LOCK_NB, length, start)

    return in_child(action)


def ofd(fd: int, kind: int, start: int = 0, length: int = 0) -> None:
    fcntl.fcntl(fd, F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0))


def test_flock_excludes_other_descriptors(here: Path) -> None:
    with opened(here / "file", os.O_RDONLY) as one, opened(here / "file", os.O_RDONLY) as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        assert errno_of(fcntl.flock, other, fcntl.LOCK_SH | fcntl.LOCK_NB) == "EAGAIN"
        fcntl.flock(one, fcntl.LOCK_SH)
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert errno_of(fcntl.flock, one, fcntl.LOCK_EX | fcntl.LOCK_NB) == "EAGAIN"
        fcntl.flock(other, fcntl.LOCK_UN)
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_flock_ends_with_the_descriptor(here: Path) -> None:
    with opened(here / "file", os.O_RDONLY) as one:
        fcntl.flock(one, fcntl.LOCK_EX)
    with opened(here / "file", os.O_RDONLY) as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_flock_holds_when_the_file_is_written_meanwhile(here: Path) -> None:
    with opened(here / "file", os.O_RDONLY) as one:
        fcntl.flock(one, fcntl.LOCK_EX)
        with opened(here / "file", os.O_RDWR) as other:
            os.write(other, b"x")
            assert errno_of(fcntl.flock, other, fcntl.LOCK_SH | fcntl.LOCK_NB) == "EAGAIN"


def test_flock_of_directories(here: Path) -> None:
    with opened(here / "dir", os.O_RDONLY) as one, opened(here / "dir", os.O_RDONLY) as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        os.chmod(here / "dir", 0o700)
        assert errno_of(fcntl.flock, other, fcntl.LOCK_SH | fcntl.LOCK_NB) == "EAGAIN"


def test_posix_locks_exclude_other_processes(here: Path) -> None:
    with opened(here / "file", os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX, 4, 2)
        assert lock_in_child(here / "file", fcntl.LOCK_SH) == "EAGAIN"
        assert lock_in_child(here / "file", fcntl.LOCK_EX, 0, 2) == ""
        assert lock_in_child(here / "file", fcntl.LOCK_EX, 6, 2) == ""
        assert lock_in_child(here / "file", fcntl.LOCK_EX, 5, 1) == "EAGAIN"
        fcntl.lockf(fd, fcntl.LOCK_UN, 2, 4)
        assert lock_in_child(here / "file", fcntl.LOCK_EX, 4, 2) == ""
        assert lock_in_child(here / "file", fcntl.LOCK_EX, 2, 2) == "EAGAIN"


def test_posix_locks_are_shared(here: Path) -> None:
    with opened(here / "file", os.O_RDONLY) as fd:
        fcntl.lockf(fd, fcntl.LOCK_SH)
        assert lock_in_child(here / "file", fcntl.LOCK_SH) == ""
        assert lock_in_child(here / "file", fcntl.LOCK_EX) == "EAGAIN"
        assert errno_of(fcntl.lockf, fd, fcntl.LOCK_EX) == "EBADF"


def test_posix_locks_end_with_any_descriptor_of_the_process(here: Path) -> None:
    with opened(here / "file", os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX)
        assert lock_in_child(here / "file", fcntl.LOCK_EX) == "EAGAIN"
        os.close(os.open(here / "file", os.O_RDONLY))
        assert lock_in_child(here / "file", fcntl.LOCK_EX) == ""


def test_posix_locks_hold_when_the_file_is_written_meanwhile(here: Path) -> None:
    def write_and_lock() -> None:
        with opened(here / "file", os.O_RDWR) as fd:
            os.write(fd, b"x")
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    with opened(here / "file", os.O_RDONLY) as fd:
        fcntl.lockf(fd, fcntl.LOCK_SH)
        assert in_child(write_and_lock) == "EAGAIN"


def test_the_holder_is_told(here: Path) -> None:
    def ask() -> None:
        with opened(here / "file", os.O_RDWR) as fd:
            request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, start, length, pid = struct.unpack("hhqqi4x", fcntl.fcntl(fd, fcntl.F_GETLK, request))
            if (kind, start, length, pid) != (fcntl.F_WRLCK, 3, 5, os.getppid()):
                raise OSError(errno.EPROTO, "another lock")

    with opened(here / "file", os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX, 5, 3)
        assert in_child(ask) == ""


def test_ofd_locks_belong_to_descriptors(here: Path) -> None:
    with opened(here / "file", os.O_RDWR) as one, opened(here / "file", os.O_RDWR) as other:
        ofd(one, fcntl.F_WRLCK, 0, 8)
        assert errno_of(ofd, other, fcntl.F_WRLCK, 4, 8) == "EAGAIN"
        ofd(other, fcntl.F_WRLCK, 8, 8)
        request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 4, 0)
        kind, _, start, length, pid = struct.unpack("hhqqi4x", fcntl.fcntl(other, F_OFD_GETLK, request))
        assert (kind, start, length, pid) == (fcntl.F_WRLCK, 0, 8, -1)
        os.close(os.open(here / "file", os.O_RDONLY))
        assert errno_of(ofd, other, fcntl.F_WRLCK, 0, 8) == "EAGAIN"
        assert lock_in_child(here / "file", fcntl.LOCK_EX, 0, 4) == "EAGAIN"


@pytest.mark.parametrize("kind", [fcntl.F_RDLCK, fcntl.F_WRLCK])
def test_leases(here: Path, kind: int) -> None:
    with opened(here / "file", os.O_RDONLY) as fd:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, kind)
        assert fcntl.fcntl(fd, fcntl.F_GETLEASE) == kind
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        assert fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_UNLCK
