"""dockerd with unionfs in the place of fuse-overlayfs."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import closing

import image
import pytest
import steps
from dockerd import Docker
from machine import PATIENCE, left_mounted, needs, public_place
from support.union import wait_until

pytestmark = pytest.mark.root
needs("dockerd", "docker", "runc")

COMPOSE = f"""
version: "3.7"
services:
  writer:
    image: {image.NAME}
    network_mode: none
    command: [sh, -c, "echo word >/shared/word; exec sleep 1000"]
    volumes: ["shared:/shared"]
  reader:
    image: {image.NAME}
    network_mode: none
    depends_on: [writer]
    command: [sh, -c, "until cat /shared/word >/seen; do sleep 0.05; done; exec sleep 1000"]
    volumes: ["shared:/shared:ro"]
    tmpfs: [/scratch]
  counter:
    image: {image.NAME}
    network_mode: none
    restart: always
    command: [sh, -c, "echo started >>/shared/starts; exec sleep 1000"]
    volumes: ["shared:/shared"]
volumes:
  shared: {{}}
"""


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    with public_place() as place, closing(Docker(place)) as made:
        made.start()
        made("load", "-q", "-i", image.write(made.place / "image.tar"))
        yield made


@pytest.fixture(autouse=True)
def nothing_stays(docker: Docker) -> Iterator[None]:
    yield
    assert not docker("ps", "-aq")
    assert not [point for point in left_mounted(docker.place) if "/merged" in point]


def test_run_exec_diff_commit(docker):
    docker("run", "-d", "--name", "one", "--network", "none", image.NAME, "sleep", "1000")
    try:
        assert docker("exec", "one", "sh", "-c", "grep -c ' / fuse.unionfs ' /proc/mounts") == "1"
        docker("exec", "one", "sh", "-ec", steps.SCRIPT)
        changed = set(docker("diff", "one").splitlines())
        assert {"A /new", "D /kept", "D /bin/vi", "C /data/one", "C /data/two", "A /opaque/again"} <= changed
        assert "C /data/fifo" not in changed
        docker("commit", "one", "committed:1")
    finally:
        docker("rm", "-f", "one")
    assert docker.sh("committed:1", f"cat {steps.APPENDED[0]}") == steps.APPENDED[1]
    assert docker.sh("committed:1", "ls /opaque; stat -c '%h %u %a' /new-link") == "again\n2 3 4751"


def test_build(docker):
    """The builder without BuildKit: each step is a container that is committed."""
    docker("build", "-q", "--network", "none", "-t", "built:1", steps.context(docker.place / "build"))
    assert docker.sh("built:1", steps.LOOK) == steps.SEEN


def test_cp_both_ways(docker):
    docker("create", "--name", "two", "--network", "none", image.NAME, "sleep", "1000")
    try:
        file = docker.place / "file"
        file.write_text("from outside\n")
        docker("cp", file, "two:/kept/file")
        docker("cp", "two:/kept", docker.place / "copied")
        assert (docker.place / "copied" / "file").read_text() == "from outside\n"
        assert sorted(os.listdir(docker.place / "copied")) == ["deep", "file", "new"]
        docker("start", "two")
        assert docker("exec", "two", "cat", "/kept/file") == "from outside"
        with tarfile.open(fileobj=io.BytesIO(_output(docker, "export", "two"))) as archive:
            assert {"kept/file", "data/two"} <= set(archive.getnames())
    finally:
        docker("rm", "-f", "two")


def test_volumes_and_tmpfs(docker):
    options = ("-v", "volume:/data", "--tmpfs", "/scratch")
    docker.sh(image.NAME, "echo v >/data/v; rm /data/big; echo x >/scratch/x", *options)
    seen = docker.sh(image.NAME, "cat /data/v; ls /scratch; ls /data; stat -c %h /data/one", *options)
    assert seen.split() == "v attributes capable changed fifo link one setuid two v 2".split()
    docker("volume", "rm", "volume")


def test_compose_with_three_services(docker):
    needs("docker-compose")
    file = docker.place / "docker-compose.yml"
    file.write_text(COMPOSE)
    docker.compose(file, "up", "-d")
    try:
        assert docker(
            "exec", "union_reader_1", "sh", "-c", "until [ -s /seen ]; do sleep 0.05; done; cat /seen"
        )
        counter = int(docker("inspect", "-f", "{{.State.Pid}}", "union_counter_1"))
        os.kill(counter, signal.SIGKILL)
        script = "until [ $(wc -l </shared/starts) = 2 ]; do sleep 0.05; done"
        docker("exec", "union_writer_1", "sh", "-c", script)
        wait_until(
            lambda: docker("inspect", "-f", "{{.State.Running}}", "union_counter_1") == "true",
            "docker has started it again",
            PATIENCE,
        )
    finally:
        docker.compose(file, "down", "-v", "-t", "0")


def test_containers_outlive_a_kill_of_the_daemon(docker):
    """SIGKILL of dockerd: the next one has all that was written, and can remove what was mounted."""
    options = ("--name", "three", "--network", "none", "--stop-signal", "KILL")
    docker("create", *options, image.NAME, "sleep", "1000")
    docker("start", "three")
    docker("exec", "three", "sh", "-ec", "echo kept >/word")
    docker.kill()
    docker.start()
    try:
        docker("start", "three")
        assert docker("exec", "three", "cat", "/word") == "kept"
    finally:
        docker("rm", "-f", "three")


def _output(docker: Docker, *words: str) -> bytes:
    environment = {**os.environ, **docker.environment}
    return subprocess.run(
        ["docker", *words], capture_output=True, check=True, timeout=PATIENCE, env=environment
    ).stdout
