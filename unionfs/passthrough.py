"""Passthrough: open files that the kernel reads, writes and maps in the layer itself, without asking us.

The kernel is given the layer's file once (FUSE_DEV_IOC_BACKING_OPEN, its fuse-passthrough.rst) and then
told, in the answer to an OPEN, to use it. All open files of one inode must use the same one, and none may be
read through the kernel's cache of the mount at the same time: so an inode is in one mode while it is open.

The kernel opens the layer's file with the *caller's* flags. A lower layer is held through a read-only mount
(layer.py), so an image cannot be written that way whatever is opened in which order.

What is written that way the kernel does not always know of: it does not see that a mapping changes a
file's times, nor that what it kept of the content is old. So while a file may be written its attributes are
asked for each time (`Node.written`; a mapping that outlives its open file is found by asking for a lease),
and content that was kept is dropped when the file is opened the other way (`Node.stale`).

A file of a lower layer that is passed through keeps showing what it held when it is copied up. So only those
are that are replaced rather than written where they are: programs and libraries. For them the next open by a
writer is answered ESTALE once: the kernel looks the name up again, finds the node under a second name, and
opens that.
"""

from __future__ import annotations

import enum
import fcntl
import logging
import os
import struct

log = logging.getLogger(__name__)

_BACKING_OPEN = 0x4010E501  # _IOW(229, 1, struct fuse_backing_map)
_BACKING_CLOSE = 0x4004E502  # _IOW(229, 2, uint32_t)


class Policy(enum.Enum):
    """Which files are passed through (`-o passthrough=`)."""

    OFF = "off"
    #: Those of the upper layer.
    UPPER = "upper"
    #: Also programs and libraries of lower layers.
    AUTO = "auto"
    #: All: who has a lower file open does not see what is written to it later.
    ALL = "all"


class Backing:
    """One file of a layer that the kernel holds, and how many open files use it."""

    __slots__ = ("id", "users")

    def __init__(self, number: int) -> None:
        self.id = number
        self.users = 0


class Backings:
    """The backing files of one mount."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        #: The descriptor of the mount's session, once it is open and passthrough was agreed on.
        self.session_fd = -1
        self.opened = 0

    def open(self, fd: int) -> Backing | None:
        """Let the kernel use the file open as `fd`; None where it will not.

        It will not for a filesystem that is itself stacked (ELOOP), and without CAP_SYS_ADMIN (EPERM):
        then it is not asked again.
        """
        try:
            number = fcntl.ioctl(self.session_fd, _BACKING_OPEN, bytearray(struct.pack("iIQ", fd, 0, 0)))
        except OSError as error:
            if isinstance(error, PermissionError):
                log.info("no passthrough: %s", error.strerror)
                self.session_fd = -1
            return None
        self.opened += 1
        return Backing(number)

    def close(self, backing: Backing) -> None:
        """The last file that used it was closed."""
        fcntl.ioctl(self.session_fd, _BACKING_CLOSE, struct.pack("I", backing.id))


def is_program(mode: int, name: bytes) -> bool:
    """Whether a lower file is of the kind that is replaced, not written: a program or a library."""
    return bool(mode & 0o111) or b".so" in os.path.basename(name)
