"""pyfuse3, with the session's input passing through our hooks (hooks.c).

Import pyfuse3 from here and from nowhere else: the hooks must be in the process before libfuse is.
Without them (a libfuse before 3.14) everything works but what pyfuse3 has no handlers for: SEEK_HOLE,
fallocate, copy_file_range and O_TMPFILE, for which the kernel then finds its own substitutes or none.
"""

from __future__ import annotations

import enum
import os
import sys

_flags = sys.getdlopenflags()
sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
try:
    from unionfs.session import _hooks
finally:
    sys.setdlopenflags(_flags)

import pyfuse3  # noqa: E402  isort: skip

_hooks.bind(os.fsencode(pyfuse3.__file__))

__all__ = [
    "NO_NAME",
    "Capability",
    "agreed",
    "counts",
    "fork_sharing_descriptors",
    "hooked",
    "keep",
    "negotiate",
    "pyfuse3",
    "resend",
    "sleep_in_hooks",
]

#: The name in a CREATE request that stands for O_TMPFILE: a file without one.
NO_NAME = b"/"


class Capability(enum.IntFlag):
    """What is agreed on with the kernel beyond what libfuse asks for (<linux/fuse.h>, FUSE_INIT)."""

    CACHE_SYMLINKS = 1 << 23
    #: Setuid is the daemon's to clear; so the kernel need not ask for capabilities before each write.
    HANDLE_KILLPRIV_V2 = 1 << 28
    PASSTHROUGH = 1 << 37


negotiate = _hooks.negotiate
agreed = _hooks.agreed
hooked = _hooks.hooked
counts = _hooks.counts
keep = _hooks.keep
resend = _hooks.resend
fork_sharing_descriptors = _hooks.fork_sharing_descriptors


def sleep_in_hooks() -> None:
    """Let the hooks wait for requests themselves while trio has nothing to do. For a task of trio.run."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[eventpoll]":
                _hooks.wake_by(int(name))
        except FileNotFoundError:
            pass  # that of the listing itself
