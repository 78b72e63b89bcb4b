"""Bridge networks: addresses, names, published ports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from network_namespace import in_network, own_network
from unionctl_runner import Unionctl, dead_cgroups, eventually

from runtime.containers import netavark, networks, ports
from runtime.containers.container import find
from runtime.containers.ports import Port
from runtime.errors import RuntimeFailure
from runtime.root import Root

SERVER = ("sh", "-c", "while :; do echo hello | nc -l -p 80; done")


class Networked(Unionctl):
    """unionctl in a network of its own."""

    enter: list[str] = []

    def host(self, *words: str) -> str:
        """Run a command as the host of that network."""
        result = subprocess.run([*self.enter, *words], capture_output=True, text=True, timeout=60)
        return result.stdout + result.stderr

    def network(self, name: str) -> dict[str, Any]:
        """What inspect says of a container's network."""
        return dict(json.loads(self.out("inspect", "-f", "{{json .NetworkSettings}}", name)))


@pytest.fixture
def unionctl(tmp_path: Path) -> Iterator[Networked]:
    cgroups = dead_cgroups()
    with own_network(tmp_path) as enter:
        runner = Networked(tmp_path / "state")
        runner.enter = enter
        in_network(runner, enter)
        runner.load()
        yield runner
        runner.end(cgroups)
        # The last container takes the bridge with it, and its rules.
        assert " un-" not in runner.host("ip", "link")
        assert "--to-destination" not in runner.host("iptables-save")


@pytest.mark.root
def test_the_default_is_a_bridge(unionctl: Networked) -> None:
    unionctl("run", "-d", "--name", "one", "busybox", "sleep", "1000")
    found = unionctl.network("one")
    address, gateway = found["IPAddress"], found["Gateway"]
    assert found["Networks"]["bridge"]["IPAddress"] == address
    assert f"{address}\t{find(Root(unionctl.root), 'one').id[:12]}" in unionctl.out(
        "exec", "one", "cat", "/etc/hosts"
    )
    assert "1 packets received" in unionctl.out("exec", "one", "/bin/busybox", "ping", "-c", "1", gateway)
    assert "1 received" in unionctl.host("ping", "-c", "1", address) or "1 packets received" in unionctl.host(
        "busybox", "ping", "-c", "1", address
    )
    unionctl("stop", "-t", "0", "one")
    assert unionctl.network("one")["IPAddress"] == ""
    unionctl("start", "one")
    assert unionctl.network("one")["IPAddress"] == address
    assert "bridge" in unionctl.out("ps", "--format", "{{.Networks}}")


@pytest.mark.root
@pytest.mark.skipif(netavark.program("aardvark-dns") is None, reason="needs aardvark-dns")
def test_names_are_known_in_a_network(unionctl: Networked) -> None:
    unionctl("network", "create", "net")
    unionctl("run", "-d", "--name", "web", "--network", "net", "--network-alias", "www", "busybox", *SERVER)
    ask = "until nc web 80 </dev/null; do sleep 0.1; done; until nc www 80 </dev/null; do sleep 0.1; done"
    run = ("run", "--rm", "--network", "net", "busybox", "sh", "-c")
    assert unionctl.out(*run, ask) == "hello\nhello"
    unionctl("run", "-d", "--name", "other", "busybox", "sleep", "1000")
    words = unionctl("exec", "other", "nc", "web", "80", code=None)
    assert words.returncode != 0
    unionctl("network", "connect", "--alias", "late", "net", "other")
    assert unionctl.out("exec", "other", "cat", "/proc/net/dev").count("eth") == 2
    assert "1 packets received" in unionctl.out(*run, "/bin/busybox ping -c 1 late")
    assert set(unionctl.network("other")["Networks"]) == {"bridge", "net"}
    assert "active endpoints" in unionctl.err("network", "rm", "net", code=1)
    unionctl("network", "disconnect", "net", "other")
    assert set(unionctl.network("other")["Networks"]) == {"bridge"}
    assert "eth1" not in unionctl.out("exec", "other", "cat", "/proc/net/dev")
    assert "not connected" in unionctl.err("network", "disconnect", "net", "other", code=1)


@pytest.mark.root
def test_published_ports(unionctl: Networked) -> None:
    unionctl("run", "-d", "--name", "web", "-p", "127.0.0.1:8080:80", "-p", "90", "busybox", *SERVER)

    def ask(port: str) -> str:
        return unionctl.host("busybox", "nc", "-w", "5", "127.0.0.1", port)

    assert eventually(lambda: ask("8080") == "hello\n", 30), ask("8080")
    assert unionctl.out("port", "web", "80") == "127.0.0.1:8080"
    assert unionctl.out("port", "web").startswith("80/tcp -> 127.0.0.1:8080\n90/tcp -> 0.0.0.0:")
    assert "127.0.0.1:8080->80/tcp" in unionctl.out("ps", "--format", "{{.Ports}}")
    taken = unionctl.err("run", "--rm", "-p", "8080:1", "busybox", "true", code=125)
    assert "port is already allocated" in taken
    unionctl("restart", "-t", "0", "web")
    assert eventually(lambda: ask("8080") == "hello\n", 30), ask("8080")
    unionctl("stop", "-t", "0", "web")
    assert "hello" not in ask("8080")


