"""dockerd in directories of its own, its storage driver fuse-overlayfs, and that program ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from machine import BIN, PATIENCE, clean, drop_in, end, run
from support.union import wait_until


class Docker:
    """One daemon, with the command that talks to it."""

    def __init__(self, place: Path, program: Path = BIN / "unionfs") -> None:
        self.place = place
        drop_in(place, program)
        self.cgroup = f"union-{os.getpid()}-{place.name}"
        (place / "daemon.json").write_text(
            json.dumps(
                {
                    "storage-driver": "fuse-overlayfs",
                    "data-root": f"{place}/data",
                    "exec-root": f"{place}/exec",
                    "pidfile": f"{place}/pid",
                    "hosts": [f"unix://{place}/docker.sock"],
                    "iptables": False,
                    "ip6tables": False,
                    "bridge": "none",
                    "cgroup-parent": self.cgroup,
                }
            )
        )
        home = place / "home"
        home.mkdir()
        # Not the settings and contexts of whoever runs the tests.
        self.environment = {
            "DOCKER_HOST": f"unix://{place}/docker.sock",
            "DOCKER_BUILDKIT": "0",
            "DOCKER_CONFIG": str(home),
            "HOME": str(home),
            "COMPOSE_PROJECT_NAME": "union",
        }
        self._daemon: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the daemon; it answers when this returns."""
        path = f"{self.place}/bin:{os.environ['PATH']}"
        with (self.place / "dockerd.log").open("ab") as log:
            self._daemon = subprocess.Popen(
                ["dockerd", "--config-file", self.place / "daemon.json"],
                stdout=log,
                stderr=log,
                env={**os.environ, "PATH": path},
            )
        wait_until(self._answers, f"dockerd answers: see {self.place}/dockerd.log", PATIENCE)

    def _answers(self) -> bool:
        assert self._daemon is not None and self._daemon.poll() is None
        environment = {**os.environ, **self.environment}
        return subprocess.run(["docker", "version"], capture_output=True, env=environment).returncode == 0

    def kill(self) -> None:
        """SIGKILL of the daemon; its containerd ends with it, the containers do not."""
        assert self._daemon is not None
        containerd = (self.place / "exec" / "containerd" / "containerd.pid").read_text()
        self._daemon.kill()
        self._daemon.wait()
        self._daemon = None
        # The next daemon would take one that is dead and not yet reaped for its own.
        wait_until(lambda: not Path("/proc", containerd).exists(), "containerd is gone", PATIENCE)

    def __call__(self, *words: str | Path, code: int | None = 0) -> str:
        """docker(1)."""
        return run("docker", *words, code=code, environment=self.environment)

    def compose(self, file: Path, *words: str) -> str:
        """docker-compose(1), version 1."""
        return run("docker-compose", "-f", file, *words, environment=self.environment)

    def sh(self, image: str, script: str, *options: str) -> str:
        """A script in a container that is removed."""
        return self("run", "--rm", "--network", "none", *options, image, "sh", "-ec", script)

    def close(self) -> None:
        """End the daemon and all that it started, whatever happened."""
        try:
            if self._daemon is not None and self._daemon.poll() is None:
                left = self("ps", "-aq", code=None).split()
                if left:
                    self("rm", "-fv", *left, code=None)
            end(self._daemon)
        finally:
            clean(self.place, [self.cgroup])
            shutil.rmtree(self.place / "data", ignore_errors=True)
