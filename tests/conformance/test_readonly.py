"""Every call that would change something, on a filesystem mounted read only: EROFS, and reading goes on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.layers import build
from support.union import Union, detach, errno_of

from conformance.layout import COMMON, scratch
from conformance.system import create, opened, times_changed
from unionfs import syscalls

CHANGES: dict[str, Callable[[Path], Any]] = {
    "chmod": lambda here: os.chmod(here / "file", 0o600),
    "chown": lambda here: os.chown(here / "file", 1, 1),
    "lchown": lambda here: os.chown(here / "link", 1, 1, follow_symlinks=False),
    "create": lambda here: create(here / "new"),
    "link": lambda here: os.link(here / "file", here / "new"),
    "mkdir": lambda here: os.mkdir(here / "new"),
    "mkfifo": lambda here: os.mkfifo(here / "new"),
    "open to append": lambda here: os.open(here / "file", os.O_WRONLY | os.O_APPEND),
    "open to truncate": lambda here: os.open(here / "file", os.O_RDONLY | os.O_TRUNC),
    "open to write": lambda here: os.open(here / "file", os.O_RDWR),
    "open unnamed": lambda here: os.open(here, os.O_TMPFILE | os.O_RDWR),
    "removexattr": lambda here: os.removexattr(here / "file", "user.x"),
    "rename": lambda here: os.rename(here / "file", here / "new"),
    "rmdir": lambda here: os.rmdir(here / "empty"),
    "setxattr": lambda here: os.setxattr(here / "file", "user.x", b"1"),
    "symlink": lambda here: os.symlink("x", here / "new"),
    "truncate": lambda here: os.truncate(here / "file", 1),
    "unlink": lambda here: os.unlink(here / "file"),
    "utime": lambda here: os.utime(here / "file"),
}


@pytest.fixture(scope="module", params=["disk", "union"])
def here(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The common files, read only: a bind mount of the disk, or a union without an upper layer."""
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(scratch(None))
        if request.param == "union":
            union = Union(place, COMMON)
            union.writable = False
            stack.callback(union.close)
            yield union.mount()
            return
        build(place / "files", COMMON)
        stack.callback(detach, place / "files")
        files = os.fsencode(place / "files")
        syscalls.mount(files, files, b"", 4096, b"")
        syscalls.mount(b"", files, b"", 4096 | 32 | 1, b"")
        yield place / "files"


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_refused(here: Path, change: str) -> None:
    assert (
        times_changed(lambda: errno_of(CHANGES[change], here), here, here / "file", here / "empty")
        == [""] * 3
    )
    assert errno_of(CHANGES[change], here) == "EROFS"


def test_reading_goes_on(here: Path) -> None:
    assert (here / "file").read_text() == "content of file\n"
    assert sorted(os.listdir(here)) == ["dangling", "dir", "empty", "file", "link", "other"]
    with opened(here / "link", os.O_RDONLY) as fd:
        assert os.pread(fd, 7, 0) == b"content"


def test_what_is_there_is_said_before_what_may_not_be(here: Path) -> None:
    assert errno_of(os.mkdir, here / "dir") == "EEXIST"
    assert errno_of(create, here / "file/below") == "ENOTDIR"
    assert not os.access(here / "file", os.W_OK)
    assert os.statvfs(here).f_flag & os.ST_RDONLY
