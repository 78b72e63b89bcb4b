"""Where the runtime's state lives on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import RuntimeFailure

SYSTEM_ROOT = Path("/var/lib/unionfs")


@dataclass(frozen=True)
class Root:
    """The directories of one state root; each part of the runtime owns one of them."""

    path: Path

    @property
    def images(self) -> Path:
        """An OCI image layout: oci-layout, index.json, blobs/."""
        return self.path / "images"

    @property
    def layers(self) -> Path:
        """Unpacked layers, one directory for each diff ID."""
        return self.path / "layers"

    @property
    def containers(self) -> Path:
        """One directory for each container, named by its ID."""
        return self.path / "containers"

    @property
    def volumes(self) -> Path:
        """One directory for each named volume."""
        return self.path / "volumes"

    @property
    def networks(self) -> Path:
        """One file for each network."""
        return self.path / "networks"

    @property
    def steps(self) -> Path:
        """What builds have made and may use again, one record for each step."""
        return self.path / "steps"

    @property
    def build_caches(self) -> Path:
        """The directories of RUN --mount=type=cache."""
        return self.path / "build-caches"

    @property
    def tmp(self) -> Path:
        """What is still being made; on the same filesystem, so that a rename ends it."""
        return self.path / "tmp"

    def prepare(self) -> Root:
        """Make the directories that are missing, closed to other users, and return self.

        Raises RuntimeFailure when they cannot be made.
        """
        parts = (self.images, self.layers, self.containers, self.volumes, self.networks, self.tmp)
        for directory in (self.path, *parts):
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise RuntimeFailure(f"cannot keep state in {directory}: {error.strerror}") from error
        return self


def state_root(option: str | None = None) -> Path:
    """The state root: `option`, else UNIONCTL_ROOT, else the user's default, as an absolute path.

    The default is /var/lib/unionfs for root and $XDG_DATA_HOME/unionfs (XDG Base Directory
    Specification) for others.
    """
    chosen = option or os.environ.get("UNIONCTL_ROOT")
    if chosen:
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return SYSTEM_ROOT
    data_home = os.environ.get("XDG_DATA_HOME", "")
    base = Path(data_home) if os.path.isabs(data_home) else Path.home() / ".local" / "share"
    return base / "unionfs"
