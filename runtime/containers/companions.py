"""Processes of ours that stay beside a container: what conmon does not do.

Each is a module of this package that is run for one container, detached from whoever started it. It inherits
a lock on a file, which ends with it: so anyone can see at any time whether it is there, and there is never a
second one. When it was killed, the next command that looks at its container starts it again (see settle).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

_TRIES, _PAUSE = 5, 0.02

#: The locks of this process itself, if it is a companion.
_own: set[Path] = set()


def become(lock: Path) -> None:
    """Say that this process is the companion with the lock `lock`."""
    _own.add(lock)


def await_end(lock: Path, patience: float = 5.0) -> None:
    """Wait for the companion with the lock `lock` to end; it does by itself when its container has.

    It may be executing something in that very moment, which must not happen when the container is removed.
    """
    deadline = time.monotonic() + patience
    while lock not in _own and is_at_work(lock) and time.monotonic() < deadline:
        time.sleep(_PAUSE)


def spawn(module: str, lock: Path, *arguments: str) -> None:
    """Run `runtime.containers.MODULE` with `arguments` and the lock `lock`, unless another has that already.

    Nothing happens either when the directory of `lock` is gone.
    """
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return
    try:
        if _took(fd):
            subprocess.Popen(
                [sys.executable, "-P", "-m", f"runtime.containers.{module}", *arguments],
                pass_fds=[fd],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
    finally:
        os.close(fd)


def _took(fd: int) -> bool:
    for _ in range(_TRIES):  # one who only looks has it for an instant
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(_PAUSE)
    return False


def is_at_work(lock: Path) -> bool:
    """Whether there is a companion with the lock `lock`."""
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
