"""Volumes: directories that outlive containers.

Each is `volumes/NAME/` with `volume.json` and the data in `_data`, as docker lays them out.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from runtime import events
from runtime.containers.container import load_all, now
from runtime.containers.names import check_name, new_id
from runtime.containers.scoped import open_in_root
from runtime.errors import RuntimeFailure
from runtime.events import Event
from runtime.root import Root

#: docker's mark of a volume that nobody named.
ANONYMOUS_LABEL = "com.docker.volume.anonymous"


@dataclass(frozen=True)
class Volume:
    """One volume's record."""

    directory: Path
    name: str
    created: str
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        """What containers mount."""
        return self.directory / "_data"

    @property
    def anonymous(self) -> bool:
        """Whether it was made for one container, without a name of the user's."""
        return ANONYMOUS_LABEL in self.labels


@contextlib.contextmanager
def _locked(root: Root) -> Iterator[None]:
    fd = os.open(root.volumes / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def create(root: Root, name: str = "", labels: dict[str, str] | None = None) -> Volume:
    """Make the volume `name`, or return it when it exists; without a name, a new anonymous one.

    Raises RuntimeFailure when the name may not be a volume's.
    """
    labels = dict(labels or {})
    if not name:
        name = new_id()
        labels[ANONYMOUS_LABEL] = ""
    check_name(name, "volume")
    with _locked(root):
        directory = root.volumes / name
        if directory.exists():
            return find(root, name)
        staging = root.tmp / f"volume-{new_id()}"
        volume = Volume(directory, name, now(), labels)
        staging.mkdir(mode=0o701)
        (staging / "_data").mkdir(mode=0o755)
        record = {key: value for key, value in asdict(volume).items() if key != "directory"}
        (staging / "volume.json").write_text(json.dumps(record, indent=1))
        os.rename(staging, directory)
    events.record(root, Event("volume", "create", name, {"driver": "local"}))
    return volume


def find(root: Root, name: str) -> Volume:
    """The volume `name`.

    Raises RuntimeFailure when there is none.
    """
    directory = root.volumes / name
    try:
        if "/" in name or name.startswith("."):
            raise FileNotFoundError(name)
        record = json.loads((directory / "volume.json").read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RuntimeFailure(f"get {name}: no such volume") from error
    return Volume(directory, **record)


def list_all(root: Root) -> list[Volume]:
    """All volumes, by name."""
    try:
        names = sorted(os.listdir(root.volumes))
    except FileNotFoundError:
        return []
    return [find(root, name) for name in names if (root.volumes / name / "volume.json").exists()]


def users(root: Root, name: str) -> list[str]:
    """The IDs of the containers that have the volume `name`."""
    return [
        container.id
        for container in load_all(root)
        if any(mount.kind == "volume" and mount.source == name for mount in container.mounts)
    ]


def remove(root: Root, name: str, force: bool = False) -> None:
    """Remove a volume and its data.

    Raises RuntimeFailure when a container has it, or when there is none (unless `force`).
    """
    with _locked(root):
        try:
            volume = find(root, name)
        except RuntimeFailure:
            if force:
                return
            raise
        holders = users(root, name)
        if holders:
            raise RuntimeFailure(f"remove {name}: volume is in use - [{', '.join(holders)}]")
        gone = root.tmp / f"removed-{new_id()}"
        os.rename(volume.directory, gone)
    events.record(root, Event("volume", "destroy", name, {"driver": "local"}))
    shutil.rmtree(gone, ignore_errors=True)


def disk_usage(directory: Path) -> int:
    """The bytes that the tree takes on disk."""
    total = 0
    for path, directories, files in os.walk(directory):
        for name in (*directories, *files):
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_blocks * 512
    return total


def copy_up(rootfs: Path, target: str, volume: Volume) -> None:
    """Fill an empty volume with what the tree `rootfs` has at `target`: owners, modes, xattrs and links too.

    A path that the image has not, or a volume that holds something already, is left alone.

    Raises RuntimeFailure when `target` is no directory, or cannot be copied.
    """
    if any(volume.data.iterdir()):
        return
    root_fd = os.open(rootfs, os.O_PATH | os.O_DIRECTORY)
    try:
        fd = open_in_root(root_fd, target, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    finally:
        os.close(root_fd)
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            raise RuntimeFailure(f"cannot mount volume over existing file, file exists {target}")
        # By way of the fd: the path was resolved once, inside the tree.
        copy = subprocess.run(
            ["cp", "-a", "--", f"/proc/self/fd/{fd}/.", str(volume.data)],
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if copy.returncode != 0:
            raise RuntimeFailure(f"cannot fill volume {volume.name} from {target}: {copy.stderr.strip()}")
    finally:
        os.close(fd)
