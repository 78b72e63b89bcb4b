"""SQLite on a database that begins in a lower layer, by two processes, one of which is killed in its work."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys

import pytest

pytestmark = pytest.mark.root

ROWS = 500

#: Moves money between accounts for ever, and says each transaction that was committed.
_WRITER = """
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
database.execute("PRAGMA cache_size=5")  # pages reach the file in the middle of a transaction
number = 0
while True:
    database.execute("BEGIN IMMEDIATE")
    for account in range(100):
        database.execute("UPDATE account SET balance = balance - 1 WHERE id = ?", ((number + account) % 500,))
    database.execute("UPDATE account SET balance = balance + 100 WHERE id = ?", (number % 500,))
    database.execute("INSERT INTO log VALUES (?, ?)", (sys.argv[2], number))
    database.execute("COMMIT")
    print(number, flush=True)
    number += 1
    time.sleep(0.005)  # the lock is not fair: let the other one have it
"""


def prepare(path, mode):
    database = sqlite3.connect(path, isolation_level=None)
    database.execute(f"PRAGMA journal_mode={mode}")
    database.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER, name TEXT)")
    database.execute("CREATE INDEX names ON account (name)")
    database.execute("CREATE TABLE log (writer TEXT, number INTEGER)")
    database.execute("BEGIN")
    rows = ((number, 100, f"name {number} " * 20) for number in range(ROWS))
    database.executemany("INSERT INTO account VALUES (?, ?, ?)", rows)
    database.execute("COMMIT")
    database.close()


def check(path, mode):
    """A database that is whole; the writers' transactions."""
    database = sqlite3.connect(path, timeout=60)
    try:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA journal_mode").fetchone() == (mode,)
        assert database.execute("SELECT sum(balance), count(*) FROM account").fetchone() == (ROWS * 100, ROWS)
        return set(database.execute("SELECT writer, number FROM log"))
    finally:
        database.close()


class Writer:
    """A process that writes transactions."""

    def __init__(self, path, name):
        self.name = name
        self.said = set()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, path, name],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def hear(self, lines):
        assert self.process.stdout is not None
        for _ in range(lines):
            line = self.process.stdout.readline()
            assert line.endswith("\n"), "the writer died"
            self.said.add((self.name, int(line)))

    def kill(self):
        assert self.process.stdout is not None
        if self.process.stdout.closed:
            return
        self.process.kill()
        self.said |= {(self.name, int(line)) for line in self.process.stdout if line.endswith("\n")}
        self.process.wait()
        self.process.stdout.close()

    def check(self, found):
        """All that it said is there, and at most one more, in a row."""
        mine = {entry for entry in found if entry[0] == self.name}
        assert self.said <= mine
        assert mine == {(self.name, number) for number in range(len(mine))}
        assert len(mine) <= len(self.said) + 1


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_one_of_two_is_killed(make_union, mode):
    union = make_union({"d": {}}, mount=False)
    prepare(union.lowers[0] / "d" / "db", mode)
    union.remember_lowers()
    union.mount()
    path = union.root / "d" / "db"
    early = sqlite3.connect(path, timeout=60)
    writers = []
    try:
        assert early.execute("SELECT count(*) FROM log").fetchone() == (0,)
        early.commit()
        writers += [Writer(path, "one"), Writer(path, "two")]
        for round_ in range(2):
            writers[0].hear(3)
            writers[1 + round_].hear(1)
            writers[1 + round_].kill()
            found = check(path, mode)
            for writer in writers[1:]:
                writer.check(found)
            writers.append(Writer(path, f"next{round_}"))
        for writer in writers:
            writer.kill()
        found = check(path, mode)
        for writer in writers:
            writer.check(found)
        # A connection of before the copy-up sees the same.
        assert set(early.execute("SELECT writer, number FROM log")) == found
    finally:
        early.close()
        for writer in writers:
            writer.kill()
    union.remount()
    assert check(path, mode) == found


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_writer_was_killed_in_the_lower_layer(make_union, mode):
    """Its hot journal is in the layer too: the union's first reader rolls it back, or takes it over."""
    union = make_union({"d": {}}, mount=False)
    directory = union.lowers[0] / "d"
    prepare(directory / "db", mode)
    writer = Writer(directory / "db", "early")
    try:
        writer.hear(3)
        os.kill(writer.process.pid, signal.SIGSTOP)
        # All that a crash would leave, at one moment, in a directory of its own.
        shutil.copytree(directory, union.lowers[0] / "crashed")
    finally:
        writer.kill()
    union.remember_lowers()
    union.mount()
    found = check(union.root / "crashed" / "db", mode)
    assert {("early", number) for number in range(3)} <= found
    union.remount()
    assert check(union.root / "crashed" / "db", mode) == found
