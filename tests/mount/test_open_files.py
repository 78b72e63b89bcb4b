"""Descriptors: taken before a copy-up, kept after an unlink, appended to, mapped."""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import subprocess

import pytest
from support.layers import PAST_NS, File, HardLink
from support.union import errno_of, run_as, tick

pytestmark = pytest.mark.root

#: Where the file comes from: (layers from the top, upper).
FILES = {
    "upper": ([{}], {"d": {"f": "content"}}),
    "lower": ([{"d": {"f": "content"}}], {}),
    "lower, upper parent": ([{"d": {"f": "content"}}], {"d": {}}),
    "over lower": ([{"d": {"f": "old"}}], {"d": {"f": "content"}}),
    "deep": ([{}, {"d": {}}, {"d": {"f": "content"}}], {}),
    "large": ([{"d": {"f": "content" + "\0" * 1_000_000}}], {}),
}


@pytest.fixture(params=FILES)
def kind(request):
    return request.param


@pytest.fixture
def file(make_union, kind):
    """d/f, which begins with `content`."""
    lowers, upper = FILES[kind]
    return make_union(*lowers, upper=upper).root / "d" / "f"


def test_a_descriptor_from_before_the_copy_up_sees_what_is_written_after(file):
    with open(file, "rb", buffering=0) as reader:
        assert reader.read(3) == b"con"
        with open(file, "r+b") as writer:
            writer.write(b"CONTENT")
        assert reader.read(4) == b"TENT"
        assert os.fstat(reader.fileno()).st_ino == file.stat().st_ino
        os.truncate(file, 2)
        assert os.pread(reader.fileno(), 100, 0) == b"CO"
        assert os.fstat(reader.fileno()).st_size == 2


def test_many_descriptors_from_before_the_copy_up(file):
    readers = [os.open(file, os.O_RDONLY) for _ in range(20)]
    try:
        with open(file, "r+b") as writer:
            writer.write(b"C")
        for reader in readers:
            assert os.read(reader, 7) == b"Content"
    finally:
        for reader in readers:
            os.close(reader)


def test_an_unlinked_file_lives_as_long_as_it_is_open(file):
    fd = os.open(file, os.O_RDWR)
    try:
        number = os.fstat(fd).st_ino
        file.unlink()
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, 7, 0) == b"content"
        os.pwrite(fd, b"new", 0)
        assert os.pread(fd, 7, 0) == b"newtent"
        os.fchmod(fd, 0o610)
        os.fchown(fd, 5, 6)
        os.ftruncate(fd, 3)
        os.utime(fd, ns=(PAST_NS, PAST_NS + 1))
        os.setxattr(fd, "user.x", b"y")
        status = os.fstat(fd)
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_size) == (
            0o610,
            5,
            6,
            3,
        )
        assert (status.st_atime_ns, status.st_mtime_ns) == (PAST_NS, PAST_NS + 1)
        assert os.getxattr(fd, "user.x") == b"y"
        assert os.listxattr(fd) == ["user.x"]
        assert (status.st_ino, status.st_nlink) == (number, 0)
        assert errno_of(os.stat, file) == "ENOENT"
    finally:
        os.close(fd)


def test_a_file_unlinked_while_open_for_reading(file):
    """Nothing is copied up by the unlink; a change through the descriptor then brings it up, unnamed."""
    fd = os.open(file, os.O_RDONLY)
    try:
        number = os.fstat(fd).st_ino
        file.unlink()
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, 7, 0) == b"content"
        os.fchmod(fd, 0o751)
        os.utime(fd, ns=(1, 2))
        status = os.fstat(fd)
        assert (stat.S_IMODE(status.st_mode), status.st_nlink, status.st_mtime_ns) == (0o751, 0, 2)
        assert status.st_ino == number
        assert os.pread(fd, 7, 0) == b"content"
    finally:
        os.close(fd)
    assert errno_of(os.stat, file) == "ENOENT"


def test_an_unlinked_file_can_be_opened_again_by_its_descriptor(file):
    fd = os.open(file, os.O_RDONLY)
    try:
        file.unlink()
        with open(f"/proc/self/fd/{fd}", "r+b") as again:
            again.write(b"C")
        assert os.pread(fd, 7, 0) == b"Content"
    finally:
        os.close(fd)


def test_a_name_used_again_while_the_old_file_is_open(file):
    with open(file, "r+b", buffering=0) as old:
        file.unlink()
        file.write_text("another")
        assert os.pread(old.fileno(), 7, 0) == b"content"
        old.write(b"OLD")
        assert file.read_text() == "another"
        assert os.fstat(old.fileno()).st_ino != file.stat().st_ino


def test_a_file_replaced_by_rename_while_open(file):
    with open(file, "r+b", buffering=0) as old:
        (file.parent / "new").write_text("new")
        os.rename(file.parent / "new", file)
        assert os.fstat(old.fileno()).st_nlink == 0
        assert os.pread(old.fileno(), 7, 0) == b"content"
        old.write(b"OLD")
        os.fchmod(old.fileno(), 0o600)
        assert file.read_text() == "new"


