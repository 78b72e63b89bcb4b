"""Podman and Buildah in directories of their own, on our driver or without one."""

from __future__ import annotations

import contextlib
from pathlib import Path

from machine import BIN, clean, drop_in, run

STORAGE = """
[storage]
driver = "{driver}"
graphroot = "{place}/graph"
runroot = "{place}/run"
"""

OVERLAY = """
[storage.options.overlay]
mount_program = "{program}"
{options}
"""

#: runc works on hybrid cgroups; locks of its own, since the usual ones are shared by the machine.
CONTAINERS = """
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
netns = "host"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "{place}/tmp"
[network]
network_config_dir = "{place}/networks"
"""


class Podman:
    """One storage, with the commands that work on it."""

    def __init__(
        self, place: Path, driver: str = "overlay", options: str = "", program: Path = BIN / "unionfs"
    ) -> None:
        """`driver` vfs has no union at all: what is compared with. `options` are those of overlay."""
        self.place = place
        program = drop_in(place, program)
        storage = STORAGE + (OVERLAY if driver == "overlay" else "")
        (place / "storage.conf").write_text(
            storage.format(driver=driver, place=place, program=program, options=options)
        )
        (place / "containers.conf").write_text(CONTAINERS.format(place=place))
        self.environment = {
            "CONTAINERS_STORAGE_CONF": str(place / "storage.conf"),
            "CONTAINERS_CONF": str(place / "containers.conf"),
            "TMPDIR": str(place),
        }

    def __call__(self, *words: str | Path, code: int | None = 0, stdin: bytes = b"") -> str:
        """podman(1)."""
        return run("podman", *words, code=code, stdin=stdin, environment=self.environment)

    def buildah(self, *words: str | Path, code: int | None = 0) -> str:
        """buildah(1) on the same storage."""
        return run("buildah", *words, code=code, environment=self.environment)

    def sh(self, image: str, script: str, *options: str) -> str:
        """A script in a container that is removed."""
        return self("run", "--rm", *options, image, "sh", "-ec", script)

    def close(self) -> None:
        """Nothing runs and nothing is mounted any more, whatever happened."""
        try:
            containers = self.place / "graph" / f"{self._driver}-containers"
            ids = [path.name for path in containers.glob("*") if path.is_dir()]
            with contextlib.suppress(AssertionError):
                self("pod", "rm", "--all", "--force", code=None)
                self("rm", "--all", "--force", "--time", "0", code=None)
                self("volume", "rm", "--all", "--force", code=None)
                self("umount", "--all", code=None)
        finally:
            clean(self.place, [f"libpod-{name}*" for name in ids])

    @property
    def _driver(self) -> str:
        return "overlay" if (self.place / "graph" / "overlay-containers").exists() else "vfs"
