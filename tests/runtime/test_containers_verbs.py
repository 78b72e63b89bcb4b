"""rename, update, top, stats, events, port, df, prune, info, version."""

from __future__ import annotations

import json
import select
import subprocess
from pathlib import Path

import pytest
from unionctl_runner import Unionctl, eventually

from runtime import events
from runtime.containers import cgroups, stats
from runtime.containers.stats import Sample
from runtime.events import Event, Reader
from runtime.root import Root

pytestmark = pytest.mark.root


def test_rename(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "busybox", "sleep", "1000")
    unionctl("create", "--name", "other", "busybox")
    unionctl("rename", "one", "two")
    assert unionctl.out("exec", "two", "echo", "here") == "here"
    assert "No such container" in unionctl.err("exec", "one", "true", code=1)
    assert "already in use" in unionctl.err("rename", "two", "other", code=1)
    assert "same name" in unionctl.err("rename", "two", "two", code=1)
    assert "Invalid container name" in unionctl.err("rename", "two", "a b", code=1)


@pytest.mark.skipif(not cgroups.has_controller("memory"), reason="needs the memory cgroup")
def test_update_changes_a_running_container(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "-m", "64m", "busybox", "sleep", "1000")
    unionctl("update", "-m", "128m", "--memory-swap", "256m", "--pids-limit", "77", "--restart=always", "one")
    host = json.loads(unionctl.out("inspect", "-f", "{{json .HostConfig}}", "one"))
    assert (host["Memory"], host["PidsLimit"], host["RestartPolicy"]["Name"]) == (128 << 20, 77, "always")
    limit = unionctl.out("stats", "--no-stream", "--format", "{{.MemUsage}}", "one")
    assert limit.endswith("/ 128MiB")
    assert "6MB" in unionctl.err("update", "-m", "1m", "one", code=1)
    assert unionctl.out("inspect", "-f", "{{.HostConfig.Memory}}", "one") == str(128 << 20)
    assert "flags" in unionctl.err("update", "one", code=1)


def test_top_and_stats(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "busybox", "sh", "-c", "sleep 1000 & exec sleep 999")
    assert eventually(lambda: len(unionctl.out("top", "one").splitlines()) == 3)
    assert "sleep 999" in unionctl.out("top", "one")
    titles = unionctl.out("top", "one", "-o", "pid,comm").splitlines()[0]
    assert titles.split() == ["PID", "COMMAND"]
    assert "PID" in unionctl.err("top", "one", "-o", "comm", code=1)
    row = json.loads(unionctl.out("stats", "--no-stream", "--format", "json", "one"))
    assert (row["Name"], row["PIDs"]) == ("one", "2")
    unionctl("stop", "-t", "0", "one")
    assert "not running" in unionctl.err("top", "one", code=1)
    assert unionctl.out("stats", "--no-stream", "--format", "{{.Name}}") == ""


def test_cpu_percent() -> None:
    before = Sample(0, cpu=0, system=0, cpus=4)
    assert stats.cpu_percent(before, Sample(1, cpu=50, system=400, cpus=4)) == 50
    assert stats.cpu_percent(before, before) == 0


def test_events_are_kept(unionctl: Unionctl) -> None:
    unionctl("run", "--rm", "--name", "one", "-l", "a=b", "busybox", "false", code=1)
    lines = unionctl.out("events", "--until", "0s", "--format", "{{.Type}} {{.Action}}").splitlines()
    assert lines == [f"container {action}" for action in ("create", "start", "die", "destroy")]
    event = json.loads(
        unionctl.out("events", "--until", "0s", "-f", "event=die", "-f", "label=a", "--format", "json")
    )
    assert event["Actor"]["Attributes"] == {"a": "b", "image": "busybox", "name": "one", "exitCode": "1"}
    assert unionctl.out("events", "--since", "0s", "--until", "0s") == ""
    assert "invalid filter" in unionctl.err("events", "--until", "0s", "-f", "x=y", code=1)


