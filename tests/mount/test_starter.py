"""Mounts started by a process that has imported everything: what the caller has, the server gets."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.union import wait_until

pytestmark = pytest.mark.root

CLONE_NEWNS = 0x20000


@pytest.fixture
def places(tmp_path):
    """Where starters of the test's own are; they end with the test."""
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    yield directory
    for pid in starters(directory):
        os.kill(pid, signal.SIGKILL)


def starters(places):
    """The processes that hold the lock of a starter."""
    locks = {(status.st_dev, status.st_ino) for status in map(os.stat, places.glob("unionfs/*.lock"))}
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and locks:
            try:
                held = [os.stat(f"{entry}/fd/{fd}") for fd in os.listdir(entry / "fd")]
            except OSError:
                continue  # it has just ended
            if locks & {(status.st_dev, status.st_ino) for status in held}:
                found.append(int(entry.name))
    return found


def is_listening(places):
    return bool(list(places.glob("unionfs/*.sock"))) and "\nunionfs: ready" in "\n" + words(places)


def words(places):
    return "\n".join(Path(f"/proc/{pid}/cmdline").read_text().strip("\0") for pid in starters(places))


@pytest.fixture
def mount(make_union, places):
    """Mount in the background; unmounted at the end."""
    made = []

    def mounted(*options, program=(sys.executable, "-m", "unionfs"), env=None, **more):
        union = make_union({"file": "lower"}, mount=False)
        arguments = ["-o", ",".join([union.options(), *options]), os.fspath(union.root)]
        environment = {**os.environ, "UNIONFS_STARTER": os.fspath(places), **(env or {})}
        result = subprocess.run(
            [*program, *arguments], capture_output=True, text=True, check=False, env=environment, **more
        )
        if os.path.ismount(union.root):
            made.append(union.root)
        return union, result

    yield mounted
    for root in made:
        subprocess.run(["umount", root], check=True)


@pytest.fixture
def starter(mount, places):
    """A starter that listens; its process id."""
    _, result = mount()
    assert result.returncode == 0, result.stderr
    wait_until(lambda: is_listening(places), "the first mount's starter listens")
    (pid,) = starters(places)
    return pid


def server_of(union):
    """The process that serves a mount, by what ps(1) shows."""
    wanted = os.fsencode(union.root)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parts = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if wanted in parts:
                return int(entry.name)
    raise AssertionError("nobody serves it")


