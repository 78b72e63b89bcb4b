"""What a server tells of itself and of its tree, to who has the right to know.

Asked for as extended attributes that no listing shows: `unionfs.stats` of the mountpoint, and of any path
`unionfs.explain`, or `unionfs.explain/NAME` for a name in a directory that may not be there. The values are
JSON. They tell of paths outside the mount, so they are for the server's own user and root, and only in the
mount namespace that the server lives in: not for a container that runs on the mount.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import time
from typing import Any

from unionfs import __version__, metacopy, whiteout, xattr
from unionfs.copyup import CopyUp
from unionfs.layer import Layer, join
from unionfs.nodes import Node
from unionfs.passthrough import Backings
from unionfs.session import Capability, agreed, counts, hooked, pyfuse3
from unionfs.tree import Tree

#: The names of requests, by opcode (<linux/fuse.h>).
_REQUESTS = dict(
    enumerate(
        (
            "LOOKUP FORGET GETATTR SETATTR READLINK SYMLINK - MKNOD MKDIR UNLINK RMDIR RENAME LINK OPEN READ "
            "WRITE STATFS RELEASE - FSYNC SETXATTR GETXATTR LISTXATTR REMOVEXATTR FLUSH INIT OPENDIR READDIR "
            "RELEASEDIR FSYNCDIR GETLK SETLK SETLKW ACCESS CREATE INTERRUPT BMAP DESTROY IOCTL POLL "
            "NOTIFY_REPLY BATCH_FORGET FALLOCATE READDIRPLUS RENAME2 LSEEK COPY_FILE_RANGE SETUPMAPPING "
            "REMOVEMAPPING SYNCFS TMPFILE STATX"
        ).split(),
        start=1,
    )
)

#: Names of attributes that begin so are questions to us.
PREFIX = b"unionfs."

STATS = b"unionfs.stats"
EXPLAIN = b"unionfs.explain"

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


class Complaints(logging.Handler):
    """Counts what was logged: a server that had nothing to complain of has zeros here."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warnings = 0
        self.errors = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count one."""
        if record.levelno >= logging.ERROR:
            self.errors += 1
        else:
            self.warnings += 1


class Inspection:
    """Answers questions about one union."""

    def __init__(self, tree: Tree, copyup: CopyUp | None, backings: Backings, *, fastpath: bool) -> None:
        self._tree = tree
        self._copyup = copyup
        self._backings = backings
        self._fastpath = fastpath
        self._since = time.monotonic()
        self._complaints = Complaints()
        logging.getLogger().addHandler(self._complaints)

    def answer(self, node: Node, question: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """The value of an attribute whose name begins with `unionfs.`.

        Raises OSError: ENODATA where there is none, or it is not for the caller.
        """
        if not _may_ask(ctx):
            raise OSError(errno.ENODATA, "not to be told")
        if question == STATS:
            told: Any = self.stats()
        elif question == EXPLAIN:
            told = self.explain(node)
        elif question.startswith(EXPLAIN + b"/"):
            told = self.explain_name(node, question[len(EXPLAIN) + 1 :])
        else:
            raise OSError(errno.ENODATA, "no such question")
        return json.dumps(told).encode()

    # The server ------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """What was asked and done since the server began. Times in microseconds, sizes in bytes."""
        tree, copyup = self._tree, self._copyup
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_seconds": round(time.monotonic() - self._since, 3),
            "upper": tree.upper.path if tree.upper is not None else None,
            "lowers": [lower.path for lower in tree.lowers],
            "negotiated": {
                "session_io": hooked(),
                "fastpath": self._fastpath,
                "passthrough": self._backings.session_fd >= 0,
                **{wanted.name.lower(): bool(agreed() & wanted) for wanted in Capability if wanted.name},
            },
            "requests": [_request(*counted) for counted in counts()],
            "copied_up": {
                "files": copyup.copied_files if copyup else 0,
                "bytes": copyup.copied_bytes if copyup else 0,
                "unsettled": copyup.settling.pending if copyup else 0,
            },
            "passed_through": self._backings.opened,
            "nodes": len(tree.nodes),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "memory": _memory(),
            "warnings": self._complaints.warnings,
            "errors": self._complaints.errors,
        }

    # The tree --------------------------------------------------------------------------------------

    def explain(self, node: Node) -> list[dict[str, Any]]:
        """Where each piece of a node's path comes from, the root first."""
        pieces: list[dict[str, Any]] = []
        while node.names:
            parent, name = node.names[0]
            pieces.append(self._piece(parent, name, node))
            node = parent
        pieces.append(
            {
                "name": "",
                "kind": _KINDS[node.kind],
                "layers": [
                    {**_found(layer, path, "directory"), "hidden": False}
                    for layer, path in self._places(node)
                ],
            }
        )
        pieces.reverse()
        return pieces

    def explain_name(self, parent: Node, name: bytes) -> dict[str, Any]:
        """What a name in a directory means, also if it means nothing."""
        if not name or b"/" in name:
            raise OSError(errno.EINVAL, "not a name")
        node = self._tree.lookup(parent, name)
        told = self._piece(parent, name, node)
        if node is not None:
            self._tree.nodes.release(node)
        return told

    def _piece(self, parent: Node, name: bytes, node: Node | None) -> dict[str, Any]:
        layers = []
        seen = False
        hidden = False
        for layer, path in self._places(parent):
            found, is_directory, hides = self._look(layer, path, name)
            if found is None:
                continue
            hidden = hidden or (seen and not is_directory)
            layers.append({**found, "hidden": hidden})
            seen = True
            hidden = hidden or hides
        return {
            "name": os.fsdecode(name),
            "kind": _KINDS[node.kind] if node is not None else None,
            "layers": layers,
        }

    def _look(self, layer: Layer, directory: bytes, name: bytes) -> tuple[dict[str, Any] | None, bool, bool]:
        """What one layer has at a name, whether a directory, and whether it hides the layers below."""
        path = join(directory, name)
        try:
            status = layer.stat(path)
        except FileNotFoundError:
            try:
                marker = join(directory, whiteout.MARKER_PREFIX + name)
                layer.stat(marker)
            except OSError:
                return None, False, False
            return _found(layer, marker, "whiteout"), False, True
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            opaque = self._tree.is_opaque(layer, path)
            return _found(layer, path, "opaque directory" if opaque else "directory"), True, opaque
        if whiteout.is_device_whiteout(status.st_mode, status.st_rdev):
            return _found(layer, path, "whiteout"), False, True
        if (
            kind == stat.S_IFREG
            and not status.st_size
            and xattr.has(layer.proc_path(path), whiteout.WHITEOUT_XATTRS)
        ):
            return _found(layer, path, "whiteout"), False, True
        if kind == stat.S_IFREG and metacopy.is_metacopy(layer.proc_path(path)):
            return _found(layer, path, "file without its content"), False, True
        return _found(layer, path, _KINDS[kind]), False, True

    def _places(self, directory: Node) -> list[tuple[Layer, bytes]]:
        """Where a directory is, topmost first."""
        self._tree.listing(directory)
        upper = (
            [(self._tree.upper, self._tree.path(directory))] if directory.upper and self._tree.upper else []
        )
        return [*upper, *directory.lowers]


