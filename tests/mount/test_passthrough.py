"""Files that the kernel reads and writes in their layer itself, under each policy."""

from __future__ import annotations

import itertools
import mmap
import os
import subprocess
import threading

import pytest
from support.layers import File

pytestmark = [pytest.mark.root, pytest.mark.fastpath]

POLICIES = ["off", "upper", "auto", "all"]
OPENINGS = {
    "read": os.O_RDONLY,
    "read and write": os.O_RDWR,
    "write": os.O_WRONLY,
    "append": os.O_WRONLY | os.O_APPEND,
    "cut": os.O_WRONLY | os.O_TRUNC,
}


def program(content="#!/bin/sh\necho lower\n"):
    return File(content=content, mode=0o755)


@pytest.mark.parametrize("policy", POLICIES)
def test_an_image_is_never_written(make_union, policy):
    """Whatever is opened in which order; fuse-overlayfs 2.0 writes to the image here."""
    orders = list(itertools.permutations(OPENINGS, 2))
    names = {f"{number}{kind}": None for number in range(len(orders)) for kind in ("f", "p")}
    lower = {name: program() if name.endswith("p") else "lower" * 100 for name in names}
    union = make_union(lower, options=(f"passthrough={policy}",))
    for number, order in enumerate(orders):
        for kind in ("f", "p"):
            path = union.root / f"{number}{kind}"
            fds = [os.open(path, OPENINGS[opening]) for opening in order]
            for fd, opening in zip(fds, order, strict=True):
                if opening == "read":
                    os.read(fd, 10)
                else:
                    os.write(fd, b"changed")
                if opening == "read and write":
                    with mmap.mmap(fd, 3) as memory:
                        memory[:3] = b"map"
            for fd in fds:
                os.close(fd)
    assert union.lowers_changed() == []


@pytest.mark.parametrize("policy", POLICIES)
def test_who_opens_after_a_change_sees_it(make_union, policy):
    union = make_union({"p": program(), "f": "lower"}, options=(f"passthrough={policy}",))
    for name in ("p", "f"):
        path = union.root / name
        with open(path, "rb") as before:
            first = before.read(3)
            with open(path, "r+b") as file:
                file.write(b"NEW")
            with open(path, "rb") as after:
                assert after.read(3) == b"NEW"
            assert path.read_bytes()[:3] == b"NEW"
            assert first != b"NEW"


@pytest.mark.parametrize("policy", ["off", "upper", "auto"])
def test_who_had_a_file_open_sees_the_change(make_union, policy):
    """Kernel overlayfs does so by read(2). Programs are the exception, and -o passthrough=all."""
    union = make_union({"f": "lower"}, options=(f"passthrough={policy}",))
    with open(union.root / "f", "rb", buffering=0) as before:
        assert before.read() == b"lower"
        with open(union.root / "f", "r+b") as file:
            file.write(b"LOW")
        assert os.pread(before.fileno(), 5, 0) == b"LOWer"


def test_a_running_program_can_be_replaced(make_union):
    with open("/bin/sleep", "rb") as file:
        sleep = file.read()
    union = make_union({"sleep": File(content=sleep, mode=0o755)})
    with subprocess.Popen([union.root / "sleep", "1000"]) as running:
        new = union.root / "new"
        new.write_bytes(b"#!/bin/sh\necho new\n")
        new.chmod(0o755)
        os.rename(new, union.root / "sleep")
        assert subprocess.check_output([union.root / "sleep"]) == b"new\n"
        assert running.poll() is None
        running.kill()


def test_content_that_was_kept_is_dropped_when_it_is_old(make_union):
    """Opened for writing with setuid it is not passed through, after it was written the other way."""
    union = make_union({}, upper={"f": "old" * 1000})
    path = union.root / "f"
    path.chmod(0o4755)
    with open(path, "r+b") as kept:
        assert kept.read(3) == b"old"
    path.chmod(0o644)
    with open(path, "r+b") as passed:
        passed.write(b"new")
    path.chmod(0o4755)
    with open(path, "r+b") as kept:
        assert kept.read(3) == b"new"


def test_many_who_open_while_it_is_copied_up(make_union):
    """The open of a program that becomes another file meanwhile is tried again, unseen."""
    union = make_union({f"p{number}": program("lower " * 50000) for number in range(8)})
    failed = []

    def work(path, flags):
        try:
            for _ in range(50):
                fd = os.open(path, flags)
                try:
                    if flags == os.O_RDONLY:
                        assert len(os.read(fd, 100)) == 100
                    else:
                        os.pwrite(fd, b"LOWER", 0)
                finally:
                    os.close(fd)
        except BaseException as error:
            failed.append(error)

    threads = [
        threading.Thread(target=work, args=(union.root / f"p{number}", flags))
        for number in range(8)
        for flags in (os.O_RDONLY, os.O_RDWR)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    for number in range(8):
        assert (union.root / f"p{number}").read_bytes()[:6] == b"LOWER "
