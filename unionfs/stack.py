"""Opens the layers that the options name, after checking that they can be one union.

Every refusal is a StackError of one line that names the directory and what is wrong with it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator

from unionfs import syscalls, volatile, whiteout
from unionfs.layer import Layer, open_lower
from unionfs.options import Options
from unionfs.upper import Upper, clean_staging, remove_tree
from unionfs.whiteout import Convention

#: Seconds to wait for an earlier server of the same upper that is just ending.
LOCK_PATIENCE = 10.0


_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class StackError(Exception):
    """These directories cannot be mounted."""


class _UpperInUse(Exception):
    """Another mount serves this upper or work directory."""


class _UpperUnfit(Exception):
    """The filesystem cannot hold an upper layer; the message says what it lacks."""


def open_stack(options: Options) -> tuple[list[Layer], Upper | None]:
    """Open the lower layers, topmost first, and the upper one if there is one.

    Of a mount that is read only the upper is one more lower layer: nothing is written, so it may be another
    mount's at the same time. Engines compare a running container with its image so.

    Raises StackError.
    """
    lowerdirs = [_directory("lowerdir", path) for path in options.lowerdirs]
    upperdir = workdir = None
    if options.upperdir is not None and options.workdir is not None:
        upperdir = _directory("upperdir", options.upperdir)
        workdir = _directory("workdir", options.workdir)
        if options.read_only:
            _check_trusted(upperdir, workdir)
            lowerdirs.insert(0, upperdir)
            upperdir = workdir = None
        else:
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
            return lowers, _open_upper(upperdir, workdir, options)
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


@contextlib.contextmanager
def _named(option: str, path: str) -> Iterator[None]:
    try:
        yield
    except _UpperInUse as error:
        raise StackError(f"{option} '{path}': in use by another mount ('{error}' is locked)") from None
    except volatile.Untrusted as error:
        raise StackError(f"{option} '{path}': {error}") from None
    except _UpperUnfit as error:
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


def _check_trusted(upperdir: str, workdir: str) -> None:
    """Refuse an upper that may have lost what was written to it."""
    with _named("upperdir", upperdir), contextlib.suppress(FileNotFoundError):
        staging_fd = os.open(os.path.join(workdir, "work"), _DIRECTORY)
        try:
            volatile.check(staging_fd)
        finally:
            os.close(staging_fd)


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


# The upper layer and its workdir -------------------------------------------------------------------


def _open_upper(upperdir: str, workdir: str, options: Options) -> Upper:
    """Open and lock an upper directory and its workdir; both absolute and free of symlinks.

    Raises _UpperInUse, _UpperUnfit, volatile.Untrusted, or OSError when they cannot be written.
    """
    locks = _lock(upperdir, workdir)
    try:
        root_fd, work_fd, crosses = _open_together(upperdir, workdir)
        with contextlib.suppress(FileExistsError):
            os.mkdir(b"work", 0o700, dir_fd=work_fd)
        staging_fd = os.open(b"work", _DIRECTORY, dir_fd=work_fd)
        volatile.check(staging_fd)
        if options.volatile:
            volatile.mark(staging_fd)
        clean_staging(staging_fd)
        convention = Convention.MARKER if options.markers else _convention(staging_fd)
        upper = Upper(upperdir, root_fd, staging_fd, work_fd, locks, convention, crosses_mounts=crosses)
    except BaseException:
        for fd in locks:
            os.close(fd)
        raise
    return upper


def _convention(staging_fd: int) -> Convention:
    """Try what every upper layer needs; returns the form in which whiteouts can be written.

    A full disk cannot be tried, and must be mounted all the same, or nobody could make room on it: then
    it is taken for one of the usual kind. Raises _UpperUnfit; OSError for a read-only disk.
    """
    probe, other = b"probe", b"other"
    try:
        os.symlink(b"target", probe, dir_fd=staging_fd)
        os.unlink(probe, dir_fd=staging_fd)
        os.mkdir(probe, dir_fd=staging_fd)
        os.mkdir(other, dir_fd=staging_fd)
        syscalls.renameat2(staging_fd, probe, staging_fd, other, syscalls.RENAME_EXCHANGE)
        os.rmdir(probe, dir_fd=staging_fd)
        os.rmdir(other, dir_fd=staging_fd)
        return whiteout.convention_for(staging_fd)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return Convention.DEVICE
        if error.errno in (errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise _UpperUnfit("it lacks symlinks, whiteouts or exchange of names") from None
        raise
    finally:
        for name in (probe, other):
            with contextlib.suppress(FileNotFoundError):
                remove_tree(staging_fd, name)


def _lock(*directories: str) -> list[int]:
    """Hold directories against other mounts of ours, waiting a moment for one that is ending."""
    locks: list[int] = []
    try:
        for directory in directories:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            locks.append(fd)
            deadline = time.monotonic() + LOCK_PATIENCE
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise _UpperInUse(directory) from None
                    time.sleep(0.05)
    except BaseException:
        for fd in locks:
            os.close(fd)
        raise
    return locks


def _open_together(upperdir: str, workdir: str) -> tuple[int, int, bool]:
    """Both directories through one mount, as rename(2) between them needs; and whether it has submounts.

    A private mount of their common ancestor is preferred: nothing is mounted below it.
    """
    common = os.path.commonpath([upperdir, workdir])
    try:
        mount_fd = syscalls.clone_mount(os.fsencode(common), read_only=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS):
            raise
    else:
        ancestor = Layer(common, mount_fd, crosses_mounts=False)
        try:
            fds: list[int] = []
            for directory in (upperdir, workdir):
                relative = os.fsencode(os.path.relpath(directory, common))
                fd = ancestor.open(b"" if relative == b"." else relative, os.O_PATH | os.O_DIRECTORY)
                fds.append(fd)
            if all(
                os.path.samestat(os.fstat(fd), os.stat(directory))
                for fd, directory in zip(fds, (upperdir, workdir), strict=True)
            ):
                return fds[0], fds[1], False
            for fd in fds:
                os.close(fd)
        except FileNotFoundError:
            pass  # a mount lies between the common ancestor and one of them
        finally:
            ancestor.close()
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    return os.open(upperdir, flags), os.open(workdir, flags), True