def test_a_descriptor_follows_a_rename(file):
    with open(file, "r+b", buffering=0) as held:
        os.rename(file, file.parent.parent / "moved")
        held.write(b"C")
        os.fchmod(held.fileno(), 0o604)
    moved = file.parent.parent / "moved"
    assert moved.read_bytes()[:7] == b"Content"
    assert stat.S_IMODE(moved.stat().st_mode) == 0o604


def test_append(file):
    size = file.stat().st_size
    one, other = os.open(file, os.O_WRONLY | os.O_APPEND), os.open(file, os.O_WRONLY | os.O_APPEND)
    try:
        for n in range(10):
            assert os.write((one, other)[n % 2], b"%d" % n) == 1
    finally:
        os.close(one)
        os.close(other)
    assert file.read_bytes()[size:] == b"0123456789"


def test_append_by_many_processes(file):
    size = file.stat().st_size

    def append():
        fd = os.open(file, os.O_WRONLY | os.O_APPEND)
        for _ in range(50):
            os.write(fd, b"0123456789")
        os.close(fd)
        return 0

    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            append()
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    assert file.read_bytes()[size:] == b"0123456789" * 200


def test_truncating_open(file):
    number = file.stat().st_ino
    tick()
    before = file.stat().st_mtime_ns
    with open(file, "wb"):
        status = file.stat()
        assert (status.st_size, status.st_ino) == (0, number)
        assert status.st_mtime_ns > before
    assert file.read_bytes() == b""


def test_truncating_open_shows_in_an_older_descriptor(file):
    with open(file, "rb", buffering=0) as reader:
        open(file, "wb").close()
        assert reader.read() == b""


def test_exclusive_create(file):
    assert errno_of(os.open, file, os.O_CREAT | os.O_EXCL | os.O_WRONLY) == "EEXIST"
    file.unlink()
    fd = os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o400)
    try:
        assert os.write(fd, b"x") == 1
        assert os.pread(fd, 5, 0) == b"x"
    finally:
        os.close(fd)
    assert errno_of(os.open, file, os.O_CREAT | os.O_EXCL | os.O_WRONLY) == "EEXIST"
    assert file.read_bytes() == b"x"


def test_flags_of_open(file):
    assert errno_of(os.open, file, os.O_RDONLY | os.O_DIRECTORY) == "ENOTDIR"
    assert errno_of(os.open, file.parent, os.O_WRONLY) == "EISDIR"
    assert errno_of(os.open, file.parent / "none", os.O_RDONLY) == "ENOENT"
    assert errno_of(os.open, file / "below", os.O_RDONLY) == "ENOTDIR"
    fd = os.open(file, os.O_PATH)
    try:
        assert errno_of(os.read, fd, 1) == "EBADF"
        assert os.fstat(fd).st_ino == file.stat().st_ino
    finally:
        os.close(fd)
    for flags in (os.O_SYNC, os.O_DSYNC, os.O_NOATIME, os.O_NONBLOCK):
        fd = os.open(file, os.O_RDWR | flags)
        try:
            assert os.write(fd, b"c") == 1
            os.fsync(fd)
            os.fdatasync(fd)
        finally:
            os.close(fd)


def test_shared_map_written(file):
    with open(file, "r+b") as held, mmap.mmap(held.fileno(), 7) as mapped:
        assert mapped[:7] == b"content"
        mapped[:3] = b"MAP"
        mapped.flush()
        assert file.read_bytes()[:7] == b"MAPtent"
        os.pwrite(held.fileno(), b"W", 6)
        assert mapped[:7] == b"MAPtenW"


def test_shared_map_written_and_closed_without_a_sync(make_union, kind):
    lowers, upper = FILES[kind]
    union = make_union(*lowers, upper=upper)
    file = union.root / "d" / "f"
    with open(file, "r+b") as held, mmap.mmap(held.fileno(), 7) as mapped:
        mapped[:3] = b"MAP"
    assert file.read_bytes()[:7] == b"MAPtent"
    union.remount()
    assert file.read_bytes()[:7] == b"MAPtent"


