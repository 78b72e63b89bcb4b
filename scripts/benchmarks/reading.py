"""Workloads that only read: the mount itself, names, attributes, content, memory."""

from __future__ import annotations

import mmap
import os
import random

from benchmarks.material import FULL, MEBIBYTE, PYTHON
from benchmarks.stage import Stage, workload

_PRESENT_ROUNDS = 5


@workload("mount", "tree")
def mount(stage: Stage) -> None:
    """From the call of the command to the first answer."""
    stage.record("mount, 1 layer", stage.mount_seconds, "s")


@workload("walk", "tree", on_disk="lower")
def walk(stage: Stage) -> None:
    """find with every attribute, on a fresh mount and again."""
    with stage.clock("find -ls, first"):
        stage.run("find", ".", "-ls")
    with stage.clock("find -ls, again"):
        stage.run("find", ".", "-ls")
    with stage.clock("ls -lR, again"):
        stage.run("ls", "-lR")


@workload("cold walk", "tree", on_disk="lower")
def cold_walk(stage: Stage) -> None:
    """The same when nothing is in memory."""
    stage.forget_caches()
    with stage.clock("find -ls, cold"):
        stage.run("find", ".", "-ls")


@workload("stat", "tree", on_disk="lower")
def stat_names(stage: Stage) -> None:
    """stat of every file, and of names that are not there."""
    names = [os.path.join(stage.merged, name) for name in stage.material.files_of("tree")]
    with stage.clock("stat, first"):
        for name in names:
            os.stat(name)
    with stage.clock(f"stat, {_PRESENT_ROUNDS} times more"):
        for _ in range(_PRESENT_ROUNDS):
            for name in names:
                os.stat(name)
    absent = [f"{name}.absent" for name in names]
    with stage.clock("stat of absent names, first"):
        for name in absent:
            os.path.lexists(name)
    with stage.clock(f"stat of absent names, {_PRESENT_ROUNDS} times more"):
        for _ in range(_PRESENT_ROUNDS):
            for name in absent:
                os.path.lexists(name)


@workload("read tree", "tree", on_disk="lower")
def read_tree(stage: Stage) -> None:
    """Every file's content, on a fresh mount and again."""
    with stage.clock("read a whole tree, first"):
        stage.run("find", ".", "-type", "f", "-exec", "cat", "{}", "+")
    with stage.clock("read a whole tree, again"):
        stage.run("find", ".", "-type", "f", "-exec", "cat", "{}", "+")


@workload("cold read tree", "tree", on_disk="lower")
def cold_read_tree(stage: Stage) -> None:
    """Every file's content when nothing is in memory."""
    stage.forget_caches()
    with stage.clock("read a whole tree, cold"):
        stage.run("find", ".", "-type", "f", "-exec", "cat", "{}", "+")


@workload("open", "small", on_disk="lower")
def open_read_close(stage: Stage) -> None:
    """Small files, opened, read and closed again and again."""
    names = [os.path.join(stage.merged, name) for name in stage.material.files_of("small")]
    with stage.clock("open, read, close of small files"):
        for number in range(stage.material.sizes.calls // 5):
            fd = os.open(names[number % len(names)], os.O_RDONLY)
            os.read(fd, 8192)
            os.close(fd)


@workload("read", "big", on_disk="lower")
def read_file(stage: Stage) -> None:
    """One large file that is in memory: in order, at random, and mapped."""
    path = stage.merged / "file"
    size = stage.material.sizes.big * MEBIBYTE
    fd = os.open(path, os.O_RDONLY)
    buffer = bytearray(MEBIBYTE)
    _read_through(fd, buffer)
    with stage.clock("sequential read"):
        for _ in range(4):
            os.lseek(fd, 0, os.SEEK_SET)
            _read_through(fd, buffer)
    places = random.Random(2)
    offsets = [places.randrange(size // 4096) * 4096 for _ in range(stage.material.sizes.blocks)]
    block = bytearray(4096)
    with stage.clock("random 4 KiB reads"):
        for offset in offsets:
            os.preadv(fd, [block], offset)
    with stage.clock("mmap, every page read"), mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapped:
        for offset in range(0, size, 4096):
            mapped[offset]
    os.close(fd)


def _read_through(fd: int, buffer: bytearray) -> None:
    while os.readv(fd, [buffer]):
        pass


@workload("cold read", "big", on_disk="lower")
def cold_read_file(stage: Stage) -> None:
    """One large file from the disk."""
    stage.forget_caches()
    with stage.clock("sequential read, cold"):
        fd = os.open(stage.merged / "file", os.O_RDONLY)
        _read_through(fd, bytearray(MEBIBYTE))
        os.close(fd)


@workload("imports", "modules", on_disk="lower")
def imports(stage: Stage) -> None:
    """Python starts and imports many modules."""
    program = "import sys; sys.path.insert(0, 'lib'); import everything"
    for row in ("python with many imports, first", "python with many imports, again"):
        with stage.clock(row):
            stage.run(PYTHON, "-I", "-S", "-B", "-c", program)


def _layered(layers: int) -> None:
    @workload(f"{layers} layers", layers)
    def many_layers(stage: Stage) -> None:
        """The same tree, dealt out to more and more layers."""
        if layers > 1:
            stage.record(f"mount, {layers} layers", stage.mount_seconds, "s")
        with stage.clock(f"find -ls of {layers} layers, first"):
            stage.run("find", ".", "-ls")
        with stage.clock(f"find -ls of {layers} layers, again"):
            stage.run("find", ".", "-ls")

    @workload(f"cold {layers} layers", layers)
    def cold_many_layers(stage: Stage) -> None:
        stage.forget_caches()
        with stage.clock(f"find -ls of {layers} layers, cold"):
            stage.run("find", ".", "-ls")


for _layers in FULL.layers:
    _layered(_layers)


@workload("large tree", "large", served=True)
def large_tree(stage: Stage) -> None:
    """Memory of the server, after its start and when it was asked for every file."""
    files = stage.material.sizes.large
    stage.record("memory of the server, at the start", stage.private_memory(), "B")
    with stage.clock(f"find -ls of {files:,} files"):
        stage.run("find", ".", "-ls")
    stage.record(f"memory of the server, {files:,} files known", stage.private_memory(), "B")
