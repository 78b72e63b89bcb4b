"""What a container's read-only layers say of a path, looked up without a mount.

Only what `diff` and the init layer need: a few paths, one directory at a time. Layers are image content, so
no symlink of theirs is followed; they do not change, so a path that was checked stays what it was.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unionfs import whiteout


@dataclass(frozen=True)
class Found:
    """One name of the merged layers: its file, or the directories that make it up, the uppermost first."""

    paths: tuple[bytes, ...]
    stat: os.stat_result

    @property
    def path(self) -> bytes:
        """The file whose content and attributes count."""
        return self.paths[0]

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory (not a symlink to one)."""
        return stat.S_ISDIR(self.stat.st_mode)


class Layers:
    """The merged tree of read-only `layers`, given the uppermost first."""

    def __init__(self, layers: Sequence[Path | str]) -> None:
        paths = tuple(os.fsencode(layer) for layer in layers)
        self.root = Found(paths, os.lstat(paths[0]))

    def child(self, directory: Found, name: bytes) -> Found | None:
        """What `name` means in `directory`, or None when it is in no layer or whited out."""
        found: list[bytes] = []
        first: os.stat_result | None = None
        for layer in directory.paths:
            path = os.path.join(layer, name)
            try:
                status = os.lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                pass
            else:
                if whiteout.is_device_whiteout(status.st_mode, status.st_rdev):
                    break
                if not stat.S_ISDIR(status.st_mode):
                    if first is None:
                        found, first = [path], status
                    break
                found.append(path)
                first = first or status
                if is_opaque(path):
                    break
            if os.path.lexists(os.path.join(layer, whiteout.MARKER_PREFIX + name)):
                break
        return Found(tuple(found), first) if first is not None else None

    def names(self, directory: Found) -> list[bytes]:
        """The names in `directory`, sorted."""
        candidates = {
            name for layer in directory.paths for name in os.listdir(layer) if not whiteout.is_reserved(name)
        }
        return sorted(name for name in candidates if self.child(directory, name))


def is_opaque(directory: bytes) -> bool:
    """Whether the directory hides all that lower layers have under its name."""
    if os.path.lexists(os.path.join(directory, whiteout.OPAQUE_MARKER)):
        return True
    return whiteout.opaque_state(directory) is whiteout.Opaque.YES


#: What is mounted onto in every container, as docker's init layer has it.
_MOUNT_POINTS = ("dev/", "proc/", "sys/", "etc/hostname", "etc/hosts", "etc/resolv.conf")


def make_init_layer(init: Path, layers: Layers, points: Sequence[str] = ()) -> None:
    """Put into the empty directory `init` the mount points that every container needs and the image lacks.

    And those of `points`, in the same words.

    So the container's own layer holds nothing that the container did not do. Where the image has a
    symlink in the way, nothing is made: the OCI runtime resolves that one inside the rootfs.
    """
    made = [(layers.root, init)]
    for point in (*_MOUNT_POINTS, *points):
        _make_point(init, layers, point, made)
    # Last and from the inside out: what is made in a directory changes its times.
    for found, directory in reversed(made):
        _copy_attributes(found, directory)


def _make_point(init: Path, layers: Layers, point: str, made: list[tuple[Found, Path]]) -> None:
    """Make one mount point (a directory if it ends with a slash) unless the image has it.

    A directory on the way that the image has is made too, to be merged with it, and noted in `made`.
    """
    here: Found | None = layers.root
    parents = []
    path = init
    *ways, name = point.rstrip("/").split("/")
    for way in ways:
        here = layers.child(here, way.encode()) if here else None
        if here is not None and not here.is_directory:
            return
        path = path / way
        parents.append((here, path))
    if here is not None and layers.child(here, name.encode()) is not None:
        return
    for found, directory in parents:
        if not directory.exists():
            directory.mkdir(mode=0o755)
            if found is not None:
                made.append((found, directory))
    if point.endswith("/"):
        (path / name).mkdir(mode=0o755, exist_ok=True)
    else:
        (path / name).touch(mode=0o644)


def _copy_attributes(found: Found, directory: Path) -> None:
    """Make `directory` look like the image's: it will stand on top and its attributes count."""
    os.chown(directory, found.stat.st_uid, found.stat.st_gid)
    os.chmod(directory, stat.S_IMODE(found.stat.st_mode))
    for name in os.listxattr(found.path, follow_symlinks=False):
        if name.removeprefix("trusted.").removeprefix("user.").startswith(("overlay.", "fuseoverlayfs.")):
            continue
        os.setxattr(directory, name, os.getxattr(found.path, name, follow_symlinks=False))
    os.utime(directory, ns=(found.stat.st_atime_ns, found.stat.st_mtime_ns))
