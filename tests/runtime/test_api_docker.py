"""The real docker command against `unionctl serve`."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from served import PATIENCE, Served
from test_containers_terminal import terminal
from unionctl_runner import busybox_archive, dead_cgroups, eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not shutil.which("docker"), reason="needs the docker command"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    cgroups = dead_cgroups()
    served = Served(tmp_path_factory.mktemp("api"))
    served.start()
    served.docker("load", stdin=busybox_archive())
    yield served
    words = served.stop()
    served.unionctl.end(cgroups)
    assert "Traceback" not in words, words
    assert not served.socket.exists()


@pytest.fixture
def served(server: Served) -> Iterator[Served]:
    yield server
    server.remove_all()


def test_run_gives_both_streams_and_the_exit_code(served: Served) -> None:
    result = served.docker("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 3", code=3)
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")
    assert served.out("ps", "-aq") == ""


def test_stdin_is_passed_to_its_end(served: Served) -> None:
    data = b"0123456789abcdef" * 60_000
    result = served.docker("run", "-i", "--rm", "busybox", "md5sum", stdin=data)
    expected = subprocess.run(["md5sum"], input=data, capture_output=True, check=True)
    assert result.stdout == expected.stdout
    echoed = served.docker("run", "-i", "--rm", "busybox", "cat", stdin=data)
    assert echoed.stdout == data


def test_a_command_that_is_not_there_is_127(served: Served) -> None:
    assert b"nosuch" in served.docker("run", "--rm", "busybox", "nosuch", code=127).stderr
    assert served.out("ps", "-aq") == ""


def test_a_terminal_has_the_size_of_the_clients(served: Served) -> None:
    with terminal(served, "run", "-it", "--rm", "busybox", "sh", rows=33, columns=99) as screen:  # type: ignore[arg-type]
        screen.expect(b"# ", PATIENCE)
        screen.type(b"stty size\n")
        screen.expect(b"33 99", PATIENCE)
        screen.resize(44, 111)
        screen.type(b"until stty size | grep '44 111'; do sleep 0.1; done\n")
        screen.expect(b"44 111\r\n", PATIENCE)
        screen.type(b"exit 5\n")
        assert screen.process.wait(PATIENCE) == 5


def test_detach_keys_leave_the_container_running(served: Served) -> None:
    with terminal(served, "run", "-it", "--name", "kept", "busybox", "sh") as screen:  # type: ignore[arg-type]
        screen.expect(b"# ", PATIENCE)
        screen.type(b"\x10\x11")
        screen.process.wait(PATIENCE)
    assert served.inspect("kept")["State"]["Running"] is True
    with terminal(served, "attach", "kept") as screen:  # type: ignore[arg-type]
        screen.type(b"echo $((40+2))\n")
        screen.expect(b"42", PATIENCE)
        screen.type(b"exit\n")
        screen.process.wait(PATIENCE)
    assert served.inspect("kept")["State"]["Status"] == "exited"


def test_logs(served: Served) -> None:
    served.docker(
        "run", "-d", "--name", "talker", "busybox", "sh", "-c", "echo 1; echo 2 >&2; sleep 1; echo 3"
    )
    followed = served.docker("logs", "-f", "talker")
    assert (followed.stdout, followed.stderr) == (b"1\n3\n", b"2\n")
    assert served.out("logs", "--tail", "1", "talker") == "3"
    stamped = served.out("logs", "-t", "talker").splitlines()
    assert [line.split(" ")[1] for line in stamped] == ["1", "3"]
    assert served.out("logs", "--since", stamped[1].split(" ")[0], "talker") == "3"
    assert served.out("logs", "--until", stamped[0].split(" ")[0], "talker") == "1"


def test_exec(served: Served) -> None:
    served.docker("run", "-d", "--name", "host", "busybox", "sleep", "1000")
    assert served.out("exec", "-e", "A=b", "-w", "/tmp", "host", "sh", "-c", "echo $A; pwd") == "b\n/tmp"
    assert served.docker("exec", "-i", "host", "cat", stdin=b"typed").stdout == b"typed"
    served.docker("exec", "host", "sh", "-c", "exit 9", code=9)
    assert b"nosuch" in served.docker("exec", "host", "nosuch", code=127).stdout
    served.docker("exec", "-d", "host", "touch", "/made")
    assert eventually(lambda: "A /made" in served.out("diff", "host"), PATIENCE)
    with terminal(served, "exec", "-it", "host", "sh", rows=20, columns=70) as screen:  # type: ignore[arg-type]
        screen.expect(b"# ", PATIENCE)
        screen.type(b"until stty size | grep '20 70'; do sleep 0.1; done; exit 6\n")
        screen.expect(b"20 70\r\n", PATIENCE)
        assert screen.process.wait(PATIENCE) == 6


def test_the_life_of_a_container(served: Served) -> None:
    identifier = served.out("create", "--name", "life", "-l", "a=b", "busybox", "sleep", "1000")
    assert served.inspect("life")["State"]["Status"] == "created"
    served.docker("start", "life")
    assert served.out("ps", "-q", "--no-trunc", "-f", "label=a=b") == identifier
    served.docker("pause", "life")
    assert "(Paused)" in served.out("ps", "--format", "{{.Status}}")
    assert b"already paused" in served.docker("pause", "life", code=1).stderr
    served.docker("unpause", "life")
    served.docker("restart", "-t", "0", "life")
    waiting = served.popen("wait", "life", stdout=subprocess.PIPE)
    assert b"cannot remove" in served.docker("rm", "life", code=1).stderr
    served.docker("kill", "-s", "KILL", "life")
    assert waiting.communicate(timeout=PATIENCE)[0] == b"137\n"
    served.docker("rm", "life")
    assert b"No such container" in served.docker("start", "life", code=1).stderr


def test_names_are_given_once(served: Served) -> None:
    served.docker("create", "--name", "once", "busybox")
    assert b"is already in use" in served.docker("create", "--name", "once", "busybox", code=1).stderr


def test_volumes_binds_and_tmpfs(served: Served, tmp_path_factory: pytest.TempPathFactory) -> None:
    bound = tmp_path_factory.mktemp("bound")
    served.docker("volume", "create", "--label", "x=y", "named")
    served.docker(
        *("run", "--rm", "-v", "named:/named", "-v", f"{bound}:/bound", "--tmpfs", "/memory:size=1m"),
        *("--mount", "type=bind,source=/etc,target=/ro,readonly", "busybox", "sh", "-c"),
        "echo n > /named/f; echo b > /bound/f; df /memory | grep -q 1024; ! touch /ro/f",
    )
    assert (bound / "f").read_text() == "b\n"
    assert served.out("run", "--rm", "-v", "named:/again:ro", "busybox", "cat", "/again/f") == "n"
    assert served.out("volume", "ls", "-q", "-f", "label=x=y") == "named"
    served.docker("create", "--name", "user", "-v", "named:/named", "busybox")
    assert b"volume is in use" in served.docker("volume", "rm", "named", code=1).stderr


def test_limits_reach_the_container(served: Served) -> None:
    served.docker(
        *("create", "--name", "small", "-m", "64m", "--cpus", "0.5", "--pids-limit", "50", "--read-only"),
        *("--ulimit", "nofile=100:200", "--cap-drop", "ALL", "--user", "alice", "busybox", "id"),
    )
    host = served.inspect("small")["HostConfig"]
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (64 << 20, 500_000_000, 50)
    assert host["Ulimits"] == [{"Name": "nofile", "Soft": 100, "Hard": 200}]
    assert host["ReadonlyRootfs"] is True
    assert served.out("start", "-a", "small").startswith("uid=1000(alice)")


def test_images(served: Served) -> None:
    served.docker("tag", "busybox", "example.com/a/b:1")
    assert served.out("images", "-q", "-f", "reference=example.com/a/*:1") != ""
    assert (
        served.out("history", "-q", "--no-trunc", "busybox").splitlines()[0]
        == served.inspect("busybox")["Id"]
    )
    assert served.out("rmi", "example.com/a/b:1") == "Untagged: example.com/a/b:1"
    served.docker("create", "--name", "using", "busybox")
    assert b"container" in served.docker("rmi", "busybox", code=1).stderr
    assert b"No such image" in served.docker("image", "inspect", "nosuch", code=1).stderr


def test_events_tell_what_anyone_does(served: Served) -> None:
    listening = served.popen(
        "events", "--format", "{{json .}}", "-f", "type=container", stdout=subprocess.PIPE
    )
    assert listening.stdout is not None
    try:
        # Until the client listens, nothing is sent to it: so tell it something again and again.
        def heard() -> bool:
            served.unionctl("run", "--rm", "--name", "noisy", "busybox", "sh", "-c", "exit 4", code=4)
            return _readable(listening)

        assert eventually(heard, PATIENCE)
        seen = []
        while "destroy" not in seen:
            event = json.loads(listening.stdout.readline())
            seen.append(event["Action"])
            assert event["Actor"]["Attributes"]["name"] == "noisy"
            if event["Action"] == "die":
                assert event["Actor"]["Attributes"]["exitCode"] == "4"
        assert seen[-4:] == ["create", "start", "die", "destroy"][-len(seen) :]
    finally:
        listening.terminate()
        listening.communicate()


def _readable(process: subprocess.Popen[bytes]) -> bool:
    import select

    return bool(select.select([process.stdout], [], [], 0.2)[0])


def test_prune_and_df(served: Served) -> None:
    served.docker("run", "--name", "gone", "busybox", "dd", "if=/dev/zero", "of=/f", "bs=1k", "count=100")
    usage = json.loads(served.out("system", "df", "-v", "--format", "json"))
    assert [entry["Names"] for entry in usage["Containers"]] == ["gone"]
    assert "Total reclaimed space: 102" in served.out("container", "prune", "-f")
    assert served.out("ps", "-aq") == ""


def test_what_is_not_there_names_itself(served: Served) -> None:
    words = served.docker("swarm", "init", code=1).stderr.decode()
    assert "POST /swarm/init is not implemented" in words
