"""What a snapshotter refuses, each in the class that containerd tells apart (its errdefs package)."""

from __future__ import annotations


class SnapshotError(Exception):
    """A request that is refused; the message is one line."""


class NotFound(SnapshotError):
    """There is no snapshot of that name."""


class AlreadyExists(SnapshotError):
    """There is a snapshot of that name."""


class FailedPrecondition(SnapshotError):
    """The snapshot is not in a state for this."""


class InvalidArgument(SnapshotError):
    """The request makes no sense, whatever snapshots there are."""
