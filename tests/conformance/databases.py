"""SQLite under several processes, some of which die: what was committed is there, and the file is whole."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

_ROWS = 3000
_WRITERS = 4
_TRANSACTIONS = 30

#: Writes transactions of two rows, and says each that was committed.
_WRITER = """
import sqlite3, sys
name, mode, writer, transactions = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
database = sqlite3.connect(name, timeout=120, isolation_level=None)
database.execute(f"PRAGMA journal_mode={mode}")
for number in range(transactions):
    database.execute("BEGIN IMMEDIATE")
    database.execute("INSERT INTO log VALUES (?, ?, ?)", (writer, number, "a" * 500))
    database.execute("UPDATE account SET balance = balance - 1 WHERE id = ?", (number * 7 % 3000,))
    database.execute("UPDATE account SET balance = balance + 1 WHERE id = ?", (number * 13 % 3000,))
    database.execute("COMMIT")
    print(number, flush=True)
"""


def prepare(place: Path) -> None:
    """A database of some pages."""
    with sqlite3.connect(place / "db") as database:
        database.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER, name TEXT)")
        database.execute("CREATE TABLE log (writer INTEGER, number INTEGER, words TEXT)")
        database.execute("CREATE INDEX names ON account (name)")
        rows = ((number, 100, f"name {number}" * 3) for number in range(_ROWS))
        database.executemany("INSERT INTO account VALUES (?, ?, ?)", rows)
    database.close()


def _start(place: Path, mode: str, writer: int, transactions: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", _WRITER, os.fspath(place / "db"), mode, str(writer), str(transactions)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def _check(place: Path) -> int:
    """The number of committed transactions, of a database that is whole."""
    database = sqlite3.connect(place / "db", timeout=120)
    try:
        (verdict,) = database.execute("PRAGMA integrity_check").fetchone()
        (total,) = database.execute("SELECT sum(balance) FROM account").fetchone()
        (transactions,) = database.execute("SELECT count(*) FROM log").fetchone()
    finally:
        database.close()
    assert verdict == "ok", verdict
    assert total == _ROWS * 100, f"the sum of the balances is {total}"
    return int(transactions)


def run(place: Path, mode: str) -> str:
    """Writers at once, then one after another killed in the middle of its work."""
    before = sqlite3.connect(place / "db")
    assert before.execute("SELECT count(*) FROM account").fetchone() == (_ROWS,)
    writers = [_start(place, mode, number, _TRANSACTIONS) for number in range(_WRITERS)]
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    assert _check(place) == _WRITERS * _TRANSACTIONS
    # A connection opened before the first write sees the last one.
    assert before.execute("SELECT count(*) FROM log").fetchone() == (_WRITERS * _TRANSACTIONS,)
    before.close()
    committed = _WRITERS * _TRANSACTIONS
    for victim in range(5):
        with _start(place, mode, 100 + victim, 1_000_000) as writer:
            assert writer.stdout is not None
            said = [writer.stdout.readline() for _ in range(10)]
            os.kill(writer.pid, signal.SIGKILL)
            said += writer.stdout.readlines()
        now = _check(place)
        lines = sum(line.endswith("\n") for line in said)
        assert committed + lines <= now <= committed + lines + 1, (
            f"{lines} were said, {now - committed} are there"
        )
        committed = now
    return f"{_WRITERS} writers, 5 killed: whole, and nothing committed is missing"
