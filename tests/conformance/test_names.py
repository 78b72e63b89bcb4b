"""Long names and paths, and ways that lead nowhere, for every call that takes a path."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.union import errno_of

from conformance.system import NAME_MAX, PATH_MAX, create

#: Calls on a path that is not there.
MAKING: dict[str, Callable[[Any], Any]] = {
    "create": create,
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "symlink": lambda path: os.symlink("x", path),
}
#: Calls on a path that should be there.
USING: dict[str, Callable[[Any], Any]] = {
    "stat": os.stat,
    "lstat": os.lstat,
    "open": lambda path: os.close(os.open(path, os.O_RDONLY)),
    "chmod": lambda path: os.chmod(path, 0o600),
    "chown": lambda path: os.chown(path, 1, 1),
    "utime": os.utime,
    "truncate": lambda path: os.truncate(path, 1),
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "readlink": os.readlink,
    "listdir": os.listdir,
    "rename": lambda path: os.rename(path, path + b"2"),
    "getxattr": lambda path: os.getxattr(path, "user.x"),
    "statvfs": os.statvfs,
}


def long_path(here: Path, length: int) -> bytes:
    """A path of so many bytes, whose directories are made, that leads to a new name."""
    path = os.fsencode(here)
    while length - len(path) > NAME_MAX + 2:
        path += b"/" + b"d" * min(NAME_MAX, length - len(path) - 4)
        os.mkdir(path)
    return path + b"/" + b"f" * (length - len(path) - 1)


@pytest.mark.tree({b"n" * NAME_MAX: "as long as can be", "dir": {b"\xff" * NAME_MAX: "any byte"}})
def test_names_of_255_bytes_made_before(here: Path) -> None:
    base = os.fsencode(here)
    assert open(base + b"/" + b"n" * NAME_MAX).read() == "as long as can be"  # noqa: SIM115
    os.chmod(base + b"/" + b"n" * NAME_MAX, 0o600)
    os.rename(base + b"/dir/" + b"\xff" * NAME_MAX, base + b"/dir/" + b"\xfe" * NAME_MAX)
    os.unlink(base + b"/" + b"n" * NAME_MAX)
    assert os.listdir(base) == [b"dir"]
    assert os.listdir(base + b"/dir") == [b"\xfe" * NAME_MAX]


@pytest.mark.parametrize("call", MAKING)
def test_names_of_255_and_256_bytes_are_made(here: Path, call: str) -> None:
    base = os.fsencode(here)
    MAKING[call](base + b"/" + b"n" * NAME_MAX)
    assert b"n" * NAME_MAX in os.listdir(base)
    assert errno_of(MAKING[call], base + b"/" + b"n" * (NAME_MAX + 1)) == "ENAMETOOLONG"


@pytest.mark.parametrize("call", USING)
def test_names_of_256_bytes(here: Path, call: str) -> None:
    base = os.fsencode(here)
    if call != "statvfs":
        assert errno_of(USING[call], base + b"/" + b"n" * NAME_MAX) == "ENOENT"
    assert errno_of(USING[call], base + b"/" + b"n" * (NAME_MAX + 1)) == "ENAMETOOLONG"
    assert errno_of(USING[call], base + b"/" + b"n" * (NAME_MAX + 1) + b"/below") == "ENAMETOOLONG"


def test_links_and_renames_to_long_names(here: Path) -> None:
    longest, longer = here / ("n" * NAME_MAX), here / ("n" * (NAME_MAX + 1))
    assert errno_of(os.link, here / "file", longer) == "ENAMETOOLONG"
    assert errno_of(os.rename, here / "file", longer) == "ENAMETOOLONG"
    os.link(here / "file", longest)
    os.unlink(longest)
    os.rename(here / "file", longest)
    os.rename(longest, here / "file")
    assert (here / "file").read_text() == "content of file\n"


@pytest.mark.parametrize("call", MAKING)
def test_paths_of_exactly_path_max(here: Path, call: str) -> None:
    path = long_path(here, PATH_MAX - 1)
    assert len(path) == PATH_MAX - 1
    MAKING[call](path)
    assert os.lstat(path).st_nlink >= 1
    assert errno_of(MAKING[call], path + b"f") == "ENAMETOOLONG"
    assert errno_of(os.lstat, path + b"f") == "ENAMETOOLONG"


def test_trees_deeper_than_path_max(here: Path) -> None:
    depth = 60
    fd = os.open(here, os.O_RDONLY)
    name = b"d" * 200
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    created = os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    os.write(created, b"deep")
    os.close(created)
    os.chmod("file", 0o600, dir_fd=fd)
    assert os.stat("file", dir_fd=fd).st_size == 4
    os.unlink("file", dir_fd=fd)
    for _ in range(depth):
        above = os.open("..", os.O_RDONLY, dir_fd=fd)
        os.rmdir(name, dir_fd=above)
        os.close(fd)
        fd = above
    assert os.fstat(fd).st_ino == os.stat(here).st_ino
    os.close(fd)


@pytest.mark.parametrize("call", {**MAKING, **USING})
def test_a_file_on_the_way(here: Path, call: str) -> None:
    action = (MAKING | USING)[call]
    assert errno_of(action, os.fsencode(here) + b"/file/below") == "ENOTDIR"
    assert errno_of(action, os.fsencode(here) + b"/link/below") == "ENOTDIR"


@pytest.mark.parametrize("call", {**MAKING, **USING})
def test_nothing_on_the_way(here: Path, call: str) -> None:
    action = (MAKING | USING)[call]
    assert errno_of(action, os.fsencode(here) + b"/nothing/below") == "ENOENT"
    assert errno_of(action, os.fsencode(here) + b"/dangling/below") == "ENOENT"
    assert errno_of(action, b"") == "ENOENT"


@pytest.mark.parametrize("call", {**MAKING, **USING})
def test_a_loop_on_the_way(here: Path, call: str) -> None:
    os.symlink("loop", here / "loop")
    assert errno_of((MAKING | USING)[call], os.fsencode(here) + b"/loop/below") == "ELOOP"


@pytest.mark.parametrize("name", ["#1", ".wh", "wh.x", ".fuse_hidden0001", ".nfs0001", "...", "work"])
def test_names_that_mean_nothing(here: Path, name: str) -> None:
    create(here / name)
    assert name in os.listdir(here)
    os.unlink(here / name)


@pytest.mark.parametrize("name", [".wh.x", ".wh.", ".wh..wh..opq", ".wh..opq"])
def test_names_that_mean_a_whiteout_elsewhere(here: Path, name: str) -> None:
    create(here / name)
    assert name in os.listdir(here)
    os.unlink(here / name)
