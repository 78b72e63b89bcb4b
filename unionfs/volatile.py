"""The mark of a volatile mount in its workdir: after a crash of the machine its upper is not to be trusted.

Kernel overlayfs leaves `work/incompat/volatile` and refuses to mount such an upper until somebody removes
it (Documentation/filesystems/overlayfs.rst, "Volatile mount"). Ours holds the boot it was made in as well:
as long as the machine has not gone down, nothing that was written can be lost, however the server ended,
and an engine that mounts the same upper once more, volatile or not, gets it.
"""

from __future__ import annotations

import os

from unionfs import syscalls

_MARK = "incompat/volatile"


class Untrusted(Exception):
    """The upper may have lost what was written to it; the message says why and what can be done."""


def check(staging_fd: int) -> None:
    """Look for a mark in the staging directory (`workdir/work`) that this boot of the machine has not made.

    Raises Untrusted; OSError from the disk.
    """
    place = f"/proc/self/fd/{staging_fd}/{_MARK}"
    try:
        boots = os.listdir(place)
    except (FileNotFoundError, NotADirectoryError):
        return
    if syscalls.boot_id().decode() not in boots:
        raise Untrusted(
            "it was written by a volatile mount that another boot or kernel overlayfs has left, and may be"
            f" incomplete; to use it all the same, remove work/{_MARK} in workdir"
        )


def mark(staging_fd: int) -> None:
    """Say that the upper is written without waiting for the disk. Raises OSError."""
    place = f"/proc/self/fd/{staging_fd}/{_MARK}/{syscalls.boot_id().decode()}"
    os.makedirs(place, mode=0o700, exist_ok=True)
