"""open(2) and creat(2), with all flags."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support.layers import Dir, File, Node
from support.union import errno_of

from conformance.system import (
    ALICE,
    AT_FDCWD,
    AT_SYMLINK_FOLLOW,
    BOB,
    STAFF,
    aligned,
    as_user,
    create,
    linkat,
    opened,
    permissions,
    times_changed,
)

ACCESS = {
    "mine": File(content="x", mode=0o640, owner=(ALICE, STAFF)),
    "write-only": File(content="x", mode=0o622),
    "none": File(content="x", mode=0),
    "open": Dir(mode=0o777, names={"root": "x"}),
    "closed": Dir(mode=0o755),
    "dark": Dir(mode=0o666, names={"file": File(content="x", mode=0o666)}),
    "search": Dir(mode=0o711, names={"file": File(content="x", mode=0o666)}),
    "team": Dir(mode=0o2777, owner=(0, STAFF)),
    "fifo": Node(kind=stat.S_IFIFO),
}


@pytest.mark.parametrize("mode", [0o666, 0o600, 0, 0o777, 0o4755, 0o1644])
def test_new_files_have_the_mode_less_the_umask(here: Path, mode: int) -> None:
    create(here / "new", mode)
    assert os.stat(here / "new").st_mode == stat.S_IFREG | mode & ~0o022


def test_umask_of_the_caller(here: Path) -> None:
    os.umask(0o077)
    create(here / "new", 0o777)
    assert permissions(here / "new") == 0o700


def test_times_of_creating(here: Path) -> None:
    assert times_changed(lambda: create(here / "new"), here, here / "dir") == ["mc", ""]


def test_times_of_opening_what_is_there(here: Path) -> None:
    def action() -> None:
        os.close(os.open(here / "file", os.O_RDWR | os.O_CREAT))

    assert times_changed(action, here, here / "file") == ["", ""]


def test_times_of_writing(here: Path) -> None:
    with opened(here / "file", os.O_RDWR) as fd:
        assert times_changed(lambda: os.write(fd, b"x"), here, here / "file") == ["", "mc"]
        assert times_changed(lambda: os.write(fd, b""), here, here / "file") == ["", ""]


def test_times_of_reading(here: Path) -> None:
    with opened(here / "file", os.O_RDONLY) as fd:
        os.utime(here / "file", ns=(1, 10**18))  # relatime: an atime before mtime is brought up to date
        assert times_changed(lambda: os.read(fd, 5), here, here / "file") == ["", "a"]


def test_times_of_reading_with_noatime(here: Path) -> None:
    with opened(here / "file", os.O_RDONLY | os.O_NOATIME) as fd:
        os.utime(here / "file", ns=(1, 10**18))
        assert times_changed(lambda: os.read(fd, 5), here / "file") == [""]


@pytest.mark.tree(ACCESS)
def test_noatime_is_for_the_owner(here: Path) -> None:
    assert as_user(BOB, os.open, here / "search/file", os.O_RDONLY | os.O_NOATIME) == "EPERM"
    assert isinstance(as_user(ALICE, os.open, here / "mine", os.O_RDONLY | os.O_NOATIME), int)


@pytest.mark.tree(ACCESS)
def test_owner_and_group_of_new_files(here: Path) -> None:
    assert as_user(ALICE, create, here / "open/new", gid=BOB) is None
    assert as_user(ALICE, create, here / "team/new") is None
    status = os.stat(here / "open/new")
    assert (status.st_uid, status.st_gid) == (ALICE, BOB)
    status = os.stat(here / "team/new")
    assert (status.st_uid, status.st_gid) == (ALICE, STAFF)


@pytest.mark.tree(ACCESS)
def test_setgid_of_new_files_needs_membership(here: Path) -> None:
    assert as_user(ALICE, create, here / "team/new", 0o2775) is None
    assert as_user(ALICE, create, here / "team/newer", 0o2775, groups=(STAFF,)) is None
    assert permissions(here / "team/new") == 0o755
    assert permissions(here / "team/newer") == 0o2755


@pytest.mark.tree(ACCESS)
def test_permissions(here: Path) -> None:
    assert as_user(BOB, os.open, here / "mine", os.O_RDONLY) == "EACCES"
    assert isinstance(as_user(BOB, os.open, here / "mine", os.O_RDONLY, groups=(STAFF,)), int)
    assert as_user(BOB, os.open, here / "mine", os.O_WRONLY, groups=(STAFF,)) == "EACCES"
    assert isinstance(as_user(ALICE, os.open, here / "mine", os.O_RDWR), int)
    assert as_user(BOB, os.open, here / "write-only", os.O_RDONLY) == "EACCES"
    assert isinstance(as_user(BOB, os.open, here / "write-only", os.O_WRONLY), int)
    assert as_user(BOB, os.open, here / "none", os.O_RDONLY) == "EACCES"
    assert as_user(BOB, os.open, here / "dark/file", os.O_RDONLY) == "EACCES"
    assert isinstance(as_user(BOB, os.open, here / "search/file", os.O_RDWR), int)
    assert as_user(BOB, os.listdir, here / "search") == "EACCES"
    assert as_user(BOB, os.listdir, here / "dark") == ["file"]
    assert as_user(BOB, create, here / "closed/new") == "EACCES"
    assert not (here / "closed/new").exists()


@pytest.mark.tree(ACCESS)
def test_a_new_file_may_be_written_though_its_mode_forbids(here: Path) -> None:
    def action() -> int:
        with opened(here / "open/new", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0) as fd:
            return os.write(fd, b"x")

    assert as_user(ALICE, action) == 1
    assert (here / "open/new").read_text() == "x"
    assert permissions(here / "open/new") == 0


def test_exclusive(here: Path) -> None:
    for name in ("file", "dir", "link", "dangling"):
        assert errno_of(os.open, here / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL) == "EEXIST"
    os.unlink(here / "file")
    create(here / "file")


def test_creating_through_a_dangling_symlink(here: Path) -> None:
    with opened(here / "dangling", os.O_WRONLY | os.O_CREAT) as fd:
        os.write(fd, b"x")
    assert (here / "nothing").read_text() == "x"


def test_append(here: Path) -> None:
    with (
        opened(here / "file", os.O_RDWR | os.O_APPEND) as one,
        opened(here / "file", os.O_WRONLY | os.O_APPEND) as two,
    ):
        os.write(one, b"1")
        os.write(two, b"2")
        os.lseek(one, 0, os.SEEK_SET)
        os.write(one, b"3")
        assert os.pwrite(one, b"4", 0) == 1
        assert os.lseek(two, 0, os.SEEK_CUR) == 18
    assert (here / "file").read_text() == "content of file\n1234"


def test_append_after_another_made_it_longer(here: Path) -> None:
    with opened(here / "file", os.O_WRONLY | os.O_APPEND) as fd:
        code = "import os, sys; os.truncate(sys.argv[1], 20)"
        subprocess.run([sys.executable, "-c", code, here / "file"], check=True)
        os.write(fd, b"end")
    assert (here / "file").read_bytes() == b"content of file\n" + bytes(4) + b"end"


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC, os.O_NONBLOCK, os.O_CLOEXEC, os.O_NOCTTY])
def test_flags_that_change_no_result(here: Path, flag: int) -> None:
    with opened(here / "file", os.O_RDWR | flag) as fd:
        os.write(fd, b"CON")
        os.fsync(fd)
        os.fdatasync(fd)
        assert os.pread(fd, 7, 0) == b"CONtent"


def test_direct(here: Path) -> None:
    with aligned(8192, b"direct") as memory, aligned(8192) as back:
        with opened(here / "file", os.O_RDWR | os.O_DIRECT) as fd:
            assert os.pwritev(fd, [memory], 4096) == 8192
            assert os.preadv(fd, [back], 4096) == 8192
            assert back[:6] == b"direct"
        with opened(here / "file", os.O_RDONLY) as fd:
            assert os.pread(fd, 7, 0) == b"content"
            assert os.pread(fd, 6, 4096) == b"direct"
            assert os.fstat(fd).st_size == 12288


def test_direct_and_cached_see_each_other(here: Path) -> None:
    with (
        aligned(4096, b"1") as memory,
        opened(here / "new", os.O_RDWR | os.O_CREAT | os.O_DIRECT) as direct,
        opened(here / "new", os.O_RDWR) as cached,
    ):
        for byte in b"123":
            memory[0] = byte
            os.pwritev(direct, [memory], 0)
            assert os.pread(cached, 1, 0) == bytes([byte])
            os.pwrite(cached, b"x", 0)
            os.preadv(direct, [memory], 0)
            assert memory[:1] == b"x"


def test_directories(here: Path) -> None:
    assert errno_of(os.open, here / "dir", os.O_WRONLY) == "EISDIR"
    assert errno_of(os.open, here / "dir", os.O_RDWR) == "EISDIR"
    assert errno_of(os.open, here / "dir", os.O_RDONLY | os.O_CREAT) == "EISDIR"
    assert errno_of(os.open, here / "file", os.O_RDONLY | os.O_DIRECTORY) == "ENOTDIR"
    assert errno_of(os.open, here / "link", os.O_RDONLY | os.O_DIRECTORY) == "ENOTDIR"
    with opened(here / "dir", os.O_RDONLY) as fd:
        assert errno_of(os.read, fd, 1) == "EISDIR"
        os.fsync(fd)


def test_path_descriptors(here: Path) -> None:
    with opened(here / "file", os.O_PATH) as fd:
        assert os.fstat(fd).st_ino == os.stat(here / "file").st_ino
        assert errno_of(os.read, fd, 1) == "EBADF"
        os.chmod(f"/proc/self/fd/{fd}", 0o600)
        assert os.fstat(fd).st_mode & 0o777 == 0o600
        with opened(Path(f"/proc/self/fd/{fd}"), os.O_RDWR) as again:
            os.write(again, b"CON")
    assert (here / "file").read_text() == "CONtent of file\n"


def test_unnamed_files(here: Path) -> None:
    with opened(here / "dir", os.O_TMPFILE | os.O_RDWR, 0o640) as fd:
        status = os.fstat(fd)
        assert (status.st_nlink, status.st_mode) == (0, stat.S_IFREG | 0o640)
        os.write(fd, b"made before it was named")
        assert os.listdir(here / "dir") == ["inner"]
        linkat(fd, here / "new")
        assert os.fstat(fd).st_nlink == 1
        assert os.stat(here / "new").st_ino == os.fstat(fd).st_ino
        os.write(fd, b", and after")
    assert (here / "new").read_text() == "made before it was named, and after"
    assert permissions(here / "new") == 0o640


def test_unnamed_files_through_proc(here: Path) -> None:
    with opened(here, os.O_TMPFILE | os.O_WRONLY) as fd:
        os.write(fd, b"x")
        linkat(AT_FDCWD, here / "new", old=b"/proc/self/fd/%d" % fd, flags=AT_SYMLINK_FOLLOW)
        assert errno_of(linkat, fd, here / "file") == "EEXIST"
    assert (here / "new").read_text() == "x"


def test_unnamed_files_that_stay_so(here: Path) -> None:
    with opened(here, os.O_TMPFILE | os.O_RDWR | os.O_EXCL) as fd:
        os.write(fd, b"x")
        assert errno_of(linkat, fd, here / "new") == "ENOENT"
    assert errno_of(os.open, here, os.O_TMPFILE | os.O_RDONLY) == "EINVAL"
    assert errno_of(os.open, here / "file", os.O_TMPFILE | os.O_RDWR) == "ENOTDIR"


def test_unnamed_files_change_no_time_of_the_directory(here: Path) -> None:
    def action() -> None:
        os.close(os.open(here, os.O_TMPFILE | os.O_WRONLY))

    assert times_changed(action, here) == [""]


@pytest.mark.tree(ACCESS)
def test_unnamed_files_of_users(here: Path) -> None:
    def action(name: str) -> tuple[int, int, int]:
        with opened(here / name, os.O_TMPFILE | os.O_RDWR, 0o666) as fd:
            status = os.fstat(fd)
            return status.st_uid, status.st_gid, status.st_mode & 0o7777

    assert as_user(ALICE, action, "open") == (ALICE, ALICE, 0o644)
    assert as_user(ALICE, action, "team") == (ALICE, STAFF, 0o644)
    assert as_user(ALICE, action, "closed") == "EACCES"


def test_errors(here: Path) -> None:
    assert errno_of(os.open, here / "nothing", os.O_RDONLY) == "ENOENT"
    assert errno_of(os.open, here / "nothing/new", os.O_WRONLY | os.O_CREAT) == "ENOENT"
    assert errno_of(os.open, here / "file/new", os.O_WRONLY | os.O_CREAT) == "ENOTDIR"
    assert errno_of(os.open, os.fspath(here / "file") + "/", os.O_RDONLY) == "ENOTDIR"
    assert errno_of(os.open, os.fspath(here / "new") + "/", os.O_WRONLY | os.O_CREAT) == "EISDIR"


def test_a_running_program_is_not_written(here: Path) -> None:
    program = here / "new"
    program.write_bytes(Path("/bin/cat").read_bytes())
    program.chmod(0o755)
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin is not None and running.stdout is not None
        running.stdin.write(b"x\n")
        running.stdin.flush()
        assert running.stdout.readline() == b"x\n"
        assert errno_of(os.open, program, os.O_WRONLY) == "ETXTBSY"
        assert errno_of(os.truncate, program, 0) == "ETXTBSY"
        running.stdin.close()
        assert running.wait() == 0
    with opened(program, os.O_WRONLY):
        assert errno_of(subprocess.run, [program]) == "ETXTBSY"
