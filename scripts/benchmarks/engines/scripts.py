"""What is timed in each engine: the same steps, as far as the engine has them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import image
import steps
from containerd import Containerd
from cri import NODE_CONFIG, PAUSE, Kubelet
from dockerd import Docker
from podman import Podman
from rootless import User

#: What a container does to many small files: as unpacking and installing packages does, and building.
WORK = """
mkdir /work; cd /work
for d in 0 1 2 3 4 5 6 7 8 9; do
    mkdir $d
    for f in 0 1 2 3 4 5 6 7 8 9; do for g in 0 1 2 3 4 5 6 7 8 9; do echo $d$f$g >$d/$f$g; done; done
done
cp -r /work /copy
chmod -R go-w /copy /bin /etc
find / -xdev -type f | wc -l
grep -r -l 99 /work /copy | wc -l
tar -cf /tar /copy; mkdir /again; tar -xf /tar -C /again
rm -r /work /copy /kept
"""

Steps = dict[str, Callable[[], object]]


class Script(Protocol):
    """An engine that is ready in a place of its own, and what is timed in it."""

    needs: tuple[str, ...]

    def __init__(self, place: Path, program: Path, archive: Path) -> None: ...

    def steps(self) -> Steps:
        """Name to what is timed, in order."""

    def close(self) -> None:
        """End the engine and all that it started."""


class OfPodman:
    """Podman as root."""

    needs: tuple[str, ...] = ("podman", "runc", "conmon")

    def __init__(self, place: Path, program: Path, archive: Path) -> None:
        self.podman = Podman(place, program=program)
        self.context = steps.context(place / "context")
        self.archive = archive
        self.close = self.podman.close
        self.podman("info")

    def steps(self) -> Steps:
        podman = self.podman
        return {
            "load": lambda: podman("load", "-q", "-i", self.archive),
            "run, five times": lambda: [podman.sh(image.NAME, "cat /data/two") for _ in range(5)],
            "many small files": lambda: podman("run", "--name", "one", image.NAME, "sh", "-ec", WORK),
            "diff": lambda: podman("diff", "one"),
            "commit": lambda: podman("commit", "-q", "one", "localhost/made:1"),
            "build": lambda: podman("build", "-q", "-t", "localhost/built:1", self.context),
            "remove": lambda: podman("rm", "one"),
        }


class OfBuildah(OfPodman):
    """Buildah as root."""

    needs = ("buildah", "runc", "podman")

    def steps(self) -> Steps:
        buildah = self.podman.buildah
        return {
            "pull": lambda: buildah("pull", "-q", f"docker-archive:{self.archive}"),
            "from": lambda: buildah("from", "--name", "one", image.NAME),
            "run, five times": lambda: [buildah("run", "one", "cat", "/data/two") for _ in range(5)],
            "many small files": lambda: buildah("run", "one", "sh", "-ec", WORK),
            "commit": lambda: buildah("commit", "-q", "one", "localhost/made:1"),
            "build": lambda: buildah("build", "-q", "--layers", "-t", "localhost/built:1", self.context),
            "remove": lambda: buildah("rm", "one"),
        }


class OfRootless:
    """Podman for a user without rights."""

    needs = ("podman", "runc", "conmon", "newuidmap", "setpriv")

    def __init__(self, place: Path, program: Path, archive: Path) -> None:
        self.user = User(place, None if program.name == "unionfs" else program)
        self.context = steps.context(place / "context")
        self.archive = archive
        self.close = self.user.close
        (place / "work.sh").write_text(WORK)
        self.work = place / "work.sh"
        self.user.sh("podman info")

    def steps(self) -> Steps:
        sh = self.user.sh
        run = f"podman run --rm {image.NAME} cat /data/two;"
        work = f"podman run --name one -v {self.work}:/work.sh {image.NAME} sh -e /work.sh"
        return {
            "load": lambda: sh(f"podman load -q -i {self.archive}"),
            "run, five times": lambda: sh(run * 5),
            "many small files": lambda: sh(work),
            "diff": lambda: sh("podman diff one"),
            "commit": lambda: sh("podman commit -q one localhost/made:1"),
            "build": lambda: sh(f"podman build -q -t localhost/built:1 {self.context}"),
            "remove": lambda: sh("podman rm one"),
        }


class OfDocker:
    """dockerd with its fuse-overlayfs driver."""

    needs = ("dockerd", "docker", "runc")

    def __init__(self, place: Path, program: Path, archive: Path) -> None:
        self.docker = Docker(place, program)
        self.context = steps.context(place / "context")
        self.archive = archive
        try:
            self.docker.start()
        except BaseException:
            self.docker.close()
            raise

    def close(self) -> None:
        """End it."""
        self.docker.close()

    def steps(self) -> Steps:
        docker, quiet = self.docker, ("--network", "none")
        build = ("build", "-q", *quiet, "-t", "built:1", self.context)
        return {
            "load": lambda: docker("load", "-q", "-i", self.archive),
            "run, five times": lambda: [docker.sh(image.NAME, "cat /data/two") for _ in range(5)],
            "many small files": lambda: docker("run", "--name", "one", *quiet, image.NAME, "sh", "-ec", WORK),
            "diff": lambda: docker("diff", "one"),
            "commit": lambda: docker("commit", "one", "made:1"),
            "build": lambda: docker(*build),
            "remove": lambda: docker("rm", "one"),
        }


class OfContainerd:
    """Pods by containerd's CRI plugin, on mounts of the type fuse3.fuse-overlayfs."""

    needs = ("containerd", "ctr", "runc", "mount.fuse3")

    def __init__(self, place: Path, program: Path, archive: Path) -> None:
        self.shared = place / "shared"
        self.shared.mkdir()
        config = NODE_CONFIG.format(place=place)
        self.engine = Containerd(place, config, cri=True, namespace="k8s.io", program=program)
        self.archive = archive
        self.pod = ""
        self.kubelet: Kubelet | None = None
        try:
            self.engine.start_snapshotter()
            self.engine.start()
            pause = image.write(place / "pause.tar", PAUSE, ["sleep", "1000000"])
            self.engine.ctr("images", "import", "--snapshotter", "unionfs", pause)
            self.kubelet = Kubelet(self.engine.socket, place, self.engine.cgroup)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it."""
        if self.kubelet is not None:
            if self.pod:
                with contextlib.suppress(Exception):
                    self.kubelet.remove_pod(self.pod)
            self.kubelet.close()
        self.engine.close()

    def steps(self) -> Steps:
        return {
            "import": lambda: self.engine.ctr("images", "import", "--snapshotter", "unionfs", self.archive),
            "a pod": self._run_pod,
            "five containers": self._run_five,
            "many small files": lambda: self._execute("many", WORK),
            "remove": self._remove,
        }

    def _run_pod(self) -> None:
        assert self.kubelet is not None
        self.pod = self.kubelet.run_pod("bench")

    def _container(self, name: str) -> str:
        assert self.kubelet is not None
        command = ["sleep", "1000000"]
        return self.kubelet.run_container(self.pod, "bench", name, image.NAME, command, self.shared)

    def _run_five(self) -> None:
        assert self.kubelet is not None
        for number in range(5):
            assert self.kubelet.execute(self._container(f"c{number}"), "cat", "/data/two") == "one\n"

    def _execute(self, name: str, script: str) -> None:
        assert self.kubelet is not None
        self.kubelet.execute(self._container(name), "sh", "-ec", script)

    def _remove(self) -> None:
        assert self.kubelet is not None
        self.kubelet.remove_pod(self.pod)
        self.pod = ""


SCRIPTS: dict[str, type[Script]] = {
    "podman": OfPodman,
    "podman-rootless": OfRootless,
    "buildah": OfBuildah,
    "docker": OfDocker,
    "containerd": OfContainerd,
}
