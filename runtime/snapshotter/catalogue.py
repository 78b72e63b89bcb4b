"""Which snapshots there are: rows of SQLite.

Each change is one transaction, on the disk when it returns. A snapshot's number is never given to another,
so a directory named by a number without a row is rubbish, whenever it is found.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.snapshotter.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from runtime.snapshotter.snapshot import Kind, Snapshot, Usage

_VERSION = 1

_SCHEMA = """
CREATE TABLE snapshot (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    name    TEXT NOT NULL UNIQUE,
    parent  INTEGER REFERENCES snapshot (id) ON DELETE RESTRICT,
    kind    TEXT NOT NULL,
    created INTEGER NOT NULL,               -- nanoseconds since 1970
    updated INTEGER NOT NULL,
    labels  TEXT NOT NULL,                  -- a JSON object
    size    INTEGER,                        -- of a committed one
    inodes  INTEGER
) STRICT;
CREATE INDEX children ON snapshot (parent);
"""

_SELECT = """
SELECT snapshot.id, snapshot.name, snapshot.kind, snapshot.created, snapshot.updated, snapshot.labels,
       snapshot.size, snapshot.inodes, below.id, below.name
FROM snapshot LEFT JOIN snapshot AS below ON below.id = snapshot.parent
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A snapshot, and what only we know of it."""

    id: int
    #: The parent's, None for a snapshot that stands on nothing.
    parent_id: int | None
    snapshot: Snapshot
    #: Of a committed snapshot.
    usage: Usage | None


class Catalogue:
    """The rows; whoever uses it makes one call at a time."""

    def __init__(self, path: Path) -> None:
        """Open or make the database. Raises OSError when it is no such thing, or a newer program's."""
        try:
            # Transactions begin and end where we say. SQLite itself takes turns between our threads.
            self._rows = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._rows.execute("PRAGMA journal_mode = WAL")
            self._rows.execute("PRAGMA synchronous = FULL")
            self._rows.execute("PRAGMA foreign_keys = ON")
            with self.transaction():
                (version,) = self._rows.execute("PRAGMA user_version").fetchone()
                if version == 0:
                    for statement in _SCHEMA.split(";"):
                        self._rows.execute(statement)
                    self._rows.execute(f"PRAGMA user_version = {_VERSION}")
        except sqlite3.Error as error:
            raise OSError(f"{path}: {error}") from error
        if version > _VERSION:
            raise OSError(f"{path}: made by a newer unionfs-snapshotter (version {version} of the format)")

    def close(self) -> None:
        """Let go of the database."""
        self._rows.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is done in it is done together, or not at all when it raises."""
        self._rows.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._rows.execute("COMMIT")
        except BaseException:
            if self._rows.in_transaction:
                self._rows.execute("ROLLBACK")
            raise

    def get(self, name: str) -> Row:
        """The snapshot of that key or name. Raises NotFound."""
        found = self._rows.execute(_SELECT + "WHERE snapshot.name = ?", (name,)).fetchone()
        if found is None:
            raise NotFound(f"snapshot '{name}' does not exist")
        return _row(found)

    def all(self) -> list[Row]:
        """Every snapshot, the oldest first."""
        return [_row(found) for found in self._rows.execute(_SELECT + "ORDER BY snapshot.id")]

    def lineage(self, row: Row) -> list[int]:
        """The numbers of what a snapshot stands on, its parent first."""
        query = """
        WITH RECURSIVE above (id, parent, depth) AS (
            SELECT id, parent, 0 FROM snapshot WHERE id = ?
            UNION ALL
            SELECT snapshot.id, snapshot.parent, depth + 1
            FROM snapshot JOIN above ON snapshot.id = above.parent
        ) SELECT id FROM above WHERE depth > 0 ORDER BY depth
        """
        return [number for (number,) in self._rows.execute(query, (row.id,))]

    def add(self, key: str, parent: str, kind: Kind, labels: Mapping[str, str]) -> Row:
        """A new snapshot on a committed one, or on nothing for "".

        Raises InvalidArgument, AlreadyExists, NotFound for the parent.
        """
        if not key:
            raise InvalidArgument("a snapshot must have a key")
        below = self.get(parent) if parent else None
        if below is not None and below.snapshot.kind is not Kind.COMMITTED:
            raise InvalidArgument(f"parent '{parent}' is not a committed snapshot")
        self._check_new(key)
        now = time.time_ns()
        self._rows.execute(
            "INSERT INTO snapshot (name, parent, kind, created, updated, labels) VALUES (?, ?, ?, ?, ?, ?)",
            (key, below and below.id, kind.value, now, now, _labels(labels)),
        )
        return self.get(key)

    def commit(self, key: str, name: str, labels: Mapping[str, str], usage: Usage) -> None:
        """The active snapshot `key` becomes the committed one `name`, with these labels alone.

        Raises InvalidArgument, AlreadyExists, NotFound, FailedPrecondition.
        """
        if not name:
            raise InvalidArgument(f"snapshot '{key}' is to be committed without a name")
        row = self.get(key)
        if row.snapshot.kind is not Kind.ACTIVE:
            raise FailedPrecondition(f"snapshot '{key}' is {row.snapshot.kind.value}, not active")
        if name != key:
            self._check_new(name)
        now = time.time_ns()
        self._rows.execute(
            "UPDATE snapshot SET name = ?, kind = ?, created = ?, updated = ?, labels = ?, size = ?,"
            " inodes = ? WHERE id = ?",
            (name, Kind.COMMITTED.value, now, now, _labels(labels), usage.size, usage.inodes, row.id),
        )

    def label(self, name: str, labels: Mapping[str, str]) -> None:
        """Give a snapshot these labels in the place of those it has. Raises NotFound."""
        self._rows.execute(
            "UPDATE snapshot SET labels = ?, updated = ? WHERE id = ?",
            (_labels(labels), time.time_ns(), self.get(name).id),
        )

    def remove(self, name: str) -> int:
        """Forget a snapshot; returns its number.

        Raises NotFound, and FailedPrecondition if others stand on it.
        """
        row = self.get(name)
        try:
            self._rows.execute("DELETE FROM snapshot WHERE id = ?", (row.id,))
        except sqlite3.IntegrityError:
            raise FailedPrecondition(f"snapshot '{name}' has others that stand on it") from None
        return row.id

    def _check_new(self, name: str) -> None:
        if self._rows.execute("SELECT 1 FROM snapshot WHERE name = ?", (name,)).fetchone():
            raise AlreadyExists(f"snapshot '{name}' exists")


def _labels(labels: Mapping[str, str]) -> str:
    return json.dumps(dict(labels), sort_keys=True)


def _row(found: tuple[int, str, str, int, int, str, int | None, int | None, int | None, str | None]) -> Row:
    number, name, kind, created, updated, labels, size, inodes, parent_id, parent = found
    snapshot = Snapshot(name, parent or "", Kind(kind), created, updated, json.loads(labels))
    usage = Usage(size, inodes) if size is not None and inodes is not None else None
    return Row(number, parent_id, snapshot, usage)
