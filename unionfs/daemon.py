"""The life of a mount: open the layers, mount, report ready, serve, unmount.

In the background the parent stays until the mount answers a call of its own, so whoever waits for the
command finds a mount that works. The child keeps none of the caller's descriptors: an engine that waits
for its pipe to close is not kept waiting.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import trio

from unionfs import logs, syscalls
from unionfs.copyup import CopyUp
from unionfs.inspection import Inspection
from unionfs.keeper import SIGNALS, Keeper, Lost
from unionfs.layer import Layer
from unionfs.ledger import Ledger
from unionfs.operations import FOREVER, Operations
from unionfs.options import Options
from unionfs.passthrough import Backings, Policy
from unionfs.revival import Revival
from unionfs.session import Capability, hooked, keep, negotiate, pyfuse3, resend, sleep_in_hooks
from unionfs.session.fastpath import FastPath
from unionfs.stack import StackError, open_stack
from unionfs.tree import Tree
from unionfs.upper import Upper, clean_staging

log = logging.getLogger(__name__)

_READY = b"ready"


class MountError(Exception):
    """The mount cannot be had; the message is one line for the user."""


@dataclass(frozen=True, slots=True)
class Mount:
    """What is to be mounted, and where."""

    options: Options
    #: Absolute path of a directory.
    mountpoint: str
    #: What mount(8) and findmnt(8) show as the source.
    source: str
    #: Let libfuse write every request and reply to stderr.
    debug: bool = False


def run(mount: Mount, *, foreground: bool) -> None:
    """Serve a mount until it is unmounted, here or in a child in the background.

    Returns when it is served no more (foreground) or answers (background). Raises MountError.
    """
    inherited = _open_descriptors()
    _check_mountpoint(mount.mountpoint)
    try:
        lowers, upper = open_stack(mount.options)
    except StackError as error:
        raise MountError(str(error)) from None
    _raise_descriptor_limit()
    if mount.options.log is not None:
        try:
            logs.to_file(mount.options.log, mount.mountpoint)
        except OSError as error:
            raise MountError(f"log '{mount.options.log}': {error.strerror}") from None
    if foreground:
        _hold(mount, lowers, upper, lambda: None)
        return
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _let_go(inherited)
        os._exit(_background(mount, lowers, upper, writer))
    os.close(writer)
    _await_answer(mount.mountpoint, reader)


def _check_mountpoint(mountpoint: str) -> None:
    try:
        mode = os.stat(mountpoint).st_mode
    except OSError as error:
        hint = f"; end the dead mount by: umount {mountpoint}" if error.errno == errno.ENOTCONN else ""
        raise MountError(f"mountpoint '{mountpoint}': {error.strerror}{hint}") from None
    if not stat.S_ISDIR(mode):
        raise MountError(f"mountpoint '{mountpoint}': not a directory")


def _somebody_waits(record: logging.LogRecord) -> bool:
    """False for pyfuse3's complaint that a request is gone: its caller was killed, or the mount ended."""
    gone = os.strerror(errno.ENOENT)
    return not (str(record.msg).endswith("fuse_reply_* failed with %s") and record.args == (gone,))


def _raise_descriptor_limit() -> None:
    """Each open file of the mount is one of ours."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# In the background --------------------------------------------------------------------------------


def _background(mount: Mount, lowers: list[Layer], upper: Upper | None, writer: int) -> int:
    """The child: serve. Returns the exit status."""
    if mount.options.log is None:
        logs.to_system(mount.mountpoint)

    def ready() -> None:
        _let_go_of(2)
        os.write(writer, _READY)
        os.close(writer)

    try:
        _hold(mount, lowers, upper, ready)
    except MountError as error:
        os.write(writer, str(error).encode("utf-8", "surrogateescape"))
        return 1
    except BaseException as error:
        log.exception("the mount at %s ended", mount.mountpoint)
        try:
            os.write(writer, repr(error).encode())
        except OSError:
            pass  # it was reported ready long ago
        return 1
    return 0


def _open_descriptors() -> list[int]:
    """All but the standard ones, and but that by which they are listed."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            os.fstat(int(name))
            found.append(int(name))
    return [fd for fd in found if fd > 2]


def _let_go(inherited: list[int]) -> None:
    """Leave the caller's session, and every descriptor that came from it but stderr.

    That stays until the mount is there, for what fusermount3 has to say.
    """
    os.setsid()
    for fd in (0, 1):
        _let_go_of(fd)
    for fd in inherited:
        os.close(fd)


