"""Containers that go on: start, logs, exec, stop, kill, wait, pause, ps, inspect, rm."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
from unionctl_runner import Unionctl, eventually

pytestmark = pytest.mark.root

STATUS = "{{.State.Status}} {{.State.ExitCode}}"
FOREVER = ("sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done")


def test_detached_run_prints_the_id(unionctl: Unionctl) -> None:
    identifier = unionctl.out("run", "-d", "--name", "one", "busybox", *FOREVER)
    assert re.fullmatch("[0-9a-f]{64}", identifier)
    assert unionctl.out("inspect", "-f", "{{.Id}} {{.Name}}", "one") == f"{identifier} /one"
    assert unionctl.out("inspect", "-f", "{{.Name}}", identifier[:8]) == "/one"
    assert unionctl.out("ps", "-q", "--no-trunc") == identifier


def test_ps_shows_what_docker_shows(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "-l", "tier=web", "busybox", "sleep", "1000")
    unionctl("run", "--name", "two", "busybox", "false", code=1)
    unionctl("create", "--name", "three", "busybox")
    lines = unionctl.out("ps").splitlines()
    assert lines[0].split("   ")[0] == "CONTAINER ID"
    assert lines[0].split() == "CONTAINER ID IMAGE COMMAND CREATED STATUS PORTS NAMES".split()
    assert len(lines) == 2
    assert re.search(r'busybox +"sleep 1000" .* ago +Up .* +one$', lines[1])
    rows = unionctl.out("ps", "-a", "--format", "{{.Names}} {{.State}} {{.Status}}").splitlines()
    assert [row.split()[:2] for row in rows] == [["three", "created"], ["two", "exited"], ["one", "running"]]
    assert rows[1].startswith("two exited Exited (1) ")

    def names(*filters: str) -> set[str]:
        options = [word for text in filters for word in ("-f", text)]
        return set(unionctl.out("ps", "-a", "--format", "{{.Names}}", *options).split())

    assert names("status=exited") == {"two"}
    assert names("status=exited", "status=created") == {"two", "three"}
    assert names("name=o") == {"one", "two"}
    assert names("label=tier") == names("label=tier=web") == {"one"}
    assert names("exited=1") == {"two"}
    assert names("ancestor=busybox", "status=running") == {"one"}
    assert names("name=^one$") == names("name=^/one$") == names("name=on.") == {"one"}
    assert names("name=^on$") == set()
    said = unionctl.out("run", "--name", "four", "busybox", "sh", "-c", 'echo "a b"')
    assert said == "a b"
    assert unionctl.out("ps", "-l", "--format", "{{.Command}}") == r'''"sh -c 'echo \"a b\"'"'''


@pytest.mark.parametrize("text", ["no-such=filter", "status", "status=gone", "exited=x", "name=("])
def test_ps_refuses_a_filter_even_when_there_is_nothing_to_filter(unionctl: Unionctl, text: str) -> None:
    assert text.partition("=")[0] in unionctl.err("ps", "-f", text, code=1)


def test_logs(unionctl: Unionctl) -> None:
    script = (
        "for i in 1 2 3 4 5; do echo line $i; done; sleep 0.3; echo wrong >&2; sleep 0.3; printf 'no end'"
    )
    unionctl("run", "-d", "--name", "one", "busybox", "sh", "-c", script)
    unionctl("wait", "one")
    result = unionctl("logs", "one")
    assert result.stdout.decode() == "".join(f"line {i}\n" for i in range(1, 6)) + "no end"
    assert result.stderr == b"wrong\n"
    assert unionctl.out("logs", "--tail", "3", "one").splitlines() == ["line 5", "no end"]
    assert unionctl.out("logs", "--tail", "0", "one") == ""
    assert unionctl.out("logs", "--since", "1h", "one").startswith("line 1")
    assert unionctl.out("logs", "--since", "2100-01-01", "one") == ""
    stamped = unionctl.out("logs", "-t", "one").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z ", line) for line in stamped)
    unionctl("logs", "--since", "yesterday", "one", code=1)


def test_long_lines_are_whole_in_the_log(unionctl: Unionctl) -> None:
    unionctl(
        "run",
        "-d",
        "--name",
        "one",
        "busybox",
        "sh",
        "-c",
        "yes x | head -c 100000 | sed 's/x/yy/g' | md5sum",
    )
    unionctl("wait", "one")
    script = "i=0; while [ $i -lt 2000 ]; do printf 0123456789; i=$((i+1)); done; echo"
    unionctl("run", "-d", "--name", "two", "busybox", "sh", "-c", script)
    unionctl("wait", "two")
    assert unionctl.out("logs", "two") == "0123456789" * 2000


def test_logs_follow_until_the_end(unionctl: Unionctl) -> None:
    script = "for i in 1 2 3; do echo $i; sleep 0.3; done"
    unionctl("run", "-d", "--name", "one", "busybox", "sh", "-c", script)
    with unionctl.popen("logs", "-f", "one", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b"1\n2\n3\n"
    assert process.returncode == 0
    assert unionctl.out("inspect", "-f", STATUS, "one") == "exited 0"


def test_logs_follow_a_container_that_removes_itself(unionctl: Unionctl) -> None:
    script = "echo first; while [ ! -e /go ]; do sleep 0.1; done; echo last"
    unionctl("run", "-d", "--rm", "--name", "one", "busybox", "sh", "-c", script)
    with unionctl.popen("logs", "-f", "one", stdout=subprocess.PIPE) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == b"first\n"
        unionctl("exec", "one", "touch", "/go")
        assert following.communicate(timeout=60)[0] == b"last\n"
        assert following.returncode == 0


def test_stop_sends_the_stop_signal(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "busybox", *FOREVER)
    assert eventually(lambda: unionctl.out("logs", "one") == "ready")
    assert unionctl.out("stop", "one") == "one"
    assert unionctl.out("inspect", "-f", STATUS, "one") == "exited 3"
    assert unionctl.out("stop", "one") == "one"  # again: nothing to do


def test_stop_kills_what_does_not_listen(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "busybox", "sleep", "1000")
    begin = time.monotonic()
    unionctl("stop", "-t", "1", "one")
    assert 1 <= time.monotonic() - begin < 5
    assert unionctl.out("inspect", "-f", STATUS, "one") == "exited 137"


def test_stop_signal_of_run_and_of_the_image(unionctl: Unionctl) -> None:
    script = ("sh", "-c", "trap 'exit 9' USR1; trap 'exit 8' INT; echo ready; while :; do sleep 0.1; done")
    unionctl.load("quiet", StopSignal="SIGINT")
    unionctl("run", "-d", "--name", "one", "--stop-signal", "USR1", "quiet", *script)
    unionctl("run", "-d", "--name", "two", "quiet", *script)
    for name, code in (("one", 9), ("two", 8)):
        assert eventually(lambda name=name: unionctl.out("logs", name) == "ready")
        unionctl("stop", name)
        assert unionctl.out("inspect", "-f", STATUS, name) == f"exited {code}"


def test_kill_and_wait(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "busybox", *FOREVER)
    assert eventually(lambda: unionctl.out("logs", "one") == "ready")
    with unionctl.popen("wait", "one", stdout=subprocess.PIPE) as waiting:
        time.sleep(0.5)
        assert waiting.poll() is None
        assert unionctl.out("kill", "-s", "TERM", "one") == "one"
        assert waiting.communicate(timeout=20)[0] == b"3\n"
    assert "is not running" in unionctl.err("kill", "one", code=1)
    assert "invalid signal" in unionctl.err("kill", "-s", "NOSUCH", "one", code=1)


def test_wait_for_a_container_that_removes_itself(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--rm", "--name", "one", "busybox", "sh", "-c", "sleep 1; exit 6")
    assert unionctl.out("wait", "one") == "6"
    assert "No such container" in unionctl.err("wait", "one", code=1)


def test_start_again_keeps_the_upper_layer(unionctl: Unionctl) -> None:
    unionctl("run", "--name", "one", "busybox", "sh", "-c", "echo run >> /count; cat /count")
    assert unionctl("start", "-a", "one").stdout == b"run\nrun\n"
    assert unionctl.out("start", "one") == "one"
    unionctl("wait", "one")
    assert unionctl("logs", "one").stdout.count(b"run\n") == 6
    assert "No such container" in unionctl.err("start", "none", code=1)


def test_start_with_attached_stdin(unionctl: Unionctl) -> None:
    unionctl("create", "-i", "--name", "one", "busybox", "md5sum")
    assert unionctl("start", "-a", "-i", "one", stdin=b"abc").stdout.startswith(
        b"900150983cd24fb0d6963f7d28e17f72"
    )


def test_exec(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "-e", "A=run", "-w", "/opt", "busybox", "sleep", "1000")
    assert unionctl.out("exec", "one", "cat", "/etc/text") == "a text"
    assert unionctl.out("exec", "one", "sh", "-c", "pwd; echo $A $B", code=0) == "/opt\nrun"
    options = ["-e", "A=exec", "-e", "B=2", "-w", "/tmp", "-u", "alice"]
    said = unionctl.out("exec", *options, "one", "sh", "-c", "pwd; echo $A $B; id -un; echo $HOME")
    assert said.splitlines() == ["/tmp", "exec 2", "alice", "/home/alice"]
    unionctl("exec", "one", "sh", "-c", "exit 9", code=9)
    result = unionctl("exec", "one", "sh", "-c", "echo out; echo err >&2")
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")
    unionctl("exec", "one", "no-such-command", code=127)
    unionctl("exec", "one", "/etc/passwd", code=126)
    unionctl("exec", "one", "sh", "-c", "kill -9 $$", code=137)
    data = bytes(range(256)) * 20_000
    assert unionctl("exec", "-i", "one", "cat", stdin=data).stdout == data


def test_exec_detached_leaves_nothing(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "busybox", "sleep", "1000")
    unionctl("exec", "-d", "one", "sh", "-c", "sleep 0.3; echo here > /tmp/made")
    assert eventually(lambda: unionctl("exec", "one", "test", "-e", "/tmp/made", code=None).returncode == 0)
    directory = unionctl.directory("one")
    assert eventually(lambda: not list(directory.glob("exec-*")))


def test_exec_needs_a_running_container(unionctl: Unionctl) -> None:
    unionctl("create", "--name", "one", "busybox")
    assert "is not running" in unionctl.err("exec", "one", "true", code=1)
    assert "No such container" in unionctl.err("exec", "none", "true", code=1)


def test_pause_freezes(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "busybox", "sh", "-c", "while :; do echo tick; sleep 0.05; done")
    unionctl("pause", "one")
    assert unionctl.out("inspect", "-f", "{{.State.Status}}", "one") == "paused"
    assert "(Paused)" in unionctl.out("ps")
    before = unionctl.out("logs", "one")
    time.sleep(0.5)
    assert unionctl.out("logs", "one") == before
    assert "already paused" in unionctl.err("pause", "one", code=1)
    unionctl("unpause", "one")
    assert eventually(lambda: len(unionctl.out("logs", "one")) > len(before))
    unionctl("pause", "one")
    unionctl("kill", "one")
    assert unionctl.out("wait", "one") == "137"


def test_rm(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "busybox", "sleep", "1000")
    directory = unionctl.directory("one")
    assert "before removing or force remove" in unionctl.err("rm", "one", code=1)
    assert unionctl.out("rm", "-f", "one") == "one"
    assert not directory.exists()
    assert "No such container: one" in unionctl.err("rm", "one", code=1)
    assert "No such container: one" in unionctl.err("rm", "-f", "one", code=0)
    assert "No such image: gone" in unionctl.err("rmi", "gone", code=1)
    assert "No such image: gone" in unionctl.err("rmi", "-f", "gone", code=0)


def test_names(unionctl: Unionctl) -> None:
    identifier = unionctl.out("create", "--name", "one", "busybox")
    said = unionctl.err("create", "--name", "one", "busybox", code=125)
    assert 'The container name "/one" is already in use' in said and identifier in said
    unionctl("create", "--name", "not allowed", "busybox", code=125)
    unionctl("create", "busybox")
    made_up = unionctl.out("ps", "-l", "-a", "--format", "{{.Names}}")
    assert re.fullmatch("[a-z]+_[a-z]+", made_up)


def test_inspect_has_dockers_layout(unionctl: Unionctl, tmp_path: Path) -> None:
    options = ["-v", "named:/n", "-v", f"{tmp_path}:/h:ro", "-l", "a=b", "-e", "X=1", "--tmpfs", "/t"]
    unionctl("create", "--name", "one", *options, "busybox", "echo", "hello", "world")
    template = "{{.State.Running}} {{.HostConfig.AutoRemove}}"
    assert unionctl.out("inspect", "-f", template, "one") == "false false"
    (shown,) = json.loads(unionctl.out("inspect", "one"))
    assert (shown["Path"], shown["Args"]) == ("echo", ["hello", "world"])
    assert shown["State"]["Status"] == "created" and shown["State"]["Running"] is False
    assert shown["State"]["FinishedAt"] == "0001-01-01T00:00:00Z"
    assert shown["Config"]["Labels"] == {"a": "b"} and "X=1" in shown["Config"]["Env"]
    assert shown["Config"]["Image"] == "busybox" and shown["Image"].startswith("sha256:")
    assert {(mount["Type"], mount["Destination"], mount["RW"]) for mount in shown["Mounts"]} == {
        ("volume", "/n", True),
        ("bind", "/h", False),
        ("tmpfs", "/t", True),
    }
    assert set(shown["GraphDriver"]["Data"]) == {"LowerDir", "UpperDir", "WorkDir", "MergedDir"}


def test_inspect_finds_images_and_volumes_as_well(unionctl: Unionctl) -> None:
    unionctl("volume", "create", "vol")
    shown = json.loads(unionctl.out("inspect", "busybox", "vol"))
    assert shown[0]["RepoTags"] == ["busybox:latest"] and shown[0]["Config"]["Cmd"] == ["sh"]
    assert shown[1]["Name"] == "vol"
    assert unionctl.out("inspect", "--type", "image", "-f", "{{.Os}}", "busybox") == "linux"
    result = unionctl("inspect", "nothing", code=1)
    assert json.loads(result.stdout) == [] and b"No such object: nothing" in result.stderr


def test_several_containers_of_one_image_do_not_see_each_other(unionctl: Unionctl) -> None:
    script = "echo $HOSTNAME > /mine; sleep 1; cat /mine; ls /opt | wc -l"
    processes = [
        unionctl.popen(
            "run", "--rm", "-h", f"host{number}", "busybox", "sh", "-c", script, stdout=subprocess.PIPE
        )
        for number in range(4)
    ]
    for number, process in enumerate(processes):
        assert process.communicate(timeout=60)[0] == b"host%d\n3\n" % number


def test_an_image_that_a_container_has_cannot_be_removed(unionctl: Unionctl) -> None:
    unionctl("create", "--name", "one", "busybox")
    unionctl("rmi", "busybox", code=1)
    unionctl("rm", "one")
    unionctl("rmi", "busybox")
