"""Forgetting what builds have kept."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from runtime.images.store import ImageStore
from runtime.root import Root


def prune(root: Root, store: ImageStore) -> int:
    """Forget all steps, and the caches of RUN --mount that no command uses; give the bytes freed."""
    freed = store.forget_steps()
    caches = root.build_caches
    if not caches.exists():
        return freed
    for lock in caches.glob("*.lock"):
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            cache = lock.with_suffix("")
            freed += _size(cache)
            shutil.rmtree(cache, ignore_errors=True)
        finally:
            os.close(fd)
    return freed


def _size(directory: Path) -> int:
    return sum(
        os.lstat(os.path.join(place, name)).st_size
        for place, _, names in os.walk(directory)
        for name in names
    )