def test_private_map(file):
    with (
        open(file, "rb") as held,
        mmap.mmap(held.fileno(), 7, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as m,
    ):
        m[:3] = b"MAP"
        assert file.read_bytes()[:7] == b"content"


def test_locks_last_through_copy_up(file):
    with open(file, "rb") as shared, open(file, "rb") as other:
        fcntl.flock(shared, fcntl.LOCK_EX)
        os.chmod(file, 0o600)
        assert errno_of(fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB) == "EAGAIN"
        with open(file, "r+b") as writer:
            assert errno_of(fcntl.flock, writer, fcntl.LOCK_EX | fcntl.LOCK_NB) == "EAGAIN"
        fcntl.flock(shared, fcntl.LOCK_UN)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_record_locks(file):
    with open(file, "r+b") as held:
        fcntl.lockf(held, fcntl.LOCK_EX, 4, 0)

        def try_lock():
            with open(file, "r+b") as mine:
                return errno_of(fcntl.lockf, mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 4, 2), errno_of(
                    fcntl.lockf, mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 4, 4
                )

        assert run_as(0, 0, try_lock) == ("EAGAIN", "")


def test_executed_file_is_busy(make_union):
    with open("/bin/sleep", "rb") as program:
        content = program.read()
    union = make_union({"sleep": File(content=content, mode=0o755)})
    running = subprocess.Popen([union.root / "sleep", "1000"])
    try:
        assert errno_of(os.open, union.root / "sleep", os.O_WRONLY) == "ETXTBSY"
        (union.root / "sleep").unlink()
        assert running.poll() is None
    finally:
        running.kill()
        running.wait()


def test_unlinked_directory_in_use(make_union):
    union = make_union({"d": {}}, upper={"u": {}})
    for name in ("d", "u"):
        fd = os.open(union.root / name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            (union.root / name).rmdir()
            assert os.fstat(fd).st_nlink == 0
            assert os.listdir(fd) == []
            assert errno_of(os.mkdir, "x", dir_fd=fd) == "ENOENT"
            assert errno_of(os.open, "x", os.O_CREAT | os.O_WRONLY, dir_fd=fd) == "ENOENT"
            assert errno_of(os.stat, "x", dir_fd=fd) == "ENOENT"
        finally:
            os.close(fd)


def test_unlinked_hard_link_still_open(make_union):
    union = make_union({"a": "one", "b": HardLink("a")})
    with open(union.root / "a", "r+b", buffering=0) as held:
        (union.root / "a").unlink()
        assert os.fstat(held.fileno()).st_nlink == 1
        held.write(b"O")
        assert (union.root / "b").read_text() == "One"
        (union.root / "b").unlink()
        assert os.fstat(held.fileno()).st_nlink == 0
        assert os.pread(held.fileno(), 3, 0) == b"One"


def test_an_unlinked_file_cannot_be_linked_again(file):
    fd = os.open(file, os.O_RDWR)
    try:
        file.unlink()
        assert errno_of(os.link, f"/proc/self/fd/{fd}", file, src_dir_fd=fd, follow_symlinks=True) == "ENOENT"
    finally:
        os.close(fd)


def test_a_big_file_is_read_and_written_right(make_union):
    content = os.urandom(5 << 20)
    union = make_union({"f": content})
    with open(union.root / "f", "r+b") as file:
        file.seek(3_000_001)
        file.write(b"x" * 1_500_000)
    expected = content[:3_000_001] + b"x" * 1_500_000 + content[4_500_001:]
    assert (union.root / "f").read_bytes() == expected
    union.remount()
    assert (union.root / "f").read_bytes() == expected


def test_offsets_beyond_4_gib(make_union):
    union = make_union({"f": "start"})
    with open(union.root / "f", "r+b") as file:
        file.seek(5 << 30)
        file.write(b"end")
    assert (union.root / "f").stat().st_size == (5 << 30) + 3
    with open(union.root / "f", "rb") as file:
        assert file.read(5) == b"start"
        file.seek(-4, os.SEEK_END)
        assert file.read() == b"\0end"


@pytest.mark.parametrize("layer", ["lower", "upper"])
def test_a_removed_directory_can_be_changed_by_its_descriptor(make_union, layer):
    root = (make_union({"d": {}}) if layer == "lower" else make_union({}, upper={"d": {}})).root
    fd = os.open(root / "d", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.rmdir(root / "d")
        os.fchmod(fd, 0o700)
        os.utime(fd, ns=(3, 4))
        os.setxattr(fd, "user.x", b"y")
        status = os.fstat(fd)
        assert (status.st_mode & 0o7777, status.st_mtime_ns, status.st_nlink) == (0o700, 4, 0)
        assert os.getxattr(fd, "user.x") == b"y"
        assert os.listdir(fd) == []
    finally:
        os.close(fd)
    assert os.listdir(root) == []


def test_times_of_a_mapping_that_outlives_its_file(make_union):
    """The kernel passes it through and tells nobody when memory is written."""
    union = make_union({}, upper={"f": "x" * 8192})
    path = union.root / "f"
    os.utime(path, ns=(10**18, 10**18))
    assert path.stat().st_mtime_ns == 10**18
    fd = os.open(path, os.O_RDWR)
    memory = mmap.mmap(fd, 0)
    os.close(fd)
    assert path.stat().st_mtime_ns == 10**18
    memory[0] = 65
    memory.flush()
    changed = path.stat().st_mtime_ns
    assert changed != 10**18
    memory.close()
    assert path.stat().st_mtime_ns == changed
    assert path.read_bytes()[:2] == b"Ax"