def _may_ask(ctx: pyfuse3.RequestContext) -> bool:
    if ctx.uid not in (0, os.geteuid()):
        return False
    try:
        theirs, ours = os.stat(f"/proc/{ctx.pid}/ns/mnt"), os.stat("/proc/self/ns/mnt")
    except OSError:
        return False
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


def _request(opcode: int, asked: int, native: int, ns: int, longest_ns: int) -> dict[str, Any]:
    return {
        "name": _REQUESTS.get(opcode, f"opcode {opcode}"),
        "asked": asked,
        "native": native,
        "mean_us": round(ns / asked / 1000, 1),
        "longest_us": round(longest_ns / 1000, 1),
    }


def _memory() -> dict[str, int]:
    """Bytes that are ours alone, and all that is resident (proc(5), smaps_rollup)."""
    wanted = {"Rss:": 0, "Private_Clean:": 0, "Private_Dirty:": 0}
    try:
        with open("/proc/self/smaps_rollup", encoding="ascii") as lines:
            for line in lines:
                words = line.split()
                if words and words[0] in wanted:
                    wanted[words[0]] = int(words[1]) * 1024
    except OSError:
        pass  # a kernel without it
    return {"resident": wanted["Rss:"], "private": wanted["Private_Clean:"] + wanted["Private_Dirty:"]}


def _found(layer: Layer, path: bytes, holds: str) -> dict[str, Any]:
    return {"layer": layer.path, "path": os.fsdecode(path), "holds": holds}
