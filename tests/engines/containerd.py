"""containerd in directories of its own, with our snapshotter beside it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

from machine import BIN, PATIENCE, clean, drop_in, end, run
from support.union import wait_until

CONFIG = """
version = 2
root = "{place}/root"
state = "{place}/state"
disabled_plugins = [{disabled}]
[grpc]
  address = "{place}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{place}/opt"
[proxy_plugins.unionfs]
  type = "snapshot"
  address = "{place}/snapshotter.sock"
{more}
"""

#: Snapshotters for what is not on this machine, and what would look for a network.
DISABLED = ["snapshotter.v1.aufs", "snapshotter.v1.btrfs", "snapshotter.v1.devmapper", "snapshotter.v1.zfs"]
CRI = "grpc.v1.cri"


class Containerd:
    """One containerd and one snapshotter; `close` leaves neither them nor their containers."""

    def __init__(
        self,
        place: Path,
        config: str = "",
        *,
        cri: bool = False,
        namespace: str = "",
        program: Path | None = None,
    ) -> None:
        """`program` is what containerd mounts by, in the place of the unionfs beside the snapshotter."""
        self.place = place
        self._program = ("--program", drop_in(place, program)) if program else ()
        self.socket = place / "containerd.sock"
        #: What all containers are in.
        self.cgroup = f"union-{os.getpid()}-{place.name}"
        #: containerd's namespace; without another word, containers' cgroups are in one of its name.
        self.namespace = namespace or self.cgroup
        disabled = DISABLED if cri else [*DISABLED, CRI]
        (place / "config.toml").write_text(
            CONFIG.format(
                place=place, disabled=", ".join(f'"io.containerd.{name}"' for name in disabled), more=config
            )
        )
        self._containerd: subprocess.Popen[bytes] | None = None
        self._snapshotter: subprocess.Popen[bytes] | None = None

    @property
    def snapshots(self) -> Path:
        """Where the snapshotter has its directories."""
        return self.place / "snapshotter" / "snapshots"

    def start_snapshotter(self) -> None:
        """Start the snapshotter; it answers when this returns."""
        self._snapshotter = subprocess.Popen(
            [
                *(BIN / "unionfs-snapshotter", "--root", self.place / "snapshotter"),
                *("--address", self.place / "snapshotter.sock"),
                *self._program,
            ],
            stderr=subprocess.PIPE,
        )
        assert self._snapshotter.stderr is not None
        line = self._snapshotter.stderr.readline()
        assert b"serving" in line, line

    def kill_snapshotter(self) -> None:
        """SIGKILL."""
        assert self._snapshotter is not None
        self._snapshotter.kill()
        self._snapshotter.communicate(timeout=PATIENCE)
        self._snapshotter = None

    def stop_snapshotter(self) -> None:
        """SIGTERM; it must end well and have had nothing to complain about."""
        assert self._snapshotter is not None
        self._snapshotter.send_signal(signal.SIGTERM)
        _, words = self._snapshotter.communicate(timeout=PATIENCE)
        assert self._snapshotter.returncode == 0 and not words, words
        self._snapshotter = None

    def start(self) -> None:
        """Start containerd; it answers when this returns."""
        with (self.place / "containerd.log").open("ab") as log:
            self._containerd = subprocess.Popen(
                ["containerd", "-c", self.place / "config.toml"], stdout=log, stderr=log
            )
        wait_until(self._answers, f"containerd answers: see {self.place}/containerd.log", PATIENCE)

    def _answers(self) -> bool:
        assert self._containerd is not None and self._containerd.poll() is None
        command = ["ctr", "-a", self.socket, "version"]
        return subprocess.run(command, capture_output=True, timeout=PATIENCE).returncode == 0

    def ctr(self, *words: str | Path, code: int | None = 0) -> str:
        """ctr(8) in our namespace."""
        environment = {"CONTAINERD_SNAPSHOTTER": "unionfs"}
        return run("ctr", "-a", self.socket, "-n", self.namespace, *words, code=code, environment=environment)

    def close(self) -> None:
        """End all of it, whatever happened."""
        try:
            end(self._containerd)
        finally:
            end(self._snapshotter)
            clean(self.place, [self.cgroup])
            shutil.rmtree(f"/run/containerd/runc/{self.cgroup}", ignore_errors=True)