def test_events_as_they_come(unionctl: Unionctl) -> None:
    listening = unionctl.popen("events", "-f", "type=volume", stdout=subprocess.PIPE)
    assert listening.stdout is not None
    try:
        # Until it listens, nothing is told it: so something is done again and again.
        def heard() -> bool:
            unionctl("volume", "create", "one")
            unionctl("volume", "rm", "one")
            return bool(select.select([listening.stdout], [], [], 0.3)[0])

        assert eventually(heard, 60)
        line = listening.stdout.readline().decode()
        assert line.split(maxsplit=1)[1] in [
            f"volume {action} one (driver=local)\n" for action in ("create", "destroy")
        ]
    finally:
        listening.terminate()
        listening.communicate()


def test_the_journal_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_LONG", 2000)
    root = Root(tmp_path)
    reader = Reader(root)
    seen = []
    for number in range(100):
        events.record(root, Event("volume", "create", str(number)))
        seen += [event.subject for event in reader.read()]
    reader.close()
    assert seen == [str(number) for number in range(100)]
    kept = [event.subject for event in events.follow(root, 0, 1 << 62, going=lambda: False)]
    assert kept == [str(number) for number in range(100 - len(kept), 100)]
    assert 10 < len(kept) < 40


def test_prune(unionctl: Unionctl) -> None:
    unionctl(
        "run",
        "--name",
        "ended",
        "-v",
        "/anonymous",
        "busybox",
        "dd",
        "if=/dev/zero",
        "of=/f",
        "bs=1M",
        "count=1",
    )
    unionctl("create", "--name", "labelled", "-l", "keep", "busybox")
    unionctl("run", "-d", "--name", "up", "busybox", "sleep", "1000")
    unionctl("volume", "create", "named")
    said = unionctl.out("container", "prune", "-f", "--filter", "label!=keep")
    assert "Deleted Containers:" in said and "Total reclaimed space: 1.0" in said
    assert sorted(unionctl.out("ps", "-a", "--format", "{{.Names}}").splitlines()) == ["labelled", "up"]
    assert "Are you sure" in unionctl("system", "prune", stdin=b"n\n", code=130).stdout.decode()
    assert "labelled" in unionctl.out("ps", "-a", "--format", "{{.Names}}")
    unionctl("system", "prune", "-f", "--volumes")
    assert unionctl.out("ps", "-a", "--format", "{{.Names}}") == "up"
    assert unionctl.out("volume", "ls", "-q") == "named"
    unionctl("volume", "prune", "-f", "-a")
    assert unionctl.out("volume", "ls", "-q") == ""
    assert "invalid filter" in unionctl.err("container", "prune", "-f", "--filter", "x=y", code=1)


def test_image_prune(unionctl: Unionctl) -> None:
    unionctl.load("other:1", Cmd=["true"])
    unionctl("create", "busybox")
    assert unionctl.out("image", "prune", "-f") == "Total reclaimed space: 0B"
    assert "untagged: other:1" in unionctl.out("image", "prune", "-f", "-a")
    assert unionctl.out("image", "ls", "--format", "{{.Repository}}") == "busybox"


def test_df_info_version(unionctl: Unionctl) -> None:
    unionctl(
        "run",
        "--name",
        "one",
        "-v",
        "kept:/v",
        "busybox",
        "dd",
        "if=/dev/zero",
        "of=/v/f",
        "bs=1k",
        "count=8",
    )
    rows = [json.loads(line) for line in unionctl.out("system", "df", "--format", "json").splitlines()]
    assert [(row["Type"], row["TotalCount"], row["Active"]) for row in rows] == [
        ("Images", "1", "1"),
        ("Containers", "1", "0"),
        ("Local Volumes", "1", "1"),
        ("Build Cache", "0", "0"),
    ]
    assert rows[2]["Size"] == "8.19kB"
    assert unionctl.out("info", "-f", "{{.ContainersStopped}} {{.Images}} {{.Driver}}") == "1 1 unionfs"
    assert "Storage Driver: unionfs" in unionctl.out("info")
    assert unionctl.out("version", "-f", "{{.Server.ApiVersion}}") == "1.48"
    assert "unionctl version" in unionctl.out("version")


def test_the_longer_words(unionctl: Unionctl) -> None:
    unionctl("container", "create", "--name", "one", "busybox")
    assert unionctl.out("container", "ls", "-a", "--format", "{{.Names}}") == "one"
    assert "prune" in unionctl.out("container", "--help")
    unionctl("container", "rm", "one")
    unionctl("image", "rm", "busybox")
    assert "no-such" in unionctl.err("container", "no-such", code=1)