def _let_go_of(standard: int) -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, standard)
    os.close(null)


def _await_answer(mountpoint: str, reader: int) -> None:
    """The parent: wait until the child serves, then until the mount answers."""
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    if said != _READY:
        reason = said.decode("utf-8", "surrogateescape")
        raise MountError(reason or "the server ended before the mount answered")
    try:
        os.statvfs(mountpoint)
    except OSError as error:
        raise MountError(f"mountpoint '{mountpoint}': mounted, but: {error.strerror}") from None


# Kept ---------------------------------------------------------------------------------------------


def _hold(mount: Mount, lowers: list[Layer], upper: Upper | None, ready: Callable[[], None]) -> None:
    """Serve, by a child that another one follows if it dies, or here where that cannot be had.

    Raises MountError, also when no server could go on.
    """
    ledger = _new_ledger() if mount.options.keeper else None
    if ledger is None:
        _serve(mount, lowers, upper, ready, None)
        return
    kept = _open_descriptors()

    def serve() -> int:
        if ledger.session_fd:
            _close_all_but({*kept, *ledger.held()})
        try:
            _serve(mount, lowers, upper, ready if not ledger.session_fd else lambda: None, ledger)
        except MountError as error:
            ledger.say(str(error))
            return 1
        except BaseException:
            log.exception("the mount at %s ended", mount.mountpoint)
            return 1
        return 0

    try:
        status = Keeper(ledger, serve).run()
    except Lost as lost:
        log.error("%s; %s is unmounted", lost, mount.mountpoint)
        _take_away(mount.mountpoint)
        raise MountError(str(lost)) from None
    if status:
        raise MountError(ledger.message or "the server ended, see its log")


def _new_ledger() -> Ledger | None:
    try:
        return Ledger()
    except OSError as error:
        log.info("no keeper: %s", error.strerror)
        return None


def _close_all_but(kept: set[int]) -> None:
    """Close what a dead server has left open that nobody knows of any more."""
    for fd in _open_descriptors():
        if fd not in kept:
            os.close(fd)


def _take_away(mountpoint: str) -> None:
    try:
        syscalls.umount(os.fsencode(mountpoint), syscalls.MNT_DETACH)
    except PermissionError:
        subprocess.run(["fusermount3", "-u", "-z", mountpoint], check=False)
    except OSError as error:
        log.info("%s: %s", mountpoint, error.strerror)


# Serving ------------------------------------------------------------------------------------------


def _serve(
    mount: Mount,
    lowers: list[Layer],
    upper: Upper | None,
    ready: Callable[[], None],
    ledger: Ledger | None,
) -> None:
    """Mount, or go on with a mount, answer requests until it is gone, give everything back."""
    os.chdir("/")
    logging.getLogger("pyfuse3").addFilter(_somebody_waits)
    options = mount.options
    takes_over = ledger is not None and ledger.session_fd > 0
    if takes_over and upper is not None:
        clean_staging(upper.staging_fd)
    tree = Tree(lowers, upper, ledger)
    copyup = None
    if upper is not None and not options.read_only:
        upper.take_callers_ids()
        if takes_over:
            CopyUp(Tree(lowers, upper), upper, sync=options.sync).finish_links()
        copyup = CopyUp(tree, upper, sync=options.sync, metacopies=options.metacopy)
        if not takes_over:
            copyup.recover()
    revival = Revival(tree, ledger, copyup) if ledger is not None and takes_over else None
    operations = Operations(
        tree,
        upper,
        copyup,
        acl=options.acl,
        xattrs=options.xattrs,
        sync=options.sync,
        timeout=FOREVER if options.timeout is None else options.timeout,
        static_nlink=options.static_nlink,
        redirects=options.redirect_dir,
        idmaps=options.idmaps,
    )
    backings = Backings(options.passthrough)
    operations.inspection = Inspection(tree, copyup, backings, fastpath=options.fastpath)
    if ledger is not None:
        keep(ledger.address)
    if options.fastpath:
        negotiate(_wanted(options))
    if ledger is not None and revival is not None:
        pyfuse3.init(operations, f"/dev/fd/{ledger.session_fd}", {"debug"} if mount.debug else set())
        revival.reopen(operations)
    else:
        _mount(mount, operations)
    if options.fastpath and hooked():
        FastPath(operations, backings).install()
    try:
        trio.run(_main, mount.mountpoint, ready, revival)
    finally:
        pyfuse3.close(unmount=True)
        if copyup is not None:
            copyup.close()
        for layer in (*lowers, *([upper] if upper else [])):
            layer.close()


