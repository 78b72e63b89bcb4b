"""Nothing is left behind, whoever dies and when."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time

import pytest
from unionctl_runner import Unionctl, eventually

from runtime.containers import monitor
from runtime.containers.container import find
from runtime.root import Root

pytestmark = pytest.mark.root

STATUS = "{{.State.Status}} {{.State.ExitCode}}"


def conmon_of(unionctl: Unionctl, name: str) -> int:
    return int((find(Root(unionctl.root), name).bundle / "conmon.pid").read_text())


@pytest.mark.parametrize("runs", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_many_runs_leave_nothing(unionctl: Unionctl, runs: int) -> None:
    for number in range(runs):
        options = ["-v", "/anon", "--tmpfs", "/t"] if number % 2 else ["-m", "64m"]
        unionctl("run", "--rm", *options, "busybox", "sh", "-c", f"exit {number % 3}", code=number % 3)
    # The last one's monitor may be about to end.
    assert eventually(lambda: not unionctl.leftovers([]), 5), unionctl.leftovers([])
    assert unionctl.out("volume", "ls", "-q") == ""


def test_failed_runs_leave_nothing(unionctl: Unionctl) -> None:
    for _ in range(5):
        unionctl("run", "--rm", "-v", "/anon", "busybox", "no-such-command", code=127)
        unionctl("run", "--rm", "--entrypoint", "", "busybox", code=125)
        unionctl("run", "--rm", "-v", "/anon", "-u", "nobody-here", "busybox", "true", code=125)
    assert eventually(lambda: not unionctl.leftovers([]), 5), unionctl.leftovers([])
    assert unionctl.out("volume", "ls", "-q") == ""


def test_the_rootfs_is_gone_when_the_container_has_ended(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "busybox", "sleep", "0.5")
    assert len(unionctl.mounts()) == 1
    # Nobody asks: conmon's exit command does it.
    assert eventually(lambda: not unionctl.mounts() and not unionctl.processes())
    assert find(Root(unionctl.root), "one").state.status == "exited"


def test_killed_unionctl_leaves_a_container_that_goes_on(unionctl: Unionctl) -> None:
    process = unionctl.popen("run", "--name", "one", "busybox", "sh", "-c", "sleep 1; echo end; exit 4")
    assert eventually(lambda: "Up" in unionctl.out("ps", "--format", "{{.Status}}"))
    process.kill()
    process.wait()
    assert unionctl.out("wait", "one") == "4"
    assert unionctl.out("logs", "one") == "end"
    assert eventually(lambda: not unionctl.mounts())


def test_killed_unionctl_with_rm_is_removed_all_the_same(unionctl: Unionctl) -> None:
    process = unionctl.popen("run", "--rm", "--name", "one", "busybox", "sleep", "1")
    assert eventually(lambda: "Up" in unionctl.out("ps", "--format", "{{.Status}}"))
    process.kill()
    process.wait()
    assert eventually(lambda: not unionctl.leftovers([])), unionctl.leftovers([])


def test_unionctl_killed_at_any_moment_of_a_start_can_be_mended(unionctl: Unionctl) -> None:
    delays = random.Random(3)
    for number in range(12):
        name = f"c{number}"
        process = unionctl.popen(
            "run", "-d", "--name", name, "busybox", "sleep", "1000", stdout=subprocess.DEVNULL
        )
        time.sleep(delays.uniform(0.1, 0.6))
        process.kill()
        process.wait()
        rows = unionctl.out("ps", "-a", "--format", "{{.Names}} {{.State}}").splitlines()
        state = dict(row.split() for row in rows).get(name)
        assert state in (None, "created", "running")  # never half of it
        if state == "created":
            # The driver may be about to mount still; whoever looks after that takes the mount away.
            assert eventually(lambda: unionctl.out("ps", "-aq") and not unionctl.mounts())
            unionctl("start", name)
        if state:
            assert unionctl.out("exec", name, "echo", "alive") == "alive"
            unionctl("rm", "-f", name)


def test_a_container_whose_monitor_was_killed_is_ended(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "busybox", "sleep", "1000")
    os.kill(conmon_of(unionctl, "one"), signal.SIGKILL)
    assert eventually(lambda: unionctl.out("ps", "-q") == "")
    assert unionctl.out("inspect", "-f", STATUS, "one") == "exited 255"
    assert "monitor was killed" in unionctl.out("inspect", "-f", "{{.State.Error}}", "one")
    assert not unionctl.mounts()
    unionctl("start", "one")
    assert unionctl.out("exec", "one", "echo", "again") == "again"


def test_exec_says_that_the_root_filesystem_was_killed(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "busybox", "sleep", "1000")
    (server,) = (pid for pid, line in unionctl.processes().items() if "-m unionfs" in line)
    os.kill(server, signal.SIGKILL)
    assert eventually(lambda: server not in unionctl.processes())
    assert "root filesystem of container one is gone" in unionctl.err("exec", "one", "ls", code=126)
    unionctl("stop", "-t", "0", "one")
    unionctl("start", "one")
    unionctl("exec", "one", "ls")


def test_a_waiting_run_sees_that_the_monitor_was_killed(unionctl: Unionctl) -> None:
    process = unionctl.popen("run", "--rm", "--name", "one", "busybox", "sleep", "1000")
    assert eventually(lambda: "Up" in unionctl.out("ps", "--format", "{{.Status}}"))
    os.kill(conmon_of(unionctl, "one"), signal.SIGKILL)
    assert process.wait(20) == 255


def test_everything_killed_at_once_as_when_the_machine_goes_down(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "busybox", "sh", "-c", "echo data > /kept; sleep 1000")
    assert eventually(lambda: unionctl("exec", "one", "test", "-s", "/kept", code=None).returncode == 0)
    init = find(Root(unionctl.root), "one").state.pid
    for pid in (*unionctl.processes(), init):
        os.kill(pid, signal.SIGKILL)
    assert unionctl.out("inspect", "-f", STATUS, "one") == "exited 255"
    assert not unionctl.mounts()
    unionctl("start", "one")
    assert unionctl.out("exec", "one", "cat", "/kept") == "data"


def test_a_busy_rootfs_is_unmounted_in_the_end(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "busybox", "sleep", "1000")
    with subprocess.Popen(["sleep", "1000"], cwd=find(Root(unionctl.root), "one").rootfs) as shell:
        unionctl("rm", "-f", "one")
        assert not unionctl.mounts()
        shell.kill()


def test_a_number_that_went_to_another_process_is_not_the_monitor(unionctl: Unionctl) -> None:
    unionctl("create", "--name", "one", "busybox")
    container = find(Root(unionctl.root), "one")
    container.bundle.mkdir()
    (container.bundle / "conmon.pid").write_text(str(os.getpid()))
    assert not monitor.is_watched(container.bundle, container.id)
    container.with_state(status="running", pid=os.getpid()).save()
    assert unionctl.out("inspect", "-f", STATUS, "one") == "exited 255"
