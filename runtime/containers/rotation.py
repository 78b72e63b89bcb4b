"""A container's log kept to a size: --log-opt max-size and max-file.

conmon itself begins the file anew when it has max-size bytes, so a container never fills the disk. What was
in the file before is lost then, unless somebody else holds it: with max-file above 1 that is
`python -m runtime.containers.rotation ROOT ID START`, which keeps a second name for the present file
(`log.0`), and makes it log.1, log.2, … when conmon has begun another. When conmon begins two while it looks
once, the first of them is lost: the size is kept to, whatever the container writes.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from pathlib import Path

from runtime.containers.companions import is_at_work, spawn
from runtime.containers.container import Container, load
from runtime.containers.mounts import size_in_bytes
from runtime.errors import RuntimeFailure
from runtime.root import Root

DRIVERS = ("", "json-file", "local", "k8s-file", "none")
_SMALLEST = 32 << 10  # conmon writes up to so much at once
_LOOK = 100  # milliseconds


def check_options(driver: str, options: dict[str, str]) -> None:
    """Raises RuntimeFailure for a log driver or an option that there is not.

    docker's own drivers that keep a file mean ours.
    """
    if driver not in DRIVERS:
        raise RuntimeFailure(
            f"logger: no log driver named '{driver}' is registered: there are k8s-file and none", 125
        )
    for key, value in options.items():
        if key == "max-size":
            size = size_in_bytes(value)
            if 0 < size < _SMALLEST:
                raise RuntimeFailure(f"invalid log option max-size={value}: it is at least 32k", 125)
        elif key == "max-file":
            if not value.isdecimal() or int(value) < 1:
                raise RuntimeFailure(f"invalid log option max-file={value}: it is a number above 0", 125)
        elif key not in ("mode", "compress", "labels", "env", "tag"):
            raise RuntimeFailure(f"unknown log opt '{key}' for the k8s-file log driver", 125)
    if int(options.get("max-file", "1")) > 1 and not size_in_bytes(options.get("max-size", "0")):
        raise RuntimeFailure("invalid log options: max-file needs a max-size", 125)


def conmon_driver(container: Container) -> str:
    """conmon's --log-path for the container."""
    return "none" if container.request.log_driver == "none" else f"k8s-file:{container.log}"


def size_limit(container: Container) -> int:
    """The bytes that one file of the log may have; 0 is no limit."""
    return size_in_bytes(container.request.log_options.get("max-size", "0"))


def _count(container: Container) -> int:
    return int(container.request.log_options.get("max-file", "1"))


def is_rotated(container: Container) -> bool:
    """Whether nobody has to be sent to keep what conmon's new files replace."""
    return _count(container) < 2 or is_at_work(_lock(container))


def rotate(root: Root, container: Container) -> None:
    """Have what conmon's new files replace be kept, from now on until the container ends."""
    spawn("rotation", _lock(container), str(root.path), container.id, str(container.state.starts))


def _lock(container: Container) -> Path:
    return container.bundle / "log-lock"


def catch_up(container: Container) -> None:
    """Make the file that conmon has replaced log.1, if it has replaced one that we hold."""
    if _count(container) < 2:
        return
    log, kept = container.log, container.directory / "log.0"
    try:
        if os.stat(kept).st_ino == os.stat(log).st_ino:
            return
    except FileNotFoundError:
        pass
    else:
        count = _count(container)
        for number in range(count - 2, -1, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(container.directory / f"log.{number}", container.directory / f"log.{number + 1}")
    with contextlib.suppress(FileNotFoundError, FileExistsError):
        os.link(log, kept)


def main(root: Root, container_id: str, starts: int) -> None:
    """Keep old files of the container's log until the start number `starts` has ended."""
    with contextlib.suppress(FileNotFoundError):  # removed
        container = load(root.containers / container_id)
        if container.state.starts != starts or not container.state.live:
            return
        catch_up(container)
        with contextlib.suppress(ProcessLookupError):
            process = select.poll()
            process.register(os.pidfd_open(container.state.pid), select.POLLIN)
            while not process.poll(_LOOK):
                catch_up(container)
        catch_up(container)


if __name__ == "__main__":
    main(Root(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3]))
