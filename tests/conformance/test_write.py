"""write(2) and its kin, and what writing takes away: setuid, setgid, capabilities."""

from __future__ import annotations

import os
import resource
import signal
import stat
from pathlib import Path

import pytest
from support.layers import Dir, File
from support.union import errno_of

from conformance.system import ALICE, BOB, as_user, linkat, opened, permissions, times_changed
from conformance.test_chown import NET_RAW

PROGRAMS = {
    "program": File(content="x" * 100, mode=0o6777),
    "locking": File(content="x" * 100, mode=0o2666),
    "sticky": File(content="x" * 100, mode=0o1666),
    "capable": File(content="x" * 100, mode=0o777, xattrs={"security.capability": NET_RAW}),
    "mine": File(content="x" * 100, mode=0o6755, owner=(ALICE, ALICE)),
    "source": File(content="s" * 10_000),
    "dir": Dir(),
}
RWF_DSYNC, RWF_APPEND = 2, 16


def rewrite(path: Path) -> None:
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"new")


@pytest.mark.tree(PROGRAMS)
def test_users_clear_setuid_and_setgid(here: Path) -> None:
    assert as_user(BOB, rewrite, here / "program") is None
    assert permissions(here / "program") == 0o777


@pytest.mark.tree(PROGRAMS)
def test_even_the_owner_clears_them(here: Path) -> None:
    assert as_user(ALICE, rewrite, here / "mine") is None
    assert permissions(here / "mine") == 0o755


@pytest.mark.tree(PROGRAMS)
def test_through_a_descriptor_that_root_opened(here: Path) -> None:
    with opened(here / "program", os.O_WRONLY) as fd:
        assert as_user(BOB, os.write, fd, b"x") == 1
    assert permissions(here / "program") == 0o777


@pytest.mark.tree(PROGRAMS)
def test_setgid_without_group_execute_and_sticky_stay(here: Path) -> None:
    assert as_user(BOB, rewrite, here / "locking") is None
    assert as_user(BOB, rewrite, here / "sticky") is None
    assert permissions(here / "locking") in (0o2666, 0o666)
    assert permissions(here / "sticky") == 0o1666


@pytest.mark.tree(PROGRAMS)
def test_root_keeps_them(here: Path) -> None:
    rewrite(here / "program")
    assert permissions(here / "program") == 0o6777


@pytest.mark.tree(PROGRAMS)
def test_capabilities_go_even_when_root_writes(here: Path) -> None:
    rewrite(here / "capable")
    assert errno_of(os.getxattr, here / "capable", "security.capability") == "ENODATA"
    assert os.listxattr(here / "capable") == []


@pytest.mark.tree(PROGRAMS)
def test_capabilities_stay_when_nothing_is_written(here: Path) -> None:
    with opened(here / "capable", os.O_WRONLY):
        pass
    os.chmod(here / "capable", 0o700)
    os.rename(here / "capable", here / "new")
    os.link(here / "new", here / "newer")
    os.utime(here / "new")
    assert os.getxattr(here / "newer", "security.capability") == NET_RAW


@pytest.mark.tree(PROGRAMS)
def test_setuid_stays_when_nothing_is_written(here: Path) -> None:
    with opened(here / "program", os.O_WRONLY):
        pass
    os.rename(here / "program", here / "new")
    os.link(here / "new", here / "newer")
    os.utime(here / "new")
    assert permissions(here / "newer") == 0o6777


@pytest.mark.tree(PROGRAMS)
@pytest.mark.parametrize("way", ["sendfile", "copy_file_range", "splice", "pwritev"])
def test_other_ways_of_writing_clear_too(here: Path, way: str) -> None:
    def action() -> None:
        with opened(here / "source", os.O_RDONLY) as source, opened(here / "program", os.O_RDWR) as target:
            if way == "sendfile":
                os.sendfile(target, source, 0, 10)
            elif way == "copy_file_range":
                os.copy_file_range(source, target, 10)
            elif way == "splice":
                reader, writer = os.pipe()
                os.write(writer, b"0123456789")
                os.splice(reader, target, 10)
            else:
                os.pwritev(target, [b"01234", b"56789"], 0)

    assert as_user(BOB, action) is None
    assert permissions(here / "program") == 0o777


@pytest.mark.tree(PROGRAMS)
@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 10_000, 300_000])
def test_copies_between_files(here: Path, size: int) -> None:
    content = os.urandom(size)
    (here / "source").write_bytes(content)
    with opened(here / "source", os.O_RDONLY) as source:
        with opened(here / "new", os.O_RDWR | os.O_CREAT) as target:
            done = 0
            while done < size:
                done += os.copy_file_range(source, target, size - done)
            assert os.copy_file_range(source, target, 10) == 0
        assert (here / "new").read_bytes() == content
        os.lseek(source, 0, os.SEEK_SET)
        with opened(here / "newer", os.O_RDWR | os.O_CREAT) as target:
            done = 0
            while done < size:
                done += os.sendfile(target, source, done, size - done)
        assert (here / "newer").read_bytes() == content


@pytest.mark.tree(PROGRAMS)
def test_copies_within_a_file(here: Path) -> None:
    with opened(here / "source", os.O_RDWR) as fd:
        os.pwrite(fd, b"head", 0)
        assert os.copy_file_range(fd, fd, 4, 0, 5000) == 4
        assert os.pread(fd, 6, 4999) == b"sheads"
        assert errno_of(os.copy_file_range, fd, fd, 100, 0, 50) == "EINVAL"
    with opened(here / "source", os.O_RDONLY) as source:
        assert errno_of(os.copy_file_range, source, source, 1, 0, 5000) == "EBADF"
        with opened(here / "program", os.O_WRONLY | os.O_APPEND) as target:
            assert errno_of(os.copy_file_range, source, target, 1) == "EBADF"


