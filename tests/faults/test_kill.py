"""The server is killed, and nobody on the mount notices: no call fails, nothing is lost.

By the gate it is killed before each single system call of each operation; at random under load.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import mmap
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import kill_clients
import pytest
from operations import CHANGES, layers, state
from support.intercept import KILL
from support.layers import File
from support.snapshot import differences
from support.union import detach, mounts_at, wait_until

pytestmark = pytest.mark.root

CASES = 130


def servers_of(union):
    """The server that runs now, in a list; empty while there is none."""
    with open(f"/proc/{union.pid}/task/{union.pid}/children", encoding="ascii") as children:
        return [int(pid) for pid in children.read().split()]


def kill_server(union):
    """SIGKILL. Returns whether there was one to be killed."""
    for pid in servers_of(union):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def kept(make_union, *lowers, **how):
    """A union with a keeper, whose deaths are no complaint."""
    union = make_union(*lowers, mount=False, **how)
    union.expected_complaint = "the next one goes on"
    return union


def lasting(case):
    """The state of a case, but for the times of directories: a copy-up puts them back as its last part."""
    return {
        path: dataclasses.replace(seen, mtime_ns=0) if seen.kind == "d" else seen
        for path, seen in state(case).items()
    }


@pytest.mark.parametrize("name", list(CHANGES))
def test_killed_before_each_call_of_an_operation(make_union, gate, name, request):
    operation = CHANGES[name]
    cases = [f"c{number}" for number in range(CASES)]
    upper, *lowers = layers(operation, cases)
    union = kept(make_union, *lowers, upper=upper)
    union.gate = gate
    root = union.mount("keeper", "volatile")
    changing = not request.config.getoption("--slow")
    states = {}
    for number in itertools.count():
        case = root / cases[number]
        with gate.at(number, KILL, changing=changing) as calls:
            operation.act(case)
        states[cases[number], str(calls[-1:])] = lasting(case)
        if len(calls) <= number:
            break
    assert number > 0 or "an upper file" in name, "it is passed through"
    *_, undisturbed = states.values()
    for where, seen in states.items():
        assert not differences(undisturbed, seen), where
    before = {case: lasting(root / case) for case, _ in states}
    union.gate = None
    union.remount("volatile")
    for case, seen in before.items():
        assert not differences(seen, lasting(root / case)), case
    assert set(os.listdir(union.work / "work")) <= {"incompat"}


def test_killed_at_random_under_load(make_union, request):
    """Clients of every kind at once; each knows what it must find, and fails at the first failed call."""
    seconds = 60 if request.config.getoption("--slow") else 8
    shared = {f"lowers{number}": {f"f{n}": f"lower {n}\n" * 200 for n in range(2000)} for number in range(2)}
    union = kept(make_union, {"lower": shared})
    _archive(union.place / "archive.tar")
    root = union.mount("keeper")
    clients = []
    for number in range(2):
        for client in kill_clients.CLIENTS:
            place = root / "work" / f"{client.__name__}{number}"
            place.mkdir(parents=True)
            command = [
                sys.executable,
                kill_clients.__file__,
                client.__name__,
                place,
                str(number),
                str(seconds),
            ]
            clients.append(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
    chance = random.Random(1)
    kills = 0
    while any(client.poll() is None for client in clients):
        time.sleep(chance.uniform(0.01, 0.3))
        kills += kill_server(union)
    said = [(client.args[2], *client.communicate()) for client in clients]
    assert not any(client.returncode for client in clients), "\n".join(error for _, _, error in said if error)
    numbers = [output.split() for _, output, _ in said]
    calls, longest = sum(int(one) for one, _ in numbers), max(float(each) for _, each in numbers)
    print(f"{kills} kills, {calls} calls, {longest:.3f} s the longest")
    assert kills > seconds
    union.remount()


def _archive(path):
    with tarfile.open(path, "w") as archive:
        for number in range(200):
            name = f"d{number % 10}/f{number}"
            info = tarfile.TarInfo(name)
            info.size = number * 50
            archive.addfile(info, io.BytesIO(b"x" * info.size))
            if number % 7 == 0:
                link = tarfile.TarInfo(f"d{number % 10}/l{number}")
                link.type, link.linkname = (tarfile.LNKTYPE, name) if number % 2 else (tarfile.SYMTYPE, "x")
                archive.addfile(link)


def test_many_deaths_in_a_row_end_the_mount(make_union):
    """A server that dies before it gets anywhere is started a few times; then the mount is taken away."""
    union = kept(make_union, {"a": "a"})
    union.expected_complaint = "the server died of SIGKILL"
    union.mount("keeper")
    killed = set()

    def ended():
        for pid in servers_of(union) if union.is_alive() else ():
            if pid not in killed:
                killed.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return not union.is_alive()

    wait_until(ended, "the keeper gives up")
    assert union.wait() == 1
    assert len(killed) == 6  # the first had answered the mount
    assert not mounts_at(union.root)
    assert "4 before it, and none got anywhere" in union.words()


def test_a_server_goes_on_without_its_keeper(make_union):
    union = kept(make_union, {"a": "a"})
    root = union.mount("keeper")
    (server,) = servers_of(union)
    os.kill(union.pid, signal.SIGKILL)
    union.wait()
    assert (root / "a").read_text() == "a"
    (root / "b").write_text("b")
    assert detach(root)
    wait_until(lambda: not os.path.exists(f"/proc/{server}/fd"), "the server ends with its mount")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("whom", ["keeper", "server"])
def test_signals_end_the_mount(make_union, number, whom):
    union = kept(make_union, {"a": "a"})
    union.mount("keeper")
    kill_server(union)
    wait_until(lambda: bool(servers_of(union)), "the next server")
    os.statvfs(union.root)
    os.kill(union.pid if whom == "keeper" else servers_of(union)[0], number)
    assert union.wait() == 0
    assert not mounts_at(union.root)


def test_stopped_and_continued(make_union):
    union = kept(make_union, {"a": "a"})
    root = union.mount("keeper")
    (server,) = servers_of(union)
    os.kill(server, signal.SIGSTOP)
    thread = threading.Thread(target=lambda: (root / "b").write_text("b"))
    thread.start()
    os.kill(server, signal.SIGKILL)
    thread.join()
    assert (root / "b").read_text() == "b"


def test_what_is_passed_through_goes_on(make_union):
    """A program that is mapped and run, and an upper file that is written, across a death."""
    union = kept(
        make_union, {"sleep": File(content=Path("/bin/sleep").read_bytes(), mode=0o755), "text": "t"}
    )
    root = union.mount("keeper")
    fd = os.open(root / "upper", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"one")
    with mmap.mmap(fd, 3) as mapped, subprocess.Popen([root / "sleep", "60"]) as program:
        for number in range(5):
            before = servers_of(union)
            kill_server(union)
            mapped[0:3] = b"%03d" % number
            assert os.pwrite(fd, b"%d" % number, 3 + number) == 1
            assert (root / "upper").read_bytes().startswith(b"%03d" % number)
            assert program.poll() is None
            assert servers_of(union) != before
        program.kill()
    os.close(fd)
    assert (union.upper / "upper").read_bytes() == b"00401234"
    (root / "sleep").write_bytes(b"replaced")
    assert (root / "sleep").read_bytes() == b"replaced"
