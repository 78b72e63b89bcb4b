"""Containers in containers: the whole state root lies on a union of ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_builder import archive, docker_files, file, tar, whiteout
from unionctl_runner import Unionctl, busybox_layers, dead_cgroups

pytestmark = pytest.mark.root


@pytest.fixture
def nested(tmp_path: Path) -> Iterator[Unionctl]:
    for name in ("lower", "upper", "work", "outer"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    outer = tmp_path / "outer"
    subprocess.run([sys.executable, "-m", "unionfs", "-o", options, outer], check=True)
    try:
        cgroups = dead_cgroups()
        runner = Unionctl(outer / "state")
        yield runner
        runner.end(cgroups)
    finally:
        subprocess.run(["umount", outer], check=True)


def test_whiteouts_of_images_and_of_containers(nested: Unionctl) -> None:
    changes = tar(whiteout("etc/text"), file("etc/new", b"new\n"))
    settings = {"Env": ["PATH=/bin"], "Cmd": ["sh"]}
    image = archive(docker_files([*busybox_layers(), changes], ["nested:1"], config=settings))
    nested("load", "-q", stdin=image)
    said = nested.out(
        *("run", "--name", "one", "nested:1", "sh", "-c"),
        "cat /etc/*; rm -r /data; mkdir /data; mv /etc/new /etc/n",
    )
    assert "a text" not in said and "new" in said
    assert "D /data/seed" in nested.out("diff", "one").splitlines()
    listed = "ls -A /data; ls /etc/text || ls /etc/new"
    assert nested.out("run", "--rm", "nested:1", "sh", "-c", listed).split() == [
        *("inner", "link", "seed"),
        "/etc/new",
    ]
    nested("rm", "one")
