"""Podman and Buildah with unionfs as their mount_program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import image
import pytest
import steps
from machine import left_mounted, needs, public_place
from podman import Podman

pytestmark = pytest.mark.root
needs("podman", "runc", "conmon", "catatonit")

POD = f"""
apiVersion: v1
kind: Pod
metadata: {{name: pair}}
spec:
  hostNetwork: true
  volumes:
  - {{name: shared, emptyDir: {{}}}}
  containers:
  - name: writer
    image: {image.NAME}
    imagePullPolicy: Never
    command: [sh, -c, "echo from the writer >/shared/word; exec sleep 1000"]
    volumeMounts: [{{name: shared, mountPath: /shared}}]
  - name: reader
    image: {image.NAME}
    imagePullPolicy: Never
    command: [sh, -c, "until cat /shared/word >/seen; do sleep 0.05; done; exec sleep 1000"]
    volumeMounts: [{{name: shared, mountPath: /shared}}]
"""


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    with public_place() as place, closing(Podman(place)) as made:
        made("load", "-q", "-i", image.write(made.place / "image.tar"))
        yield made


@pytest.fixture(autouse=True)
def nothing_stays(podman: Podman) -> Iterator[None]:
    yield
    stays = [point for point in left_mounted(podman.place) if point != f"{podman.place}/graph/overlay"]
    assert not stays and not podman("ps", "-aq")


def test_info_tells_of_us(podman):
    assert "unionfs version" in podman("info", "--format", "{{json .Store.GraphOptions}}")


def test_run_exec_diff_commit(podman):
    podman("run", "-d", "--name", "c", image.NAME, "sleep", "1000")
    try:
        assert podman("exec", "c", "sh", "-c", "grep -c ' / fuse.unionfs ' /proc/mounts") == "1"
        podman("exec", "c", "sh", "-ec", steps.SCRIPT)
        changed = set(podman("diff", "c").splitlines())
        assert {"A /new", "D /kept", "D /bin/vi", "C /data/one", "C /data/two", "A /opaque/again"} <= changed
        assert "C /data/fifo" not in changed and "D /opaque" not in changed
        podman("commit", "-q", "c", "localhost/committed:1")
    finally:
        podman("rm", "-f", "-t", "0", "c")
    assert podman.sh("localhost/committed:1", f"cat {steps.APPENDED[0]}") == steps.APPENDED[1]
    assert podman.sh("localhost/committed:1", "ls /opaque; stat -c '%h %u %a' /new-link") == "again\n2 3 4751"


def test_build(podman):
    context = steps.context(podman.place / "podman-build")
    podman("build", "-q", "-t", "localhost/built:1", context)
    assert podman.sh("localhost/built:1", steps.LOOK) == steps.SEEN


def test_buildah(podman):
    needs("buildah")
    context = steps.context(podman.place / "buildah-build")
    podman.buildah("build", "-q", "--layers", "-t", "localhost/buildah:1", context)
    assert podman.sh("localhost/buildah:1", steps.LOOK) == steps.SEEN
    name = podman.buildah("from", image.NAME)
    podman.buildah("run", name, "sh", "-ec", "rm -r /kept; echo x >/x")
    root = Path(podman.buildah("mount", name))
    assert (root / "x").read_text() == "x\n" and not (root / "kept").exists()
    podman.buildah("umount", name)
    podman.buildah("commit", "-q", "--rm", name, "localhost/buildah:2")
    assert podman.sh("localhost/buildah:2", "cat /x; ls -d /kept || true").startswith("x")


def test_volumes(podman):
    podman.sh(image.NAME, "echo v >/data/v; rm /data/big", "-v", "volume:/data")
    seen = podman.sh(
        image.NAME, "cat /data/v; ls /data; stat -c %h /data/one", "-v", "volume:/data", "--tmpfs", "/t"
    )
    assert seen.split() == "v attributes capable changed fifo link one setuid two v 2".split()
    podman("volume", "rm", "volume")


def test_an_overlay_volume_leaves_its_source_as_it_is(podman):
    source = podman.place / "source"
    source.mkdir()
    (source / "file").write_text("source\n")
    script = "grep -c ' /src fuse.unionfs ' /proc/mounts; echo more >>/src/file; cat /src/file; rm /src/file"
    assert podman.sh(image.NAME, script, "-v", f"{source}:/src:O").split() == ["1", "source", "more"]
    assert (source / "file").read_text() == "source\n"


def test_a_pod_of_two_containers_and_a_volume(podman):
    (podman.place / "pod.yaml").write_text(POD)
    podman("play", "kube", podman.place / "pod.yaml")
    try:
        script = "until [ -s /seen ]; do sleep 0.05; done; cat /seen"
        assert podman("exec", "pair-reader", "sh", "-c", script) == "from the writer"
    finally:
        podman("play", "kube", "--down", podman.place / "pod.yaml")
