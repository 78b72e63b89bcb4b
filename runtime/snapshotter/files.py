"""What containers have left: trees as deep, and with names as odd, as they liked."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from runtime.snapshotter.snapshot import Usage


def usage(top: Path) -> Usage:
    """What a tree takes on the disk; nothing where there is none.

    A file with several names counts once. What goes meanwhile, or has too long a path, does not count.
    """
    blocks: dict[tuple[int, int], int] = {}
    pending = [os.fspath(top)]
    while pending:
        place = pending.pop()
        with contextlib.suppress(OSError):
            names = os.listdir(place)
            for path in (place, *(os.path.join(place, name) for name in names)):
                status = os.lstat(path)
                new = (status.st_dev, status.st_ino) not in blocks
                blocks[status.st_dev, status.st_ino] = status.st_blocks
                if new and path != place and os.path.isdir(path) and not os.path.islink(path):
                    pending.append(path)
    return Usage(512 * sum(blocks.values()), len(blocks))


def remove(top: Path) -> None:
    """Remove a tree; none is none. Raises OSError when something stays.

    A directory is moved up to `top` before it is emptied: however deep the tree is, no path gets long.
    """
    moved = 0
    pending = [os.fspath(top)] if top.is_dir() else []
    while pending:
        place = pending[-1]
        with os.scandir(place) as entries:
            below = []
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
                else:
                    os.unlink(entry.path)
        if not below:
            os.rmdir(place)
            pending.pop()
        for path in below:
            up = path
            if place != os.fspath(top):
                while os.path.lexists(up := os.path.join(top, f"{moved}")):
                    moved += 1
                os.rename(path, up)
            pending.append(up)