@pytest.mark.tree(PROGRAMS)
def test_copy_times(here: Path) -> None:
    with opened(here / "source", os.O_RDONLY) as source, opened(here / "program", os.O_RDWR) as target:
        assert times_changed(lambda: os.copy_file_range(source, target, 10), here / "program") == ["mc"]


@pytest.mark.tree(PROGRAMS)
def test_splice_in_and_out(here: Path) -> None:
    reader, writer = os.pipe()
    try:
        with (
            opened(here / "source", os.O_RDONLY) as source,
            opened(here / "new", os.O_RDWR | os.O_CREAT) as target,
        ):
            assert os.splice(source, writer, 5000) == 5000
            assert os.splice(reader, target, 5000) == 5000
            assert os.fstat(target).st_size == 5000
            assert os.pread(target, 5000, 0) == b"s" * 5000
    finally:
        os.close(reader)
        os.close(writer)


def test_vectors_and_flags(here: Path) -> None:
    with opened(here / "file", os.O_RDWR) as fd:
        assert os.pwritev(fd, [b"CON", b"TENT"], 0, RWF_DSYNC) == 7
        assert os.pwritev(fd, [b"at the ", b"end"], 0, RWF_APPEND) == 10
        one, two = bytearray(4), bytearray(100)
        assert os.preadv(fd, [one, two], 0) == 26
        assert bytes(one + two[:22]) == b"CONTENT of file\nat the end"
        assert errno_of(os.pwritev, fd, [b"x"], 0, 1 << 20) == "ENOTSUP"


def test_beyond_the_end_leaves_a_hole(here: Path) -> None:
    with opened(here / "file", os.O_RDWR) as fd:
        os.pwrite(fd, b"end", 100_000)
        assert os.fstat(fd).st_size == 100_003
        assert os.pread(fd, 100, 99_950) == bytes(50) + b"end"


def test_files_over_four_gigabytes(here: Path) -> None:
    with opened(here / "file", os.O_RDWR) as fd:
        for position in (2**31 - 2, 2**32 - 2, 2**33 + 1):
            os.pwrite(fd, b"mark", position)
        for position in (2**31 - 2, 2**32 - 2, 2**33 + 1):
            assert os.pread(fd, 6, position - 1) in (b"\0mark\0", b"\0mark")
        assert os.fstat(fd).st_size == 2**33 + 5
        os.ftruncate(fd, 0)


def test_up_to_the_largest_size(here: Path) -> None:
    largest = (16 << 40) - 4096
    with opened(here / "file", os.O_RDWR) as fd:
        os.pwrite(fd, b"x", largest - 1)
        assert os.fstat(fd).st_size == largest
        assert errno_of(os.pwrite, fd, b"x", largest) == "EFBIG"
        os.ftruncate(fd, 0)


def test_the_limit_of_a_process(here: Path) -> None:
    def action() -> str:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
        with opened(here / "file", os.O_RDWR) as fd:
            answers = [
                os.pwrite(fd, b"x" * 10, 16),
                errno_of(os.pwrite, fd, b"x", 20),
                errno_of(os.ftruncate, fd, 21),
            ]
        return repr(answers)

    os.chmod(here / "file", 0o666)
    assert as_user(BOB, action) == "[4, 'EFBIG', 'EFBIG']"


def test_append_and_position(here: Path) -> None:
    with opened(here / "file", os.O_RDWR) as fd:
        os.lseek(fd, 3, os.SEEK_SET)
        os.write(fd, b"TENT")
        assert os.lseek(fd, 0, os.SEEK_CUR) == 7
        assert os.read(fd, 3) == b" of"
        assert os.read(fd, 0) == b""


def test_reading_beyond_the_end(here: Path) -> None:
    with opened(here / "file", os.O_RDONLY) as fd:
        assert os.pread(fd, 10, 16) == b""
        assert os.pread(fd, 10, 1 << 40) == b""
        assert os.pread(fd, 10, 10) == b" file\n"[-6:]
        assert errno_of(os.write, fd, b"x") == "EBADF"
        assert errno_of(os.pread, fd, 1, -1) == "EINVAL"


def test_a_reader_opened_before_sees_what_is_written_later(here: Path) -> None:
    with opened(here / "file", os.O_RDONLY) as reader:
        assert os.pread(reader, 7, 0) == b"content"
        with opened(here / "file", os.O_RDWR) as writer:
            os.pwrite(writer, b"CONTENT", 0)
            assert os.pread(reader, 7, 0) == b"CONTENT"
            os.pwrite(writer, b"longer", 16)
        assert os.pread(reader, 100, 0) == b"CONTENT of file\nlonger"
        assert os.fstat(reader).st_size == 22


def test_an_unnamed_file_is_written_like_another(here: Path) -> None:
    with opened(here, os.O_TMPFILE | os.O_RDWR) as fd:
        os.pwrite(fd, b"x" * 100_000, 5)
        assert os.fstat(fd).st_size == 100_005
        os.ftruncate(fd, 10)
        os.fchmod(fd, 0o604)
        os.fchown(fd, ALICE, BOB)
        linkat(fd, here / "new")
    status = os.stat(here / "new")
    assert (status.st_size, status.st_mode, status.st_uid, status.st_gid) == (
        10,
        stat.S_IFREG | 0o604,
        ALICE,
        BOB,
    )


def test_sync(here: Path) -> None:
    with opened(here / "file", os.O_RDWR) as fd, opened(here / "dir", os.O_RDONLY) as directory:
        os.write(fd, b"x")
        os.fsync(fd)
        os.fdatasync(fd)
        os.fsync(directory)
        os.fdatasync(directory)
