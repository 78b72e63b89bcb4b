"""Workloads that change the tree by system calls and plain tools."""

from __future__ import annotations

import os
import random
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.material import MEBIBYTE
from benchmarks.stage import Stage, workload


@workload("write", "empty", on_disk="empty", large=True)
def write_file(stage: Stage) -> None:
    """One large new file, in order and at random, without fsync."""
    size = stage.material.sizes.big
    block = os.urandom(MEBIBYTE)
    fd = os.open(stage.merged / "file", os.O_RDWR | os.O_CREAT)
    with stage.clock("sequential write"):
        for _ in range(size):
            os.write(fd, block)
    places = random.Random(3)
    offsets = [places.randrange(size * 256) * 4096 for _ in range(stage.material.sizes.blocks)]
    with stage.clock("random 4 KiB writes"):
        for offset in offsets:
            os.pwrite(fd, block[:4096], offset)
    os.close(fd)


@workload("untar", "empty", on_disk="empty", prepare=lambda material: material.archive)
def untar(stage: Stage) -> None:
    """An archive of many small files, and all of them removed again."""
    with stage.clock(f"untar of {stage.material.sizes.archive:,} files"):
        stage.run("tar", "-xf", stage.material.archive)
    with stage.clock("rm -rf of an upper tree"):
        stage.run("sh", "-c", "rm -rf d*")


@workload("names", "empty", on_disk="empty")
def names(stage: Stage) -> None:
    """Names made, renamed and removed, and directories."""
    directory = stage.merged / "names"
    directory.mkdir()
    numbers = range(stage.material.sizes.names)
    old = [f"{directory}/old{number}" for number in numbers]
    new = [f"{directory}/new{number}" for number in numbers]
    with stage.clock("create"):
        for path in old:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    with stage.clock("rename"):
        for before, after in zip(old, new, strict=True):
            os.rename(before, after)
    with stage.clock("unlink"):
        for path in new:
            os.unlink(path)
    with stage.clock("mkdir and rmdir"):
        for path in old:
            os.mkdir(path)
            os.rmdir(path)


@workload("chown", "small")
def chown(stage: Stage) -> None:
    """chown -R of a lower tree."""
    with stage.clock("chown -R of a lower tree"):
        stage.run("chown", "-R", "-h", "1000:1000", ".")


@workload("chmod", "small")
def chmod(stage: Stage) -> None:
    """chmod -R of a lower tree."""
    with stage.clock("chmod -R of a lower tree"):
        stage.run("chmod", "-R", "g+w,o-r", ".")


@workload("append", "small")
def append(stage: Stage) -> None:
    """A line more in each of many small lower files."""
    paths = [stage.merged / name for name in stage.material.files_of("small")]
    with stage.clock("append to small lower files"):
        for path in paths:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND)
            os.write(fd, b"a line more\n")
            os.close(fd)


@workload("copy-up", "giant", large=True)
def copy_up(stage: Stage) -> None:
    """A byte more in a large lower file."""
    os.sync()
    with stage.clock(f"append to a lower file of {stage.material.sizes.giant} MiB"):
        fd = os.open(stage.merged / "file", os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"x")
        os.close(fd)


@workload("chmod large", "giant", large=True)
def chmod_large(stage: Stage) -> None:
    """chmod of a large lower file."""
    os.sync()
    with stage.clock(f"chmod of a lower file of {stage.material.sizes.giant} MiB"):
        os.chmod(stage.merged / "file", 0o600)


@workload("remove lower", "small")
def remove_lower(stage: Stage) -> None:
    """rm -rf of a lower tree, which leaves whiteouts."""
    with stage.clock("rm -rf of a lower tree"):
        stage.run("sh", "-c", "rm -rf d*")


def _client(place: Path, known: list[str], rounds: int) -> None:
    """One of several at once: reads what is there, makes and removes files of its own."""
    place.mkdir()
    for number in range(rounds):
        path = known[number % len(known)]
        os.stat(path)
        with open(path, "rb") as file:
            file.read()
        own = place / f"file{number}"
        own.write_bytes(b"content")
        own.rename(place / f"kept{number}")
    shutil.rmtree(place)


@workload("clients", "small")
def clients(stage: Stage) -> None:
    """Four processes at once."""
    known = [os.path.join(stage.merged, name) for name in stage.material.files_of("small")]
    rounds = stage.material.sizes.small
    places = [stage.merged / f"client{number}" for number in range(4)]
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool, stage.clock("four clients at once"):
        for done in [pool.submit(_client, place, known, rounds) for place in places]:
            done.result()
