"""What goes on at a mount while its servers are killed: programs that end well or say why not.

Run as `python kill_clients.py CLIENT DIRECTORY SEED SECONDS`: it works in a directory of its own, compares
what it finds with what it did (which it keeps in memory), and prints how many calls it made and the longest.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

calls = 0
longest = 0.0


def timed(call: Callable, *arguments, **more):
    """Make a call, and keep how long it took."""
    global calls, longest
    begun = time.monotonic()
    result = call(*arguments, **more)
    longest = max(longest, time.monotonic() - begun)
    calls += 1
    return result


def renames(place: Path, chance: random.Random, end: float) -> None:
    """Names made, moved, linked and removed at random; the tree must be the model's at all times."""
    model: dict[str, bytes | None] = {}  # None is a directory
    directories = [""]
    serial = 0
    while time.monotonic() < end:
        serial += 1
        parent = chance.choice(directories)
        name = os.path.join(parent, f"n{serial}")
        files = [path for path, content in model.items() if content is not None]
        what = chance.random()
        if what < 0.3 or not files:
            content = b"%d" % serial
            fd = timed(os.open, place / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            timed(os.write, fd, content)
            os.close(fd)
            model[name] = content
        elif what < 0.4 and len(directories) < 20:
            timed(os.mkdir, place / name)
            model[name] = None
            directories.append(name)
        elif what < 0.7:
            old = chance.choice(files)
            timed(os.rename, place / old, place / name)
            model[name] = model.pop(old)
        elif what < 0.8 and len(files) > 1:
            old, new = chance.sample(files, 2)
            timed(os.rename, place / old, place / new)
            model[new] = model.pop(old)
        elif what < 0.9:
            old = chance.choice(files)
            timed(os.unlink, place / old)
            del model[old]
        else:
            path = chance.choice(files)
            assert timed((place / path).read_bytes) == model[path], path
        if serial % 100 == 0:
            for path in [path for path in model if model[path] is not None][:-40]:
                timed(os.unlink, place / path)
                del model[path]
    compare(place, model)


def compare(place: Path, model: dict[str, bytes | None]) -> None:
    """The tree is the model's."""
    found: dict[str, bytes | None] = {}
    for directory, directories, files in os.walk(place):
        for name in directories:
            found[os.path.relpath(os.path.join(directory, name), place)] = None
        for name in files:
            path = os.path.join(directory, name)
            found[os.path.relpath(path, place)] = Path(path).read_bytes()
    assert found == model, set(found.items()) ^ set(model.items())


def blocks(place: Path, chance: random.Random, end: float) -> None:
    """Reads, writes, truncations, holes and mapped writes at random, in one file that stays open."""
    size = 1 << 18
    model = bytearray(size)
    fd = os.open(place / "blocks", os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, size)
    mapped = mmap.mmap(fd, size)
    while time.monotonic() < end:
        at = chance.randrange(size)
        length = min(chance.randrange(1, 10000), size - at)
        what = chance.random()
        if what < 0.4:
            data = chance.randbytes(length)
            assert timed(os.pwrite, fd, data, at) == length
            model[at : at + length] = data
        elif what < 0.6:
            data = chance.randbytes(length)
            mapped[at : at + length] = data
            if chance.random() < 0.2:
                timed(mapped.flush)
            model[at : at + length] = data
        elif what < 0.65:
            timed(os.ftruncate, fd, at)
            timed(os.ftruncate, fd, size)
            model[at:] = bytes(size - at)
        else:
            assert timed(os.pread, fd, length, at) == model[at : at + length]
    mapped.flush()
    timed(os.fsync, fd)
    assert (place / "blocks").read_bytes() == model
    mapped.close()
    os.close(fd)


def appends(place: Path, chance: random.Random, end: float) -> None:
    """One writer by O_APPEND, and a lock held all the time; each line is there once."""
    fd = os.open(place / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    lock = os.open(place / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    written = 0
    while time.monotonic() < end:
        timed(os.write, fd, b"line %d\n" % written)
        written += 1
        if written % 50 == 0:
            other = os.open(place / "lock", os.O_RDWR)
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                raise AssertionError("the lock is lost")
            finally:
                os.close(other)
    assert (place / "log").read_bytes() == b"".join(b"line %d\n" % number for number in range(written))


def deleted(place: Path, chance: random.Random, end: float) -> None:
    """A file and a directory that are open and have no name any more; and a listing that is read slowly."""
    while time.monotonic() < end:
        path = place / "gone"
        fd = timed(os.open, path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        timed(os.unlink, path)
        data = chance.randbytes(5000)
        timed(os.write, fd, data)
        names = {f"entry{number}" for number in range(150)}
        listed = place / "listed"
        os.mkdir(listed)
        for name in names:
            (listed / name).touch()
        with os.scandir(listed) as entries:
            found = []
            for entry in entries:
                found.append(entry.name)
                if len(found) % 30 == 0:
                    time.sleep(0.02)
        assert sorted(found) == sorted(names)
        assert timed(os.pread, fd, 10000, 0) == data
        timed(os.fchmod, fd, 0o600)
        assert os.fstat(fd).st_nlink == 0 and os.fstat(fd).st_size == 5000
        os.close(fd)
        for name in names:
            timed(os.unlink, listed / name)
        os.rmdir(listed)


def lowers(place: Path, chance: random.Random, end: float) -> None:
    """Lower files read, written and replaced; open readers see what is written later."""
    number = 0
    shared = place.parent.parent / "lower" / place.name
    while time.monotonic() < end:
        path = shared / f"f{number}"
        if not path.exists():
            break
        content = b"lower %d\n" % number * 200
        reader = timed(os.open, path, os.O_RDONLY)
        assert timed(os.pread, reader, 1 << 20, 0) == content
        writer = timed(os.open, path, os.O_WRONLY)
        timed(os.pwrite, writer, b"UPPER", 0)
        os.close(writer)
        assert timed(os.pread, reader, 1 << 20, 0) == b"UPPER" + content[5:]
        if number % 3 == 0:
            timed(os.unlink, path)
            assert timed(os.pread, reader, 5, 0) == b"UPPER"
            assert not path.exists()
        elif number % 3 == 1:
            timed(os.rename, path, place / f"moved{number}")
        else:
            timed(os.setxattr, path, "user.n", b"%d" % number, os.XATTR_CREATE)
            timed(os.removexattr, path, "user.n")
            timed(os.link, path, place / f"linked{number}")
        os.close(reader)
        number += 1


def database(place: Path, chance: random.Random, end: float) -> None:
    """SQLite, with a journal and with a write-ahead log."""
    for mode in ("delete", "wal"):
        connection = sqlite3.connect(place / f"{mode}.db")
        connection.execute(f"pragma journal_mode={mode}")
        connection.execute("create table t (n integer primary key, v text)")
        rows = 0
        until = time.monotonic() + (end - time.monotonic()) / 2 if mode == "delete" else end
        while time.monotonic() < until:
            with connection:
                timed(connection.execute, "insert into t values (?, ?)", (rows, "v" * (rows % 500)))
            rows += 1
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
        assert connection.execute("select count(*) from t").fetchone() == (rows,)
        connection.close()


def archives(place: Path, chance: random.Random, end: float) -> None:
    """A tar archive unpacked, compared and removed, again and again."""
    archive = place.parent.parent.parent / "archive.tar"
    while time.monotonic() < end:
        target = place / "unpacked"
        target.mkdir()
        subprocess.run(["tar", "-xf", archive, "-C", target], check=True)
        subprocess.run(["tar", "-df", archive, "-C", target], check=True)
        subprocess.run(["rm", "-r", target], check=True)


CLIENTS = (renames, blocks, appends, deleted, lowers, database, archives)


def main() -> None:
    """See the module's text."""
    client, directory, seed, seconds = sys.argv[1:]
    place = Path(directory)
    globals()[client](place, random.Random(int(seed)), time.monotonic() + float(seconds))
    print(calls, longest)


if __name__ == "__main__":
    main()
