"""mknod(2), mkfifo(3), bind(2) of a socket."""

from __future__ import annotations

import os
import select
import socket
import stat
from pathlib import Path

import pytest
from support.layers import Dir, Node
from support.union import errno_of

from conformance.system import ALICE, STAFF, as_user, opened, permissions, times_changed

SHARED = {"open": Dir(mode=0o777), "closed": Dir(mode=0o755), "team": Dir(mode=0o2777, owner=(0, STAFF))}
NODES = {
    "fifo": Node(kind=stat.S_IFIFO, mode=0o666),
    "null": Node(kind=stat.S_IFCHR, device=(1, 3), mode=0o666),
    "block": Node(kind=stat.S_IFBLK, device=(259, 70000), mode=0o600),
    "socket": Node(kind=stat.S_IFSOCK, mode=0o755),
}


@pytest.mark.parametrize(
    ("kind", "device"),
    [
        (stat.S_IFIFO, (0, 0)),
        (stat.S_IFSOCK, (0, 0)),
        (stat.S_IFREG, (0, 0)),
        (stat.S_IFCHR, (1, 3)),
        (stat.S_IFCHR, (0, 1)),
        (stat.S_IFBLK, (7, 0)),
        (stat.S_IFBLK, (0, 0)),
        (stat.S_IFCHR, (4095, 1_048_575)),
    ],
)
def test_makes_each_type(here: Path, kind: int, device: tuple[int, int]) -> None:
    os.mknod(here / "new", kind | 0o666, os.makedev(*device))
    status = os.lstat(here / "new")
    assert (status.st_mode, status.st_nlink, status.st_size) == (kind | 0o644, 1, 0)
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == device


@pytest.mark.tree(NODES)
@pytest.mark.parametrize("name", ["fifo", "null", "block", "socket"])
def test_nodes_made_before(here: Path, name: str) -> None:
    status = os.lstat(here / name)
    wanted = NODES[name]
    assert stat.S_IFMT(status.st_mode) == wanted.kind
    assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == wanted.device
    assert permissions(here / name) == wanted.mode
    ino = status.st_ino
    os.chmod(here / name, 0o640)
    status = os.lstat(here / name)
    assert (status.st_mode, status.st_ino) == (wanted.kind | 0o640, ino)
    assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == wanted.device


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG, stat.S_IFCHR])
def test_times(here: Path, kind: int) -> None:
    def action() -> None:
        os.mknod(here / "new", kind | 0o600, os.makedev(1, 5))

    assert times_changed(action, here, here / "dir") == ["mc", ""]


@pytest.mark.tree(SHARED)
def test_owner_group_and_permission(here: Path) -> None:
    assert as_user(ALICE, os.mkfifo, here / "open/new", 0o600) is None
    assert as_user(ALICE, os.mkfifo, here / "team/new", 0o600) is None
    assert as_user(ALICE, os.mkfifo, here / "closed/new", 0o600) == "EACCES"
    status = os.stat(here / "open/new")
    assert (status.st_uid, status.st_gid) == (ALICE, ALICE)
    status = os.stat(here / "team/new")
    assert (status.st_uid, status.st_gid) == (ALICE, STAFF)


@pytest.mark.tree(SHARED)
def test_devices_are_for_root_alone(here: Path) -> None:
    def make(kind: int) -> None:
        os.mknod(here / "open/new", kind | 0o600, os.makedev(1, 3))

    assert as_user(ALICE, make, stat.S_IFCHR) == "EPERM"
    assert as_user(ALICE, make, stat.S_IFBLK) == "EPERM"
    assert as_user(ALICE, make, stat.S_IFREG) is None


@pytest.mark.tree(NODES)
def test_a_fifo_carries_bytes(here: Path) -> None:
    with (
        opened(here / "fifo", os.O_RDONLY | os.O_NONBLOCK) as reader,
        opened(here / "fifo", os.O_WRONLY) as writer,
    ):
        os.write(writer, b"through")
        os.chmod(here / "fifo", 0o600)
        with opened(here / "fifo", os.O_WRONLY | os.O_NONBLOCK) as other:
            os.write(other, b" and through")
        assert os.read(reader, 100) == b"through and through"


@pytest.mark.tree(NODES)
def test_a_fifo_without_reader(here: Path) -> None:
    assert errno_of(os.open, here / "fifo", os.O_WRONLY | os.O_NONBLOCK) == "ENXIO"


@pytest.mark.tree(NODES)
def test_a_device_is_the_device(here: Path) -> None:
    with opened(here / "null", os.O_RDWR) as fd:
        assert os.write(fd, b"gone") == 4
        assert os.read(fd, 10) == b""
    assert errno_of(os.open, here / "socket", os.O_RDONLY) == "ENXIO"


def test_a_socket_is_met_by_its_name(here: Path) -> None:
    before = os.getcwd()
    os.chdir(here)
    try:
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind("new")
            server.listen()
            assert stat.S_ISSOCK(os.stat("new").st_mode)
            os.rename("new", "newer")
            client.connect("newer")
            client.send(b"x")
            assert select.select([server], [], [], 20)[0] == [server]
            peer, _ = server.accept()
            with peer:
                assert peer.recv(1) == b"x"
    finally:
        os.chdir(before)


def test_errors(here: Path) -> None:
    for name in ("file", "dir", "link", "dangling"):
        assert errno_of(os.mkfifo, here / name) == "EEXIST"
    assert errno_of(os.mkfifo, here / "nothing/new") == "ENOENT"
    assert errno_of(os.mkfifo, here / "file/new") == "ENOTDIR"
    assert errno_of(os.mknod, here / "new", stat.S_IFDIR | 0o755) == "EPERM"
    assert errno_of(os.mknod, here / "new", stat.S_IFLNK | 0o755) == "EINVAL"
