"""A Kubernetes node: pods by containerd's CRI plugin on our snapshotter."""

from __future__ import annotations

import os
from contextlib import closing

import image
import pytest
from machine import PATIENCE, left_mounted, needs
from support.union import wait_until

pytestmark = pytest.mark.root
needs("containerd", "ctr", "runc", "mount.fuse3")
pytest.importorskip("grpc")

from containerd import Containerd  # noqa: E402
from cri import NODE_CONFIG, PAUSE, Kubelet  # noqa: E402


def test_a_pod_of_two_containers(place):
    shared = place / "shared"
    shared.mkdir()
    engine = Containerd(place, NODE_CONFIG.format(place=place), cri=True, namespace="k8s.io")
    with closing(engine):
        engine.start_snapshotter()
        engine.start()
        for name, command in ((image.NAME, ["sh"]), (PAUSE, ["sleep", "1000000"])):
            archive = image.write(place / "image.tar", name, command)
            engine.ctr("images", "import", "--snapshotter", "unionfs", archive)
        with closing(Kubelet(engine.socket, place, engine.cgroup)) as kubelet:
            pod = kubelet.run_pod("pair")
            script = "rm -r /kept; echo from the writer >/shared/word; exec sleep 1000"
            writer = kubelet.run_container(pod, "pair", "writer", image.NAME, ["sh", "-c", script], shared)
            script = "until cat /shared/word >/seen; do sleep 0.05; done; exec sleep 1000"
            reader = kubelet.run_container(pod, "pair", "reader", image.NAME, ["sh", "-c", script], shared)
            look = (
                "until [ -s /seen ]; do sleep 0.05; done; cat /seen; grep -c ' / fuse.unionfs' /proc/mounts"
            )
            assert kubelet.execute(reader, "sh", "-c", look) == "from the writer\n1\n"
            assert kubelet.execute(reader, "ls", "/kept") == "deep\nnew\n"
            assert kubelet.execute(writer, "sh", "-c", "ls -d /kept || echo gone") == "gone\n"
            kubelet.remove_pod(pod)
        assert not [point for point in left_mounted(place) if "rootfs" in point]
        engine.ctr("images", "rm", "--sync", *engine.ctr("images", "ls", "-q").split())
        wait_until(
            lambda: not os.listdir(engine.snapshots), "the files of all snapshots are removed", PATIENCE
        )
        engine.stop_snapshotter()
