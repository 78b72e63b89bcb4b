"""Health checks: the image's and those of the command line."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest
from unionctl_runner import Unionctl, eventually

from runtime.containers import health
from runtime.containers.container import Healthcheck
from runtime.containers.health import Health, Probe
from runtime.errors import RuntimeFailure

SECOND = 10**9


def found(unionctl: Unionctl, name: str = "one") -> dict[str, Any]:
    return dict(json.loads(unionctl.out("inspect", "-f", "{{json .State.Health}}", name)))


@pytest.mark.root
def test_from_starting_to_healthy_to_unhealthy(unionctl: Unionctl) -> None:
    options = [
        "--health-cmd",
        "echo probed; test -e /well",
        "--health-interval",
        "300ms",
        "--health-retries",
        "2",
    ]
    unionctl("run", "-d", "--name", "one", *options, "busybox", "sleep", "1000")
    assert found(unionctl)["Status"] == "starting"
    assert "(health: starting)" in unionctl.out("ps", "--format", "{{.Status}}")
    unionctl("exec", "one", "touch", "/well")
    assert eventually(lambda: found(unionctl)["Status"] == "healthy", 30), found(unionctl)
    assert "(healthy)" in unionctl.out("ps", "--format", "{{.Status}}")
    assert unionctl.out("ps", "-q", "-f", "health=unhealthy") == ""
    assert found(unionctl)["Log"][-1]["Output"] == "probed\n"
    assert found(unionctl)["FailingStreak"] == 0
    unionctl("exec", "one", "rm", "/well")
    assert eventually(lambda: found(unionctl)["Status"] == "unhealthy", 30), found(unionctl)
    assert found(unionctl)["FailingStreak"] >= 2
    assert found(unionctl)["Log"][-1]["ExitCode"] == 1
    assert unionctl.out("ps", "-q", "-f", "health=unhealthy") != ""
    unionctl("stop", "-t", "0", "one")
    assert eventually(lambda: not unionctl.processes())
    assert not list(unionctl.directory("one").glob("exec-*"))


@pytest.mark.root
def test_the_images_check(unionctl: Unionctl) -> None:
    check = {"Test": ["CMD", "test", "-e", "/etc/passwd"], "Interval": 200_000_000, "Retries": 1}
    unionctl.load("checked:1", Healthcheck=check)
    unionctl("run", "-d", "--name", "one", "checked:1", "sleep", "1000")
    assert eventually(lambda: found(unionctl)["Status"] == "healthy", 30)
    config = json.loads(unionctl.out("inspect", "-f", "{{json .Config.Healthcheck}}", "one"))
    assert config == check
    unionctl("run", "-d", "--name", "two", "--no-healthcheck", "checked:1", "sleep", "1000")
    assert "Health" not in json.loads(unionctl.out("inspect", "-f", "{{json .State}}", "two"))


@pytest.mark.root
def test_a_probe_that_takes_too_long(unionctl: Unionctl) -> None:
    options = [
        "--health-cmd",
        "sleep 1000 & sleep 1000",
        "--health-interval",
        "100ms",
        "--health-timeout",
        "300ms",
    ]
    unionctl("run", "-d", "--name", "one", *options, "--health-retries", "1", "busybox", "sleep", "1000")
    assert eventually(lambda: found(unionctl)["Status"] == "unhealthy", 30)
    probe = found(unionctl)["Log"][-1]
    assert (probe["ExitCode"], probe["Output"]) == (-1, "Health check exceeded timeout (300ms)")


@pytest.mark.root
def test_a_command_that_is_not_there_is_a_failure(unionctl: Unionctl) -> None:
    check = {"Test": ["CMD", "nosuch"], "Interval": 100_000_000, "Retries": 1}
    unionctl.load("checked:1", Healthcheck=check)
    unionctl("run", "-d", "--name", "one", "checked:1", "sleep", "1000")
    assert eventually(lambda: found(unionctl)["Status"] == "unhealthy", 30)
    assert found(unionctl)["Log"][-1]["ExitCode"] in (126, 127, -1)


@pytest.mark.root
def test_one_who_probes_and_was_killed_is_replaced(unionctl: Unionctl) -> None:
    options = ["--name", "one", "--health-cmd", "true", "--health-interval", "100ms"]
    unionctl("run", "-d", *options, "busybox", "sleep", "1000")
    assert eventually(lambda: found(unionctl)["Status"] == "healthy", 30)
    (prober,) = (pid for pid, line in unionctl.processes().items() if "containers.health" in line)
    os.kill(prober, signal.SIGKILL)
    seen = found(unionctl)["Log"][-1]["Start"]
    assert eventually(lambda: found(unionctl)["Log"][-1]["Start"] > seen, 30)


@pytest.mark.root
def test_options_that_make_no_sense(unionctl: Unionctl) -> None:
    both = ["--no-healthcheck", "--health-cmd", "true"]
    assert "conflicts" in unionctl.err("create", *both, "busybox", code=125)
    assert "duration" in unionctl.err("create", "--health-interval", "3", "busybox", code=125)


def probe(code: int) -> Probe:
    return Probe("", "", code, "")


def test_retries_are_counted() -> None:
    check = Healthcheck(("CMD", "x"), retries=3)
    now = Health()
    for expected in ("starting", "starting", "unhealthy"):
        now = health.judge(check, now, probe(1), 1)
        assert now.status == expected
    assert health.judge(check, now, probe(0), 1) == Health("healthy", 0, (*now.log, probe(0)))
    assert len(health.judge(check, Health(log=(probe(0),) * 5), probe(0), 1).log) == 5


def test_in_the_start_period_failures_do_not_count() -> None:
    check = Healthcheck(("CMD", "x"), start_period=10 * SECOND, retries=1)
    assert health.judge(check, Health(), probe(1), 5) == Health("starting", 0, (probe(1),))
    assert health.judge(check, Health(), probe(1), 11).status == "unhealthy"
    assert health.judge(check, Health("healthy"), probe(1), 5).status == "unhealthy"


def test_what_the_command_line_does_not_say_is_the_images() -> None:
    image = {"Test": ["CMD-SHELL", "a"], "Interval": SECOND, "Retries": 7}
    assert health.merge(image, None) == Healthcheck(("CMD-SHELL", "a"), interval=SECOND, retries=7)
    assert health.merge(image, Healthcheck(("CMD-SHELL", "b"), retries=2)) == Healthcheck(
        ("CMD-SHELL", "b"), interval=SECOND, retries=2
    )
    assert health.merge(image, Healthcheck(("NONE",))) == Healthcheck(("NONE",))
    assert health.merge({}, None) is None
    with pytest.raises(RuntimeFailure, match="Unknown healthcheck"):
        health.merge({"Test": ["SOMETHING", "a"]}, None)
