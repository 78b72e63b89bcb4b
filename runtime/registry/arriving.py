"""A blob that one thread writes while others read it: it is unpacked as it arrives.

The file is the buffer, so whoever reads may be slow without holding the connection up.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
from pathlib import Path

from runtime.errors import RuntimeFailure
from runtime.images.archive import Blob
from runtime.images.documents import Descriptor
from runtime.images.streams import DiskGuard, Limits


class GivenUp(RuntimeFailure):
    """A blob that will not arrive, for a reason that is told elsewhere."""


class Arriving:
    """The blob that `descriptor` describes, on its way into the file `path`."""

    def __init__(self, descriptor: Descriptor, path: Path, limits: Limits) -> None:
        self.descriptor = descriptor
        self.size = 0  # what is there
        self.path = path
        self._file: io.FileIO | None = None
        self._sum = hashlib.sha256()
        self._disk = DiskGuard(path.parent, f"blob {descriptor.digest[:19]}", limits)
        self._changed = threading.Condition()
        self._blob: Blob | None = None
        self._given_up = False

    def open(self) -> None:
        """Make the file; an image may have more layers than a process may have files open at once."""
        self._file = io.FileIO(self.path, "xb")

    @property
    def where(self) -> str:
        """Its name in messages."""
        return f"blob {self.descriptor.digest[:19]}"

    @property
    def complete(self) -> bool:
        """Whether all of it is there, and verified."""
        return self._blob is not None

    def write(self, data: bytes) -> None:
        """Add `data`; raises RuntimeFailure when it is more than the blob has, or than the disk takes."""
        if self.size + len(data) > self.descriptor.size:
            raise RuntimeFailure(
                f"{self.where} has more than the {self.descriptor.size} bytes that it should"
            )
        assert self._file is not None
        self._disk.take(len(data))
        self._sum.update(data)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        with self._changed:
            self.size += len(data)
            self._changed.notify_all()

    def finish(self) -> Blob:
        """Verify it; raises RuntimeFailure when it is not the blob that was asked for."""
        digest = f"sha256:{self._sum.hexdigest()}"
        if self.size != self.descriptor.size:
            raise RuntimeFailure(f"{self.where} has {self.size} bytes instead of {self.descriptor.size}")
        if digest != self.descriptor.digest:
            raise RuntimeFailure(f"{self.where} is not what was asked for: its digest is {digest}")
        with self._changed:
            self._blob = Blob(self.path, digest, self.size)
            self._changed.notify_all()
        self._close()
        return self._blob

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()

    def give_up(self) -> None:
        """Let no reader wait any more: they get GivenUp, also when they could read on."""
        with self._changed:
            self._given_up = True
            self._changed.notify_all()
        self._close()

    def wait_beyond(self, position: int) -> int:
        """Wait for bytes behind `position`, or the end; gives how many there are."""
        with self._changed:
            self._changed.wait_for(lambda: self._given_up or self._blob or self.size > position)
            if self._given_up:
                raise GivenUp(f"{self.where} was given up")
            return self.size - position


class Reader:
    """A stream of an arriving blob, from its start; closed with the block."""

    def __init__(self, arriving: Arriving) -> None:
        self._arriving = arriving
        self._fd = os.open(arriving.path, os.O_RDONLY | os.O_CLOEXEC)
        self.position = 0

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes, waiting for the first; none at the end."""
        available = self._arriving.wait_beyond(self.position)
        data = os.pread(self._fd, min(size, available), self.position)
        self.position += len(data)
        return data