@pytest.mark.root
def test_exposed_ports_are_published_when_asked_for(unionctl: Networked) -> None:
    unionctl.load("exposing:1", ExposedPorts={"80/tcp": {}, "53/udp": {}})
    unionctl("run", "-d", "--name", "one", "-P", "--expose", "7000-7001", "exposing:1", "sleep", "1000")
    assert set(unionctl.network("one")["Ports"]) == {"80/tcp", "53/udp", "7000/tcp", "7001/tcp"}
    assert all(binding[0]["HostPort"] > "0" for binding in unionctl.network("one")["Ports"].values())


@pytest.mark.root
def test_an_address_and_a_subnet_of_ones_own(unionctl: Networked) -> None:
    unionctl("network", "create", "--subnet", "10.77.0.0/24", "--label", "a=b", "net")
    run = ("run", "-d", "--network", "net", "--ip", "10.77.0.9", "--mac-address", "02:11:22:33:44:55")
    unionctl(*run, "--name", "one", "busybox", "sleep", "1000")
    assert unionctl.network("one")["IPAddress"] == "10.77.0.9"
    assert unionctl.out("exec", "one", "cat", "/sys/class/net/eth0/address") == "02:11:22:33:44:55"
    assert "already in use" in unionctl.err(*run, "busybox", "true", code=125)
    found = json.loads(unionctl.out("network", "inspect", "net"))[0]
    assert [one["IPv4Address"] for one in found["Containers"].values()] == ["10.77.0.9/24"]
    assert "overlaps" in unionctl.err("network", "create", "--subnet", "10.77.0.128/25", "other", code=1)
    assert "user defined networks" in unionctl.err("run", "--ip", "10.89.0.9", "busybox", code=125)
    assert unionctl.out("network", "ls", "-f", "label=a", "--format", "{{.Name}}") == "net"
    gateway = ("--add-host", "up:host-gateway", "--network", "net")
    assert "10.77.0.1\tup" in unionctl.out("run", "--rm", *gateway, "busybox", "cat", "/etc/hosts")


@pytest.mark.root
def test_a_killed_container_leaves_no_rules(unionctl: Networked) -> None:
    unionctl("run", "-d", "--name", "one", "-p", "8080:80", "busybox", "sleep", "1000")
    for pid in (*unionctl.processes(), find(Root(unionctl.root), "one").state.pid):
        os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: unionctl.out("ps", "-q") == "")
    assert "--to-destination" not in unionctl.host("iptables-save")
    unionctl("start", "one")
    assert unionctl.network("one")["IPAddress"] != ""


@pytest.mark.root
def test_networks_that_are_there_and_not(unionctl: Networked) -> None:
    assert unionctl.out("network", "ls", "--format", "{{.Name}}").split() == ["bridge", "host", "none"]
    assert "not found" in unionctl.err("run", "--network", "nosuch", "busybox", "true", code=125)
    assert "pre-defined" in unionctl.err("network", "rm", "bridge", code=1)
    assert "predefined" in unionctl.err("network", "create", "host", code=1)
    unionctl("network", "create", "net")
    assert "already exists" in unionctl.err("network", "create", "net", code=1)
    unionctl("network", "create", "kept")
    unionctl("create", "--network", "kept", "busybox")
    assert unionctl.out("network", "prune", "-f").split() == ["Deleted", "Networks:", "net"]
    assert "not found" in unionctl.err("network", "rm", "net", code=1)
    unionctl("network", "rm", "kept")


def test_without_netavark_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(netavark, "_SEARCH", str(tmp_path))
    monkeypatch.delenv("UNIONCTL_NETWORK", raising=False)
    assert networks.default_network() == "none"
    with pytest.raises(RuntimeFailure, match="netavark is not installed"):
        networks.create(Root(tmp_path).prepare(), "net")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80", [Port(80)]),
        ("8080:80", [Port(80, host=8080)]),
        ("80/udp", [Port(80, "udp")]),
        ("127.0.0.1:8080:80/tcp", [Port(80, "tcp", "127.0.0.1", 8080)]),
        ("127.0.0.1::80", [Port(80, "tcp", "127.0.0.1", 0)]),
        (":80", [Port(80)]),
        ("[::1]:8080:80", [Port(80, "tcp", "::1", 8080)]),
        ("8000-8001:80-81", [Port(80, host=8000), Port(81, host=8001)]),
    ],
)
def test_port_words(text: str, expected: list[Port]) -> None:
    assert ports.parse(text) == expected


@pytest.mark.parametrize("text", ["", "x", "0", "70000", "80/icmp", "1-2:3-5", "1.2.3:8:8", "5-4"])
def test_what_is_no_port(text: str) -> None:
    with pytest.raises(RuntimeFailure, match="invalid"):
        ports.parse(text)
