"""The snapshots: directories, and a catalogue that says what they are.

    ROOT/lock               held by the one process that may work here
    ROOT/catalogue.db       the rows
    ROOT/empty/             a layer without files
    ROOT/snapshots/N/upper  what snapshot N adds to its parent
    ROOT/snapshots/N/work   where its mount prepares changes

Whatever happens between two lines: a directory is on the disk before its row, and goes after it. So a row
without a directory cannot be, and a directory without a row is swept away at the next start, or by
containerd's Cleanup.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from runtime.images.workspace import sync_directory, sync_filesystem
from runtime.snapshotter import files, filters
from runtime.snapshotter.catalogue import Catalogue, Row
from runtime.snapshotter.errors import FailedPrecondition, InvalidArgument
from runtime.snapshotter.mounts import Directories, Mount, id_options, mounts
from runtime.snapshotter.snapshot import Kind, Snapshot, Usage

log = logging.getLogger(__name__)

#: What options of a mount give a meaning, and mount.fuse3 does not hand on unharmed.
_NOT_IN_PATHS = set(",:\\\"'\n")


class Snapshotter:
    """The methods of containerd's Snapshotter; all of them may be called by several threads at once."""

    def __init__(self, root: Path, program: str) -> None:
        """Take `root`, and mend what a sudden death has left in it.

        `program` is how containerd shall call the union. Raises OSError; BlockingIOError when another has
        the root.
        """
        if _NOT_IN_PATHS & set(str(root)):
            raise OSError(f"{root}: a path with one of , : \\ \" ' cannot be given to mount(8)'s helpers")
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock_file = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_file)
            raise BlockingIOError(f"{root}: another unionfs-snapshotter works here") from None
        self._program = program
        self._empty = root / "empty"
        self._empty.mkdir(exist_ok=True)
        self._directory = root / "snapshots"
        self._directory.mkdir(exist_ok=True)
        self._catalogue = Catalogue(root / "catalogue.db")
        #: Held while rows and directories may be seen to differ; never while something long is done.
        self._lock = threading.Lock()
        self.cleanup()

    def close(self) -> None:
        """Let go of the root."""
        self._catalogue.close()
        os.close(self._lock_file)

    # containerd's words -------------------------------------------------------------------------------

    def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        """A writable snapshot on a committed one; how to mount it.

        Raises InvalidArgument, NotFound for the parent.
        """
        id_options(labels)
        with self._lock, contextlib.ExitStack() as undo:
            with self._catalogue.transaction():
                row = self._catalogue.add(key, parent, Kind.ACTIVE, labels)
                undo.callback(self._remove, str(row.id))
                self._make(row)
                found = self._mounts(row)
            undo.pop_all()
        return found

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        """A snapshot that shows a committed one; how to mount it. Raises as `prepare`."""
        id_options(labels)
        with self._lock, self._catalogue.transaction():
            return self._mounts(self._catalogue.add(key, parent, Kind.VIEW, labels))

    def mounts(self, key: str) -> list[Mount]:
        """How to mount a snapshot. Raises NotFound, and FailedPrecondition for a committed one."""
        with self._lock:
            return self._mounts(self._catalogue.get(key))

    def commit(self, key: str, name: str, labels: Mapping[str, str]) -> None:
        """A writable snapshot becomes one that others can stand on. It is on the disk when this returns.

        Raises InvalidArgument, NotFound, FailedPrecondition when it is none.
        """
        with self._lock:
            row = self._catalogue.get(key)
        upper = self._directory / str(row.id) / "upper"
        if row.snapshot.kind is Kind.ACTIVE:
            sync_filesystem(upper)
        usage = files.usage(upper)
        with self._lock, self._catalogue.transaction():
            self._catalogue.commit(key, name, labels, usage)

    def remove(self, key: str) -> None:
        """Forget a snapshot and remove its files.

        Raises NotFound, FailedPrecondition if others stand on it.
        """
        with self._lock, self._catalogue.transaction():
            number = self._catalogue.remove(key)
        self._remove(str(number))

    def stat(self, key: str) -> Snapshot:
        """What is known of a snapshot. Raises NotFound."""
        with self._lock:
            return self._catalogue.get(key).snapshot

    def update(self, name: str, labels: Mapping[str, str], fields: Iterable[str] = ()) -> Snapshot:
        """Change labels: those that `fields` name as `labels.KEY`, all with `labels` or without a field.

        A label that is to be changed and is not in `labels` is taken away.

        Raises NotFound, InvalidArgument for another field.
        """
        with self._lock, self._catalogue.transaction():
            changed = dict(self._catalogue.get(name).snapshot.labels)
            for field in list(fields) or ["labels"]:
                if field == "labels":
                    changed = dict(labels)
                elif field.startswith("labels."):
                    key = field.removeprefix("labels.")
                    changed.pop(key, None)
                    changed.update({key: labels[key]} if key in labels else {})
                else:
                    raise InvalidArgument(f"field '{field}' of snapshot '{name}' cannot be changed")
            id_options(changed)
            self._catalogue.label(name, changed)
            return self._catalogue.get(name).snapshot

    def find(self, texts: Iterable[str] = ()) -> list[Snapshot]:
        """All snapshots that any of containerd's filters lets through. Raises InvalidArgument."""
        wanted = filters.parse(texts)
        with self._lock:
            found = self._catalogue.all()
        return [row.snapshot for row in found if wanted(row.snapshot)]

    def usage(self, key: str) -> Usage:
        """What a snapshot adds to its parent. Raises NotFound."""
        with self._lock:
            row = self._catalogue.get(key)
        return row.usage or files.usage(self._directory / str(row.id) / "upper")

    def cleanup(self) -> None:
        """Remove the directories of snapshots that are no more."""
        with self._lock:
            kept = {str(row.id) for row in self._catalogue.all()}
            left = [name for name in os.listdir(self._directory) if name not in kept]
        for name in left:
            self._remove(name)

    # On the disk --------------------------------------------------------------------------------------

    def _make(self, row: Row) -> None:
        """The directories of a new snapshot; its root is the parent's in owner, mode and xattrs."""
        place = self._directory / str(row.id)
        place.mkdir(mode=0o700)
        upper = place / "upper"
        upper.mkdir(mode=0o755)
        (place / "work").mkdir(mode=0o700)
        if row.parent_id is not None:
            below = self._directory / str(row.parent_id) / "upper"
            status = below.stat()
            os.chown(upper, status.st_uid, status.st_gid)
            shutil.copystat(below, upper)
        for directory in (place, self._directory):
            sync_directory(directory)

    def _mounts(self, row: Row) -> list[Mount]:
        kind = row.snapshot.kind
        if kind is Kind.COMMITTED:
            raise FailedPrecondition(
                f"snapshot '{row.snapshot.name}' is committed, only its views can be mounted"
            )
        lowers = [self._directory / str(number) / "upper" for number in self._catalogue.lineage(row)]
        ids = id_options(row.snapshot.labels)
        if kind is Kind.VIEW:
            return mounts(self._program, Directories(lowers or [self._empty]), ids)
        place = self._directory / str(row.id)
        if ids and not lowers:
            lowers = [self._empty]
        return mounts(self._program, Directories(lowers, place / "upper", place / "work"), ids)

    def _remove(self, name: str) -> None:
        """Remove a directory that no row knows; a view has none. What stays is left to the next sweep."""
        try:
            files.remove(self._directory / name)
        except OSError as error:
            log.warning("left for the next cleanup: %s", error)
