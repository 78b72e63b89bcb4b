"""A container's root filesystem: a union mount of the image's layers and the container's own."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import RuntimeFailure
from unionfs.options import escape

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC = 1, 32, 4096, 16384
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_BUSY_PATIENCE = 2.0

_libc = ctypes.CDLL(None, use_errno=True)


def mount(
    lower: Sequence[Path | str],
    upper: Path,
    work: Path,
    target: Path,
    *,
    volatile: bool = False,
    keeps: Sequence[int] = (),
) -> None:
    """Mount the union of `lower` (uppermost first) and `upper` on `target`; it answers when this returns.

    `volatile` lets the driver skip what only matters after a crash. `keeps` are descriptors that stay open
    until it answers even if this process is killed: a lock held by them says that a mount may still appear.

    Raises RuntimeFailure with the driver's own words when it cannot be mounted.
    """
    options = [
        "lowerdir=" + ":".join(escape(str(layer)) for layer in lower),
        "upperdir=" + escape(str(upper)),
        "workdir=" + escape(str(work)),
    ]
    if volatile:
        options.append("volatile")
    _mount(options, target, keeps)


def mount_read_only(lower: Sequence[Path | str], target: Path) -> None:
    """Mount the union of `lower` (uppermost first) on `target`, with nothing that could be written to.

    Raises RuntimeFailure as `mount` does.
    """
    _mount(["lowerdir=" + ":".join(escape(str(layer)) for layer in lower)], target, ())


def _mount(options: Sequence[str], target: Path, keeps: Sequence[int]) -> None:
    result = subprocess.run(
        [sys.executable, "-P", "-m", "unionfs", "-o", ",".join(options), str(target)],
        pass_fds=tuple(keeps),
        cwd="/",  # the daemon keeps its directory: it must not hold the caller's
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if result.returncode != 0:
        raise RuntimeFailure(f"cannot mount the root filesystem: {result.stderr.strip()}")


def mount_tmpfs(target: Path, size: int) -> None:
    """Mount a tmpfs of `size` bytes on `target`, as /dev/shm is. Raises RuntimeFailure when it cannot be."""
    unmount(target)
    data = f"mode=1777,size={size}".encode()
    if _libc.mount(b"shm", os.fsencode(target), b"tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, data) != 0:
        raise RuntimeFailure(f"cannot mount {target}: {os.strerror(ctypes.get_errno())}", 125)


def bind(source: Path, target: int, read_only: bool) -> None:
    """Bind `source`, and what is mounted below it, to the place that is open as `target`.

    Raises OSError as mount(2) does.
    """
    place = f"/proc/self/fd/{target}".encode()
    _call_mount(os.fsencode(source), place, _MS_BIND | _MS_REC)
    if read_only:
        # The descriptor is of what is below: the new mount is found by its path.
        path = os.readlink(f"/proc/self/fd/{target}").encode()
        _call_mount(b"none", path, _MS_BIND | _MS_REMOUNT | _MS_RDONLY)


def _call_mount(source: bytes, target: bytes, flags: int) -> None:
    if _libc.mount(source, target, None, flags, None) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fsdecode(target))


def unmount_all(target: Path) -> None:
    """Unmount what is mounted on `target` and below it, the innermost first; nothing is fine too.

    Raises RuntimeFailure when it cannot be unmounted.
    """
    for path in sorted(_mounted_below(target), reverse=True):
        _libc.umount2(path, _UMOUNT_NOFOLLOW | _MNT_DETACH)
    unmount(target)


def is_mounted(target: Path) -> bool:
    """Whether something is mounted on `target`, be its daemon dead or alive."""
    return bool(_mounts_on(target))


def unmount(target: Path) -> None:
    """Unmount whatever is mounted on `target`, all of it if several are stacked; nothing is fine too.

    A mount that stays busy (a shell of the host's stands in it) is detached, and ends when it is let go.

    Raises RuntimeFailure when it cannot be unmounted at all.
    """
    deadline = time.monotonic() + _BUSY_PATIENCE
    flags = _UMOUNT_NOFOLLOW
    while _mounts_on(target):
        if _libc.umount2(os.fsencode(target), flags) == 0:
            continue
        code = ctypes.get_errno()
        if code == errno.EBUSY:
            if time.monotonic() > deadline:
                flags |= _MNT_DETACH
            time.sleep(0.02)
        elif code != errno.EINVAL:  # EINVAL: another process was faster
            raise RuntimeFailure(f"cannot unmount {target}: {os.strerror(code)}")


def _mounts_on(target: Path) -> list[str]:
    """The filesystem types mounted exactly on `target`."""
    wanted = os.fsencode(os.path.realpath(target.parent) + "/" + target.name)
    return [kind for path, kind in _table() if path == wanted]


def _mounted_below(target: Path) -> list[bytes]:
    """The paths below `target` on which something is mounted."""
    beginning = os.fsencode(os.path.realpath(target.parent) + "/" + target.name + "/")
    return [path for path, _ in _table() if path.startswith(beginning)]


def _table() -> list[tuple[bytes, str]]:
    """All mounts as (path, filesystem type), from /proc/self/mountinfo (proc(5)).

    Asked there and not with stat(2), which hangs or fails on a mount whose daemon is gone.
    """
    found = []
    with contextlib.suppress(FileNotFoundError), open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            fields = line.split()
            path = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), fields[4])
            found.append((path, fields[fields.index(b"-") + 1].decode()))
    return found
