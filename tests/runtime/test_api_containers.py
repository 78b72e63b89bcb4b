"""The real docker command, and Compose, against `unionctl serve`: containers and networks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from network_namespace import in_network, own_network
from served import PATIENCE, Served
from unionctl_runner import busybox_archive, dead_cgroups, eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not shutil.which("docker"), reason="needs the docker command"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server in a network of its own, with bridge as the default."""
    cgroups = dead_cgroups()
    directory = tmp_path_factory.mktemp("api")
    with own_network(directory) as enter:
        served = Served(directory)
        in_network(served.unionctl, enter)
        served.start()
        served.docker("load", stdin=busybox_archive())
        yield served
        words = served.stop()
        served.unionctl.end(cgroups)
        assert "Traceback" not in words, words


@pytest.fixture
def served(server: Served) -> Iterator[Served]:
    yield server
    server.remove_all()
    server.unionctl("network", "prune", "-f")


def test_cp_both_ways(served: Served, tmp_path: Path) -> None:
    served.docker("run", "-d", "--name", "box", "busybox", "sleep", "1000")
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/file").write_text("content")
    served.docker("cp", str(tmp_path / "tree"), "box:/opt")
    assert served.out("exec", "box", "cat", "/opt/tree/sub/file") == "content"
    served.docker("cp", "box:/opt/tree/.", str(tmp_path / "back"))
    assert (tmp_path / "back/sub/file").read_text() == "content"
    served.docker("cp", "-L", "box:/data/link", str(tmp_path / "seed"))
    assert (tmp_path / "seed").read_text() == "seed\n"
    served.docker("stop", "-t", "0", "box")
    served.docker("cp", str(tmp_path / "seed"), "box:/etc/seed")
    assert served.docker("cp", "box:/etc/seed", "-").stdout[:4] == b"seed"
    assert b"Could not find" in served.docker("cp", "box:/no/such", str(tmp_path), code=1).stderr


def test_rename_update_top_stats(served: Served) -> None:
    served.docker("run", "-d", "--name", "one", "-m", "64m", "busybox", "sleep", "1000")
    served.docker("rename", "one", "two")
    served.docker("update", "-m", "96m", "--memory-swap", "192m", "--restart", "always", "two")
    host = served.inspect("two")["HostConfig"]
    assert (host["Memory"], host["RestartPolicy"]["Name"]) == (96 << 20, "always")
    assert "sleep 1000" in served.out("top", "two")
    row = json.loads(served.out("stats", "--no-stream", "--format", "json", "two"))
    assert (row["Name"], row["PIDs"]) == ("two", "1")
    assert row["MemUsage"].endswith("/ 96MiB")
    assert row["NetIO"] != "0B / 0B"


def test_health_and_restarts(served: Served) -> None:
    served.docker(
        *("run", "-d", "--name", "one", "--init", "--health-cmd", "test -e /well"),
        *("--health-interval", "200ms", "--restart", "on-failure:1"),
        *("busybox", "sh", "-c", "touch /well; until test -e /end; do sleep 0.1; done; exit 3"),
    )
    assert eventually(lambda: served.inspect("one")["State"]["Health"]["Status"] == "healthy", PATIENCE)
    assert "(healthy)" in served.out("ps")
    served.docker("exec", "one", "touch", "/end")
    assert eventually(lambda: served.inspect("one")["State"]["Status"] == "exited", PATIENCE)
    found = served.inspect("one")
    assert (found["RestartCount"], found["State"]["ExitCode"]) == (1, 3)
    served.docker("rename", "one", "renamed")
    ask = ("events", "--since", "1h", "--until", "0s", "--format", "{{.Action}}")

    def events() -> list[str]:
        return served.out(*ask, "-f", f"container={found['Id']}").splitlines()

    # The client asks by whole seconds.
    assert eventually(lambda: events().count("die") == 2, PATIENCE), events()
    assert "health_status: healthy" in events()


def test_networks(served: Served) -> None:
    served.docker("network", "create", "--label", "a=b", "net")
    serve = ("sh", "-c", "while :; do echo hello | nc -l -p 80; done")
    options = ("--name", "web", "--network", "net", "--network-alias", "www", "-p", "127.0.0.1::80")
    served.docker("run", "-d", *options, "busybox", *serve)
    ask = "until nc www 80 </dev/null; do sleep 0.1; done"
    assert served.out("run", "--rm", "--network", "net", "busybox", "sh", "-c", ask) == "hello"
    port = served.out("port", "web", "80").rpartition(":")[2]
    reach = [*served.unionctl.command[:3], "busybox", "nc", "-w", "5", "127.0.0.1", port]
    assert eventually(lambda: subprocess.run(reach, capture_output=True).stdout == b"hello\n", PATIENCE)
    served.docker("run", "-d", "--name", "other", "busybox", "sleep", "1000")
    served.docker("network", "connect", "net", "other")
    found = json.loads(served.out("network", "inspect", "net"))[0]
    assert {one["Name"] for one in found["Containers"].values()} == {"web", "other"}
    served.docker("network", "disconnect", "net", "other")
    assert b"active endpoints" in served.docker("network", "rm", "net", code=1).stderr
    assert served.out("network", "ls", "-q", "-f", "label=a") != ""


COMPOSE = """
version: "3.7"
services:
  web:
    image: busybox
    command: sh -c 'while :; do cat /shared/text | nc -l -p 80; done'
    volumes: ["shared:/shared", "./text:/text:ro"]
    healthcheck: {test: "test -e /shared/text", interval: 1s}
    restart: unless-stopped
  fill:
    image: busybox
    command: cp /text /shared/text
    volumes: ["shared:/shared", "./text:/text:ro"]
  ask:
    image: busybox
    command: sh -c 'until nc web 80 </dev/null | grep composed; do sleep 0.2; done'
    depends_on: [web]
volumes: {shared: {}}
"""


@pytest.mark.skipif(not shutil.which("docker-compose"), reason="needs docker-compose")
def test_compose(served: Served, tmp_path: Path) -> None:
    (tmp_path / "docker-compose.yml").write_text(COMPOSE)
    (tmp_path / "text").write_text("composed\n")

    def compose(*words: str) -> str:
        result = subprocess.run(
            ["docker-compose", "-p", "proj", *words],
            cwd=tmp_path,
            env={**served.environment, "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=PATIENCE * 2,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    try:
        compose("up", "-d")
        assert served.out("wait", "proj_ask_1") == "0"
        assert "composed" in compose("logs", "ask")
        web = "proj_web_1"
        assert eventually(lambda: served.inspect(web)["State"]["Health"]["Status"] == "healthy", PATIENCE)
        before = served.inspect(web)["State"]["Pid"]
        os.kill(before, 9)
        assert eventually(lambda: served.inspect(web)["State"]["Pid"] not in (0, before), PATIENCE)
        compose("up", "-d", "--scale", "web=2")
        assert compose("ps", "-q", "web").count("\n") == 2
    finally:
        compose("down", "-v", "-t", "0")
    assert served.out("network", "ls", "-q", "-f", "name=proj") == ""
