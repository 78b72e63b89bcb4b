"""What engines commit on our driver, pushed and pulled, is what the same steps make without any union."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import image
import pytest
import steps
from containerd import Containerd
from dockerd import Docker
from machine import PATIENCE, needs, public_place
from podman import Podman
from registry import File, Registry, contents

pytestmark = pytest.mark.root
needs("docker-registry", "skopeo", "podman", "runc", "conmon")

Files = dict[str, File]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with public_place() as made:
        yield made


@pytest.fixture(scope="module")
def archive(place: Path) -> Path:
    return image.write(place / "image.tar")


@pytest.fixture(scope="module")
def registry(place: Path) -> Iterator[Registry]:
    made = Registry(place)
    yield made
    made.close()


@pytest.fixture(scope="module")
def expected(place: Path, archive: Path, registry: Registry) -> Iterator[tuple[Files, Files]]:
    """What is committed and what is built by Podman on vfs: each layer a whole copy, on the plain disk."""
    vfs = _podman(place / "vfs", archive, driver="vfs")
    try:
        committed = _committed(vfs, registry, "expected")
        xattrs = {path: dict(committed[path].xattrs) for path in ("data/attributes", "root/capable")}
        assert xattrs["data/attributes"] and xattrs["root/capable"] == {
            "security.capability": image.CAPABILITY
        }
        yield committed, _built(vfs, registry, "expected-build")
    finally:
        vfs.close()


def test_podman(place, archive, registry, expected):
    podman = _podman(place / "podman", archive)
    try:
        assert differences(expected[0], _committed(podman, registry, "podman")) == []
        assert differences(expected[1], _built(podman, registry, "podman-build")) == []
    finally:
        podman.close()


def test_buildah(place, archive, registry, expected):
    needs("buildah")
    podman = _podman(place / "buildah", archive)
    try:
        name = podman.buildah("from", image.NAME)
        podman.buildah("run", name, "sh", "-ec", steps.SCRIPT)
        podman.buildah("commit", "-q", "--rm", name, "localhost/made:1")
        podman.buildah(
            "push", "-q", "--tls-verify=false", "localhost/made:1", f"{registry.address}/buildah:1"
        )
        assert differences(expected[0], registry.pull("buildah:1")) == []
    finally:
        podman.close()


def test_docker(place, archive, registry, expected):
    needs("dockerd", "docker")
    (place / "docker").mkdir()
    docker = Docker(place / "docker")
    try:
        docker.start()
        docker("load", "-q", "-i", archive)
        docker("run", "--name", "one", "--network", "none", image.NAME, "sh", "-ec", steps.SCRIPT)
        target = f"{registry.address}/docker:1"
        docker("commit", "one", target)
        docker("rm", "one")
        docker("push", "-q", target)
        assert differences(without_user_xattrs(expected[0]), registry.pull("docker:1")) == []
    finally:
        docker.close()


def test_containerd(place, archive, registry, expected):
    """ctr cannot commit; its diff of a snapshot is what a client of containerd makes a layer of."""
    needs("containerd", "ctr", "mount.fuse3")
    pytest.importorskip("grpc")
    (place / "containerd").mkdir()
    engine = Containerd(place / "containerd")
    try:
        engine.start_snapshotter()
        engine.start()
        engine.ctr("images", "import", "--snapshotter", "unionfs", archive)
        engine.ctr("run", "--snapshotter", "unionfs", image.NAME, "one", "sh", "-ec", steps.SCRIPT)
        (place / "diff").write_bytes(_diff(engine, "one"))
        engine.ctr("containers", "rm", "one")
        engine.ctr("images", "tag", image.NAME, f"{registry.address}/base:1")
        engine.ctr("images", "push", "--plain-http", f"{registry.address}/base:1")
        found = contents([*registry.layers("base:1"), place / "diff"])
        assert differences(without_user_xattrs(expected[0]), found) == []
    finally:
        engine.close()


def without_user_xattrs(files: Files) -> Files:
    """What engines that store capabilities alone of all xattrs can commit."""
    return {
        path: replace(file, xattrs=tuple(pair for pair in file.xattrs if not pair[0].startswith("user.")))
        for path, file in files.items()
    }


def differences(one: Files, other: Files) -> list[str]:
    """What differs, a line each."""
    return [
        f"{path}: {one.get(path)} / {other.get(path)}"
        for path in sorted(one.keys() | other.keys())
        if one.get(path) != other.get(path)
    ]


def _podman(place: Path, archive: Path, driver: str = "overlay") -> Podman:
    place.mkdir()
    podman = Podman(place, driver)
    podman("load", "-q", "-i", archive)
    return podman


def _committed(podman: Podman, registry: Registry, name: str) -> Files:
    podman("run", "--name", "one", image.NAME, "sh", "-ec", steps.SCRIPT)
    podman("commit", "-q", "one", "localhost/made:1")
    podman("rm", "one")
    podman("push", "-q", "--tls-verify=false", "localhost/made:1", f"{registry.address}/{name}:1")
    return registry.pull(f"{name}:1")


def _built(podman: Podman, registry: Registry, name: str) -> Files:
    podman("build", "-q", "-t", "localhost/built:1", steps.context(podman.place / "context"))
    podman("push", "-q", "--tls-verify=false", "localhost/built:1", f"{registry.address}/{name}:1")
    return registry.pull(f"{name}:1")


def _diff(engine: Containerd, key: str) -> bytes:
    ctr = ["ctr", "-a", engine.socket, "-n", engine.namespace, "snapshots", "--snapshotter", "unionfs"]
    return subprocess.run([*ctr, "diff", key], capture_output=True, check=True, timeout=PATIENCE).stdout
