"""The writable layer: every change of it is one atomic step.

Invariant: whatever system call the process is killed before, the upper directory shows the union as it
was or as it shall be, never a third state. What takes several calls is prepared in the staging directory
(`workdir/work`, the name kernel overlayfs uses and cleans too) and put in its place by one rename; what is
taken away by a whiteout is exchanged for it and cleaned up afterwards, out of sight.

In MARKER form a whiteout stands beside the name it hides, and a name of the same layer is stronger than
its marker. So the marker is always written first and the name removed second; and a new name is made first,
its marker removed second.

New files belong to the caller from the first instant: the thread takes the caller's filesystem ids and
the process its umask for the one call, so setgid directories, default ACLs and quotas are the disk's own.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from unionfs import syscalls, whiteout
from unionfs.layer import Layer, split
from unionfs.whiteout import Convention

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Makes one thing named so in the directory open as the descriptor.
Maker = Callable[[int, bytes], T]

_DEFAULT_ACL = "system.posix_acl_default"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the owner of what is created, and the umask that a default ACL overrides."""

    uid: int
    gid: int
    umask: int


class Upper(Layer):
    """The one layer that is written."""

    def __init__(
        self,
        path: str,
        root_fd: int,
        staging_fd: int,
        work_fd: int,
        locks: list[int],
        convention: Convention,
        *,
        crosses_mounts: bool,
    ) -> None:
        """Take over the descriptors; stack.py opens and locks them."""
        super().__init__(path, root_fd, crosses_mounts=crosses_mounts)
        self.staging_fd = staging_fd
        self.work_fd = work_fd
        self._locks = locks
        self._serial = 0
        self.convention = convention
        self._own_ids = (os.geteuid(), os.getegid())
        self._takes_ids = False

    def close(self) -> None:
        """Give back descriptors and locks."""
        super().close()
        for fd in (self.staging_fd, self.work_fd, *self._locks):
            os.close(fd)

    def take_callers_ids(self) -> None:
        """Create as the caller from now on, where the process may; for a process that does nothing else.

        Else what is not the process's own is made in the staging directory and given away there.
        """
        self._takes_ids = os.geteuid() == 0 and syscalls.keep_capabilities_across_fs_ids()

    def own_directories(self) -> frozenset[tuple[int, int]]:
        """Device and inode numbers of the upper and the work directory."""
        found = (os.fstat(fd) for fd in (self.root_fd, self.work_fd))
        return frozenset((status.st_dev, status.st_ino) for status in found)

    # Staging ---------------------------------------------------------------------------------------

    def staged_name(self) -> bytes:
        """A new name for the staging directory."""
        self._serial += 1
        return b"#%x" % self._serial

    def discard(self, staged: bytes) -> None:
        """Remove a staged name with all that is in it.

        What cannot be removed is out of sight, and the next mount removes it: no reason to fail.
        """
        try:
            remove_tree(self.staging_fd, staged)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.info("the work directory keeps '%s' for now: %s", os.fsdecode(staged), error.strerror)

    @contextlib.contextmanager
    def keeps_times(self, directory: bytes) -> Iterator[None]:
        """Put back the times of a directory in which a copy-up makes a name: nothing has changed in it.

        That they cannot be put back is no reason to say that the copy-up failed: it has its name.
        """
        before = self.stat(directory)
        yield
        try:
            fd, name = self._at(directory)
            syscalls.utimensat(fd, name, before.st_atime_ns, before.st_mtime_ns)
        except OSError as error:
            log.info("the times of '%s' are new after a copy-up: %s", os.fsdecode(directory), error.strerror)

    def adopt(self, staged: bytes, path: bytes) -> None:
        """Put a staged copy in its place, where the upper has nothing.

        Raises FileExistsError when it has.
        """
        parent, name = split(path)
        with self.keeps_times(parent):
            syscalls.renameat2(
                self.staging_fd, staged, self.directory_fd(parent), name, syscalls.RENAME_NOREPLACE
            )

    # New names -------------------------------------------------------------------------------------

    def create(self, parent: bytes, name: bytes, make: Maker[T], caller: Caller) -> T:
        """Make something at a name the upper does not have, owned by the caller.

        Raises what `make` raises.
        """
        fd = self.directory_fd(parent)
        if self._takes_ids or (caller.uid, caller.gid) == self._own_ids:
            return self._as_caller(fd, name, make, caller)
        return self._create_staged(parent, name, make, caller, over_whiteout=False)

    def create_unnamed(self, parent: bytes, make: Maker[int], caller: Caller) -> int:
        """Make a file without a name that inherits what a child of `parent` would; returns its descriptor.

        Raises what `make` raises.
        """
        fd = self._as_caller(self.directory_fd(parent), b".", make, caller)
        if not self._takes_ids and (caller.uid, caller.gid) != self._own_ids:
            os.fchown(fd, caller.uid, caller.gid)
        return fd

    def create_over_whiteout(
        self, parent: bytes, name: bytes, make: Maker[T], caller: Caller, *, marked: bool
    ) -> T:
        """Make something at a name that is whited out; a directory hides what lower layers have there.

        `marked` says that the whiteout is a marker beside the name, which is then removed.
        Raises what `make` raises.
        """
        made = self._create_staged(parent, name, make, caller, over_whiteout=True)
        if marked:
            self.unmark(parent, name)
        return made

    def _as_caller(self, fd: int, name: bytes, make: Maker[T], caller: Caller) -> T:
        umask = os.umask(caller.umask)
        takes_ids = self._takes_ids and (caller.uid, caller.gid) != self._own_ids
        if takes_ids:
            syscalls.set_fs_ids(caller.uid, caller.gid)
        try:
            return make(fd, name)
        finally:
            if takes_ids:
                syscalls.set_fs_ids(*self._own_ids)
            os.umask(umask)

    def _create_staged(
        self, parent: bytes, name: bytes, make: Maker[T], caller: Caller, *, over_whiteout: bool
    ) -> T:
        """Make it out of sight, in a staging directory that hands down what `parent` would."""
        staged = self.staged_name()
        with self._nursery(parent) as nursery_fd:
            made = self._as_caller(nursery_fd, staged, make, caller)
            if nursery_fd != self.staging_fd:
                os.rename(staged, staged, src_dir_fd=nursery_fd, dst_dir_fd=self.staging_fd)
        try:
            status = os.stat(staged, dir_fd=self.staging_fd, follow_symlinks=False)
            if not self._takes_ids and (status.st_uid, status.st_gid) != (caller.uid, caller.gid):
                gid = status.st_gid if self.stat(parent).st_mode & stat.S_ISGID else caller.gid
                os.chown(staged, caller.uid, gid, dir_fd=self.staging_fd, follow_symlinks=False)
            if over_whiteout and stat.S_ISDIR(status.st_mode):
                self._make_opaque(self.staging_fd, staged)
            self._swap_in(staged, parent, name, replaces=over_whiteout)
        except BaseException:
            self.discard(staged)
            raise
        return made

    @contextlib.contextmanager
    def _nursery(self, parent: bytes) -> Iterator[int]:
        """A directory to make a child of `parent` in: with its default ACL and setgid bit, if any."""
        status = self.stat(parent)
        try:
            acl: bytes | None = self.getxattr(parent, _DEFAULT_ACL.encode())
        except OSError:
            acl = None
        if acl is None and not status.st_mode & stat.S_ISGID:
            yield self.staging_fd
            return
        name = self.staged_name()
        os.mkdir(name, 0o700, dir_fd=self.staging_fd)
        fd = os.open(name, _DIRECTORY, dir_fd=self.staging_fd)
        try:
            os.fchown(fd, -1, status.st_gid)
            os.fchmod(fd, 0o700 | (status.st_mode & stat.S_ISGID))
            if acl is not None:
                os.setxattr(fd, _DEFAULT_ACL, acl)
            yield fd
        finally:
            os.close(fd)
            self.discard(name)

    def _swap_in(self, staged: bytes, parent: bytes, name: bytes, *, replaces: bool) -> None:
        """Put what is staged in its place; if it `replaces`, taking out whatever the upper has there."""
        fd = self.directory_fd(parent)
        try:
            syscalls.renameat2(self.staging_fd, staged, fd, name, syscalls.RENAME_NOREPLACE)
        except FileExistsError:
            if not replaces:
                raise
            self._exchange_staged(staged, fd, name)

    def _exchange_staged(self, staged: bytes, fd: int, name: bytes) -> None:
        """Put what is staged in the place of what has a name, and take that away."""
        try:
            syscalls.renameat2(self.staging_fd, staged, fd, name, syscalls.RENAME_EXCHANGE)
        finally:
            self.discard(staged)

    # Removal ---------------------------------------------------------------------------------------

    def remove(self, path: bytes, *, directory: bool) -> None:
        """Take away a name that hides nothing. A directory may hold whiteouts, and nothing else."""
        parent, name = split(path)
        fd = self.directory_fd(parent)
        if not directory:
            os.unlink(name, dir_fd=fd)
            return
        self.forget_directories(path)
        try:
            os.rmdir(name, dir_fd=fd)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            staged = self.staged_name()
            os.rename(name, staged, src_dir_fd=fd, dst_dir_fd=self.staging_fd)
            self.discard(staged)

    def white_out(self, path: bytes, *, present: int | None) -> None:
        """Hide a name of the layers below, taking away what the upper has there.

        `present` is S_IFMT of that, None where the upper has nothing.
        """
        parent, name = split(path)
        fd = self.directory_fd(parent)
        if self.convention is Convention.MARKER:
            with contextlib.suppress(FileExistsError):
                whiteout.write_whiteout(fd, name, self.convention)
            if present is not None:
                self.remove(path, directory=present == stat.S_IFDIR)
        elif present is None and self.convention is Convention.DEVICE:
            whiteout.write_whiteout(fd, name, self.convention)
        else:
            staged = self._staged_whiteout(parent)
            if present == stat.S_IFDIR:
                self.forget_directories(path)
                self._exchange_staged(staged, fd, name)
            else:
                self._rename_staged(staged, fd, name)

    def _rename_staged(self, staged: bytes, fd: int, name: bytes) -> None:
        """Replace what has a name, no directory, by what is staged."""
        try:
            os.rename(staged, name, src_dir_fd=self.staging_fd, dst_dir_fd=fd)
        except BaseException:
            self.discard(staged)
            raise

    def _staged_whiteout(self, parent: bytes) -> bytes:
        """A whiteout to be put into the directory `parent` by rename."""
        if self.convention is Convention.XATTR:
            fd = self.open(parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                whiteout.allow_xattr_whiteouts(fd)
            finally:
                os.close(fd)
        staged = self.staged_name()
        try:
            whiteout.write_whiteout(self.staging_fd, staged, self.convention)
        except BaseException:
            self.discard(staged)
            raise
        return staged

    def unmark(self, parent: bytes, name: bytes) -> None:
        """Remove the marker that hides `name`, if there is one.

        The name is there, and stronger than its marker: one that stays does no harm.
        """
        with contextlib.suppress(OSError):
            os.unlink(whiteout.MARKER_PREFIX + name, dir_fd=self.directory_fd(parent))

    # Rename ----------------------------------------------------------------------------------------

    def rename(self, old: bytes, new: bytes, *, hides_old: bool, over_whiteout: bool) -> bool:
        """Move a file, symlink, device or pure upper directory to `new`, replacing what is there.

        Returns whether there is a whiteout at the old name now, which is so if it is to hide something.

        `hides_old`: a lower layer has the old name, which a whiteout must hide from then on.
        `over_whiteout`: the upper's entry at `new` is a whiteout. An emptied directory there must
        hold nothing (see `empty`).
        """
        old_parent, old_name = split(old)
        new_parent, new_name = split(new)
        self.forget_directories(old)
        self.forget_directories(new)
        # The first directory_fd may be evicted by the second only if the cache held a single one.
        old_fd, new_fd = self.directory_fd(old_parent), self.directory_fd(new_parent)
        flags = 0
        if hides_old and self.convention is Convention.XATTR:
            self._rename_leaving_xattr_whiteout(old, new)
            return True
        if hides_old:
            if self.convention is Convention.DEVICE:
                flags = syscalls.RENAME_WHITEOUT
            else:
                with contextlib.suppress(FileExistsError):
                    whiteout.write_whiteout(old_fd, old_name, self.convention)
        try:
            syscalls.renameat2(old_fd, old_name, new_fd, new_name, flags)
        except NotADirectoryError:
            # A directory cannot replace a whiteout's device by rename: they change places instead, and
            # the whiteout is where it is wanted, or hides nothing.
            if not over_whiteout:
                raise
            syscalls.renameat2(old_fd, old_name, new_fd, new_name, syscalls.RENAME_EXCHANGE)
            if not hides_old or self.convention is Convention.MARKER:
                try:
                    os.unlink(old_name, dir_fd=old_fd)
                except OSError as error:
                    log.info("a whiteout stays at '%s': %s", os.fsdecode(old), error.strerror)
                    return True
        return hides_old

    def _rename_leaving_xattr_whiteout(self, old: bytes, new: bytes) -> None:
        """Put a whiteout at `new`, which hides nothing more there, and let it and `old` change places.

        What `new` replaces is at `old` for a moment: this form has no single call for all of it.
        """
        old_parent, old_name = split(old)
        new_parent, new_name = split(new)
        staged = self._staged_whiteout(old_parent)
        old_fd, new_fd = self.directory_fd(old_parent), self.directory_fd(new_parent)
        try:
            syscalls.renameat2(self.staging_fd, staged, new_fd, new_name, syscalls.RENAME_NOREPLACE)
        except FileExistsError:
            syscalls.renameat2(old_fd, old_name, new_fd, new_name, syscalls.RENAME_EXCHANGE)
            syscalls.renameat2(self.staging_fd, staged, old_fd, old_name, syscalls.RENAME_EXCHANGE)
            self.discard(staged)
        else:
            syscalls.renameat2(old_fd, old_name, new_fd, new_name, syscalls.RENAME_EXCHANGE)

    def exchange(self, one: bytes, other: bytes) -> None:
        """renameat2(2) with RENAME_EXCHANGE."""
        for path in (one, other):
            self.forget_directories(path)
        (one_parent, one_name), (other_parent, other_name) = split(one), split(other)
        one_fd, other_fd = self.directory_fd(one_parent), self.directory_fd(other_parent)
        syscalls.renameat2(one_fd, one_name, other_fd, other_name, syscalls.RENAME_EXCHANGE)

    def empty(self, directory: bytes) -> None:
        """Remove the whiteouts of a directory that shows nothing, so that rename(2) can replace it.

        It is made opaque first, so that what they hid stays hidden; in MARKER form by a marker beside
        it, which must be removed after.
        """
        names = self.entries(directory)
        if not names:
            return
        if self.convention is not Convention.MARKER:
            self.make_opaque(directory)
        else:
            parent, name = split(directory)
            with contextlib.suppress(FileExistsError):
                whiteout.write_whiteout(self.directory_fd(parent), name, self.convention)
        fd = self.directory_fd(directory)
        for entry in names:
            os.unlink(entry.name, dir_fd=fd)

    def make_opaque(self, directory: bytes) -> None:
        """Make a directory of the upper hide what lower layers have under its name."""
        self._make_opaque(*self._at(directory))

    def _make_opaque(self, parent_fd: int, name: bytes) -> None:
        fd = os.open(name, _DIRECTORY, dir_fd=parent_fd)
        try:
            whiteout.write_opaque(fd, self.convention)
        finally:
            os.close(fd)

    # Attributes ------------------------------------------------------------------------------------

    def chmod(self, path: bytes, mode: int) -> None:
        """fchmodat(2), not following a symlink."""
        syscalls.fchmodat(*self._at(path), mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        """fchownat(2), not following a symlink; -1 leaves an id as it is."""
        fd, name = self._at(path)
        os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)

    def utime(self, path: bytes, atime_ns: int | None, mtime_ns: int | None) -> None:
        """utimensat(2), not following a symlink; None leaves a time as it is."""
        syscalls.utimensat(*self._at(path), atime_ns, mtime_ns)

    def setxattr(self, path: bytes, name: bytes, value: bytes) -> None:
        """lsetxattr(2)."""
        os.setxattr(self.proc_path(path), name, value, follow_symlinks=False)

    def removexattr(self, path: bytes, name: bytes) -> None:
        """lremovexattr(2)."""
        os.removexattr(self.proc_path(path), name, follow_symlinks=False)

    def link(self, source: bytes, new: bytes, *, follow: bool, over_whiteout: bool, marked: bool) -> None:
        """linkat(2) of a path outside the layer's own, which only `follow` follows if it is a symlink.

        A whiteout at `new` is replaced. Raises OSError (EMLINK, EEXIST …).
        """
        parent, name = split(new)
        if over_whiteout:
            staged = self.staged_name()
            os.link(source, staged, dst_dir_fd=self.staging_fd, follow_symlinks=follow)
            self._rename_staged(staged, self.directory_fd(parent), name)
        else:
            os.link(source, name, dst_dir_fd=self.directory_fd(parent), follow_symlinks=follow)
        if marked:
            self.unmark(parent, name)


def clean_staging(staging_fd: int) -> None:
    """Remove what an earlier server left half done. `incompat` is of volatile.py and of kernel overlayfs."""
    for name in os.listdir(staging_fd):
        if name != "incompat":
            remove_tree(staging_fd, os.fsencode(name))


def remove_tree(parent_fd: int, name: bytes) -> None:
    """Remove `name` in the directory `parent_fd` and all in it, never following a symlink."""
    try:
        os.unlink(name, dir_fd=parent_fd)
        return
    except IsADirectoryError:
        pass
    fd = os.open(name, _DIRECTORY, dir_fd=parent_fd)
    try:
        for entry in os.listdir(fd):
            remove_tree(fd, os.fsencode(entry))
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent_fd)
