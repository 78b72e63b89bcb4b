"""docker pull, push, login and run against `unionctl serve`, with a real registry behind it."""

from __future__ import annotations

import http.client
import json
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest
from image_builder import digest, file, tar
from registry_server import OCI, PASSWORD, USER, Proxy, Registry
from served import PATIENCE, Served
from unionctl_runner import busybox_layers, dead_cgroups, eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not shutil.which("docker"), reason="needs the docker command"),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    cgroups = dead_cgroups()
    server = Served(tmp_path_factory.mktemp("api"))
    server.start()
    yield server
    server.remove_all()
    words = server.stop()
    server.unionctl.end(cgroups)
    assert "Traceback" not in words, words


def put(registry: Registry, repository: str) -> str:
    """A busybox image in the registry; its manifest's digest."""
    settings = {"Env": ["PATH=/bin"], "Cmd": ["sh"]}
    own = tar(file("own", random.Random(repository).randbytes(300_000)))  # what no other image has
    described = registry.put_image(repository, "latest", [*busybox_layers(), own], config=settings)
    return str(described["digest"])


def test_docker_pulls_and_pushes(served: Served, registry: Registry) -> None:
    pulled = put(registry, "box")
    name = f"{registry.host}/box"
    lines = served.out("pull", name).splitlines()
    assert lines[:2] == ["Using default tag: latest", "latest: Pulling from box"]
    assert sum(line.endswith(": Pull complete") for line in lines) == 4
    assert lines[-3:] == [
        f"Digest: {pulled}",
        f"Status: Downloaded newer image for {name}:latest",
        f"{name}:latest",
    ]
    assert served.inspect(name)["RepoDigests"] == [f"{name}@{pulled}"]
    served.docker("tag", name, f"{registry.host}/other:2")
    out = served.out("push", f"{registry.host}/other:2")
    assert f"2: digest: {pulled} size: " in out and out.count(": Mounted from box") == 4
    assert digest(registry.manifest("other", "2") or b"") == pulled
    served.docker("rmi", name, f"{registry.host}/other:2")
    registry.put_image("other", "3", busybox_layers()[:1])
    served.docker("pull", "-q", "-a", f"{registry.host}/other")
    assert served.docker("images", "-q", f"{registry.host}/other").stdout.count(b"\n") == 2
    served.docker("rmi", f"{registry.host}/other:2", f"{registry.host}/other:3")
    assert served.out("pull", "-q", f"{registry.host}/other@{pulled}").endswith(f"@{pulled}")


def test_docker_run_pulls_what_is_missing(served: Served, registry: Registry) -> None:
    put(registry, "missing")
    result = served.docker("run", "--rm", f"{registry.host}/missing", "echo", "hello")
    assert result.stdout == b"hello\n"
    assert b"Unable to find image" in result.stderr and b"Downloaded newer image" in result.stderr


def test_docker_create_pulls_for_the_platform(served: Served, registry: Registry) -> None:
    entries = []
    for architecture in ("amd64", "arm64"):
        described = registry.put_image("many", "", busybox_layers()[:1], architecture=architecture)
        entries.append(described | {"platform": {"os": "linux", "architecture": architecture}})
    index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": entries}
    registry.put_manifest("many", "latest", index)
    name = f"{registry.host}/many"
    for architecture in ("amd64", "arm64", "amd64"):
        served.docker("create", "--platform", f"linux/{architecture}", name, "true")
        assert served.inspect(name)["Architecture"] == architecture


def test_docker_is_told_what_is_not_there(served: Served, registry: Registry, proxy: Proxy) -> None:
    assert b"not found" in served.docker("pull", f"{registry.host}/nothing", code=1).stderr
    assert b"does not exist locally" in served.docker("push", f"{registry.host}/nothing", code=1).stderr
    put(registry, "lies")
    proxy.faults.corrupt = True
    said = served.docker("pull", f"{proxy.host}/lies", code=1).stderr.decode()
    assert "digest" in said or "damaged" in said or "not what" in said
    assert served.out("images", "-q", f"{proxy.host}/lies") == ""


def test_docker_logs_in(served: Served, tmp_path_factory: pytest.TempPathFactory) -> None:
    locked = Registry(tmp_path_factory.mktemp("locked") / "registry", auth=True)
    try:
        put(locked, "box")
        name = f"{locked.host}/box"
        assert b"unauthorized" in served.docker("pull", name, code=1).stderr
        login = ("login", "-u", USER, "--password-stdin", locked.host)
        assert b"unauthorized" in served.docker(*login, stdin=b"wrong", code=1).stderr
        assert b"Login Succeeded" in served.docker(*login, stdin=PASSWORD.encode()).stdout
        served.docker("pull", "-q", name)
        served.docker("push", "-q", name)
        served.docker("logout", locked.host)
        assert b"unauthorized" in served.docker("push", name, code=1).stderr
    finally:
        locked.close()


class _Connection(http.client.HTTPConnection):
    def __init__(self, served: Served) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = str(served.socket)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self._path)


def ask(served: Served, method: str, path: str, body: str = "", **headers: str) -> tuple[int, bytes]:
    connection = _Connection(served)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    try:
        return answer.status, answer.read()
    finally:
        connection.close()


def test_answers(served: Served, registry: Registry) -> None:
    pulled = put(registry, "answers")
    name = f"{registry.host}/answers"
    status, body = ask(served, "GET", f"/distribution/{name}/json")
    assert status == 200
    told = json.loads(body)
    assert told["Descriptor"]["digest"] == pulled
    assert told["Platforms"] == [{"architecture": "amd64", "os": "linux"}]
    status, body = ask(served, "POST", f"/images/create?fromImage={name}&tag=latest")
    objects = [json.loads(line) for line in body.splitlines()]
    assert status == 200
    assert objects[0] == {"status": "Pulling from answers", "progressDetail": {}, "id": "latest"}
    assert any(each["status"] == "Downloading" and each["progressDetail"]["total"] for each in objects)
    status, body = ask(served, "POST", f"/images/create?fromImage={name}&tag=none")
    assert status == 404 and "not found" in json.loads(body)["message"]
    for auth in ("!!!", "e30", "W10="):  # no base64 of JSON; {} without its padding; []
        status, body = ask(served, "POST", f"/images/create?fromImage={name}", X_Registry_Auth=auth)
        assert status == (200 if auth == "e30" else 400), body
    status, body = ask(served, "POST", "/auth", json.dumps({"username": "x", "serveraddress": "127.0.0.1:1"}))
    assert status == 500 and "cannot connect" in json.loads(body)["message"]


def test_a_client_that_goes_ends_its_pull(served: Served, registry: Registry, proxy: Proxy) -> None:
    put(registry, "slow")
    proxy.faults.pause, proxy.faults.piece = 0.2, 10_000
    process = served.popen("pull", f"{proxy.host}/slow", stdout=subprocess.PIPE)
    workspaces = served.unionctl.root / "tmp"
    assert eventually(lambda: any(path.stat().st_size for path in workspaces.glob("*/staging/*")), PATIENCE)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert eventually(lambda: [path.name for path in workspaces.iterdir()] == ["lock"], PATIENCE)
    assert served.out("images", "-q", f"{proxy.host}/slow") == ""