def room_of(pid):
    """Bytes that a process has for its arguments: a starter's are many, and so are its forks'."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[46]) - int(fields[45])


def test_the_next_mount_is_its_work(mount, starter):
    union, result = mount()
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert (union.root / "file").read_text() == "lower"
    (union.root / "new").write_text("x")
    assert (union.upper / "new").read_text() == "x"
    assert room_of(server_of(union)) == room_of(starter)


def test_there_is_one(mount, starter, places):
    for _ in range(3):
        mount()
    assert starters(places) == [starter]


def test_refusals_are_the_same(mount, starter, make_union):
    _, result = mount("lowerdir=/no/such/layer")
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "/no/such/layer" in result.stderr
    _, result = mount("timeout=soon")
    assert result.returncode == 1
    assert "timeout=soon" in result.stderr


def test_many_at_once(make_union, starter, places):
    unions = [make_union({"file": str(number)}, mount=False) for number in range(12)]
    environment = {**os.environ, "UNIONFS_STARTER": os.fspath(places)}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "unionfs", "-o", union.options(), union.root], env=environment
        )
        for union in unions
    ]
    assert [process.wait() for process in running] == [0] * len(unions)
    assert [(union.root / "file").read_text() for union in unions] == [str(n) for n in range(12)]
    for union in unions:
        subprocess.run(["umount", union.root], check=True)


def test_what_an_exec_hands_down(mount, starter, tmp_path):
    def narrow():
        os.umask(0o027)
        os.nice(3)
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        resource.setrlimit(resource.RLIMIT_CORE, (4096, 8192))
        Path("/proc/self/oom_score_adj").write_text("321")

    union, result = mount(preexec_fn=narrow, env={"A_WORD": "of the caller"})
    assert result.returncode == 0, result.stderr
    pid = server_of(union)
    assert room_of(pid) == room_of(starter)
    assert "Umask:\t0027" in Path(f"/proc/{pid}/status").read_text()
    assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0) + 3
    assert len(os.sched_getaffinity(pid)) == 1
    assert resource.prlimit(pid, resource.RLIMIT_CORE) == (4096, 8192)
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "321"
    assert Path(f"/proc/{pid}/cgroup").read_text() == Path("/proc/self/cgroup").read_text()


def test_markers_by_the_environment(mount, starter):
    union, _ = mount(env={"FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT": "1"})
    os.remove(union.root / "file")
    assert os.path.exists(union.upper / ".wh.file")


def test_relative_paths_and_descriptors(make_union, starter, places):
    union = make_union({"file": "lower"}, mount=False)
    lower = os.open(union.lowers[0], os.O_PATH | os.O_DIRECTORY)
    try:
        result = subprocess.run(
            [
                sys.executable,
                "-m",
                "unionfs",
                "-o",
                f"lowerdir=/proc/self/fd/{lower},upperdir=upper,workdir=work",
                "merged",
            ],
            cwd=union.place,
            pass_fds=[lower],
            env={**os.environ, "UNIONFS_STARTER": os.fspath(places)},
            check=False,
        )
    finally:
        os.close(lower)
    assert result.returncode == 0
    try:
        assert (union.root / "file").read_text() == "lower"
    finally:
        subprocess.run(["umount", union.root], check=True)


def test_the_callers_pipe_is_let_go(mount, starter):
    """subprocess.run waits for the end of both pipes: with a server that held them it would wait for ever."""
    _, result = mount()
    assert result.returncode == 0


def test_another_mount_namespace_is_not_its_business(mount, starter, places):
    def apart():
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
            raise OSError(ctypes.get_errno(), "unshare")

    union, result = mount(preexec_fn=apart)
    assert result.returncode == 0, result.stderr
    os.kill(server_of(union), signal.SIGTERM)
    wait_until(lambda: starters(places) != [starter], "the other namespace has a starter too")


def test_less_rights_are_not_its_business(mount, starter):
    """Who cannot gain privileges must not gain them by asking."""

    def bound():
        if ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) != 0:  # PR_SET_NO_NEW_PRIVS
            raise OSError("prctl")

    union, result = mount(preexec_fn=bound)
    assert result.returncode == 0, result.stderr
    assert "NoNewPrivs:\t1" in Path(f"/proc/{server_of(union)}/status").read_text()


@pytest.mark.parametrize("damage", ["killed", "stopped socket", "garbage"])
def test_a_starter_that_is_gone_is_not_missed(mount, starter, places, damage):
    (address,) = places.glob("unionfs/*.sock")
    os.kill(starter, signal.SIGKILL)
    wait_until(lambda: not starters(places), "it is gone")
    if damage == "stopped socket":
        address.unlink()
    elif damage == "garbage":
        address.unlink()
        address.write_text("no socket")
    union, result = mount()
    assert (result.returncode, result.stderr) == (0, "")
    assert (union.root / "file").read_text() == "lower"


def test_a_directory_of_another_user_is_not_trusted(mount, places):
    (places / "unionfs").mkdir(mode=0o700)
    os.chown(places / "unionfs", 1234, 1234)
    _, result = mount()
    assert result.returncode == 0
    assert list((places / "unionfs").iterdir()) == []


def test_none_when_switched_off(mount, places):
    _, result = mount(env={"UNIONFS_STARTER": "0"})
    assert result.returncode == 0
    assert not (places / "unionfs").exists()


def test_the_foreground_is_the_callers(make_union, starter, places):
    union = make_union({"file": "lower"}, mount=False)
    server = subprocess.Popen(
        [sys.executable, "-m", "unionfs", "-f", "-o", union.options(), union.root],
        env={**os.environ, "UNIONFS_STARTER": os.fspath(places)},
    )
    try:
        wait_until(lambda: os.path.ismount(union.root), "it is mounted")
        assert server_of(union) == server.pid
    finally:
        server.terminate()
        assert server.wait() == 0
