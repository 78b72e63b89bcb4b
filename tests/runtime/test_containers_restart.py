"""Restart policies, and the verb restart."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import pytest
from unionctl_runner import Unionctl, eventually

from runtime.containers import restart
from runtime.containers.container import Container, Process, Request, State, find
from runtime.errors import RuntimeFailure
from runtime.root import Root

pytestmark = pytest.mark.root

STATE = "{{.State.Status}} {{.RestartCount}} {{.State.ExitCode}}"
COUNT = "echo run >> /count; exit 3"


def state(unionctl: Unionctl, name: str = "one") -> list[str]:
    return unionctl.out("inspect", "-f", STATE, name).split()


def test_on_failure_tries_as_often_as_it_may(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "--restart", "on-failure:2", "busybox", "sh", "-c", COUNT)
    assert eventually(lambda: state(unionctl) == ["exited", "2", "3"], 30), state(unionctl)
    assert (unionctl.directory("one") / "upper/count").read_text() == "run\n" * 3
    assert eventually(lambda: not unionctl.processes())
    unionctl("start", "one")  # by hand: it counts from the beginning
    assert eventually(lambda: state(unionctl) == ["exited", "2", "3"], 30), state(unionctl)
    assert (unionctl.directory("one") / "upper/count").read_text() == "run\n" * 6


def test_on_failure_is_content_with_success(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "--restart", "on-failure", "busybox", "true")
    assert eventually(lambda: state(unionctl) == ["exited", "0", "0"])


@pytest.mark.parametrize("policy", ["always", "unless-stopped"])
def test_it_comes_back_until_it_is_stopped(unionctl: Unionctl, policy: str) -> None:
    unionctl("run", "-d", "--name", "one", "--restart", policy, "busybox", "sleep", "1000")
    first = find(Root(unionctl.root), "one").state.pid
    os.kill(first, signal.SIGKILL)
    assert eventually(lambda: state(unionctl)[:2] == ["running", "1"], 30), state(unionctl)
    assert unionctl.out("exec", "one", "echo", "back") == "back"
    unionctl("stop", "-t", "0", "one")
    assert state(unionctl) == ["exited", "1", "137"]
    assert eventually(lambda: not unionctl.processes())
    assert state(unionctl)[0] == "exited"


def test_the_wait_for_a_restart_can_be_ended(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "--restart", "always", "busybox", "sh", "-c", COUNT)
    assert eventually(lambda: int(state(unionctl)[1]) >= 3 and state(unionctl)[0] == "restarting", 30)
    assert "Restarting (3)" in unionctl.out("ps", "--format", "{{.Status}}")
    assert "restarting" in unionctl.err("rm", "one", code=1)
    unionctl("stop", "one")
    assert state(unionctl)[0] == "exited"
    assert eventually(lambda: not unionctl.processes())


def test_remove_ends_the_wait_too(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "--restart", "always", "busybox", "sh", "-c", COUNT)
    assert eventually(lambda: int(state(unionctl)[1]) >= 2, 30)
    unionctl("rm", "-f", "one")
    assert eventually(lambda: not unionctl.leftovers([]), 20), unionctl.leftovers([])


def test_one_that_was_to_restart_it_and_was_killed_is_replaced(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "--restart", "always", "busybox", "sh", "-c", COUNT)
    assert eventually(lambda: int(state(unionctl)[1]) >= 4 and state(unionctl)[0] == "restarting", 30)
    waiting = [pid for pid, line in unionctl.processes().items() if "containers.restart" in line]
    before = int(state(unionctl)[1])
    for pid in waiting:
        os.kill(pid, signal.SIGKILL)
    assert waiting
    assert eventually(lambda: int(state(unionctl)[1]) > before, 30)
    unionctl("stop", "-t", "0", "one")


def test_a_killed_monitor_is_an_end_like_others(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "--restart", "always", "busybox", "sleep", "1000")
    os.kill(int((find(Root(unionctl.root), "one").bundle / "conmon.pid").read_text()), signal.SIGKILL)
    assert eventually(lambda: state(unionctl)[:2] == ["running", "1"], 30), state(unionctl)


def test_wait_gives_the_end_of_the_run_it_saw(unionctl: Unionctl) -> None:
    waiting = unionctl.popen(
        "run", "--name", "one", "--restart", "on-failure:1", "busybox", "sh", "-c", "sleep 0.3; exit 9"
    )
    assert waiting.wait(30) == 9
    assert eventually(lambda: state(unionctl) == ["exited", "1", "9"], 30)


def test_restart_starts_anew(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "busybox", "sh", "-c", "echo run >> /count; sleep 1000")
    before = find(Root(unionctl.root), "one").state
    assert unionctl.out("restart", "-t", "0", "one") == "one"
    after = find(Root(unionctl.root), "one").state
    assert (after.status, after.starts) == ("running", before.starts + 1)
    assert after.pid != before.pid
    unionctl("stop", "-t", "0", "one")
    unionctl("restart", "one")
    assert find(Root(unionctl.root), "one").state.status == "running"
    assert "No such container" in unionctl.err("restart", "nosuch", code=1)


def test_restart_of_one_that_goes_at_its_end(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--rm", "--name", "one", "busybox", "sleep", "1000")
    unionctl("restart", "-t", "0", "one")
    assert find(Root(unionctl.root), "one").state.status == "running"
    unionctl("stop", "-t", "0", "one")
    assert eventually(lambda: unionctl.out("ps", "-aq") == "")


def test_policies_that_are_none(unionctl: Unionctl) -> None:
    for policy in ("sometimes", "always:3", "on-failure:x"):
        words = unionctl.err("run", "-d", "--restart", policy, "busybox", "true", code=125)
        assert "restart policy" in words
    assert "--rm" in unionctl.err("run", "--rm", "--restart", "always", "busybox", "true", code=125)


def test_words() -> None:
    assert restart.parse("") == ("no", 0)
    assert restart.parse("on-failure:5") == ("on-failure", 5)
    with pytest.raises(RuntimeFailure):
        restart.parse("no:1")


def test_the_wait_doubles_up_to_a_minute() -> None:
    begun, ended = "2026-01-01T00:00:00.000000000Z", "2026-01-01T00:00:01.000000000Z"
    process = Process((), (), "/", "", "SIGTERM", (), ())
    container = Container(
        Path("/"), "", "", begun, "", (), Request("", restart="always"), process, (), {},
        state=State("exited", started_at=begun, finished_at=ended),
    )  # fmt: skip
    waits = []
    for _ in range(12):
        waits.append(restart.delay(container))
        container = container.with_state(restart_delay=waits[-1])
    assert waits[:4] == [0.1, 0.2, 0.4, 0.8]
    assert waits[-1] == 60
    steady = container.with_state(finished_at="2026-01-01T00:00:10.000000000Z")
    assert restart.delay(steady) == 0.1
    assert not restart.wanted(container.with_state(stopped=True), 1)
    once = dataclasses.replace(container, request=Request("", restart="on-failure:1"))
    assert restart.wanted(once, 1)
    assert not restart.wanted(once, 0)
    assert not restart.wanted(once.with_state(restarts=1), 1)
