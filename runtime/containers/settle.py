"""What follows from a container's end, and mending what a sudden death left behind.

Everything here may be done twice, by anyone, at any moment: conmon's exit command does it first as a rule,
a client that waits may be faster, and when both were killed the next command that looks at the container
does it. So the record is changed last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from pathlib import Path

from runtime.containers import cgroups, health, monitor, netavark, restart, rootfs, rotation, volumes
from runtime.containers.container import Container, Gone, discard, load_all, lock_is_free, locked, now
from runtime.containers.oci import Runtime
from runtime.containers.telling import tell
from runtime.errors import RuntimeFailure
from runtime.root import Root

#: The exit code of a container whose end nobody saw; docker's.
UNKNOWN_EXIT = 255


def runtime_of(container: Container) -> Runtime:
    """The OCI runtime that holds the container, with its state directory."""
    return Runtime(container.state.runtime, container.directory / "oci")


def settle(root: Root, container: Container) -> Container:
    """Bring the record in line with what is; the container's lock must be held.

    Returns the container as it then is. One that was to be removed at its end is removed.
    """
    state = container.state
    if state.status == "restarting":
        restart.bring_back(root, container)
    if not state.live:
        return container
    code = monitor.read_exit_code(container.bundle)
    if code is None and monitor.is_watched(container.bundle, container.id):
        if state.status != "starting":
            if not is_accompanied(container):
                accompany(root, container)
            return container
        # Whoever was starting it held the lock, and has died.
        return abandon(container, "the command that started it was killed")
    if code is None:
        code = monitor.read_exit_code(container.bundle)  # written between the two looks
    if state.status == "starting" and code is None:
        return abandon(container, "the command that started it was killed")
    return _finish(root, container, code)


def abandon(container: Container, error: str, exit_code: int = 0) -> Container:
    """Undo a start that did not come to its end: the container is as it was created."""
    _tear_down(container)
    undone = container.with_state(status="created", pid=0, error=error, exit_code=exit_code)
    return _disconnected(undone).save()


def abandon_restart(container: Container, error: str, exit_code: int) -> None:
    """Undo a restart by the policy that did not come to its end; it is tried again if that says so."""
    _tear_down(container)
    ended = _disconnected(
        container.with_state(status="exited", pid=0, error=error, exit_code=exit_code, finished_at=now())
    )
    leave_exit_code(ended)
    _by_policy(ended).save()


def mark_stopped(container: Container) -> None:
    """Write down that somebody wants the container's end, so that its policy does not start it again.

    Raises Gone when it has been removed meanwhile.
    """
    if restart.parse(container.request.restart)[0] != "no":
        with locked(container.directory) as container:
            container.with_state(stopped=True).save()


def cancel_restart(container: Container) -> None:
    """End the waiting of a container that was to be restarted."""
    with locked(container.directory) as container:
        if container.state.status == "restarting":
            container.with_state(status="exited", stopped=True).save()


def _by_policy(ended: Container) -> Container:
    """`ended`, waiting to be restarted if its policy says so."""
    if not restart.wanted(ended, ended.state.exit_code):
        return ended
    return ended.with_state(status="restarting", restart_delay=restart.delay(ended))


def accompany(root: Root, container: Container) -> None:
    """Start the companions of a running container that are not there."""
    if not health.is_watched(container):
        health.watch_over(root, container)
    if not rotation.is_rotated(container):
        rotation.rotate(root, container)


def is_accompanied(container: Container) -> bool:
    """Whether the companions that a running container has to have are there."""
    return health.is_watched(container) and rotation.is_rotated(container)


def _finish(root: Root, container: Container, code: int | None) -> Container:
    oom = cgroups.oom_kills(container.id) > 0 or (container.bundle / "oom").exists()
    _tear_down(container)
    ended = _disconnected(container).with_state(
        status="exited",
        pid=0,
        exit_code=UNKNOWN_EXIT if code is None else code,
        finished_at=now(),
        oom_killed=oom,
        error="its monitor was killed, so that the exit code is not known" if code is None else "",
    )
    leave_exit_code(ended)
    if oom:
        tell(root, ended, "oom")
    tell(root, ended, "die", exitCode=str(ended.state.exit_code))
    if ended.request.remove:
        remove_files(root, ended, anonymous_volumes=True)
        return ended
    after = _by_policy(ended).save()
    if after.state.status == "restarting":
        restart.bring_back(root, after)
    return after


def _disconnected(container: Container) -> Container:
    """A container with no address any more."""
    ends = (dataclasses.replace(one, address="", gateway="", mac="") for one in container.endpoints)
    return dataclasses.replace(container, endpoints=tuple(ends)).with_state(ports=())


def _tear_down(container: Container) -> None:
    """No process, no cgroup, no mount."""
    runtime_of(container).delete(container.id)
    health.await_end(container)
    for pid in cgroups.processes(container.id):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    netavark.disconnect_all(container.directory, container.netns)
    rootfs.unmount(container.rootfs)
    rootfs.unmount(container.shm)


def leave_exit_code(container: Container) -> None:
    """Write the exit code where one who waits still finds it when the container is removed.

    The lock file is never replaced, so whoever has it open can read it even then.
    """
    (container.directory / "lock").write_text(str(container.state.exit_code))


def remove_files(root: Root, container: Container, anonymous_volumes: bool) -> None:
    """Remove a container that has ended: its directory, and the volumes that were made for it alone."""
    rootfs.unmount(container.rootfs)
    rootfs.unmount(container.shm)
    discard(root, container.directory)
    tell(root, container, "destroy")
    if anonymous_volumes:
        for mount in container.mounts:
            if mount.kind == "volume" and mount.anonymous:
                with contextlib.suppress(RuntimeFailure):  # another container has it too
                    volumes.remove(root, mount.source, force=True)


def settle_by_path(root: Root, directory: Path) -> Container | None:
    """Settle the container in `directory`, waiting for its lock; None when it is gone."""
    try:
        with locked(directory) as container:
            settled = settle(root, container)
    except Gone:
        return None
    return settled if directory.exists() else None


def settle_all(root: Root) -> list[Container]:
    """All containers, the newest first, each settled where nobody is at work on it."""
    settled = []
    for container in load_all(root):
        if not needs_mending(container):
            settled.append(container)
        elif after := settle_by_path(root, container.directory):
            settled.append(after)
    return settled


def needs_mending(container: Container) -> bool:
    """Whether a container's record is behind, or what should be done for it is done by nobody."""
    if container.state.status == "starting":
        return lock_is_free(container.directory)
    if container.state.status == "restarting":
        return not restart.is_waited_for(container)
    if not container.state.live:
        return False
    ended = monitor.read_exit_code(container.bundle) is not None
    return ended or not monitor.is_watched(container.bundle, container.id) or not is_accompanied(container)
