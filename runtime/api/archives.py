"""/containers/NAME/archive: files into containers and out of them."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import BinaryIO

from runtime.api.daemon import Daemon
from runtime.api.errors import ApiError
from runtime.api.http import Call, Reply
from runtime.api.pipes import body_file, patiently, produced, work
from runtime.containers import copying, lifecycle, users
from runtime.containers.copying import PathStat

TAR = "application/x-tar"

#: The bits of Go's os.FileMode for st_mode's file types (pkg.go.dev/io/fs, FileMode).
_GO_TYPES = {
    0o040000: 1 << 31,  # directory
    0o120000: 1 << 27,  # symlink
    0o010000: 1 << 25,  # named pipe
    0o140000: 1 << 24,  # socket
    0o060000: 1 << 26,  # block device
    0o020000: 1 << 26 | 1 << 21,  # character device
}
_GO_BITS = {0o4000: 1 << 23, 0o2000: 1 << 22, 0o1000: 1 << 20}


def go_mode(mode: int) -> int:
    """st_mode as Go's os.FileMode."""
    value = (mode & 0o777) | _GO_TYPES.get(mode & 0o170000, 0)
    return value | sum(bit for mask, bit in _GO_BITS.items() if mode & mask)


def _header(found: PathStat) -> dict[str, str]:
    seconds, nanoseconds = divmod(found.mtime_ns, 10**9)
    value = {
        "name": found.name,
        "size": found.size,
        "mode": go_mode(found.mode),
        "mtime": f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z",
        "linkTarget": found.link_target,
    }
    return {"X-Docker-Container-Path-Stat": base64.b64encode(json.dumps(value).encode()).decode()}


def _path(call: Call) -> str:
    path = call.query.text("path")
    if not path:
        raise ApiError(400, "missing parameter: path")
    return path


async def head(daemon: Daemon, call: Call) -> Reply:
    """HEAD /containers/NAME/archive?path=…: what is there, in a header."""
    path = _path(call)

    def look() -> PathStat:
        with copying.tree(daemon.root, call.name) as fd:
            return copying.look(fd, path)

    return Reply(b"", headers=_header(await work(look)))


async def get(daemon: Daemon, call: Call) -> None:
    """GET /containers/NAME/archive?path=…: a tar of it."""
    path = _path(call)
    tree = copying.tree(daemon.root, call.name)
    fd = await work(tree.__enter__)
    try:
        found = await work(lambda: copying.look(fd, path))

        def write(file: BinaryIO) -> None:
            with open(file.fileno(), "wb", closefd=False) as buffered:
                copying.archive(fd, path, buffered)

        async with call.streaming(TAR, _header(found)) as send:
            await produced(call, send, write)
    finally:
        await work(lambda: tree.__exit__(None, None, None))


async def put(daemon: Daemon, call: Call) -> Reply:
    """PUT /containers/NAME/archive?path=…: unpack the tar in the body there."""
    path, query = _path(call), call.query
    keep_kinds = query.flag("noOverwriteDirNonDir")
    subject = await work(lambda: lifecycle.inspect(daemon.root, call.name))

    def unpack(stream: BinaryIO) -> None:
        with copying.tree(daemon.root, subject.id) as fd:
            owner: copying.Owner = lambda uid, gid: (uid, gid)  # noqa: E731
            if query.flag("copyUIDGID") and subject.process.user:
                user = users.resolve(subject.rootfs, subject.process.user)
                owner = lambda uid, gid: (user.uid, user.gid)  # noqa: E731
            copying.extract(fd, path, stream, owner, keep_kinds)

    async with body_file(call) as file:
        await patiently(lambda: unpack(file))
    return Reply(b"")