def _wanted(options: Options) -> Capability:
    """What is to be agreed on with the kernel; passthrough is for the machine's root."""
    wanted = Capability.CACHE_SYMLINKS | Capability.HANDLE_KILLPRIV_V2
    if os.geteuid() == 0 and options.passthrough is not Policy.OFF:
        wanted |= Capability.PASSTHROUGH
    return wanted


def _mount(mount: Mount, operations: Operations) -> None:
    """Mount and open pyfuse3's session on it.

    With the right to, by mount(2) ourselves: only so can the kernel be told to leave the umask to us
    (MS_POSIXACL), which default ACLs need. Else libfuse asks fusermount3.
    """
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC) if os.access("/dev/fuse", os.R_OK | os.W_OK) else -1
    if fd < 0:
        raise MountError("/dev/fuse cannot be opened: is the fuse module loaded, and may this user open it?")
    data = (
        f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},default_permissions,allow_other"
    )
    flags = mount.options.flags | syscalls.MS_POSIXACL
    target = os.fsencode(mount.mountpoint)
    try:
        syscalls.mount(os.fsencode(mount.source), target, b"fuse.unionfs", flags, data.encode())
    except PermissionError:
        os.close(fd)
        _mount_by_libfuse(mount, operations)
        return
    except OSError as error:
        os.close(fd)
        raise MountError(f"mountpoint '{mount.mountpoint}': {os.strerror(error.errno or 0)}") from None
    try:
        pyfuse3.init(operations, f"/dev/fd/{fd}", {"debug"} if mount.debug else set())
    except BaseException:
        syscalls.umount(target, syscalls.MNT_DETACH)
        raise


def _mount_by_libfuse(mount: Mount, operations: Operations) -> None:
    if shutil.which("fusermount3") is None:
        raise MountError("fusermount3 is not installed, and only root can mount without it (package fuse3)")
    names = {"default_permissions", "subtype=unionfs", f"fsname={mount.source.replace(',', '_')}"}
    if mount.options.read_only:
        names.add("ro")
    if os.getuid() == 0 or _users_may_allow_others():
        names.add("allow_other")
    if mount.debug:
        names.add("debug")
    try:
        pyfuse3.init(operations, mount.mountpoint, names)
    except RuntimeError as error:
        raise MountError(f"mountpoint '{mount.mountpoint}': fusermount3 refused ({error})") from None


def _users_may_allow_others() -> bool:
    try:
        with open("/etc/fuse.conf", encoding="utf-8") as lines:
            return any(line.strip() == "user_allow_other" for line in lines)
    except OSError:
        return False


async def _main(mountpoint: str, ready: Callable[[], None], revival: Revival | None) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_unmount_at_signal, mountpoint)
        ready()
        sleep_in_hooks()
        if revival is not None:
            revival.resettle()
            resend()
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


async def _unmount_at_signal(mountpoint: str) -> None:
    """SIGTERM, SIGINT and SIGHUP: unmount, which ends the main loop; from busy users it is taken away."""
    with trio.open_signal_receiver(*SIGNALS) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # the keeper had them blocked
        async for _ in signals:
            # In a thread: the kernel writes back what is dirty, and we have to answer.
            if not await trio.to_thread.run_sync(_unmount, mountpoint, abandon_on_cancel=True):
                pyfuse3.terminate()
                return


def _unmount(mountpoint: str) -> bool:
    """Unmount now, or from everybody's sight if somebody still uses it. False when users remain."""
    target = os.fsencode(mountpoint)
    try:
        syscalls.umount(target)
        return True
    except PermissionError:
        return subprocess.run(["fusermount3", "-u", "-z", mountpoint], check=False).returncode == 0
    except OSError as error:
        if error.errno == errno.EINVAL:  # it is no mountpoint any more
            return True
        log.info("%s: %s, so it is detached", mountpoint, error.strerror)
    fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
    try:
        syscalls.syncfs(fd)
    finally:
        os.close(fd)
    syscalls.umount(target, syscalls.MNT_DETACH)
    return False
