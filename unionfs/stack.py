"""Opens the layers that the options name, after checking that they can be one union.

Every refusal is a StackError of one line that names the directory and what is wrong with it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from unionfs.layer import Layer, open_lower
from unionfs.options import Options
from unionfs.upper import Upper, UpperInUse, UpperUnfit, open_upper


class StackError(Exception):
    """These directories cannot be mounted."""


def open_stack(options: Options) -> tuple[list[Layer], Upper | None]:
    """Open the lower layers, topmost first, and the upper one if there is one.

    Raises StackError.
    """
    lowerdirs = [_directory("lowerdir", path) for path in options.lowerdirs]
    upperdir = workdir = None
    if options.upperdir is not None and options.workdir is not None:
        upperdir = _directory("upperdir", options.upperdir)
        workdir = _directory("workdir", options.workdir)
        _check_upper(upperdir, workdir)
    _check_overlaps(lowerdirs, upperdir, workdir)
    lowers: list[Layer] = []
    try:
        for lowerdir in lowerdirs:
            with _named("lowerdir", lowerdir):
                lowers.append(open_lower(lowerdir))
        if upperdir is None or workdir is None:
            return lowers, None
        with _named("upperdir", upperdir):
            return lowers, open_upper(upperdir, workdir)
    except BaseException:
        for layer in lowers:
            layer.close()
        raise


def _directory(option: str, path: str) -> str:
    """The absolute path without symlinks of a directory that is there."""
    with _named(option, path):
        real = os.path.realpath(path, strict=True)
        if not os.path.isdir(real):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return real


@contextmanager
def _named(option: str, path: str) -> Iterator[None]:
    try:
        yield
    except UpperInUse as error:
        raise StackError(f"{option} '{path}': in use by another mount ('{error}' is locked)") from None
    except UpperUnfit as error:
        raise StackError(f"{option} '{path}': its filesystem cannot hold an upper layer: {error}") from None
    except OSError as error:
        raise StackError(f"{option} '{path}': {os.strerror(error.errno or errno.EIO)}") from None


def _check_upper(upperdir: str, workdir: str) -> None:
    if os.stat(upperdir).st_dev != os.stat(workdir).st_dev:
        raise StackError(f"workdir '{workdir}': must be on the filesystem of upperdir '{upperdir}'")
    if _inside(upperdir, workdir) or _inside(workdir, upperdir):
        raise StackError(f"workdir '{workdir}': must be beside upperdir '{upperdir}', not in it or around it")
    for directory, option in ((upperdir, "upperdir"), (workdir, "workdir")):
        if os.statvfs(directory).f_flag & os.ST_RDONLY or not os.access(directory, os.W_OK):
            raise StackError(f"{option} '{directory}': cannot be written")
    if upperdir in _kernel_overlay_uppers():
        raise StackError(f"upperdir '{upperdir}': in use by an overlay mount of the kernel")


def _check_overlaps(lowerdirs: list[str], upperdir: str | None, workdir: str | None) -> None:
    """Refuse a layer that lies in another one that can change, or twice in the stack."""
    seen: set[str] = set()
    for lowerdir in lowerdirs:
        if lowerdir in seen:
            raise StackError(f"lowerdir '{lowerdir}': given twice")
        seen.add(lowerdir)
        for other, option in ((upperdir, "upperdir"), (workdir, "workdir")):
            if other is not None and _inside(lowerdir, other):
                raise StackError(f"lowerdir '{lowerdir}': lies in {option} '{other}'")


def _inside(path: str, directory: str) -> bool:
    return os.path.commonpath([path, directory]) == directory


def _kernel_overlay_uppers() -> set[str]:
    """The upper directories of overlay mounts that proc(5)'s mountinfo shows.

    It shows them as they were given; a relative one is taken to be so from here.
    """
    found = set()
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            _, _, tail = line.partition(" - ")
            if tail.startswith("overlay "):
                match = re.search(r"upperdir=((?:\\,|[^,\s])*)", tail)
                if match:
                    given = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), match[1])
                    found.add(os.path.realpath(given))
    return found
