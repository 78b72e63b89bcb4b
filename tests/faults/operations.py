"""One of every operation, on cases that are alike: each is a directory of the union with the same in it."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.layers import PAST_NS, Dir, File, HardLink, Node, Symlink, opaque, whiteout
from support.snapshot import Picture, snapshot

from unionfs import syscalls

#: A layer, as support.layers builds it.
Names = dict[str, Any]


@dataclass(frozen=True)
class Operation:
    """One call of a user (but open and close around it), and the names of a case that matter to it."""

    uses: str
    act: Callable[[Path], Any]


#: What a second lower layer, below the first, has in a case.
BELOW = {"hides": {"h": "h"}, "acl": {"h": "h"}, "d": {"e": {"bottom": "b"}}}

#: What the first has.
LOWER = {
    "file": File(content="content" * 500, xattrs={"user.note": b"n", "trusted.note": b"t"}),
    "d": {"e": {"deep": "deep"}},
    "one": "linked",
    "gone": "g",
    "gone2": {"x": "x"},
    "emptied": {},
    "covered": {"old": "o"},
    "link": Symlink(target="file"),
    "fifo": Node(kind=stat.S_IFIFO),
    "w": {"file": "w", "kept": "k"},
}

#: What the upper layer has.
UPPER = {
    "own": "u",
    "gone": whiteout(),
    "gone2": whiteout(),
    "covered": opaque({"new": "n"}),
    "pure": {},
    "full": {"x": {"y": "z"}},
    "hides": {"h": whiteout()},
    "acl": Dir(names={"h": whiteout()}, mode=0o2755, owner=(0, 5)),
}


def layers(operation: Operation, names: Iterable[str]) -> tuple[Names, Names, Names]:
    """The upper and two lower layers of a union with cases of those names for an operation."""

    def used(contents: Mapping[str, Any]) -> Names:
        return {name: thing for name, thing in contents.items() if name in operation.uses.split()}

    lower = {case: used(LOWER) for case in names}
    if "one" in operation.uses.split():
        for case, contents in lower.items():
            contents["s"] = {"two": HardLink(f"{case}/one")}
    return {case: used(UPPER) for case in names}, lower, {case: used(BELOW) for case in names}


def _write(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        assert os.write(fd, content) == len(content)
    finally:
        os.close(fd)


def _create(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640))


def _exchange(one: Path, other: Path) -> None:
    flags = syscalls.RENAME_EXCHANGE
    syscalls.renameat2(syscalls.AT_FDCWD, os.fsencode(one), syscalls.AT_FDCWD, os.fsencode(other), flags)


def _read(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.read(fd, 1 << 16)
    finally:
        os.close(fd)


#: Those that change something.
CHANGES: dict[str, Operation] = {
    "create": Operation("", lambda c: _create(c / "new")),
    "create deep": Operation("d", lambda c: _create(c / "d/e/new")),
    "create over a whiteout": Operation("gone", lambda c: _create(c / "gone")),
    "create over a whiteout, setgid": Operation("acl", lambda c: _create(c / "acl/h")),
    "mkdir": Operation("", lambda c: os.mkdir(c / "new")),
    "mkdir over a whiteout": Operation("gone2", lambda c: os.mkdir(c / "gone2")),
    "symlink": Operation("", lambda c: os.symlink("target", c / "new")),
    "mknod": Operation("", lambda c: os.mknod(c / "new", stat.S_IFIFO | 0o600)),
    "link": Operation("own", lambda c: os.link(c / "own", c / "new")),
    "link over a whiteout": Operation("own gone", lambda c: os.link(c / "own", c / "gone")),
    "link a lower file": Operation("file d", lambda c: os.link(c / "file", c / "d/new")),
    "unlink": Operation("own", lambda c: os.unlink(c / "own")),
    "unlink a lower file": Operation("w", lambda c: os.unlink(c / "w/file")),
    "unlink a lower file of two names": Operation("one", lambda c: os.unlink(c / "one")),
    "unlink a whole path": Operation("d", lambda c: os.unlink(c / "d/e/deep")),
    "rmdir": Operation("pure", lambda c: os.rmdir(c / "pure")),
    "rmdir a lower directory": Operation("emptied", lambda c: os.rmdir(c / "emptied")),
    "rename": Operation("own", lambda c: os.rename(c / "own", c / "renamed")),
    "rename a lower file": Operation("file d", lambda c: os.rename(c / "file", c / "d/renamed")),
    "rename a lower file over another": Operation("w", lambda c: os.rename(c / "w/file", c / "w/kept")),
    "rename over a whiteout": Operation("own gone", lambda c: os.rename(c / "own", c / "gone")),
    "rename a directory": Operation("full", lambda c: os.rename(c / "full", c / "renamed")),
    "rename a directory over a whiteout": Operation(
        "full gone2", lambda c: os.rename(c / "full", c / "gone2")
    ),
    "rename a directory over a lower one": Operation(
        "full emptied", lambda c: os.rename(c / "full", c / "emptied")
    ),
    "rename of names of one file": Operation("one", lambda c: os.rename(c / "one", c / "s/three")),
    "exchange": Operation("own file", lambda c: _exchange(c / "own", c / "file")),
    "exchange a directory": Operation("full file", lambda c: _exchange(c / "full", c / "file")),
    "chmod": Operation("file", lambda c: os.chmod(c / "file", 0o600)),
    "chmod a directory": Operation("d", lambda c: os.chmod(c / "d/e", 0o700)),
    "chown": Operation("file", lambda c: os.chown(c / "file", 7, 8)),
    "chown a symlink": Operation("link", lambda c: os.chown(c / "link", 7, 8, follow_symlinks=False)),
    "chmod a FIFO": Operation("fifo", lambda c: os.chmod(c / "fifo", 0o600)),
    "utime of one of two names": Operation("one", lambda c: os.utime(c / "one", ns=(1, 1))),
    "setxattr": Operation("w", lambda c: os.setxattr(c / "w/file", "user.new", b"v")),
    "removexattr": Operation("file", lambda c: os.removexattr(c / "file", "user.note")),
    "truncate": Operation("file", lambda c: os.truncate(c / "file", 10)),
    "truncate to nothing": Operation(
        "file", lambda c: os.close(os.open(c / "file", os.O_WRONLY | os.O_TRUNC))
    ),
    "write": Operation("file", lambda c: _write(c / "file", b"written")),
    "write to an upper file": Operation("own", lambda c: _write(c / "own", b"written")),
}

#: Those that change nothing.
READS: dict[str, Operation] = {
    "stat": Operation("d", lambda c: os.lstat(c / "d/e/deep")),
    "list": Operation("d", lambda c: os.listdir(c / "d/e")),
    "read": Operation("file", lambda c: _read(c / "file")),
    "readlink": Operation("link", lambda c: os.readlink(c / "link")),
    "getxattr": Operation("file", lambda c: os.getxattr(c / "file", "user.note")),
    "listxattr": Operation("file", lambda c: os.listxattr(c / "file")),
    "statfs": Operation("w", lambda c: os.statvfs(c / "w")),
}


def state(case: Path) -> dict[bytes, Picture]:
    """A picture of a case that is the same for all that went through the same: times only say old or new."""
    return {
        path: dataclasses.replace(seen, mtime_ns=seen.mtime_ns if seen.mtime_ns in (1, PAST_NS) else 0)
        for path, seen in snapshot(case).items()
    }
