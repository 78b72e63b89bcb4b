"""What can be done with a container: start, stop, kill, wait, pause, remove.

Each verb takes a name or an ID and is one function, for the command line and for an API alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime import rootless
from runtime.containers import (
    monitor,
    namespaces,
    network,
    networks,
    oci,
    rootfs,
    rotation,
    settle,
    spec,
    users,
    volumes,
)
from runtime.containers import restart as policies
from runtime.containers.container import (
    NEVER,
    Container,
    Gone,
    find,
    load,
    lock_descriptor,
    locked,
    now,
    write_atomically,
)
from runtime.containers.create import lower_layers, prepare_init_layer, signal_number
from runtime.containers.oci import Runtime
from runtime.containers.settle import UNKNOWN_EXIT, runtime_of, settle_by_path
from runtime.containers.spec import Bind, Warn
from runtime.containers.telling import tell
from runtime.errors import RuntimeFailure
from runtime.root import Root

_POLL = 0.02


def inspect(root: Root, reference: str) -> Container:
    """The container that `reference` means, as it is now; one that is being started is waited for.

    Raises RuntimeFailure when there is none.
    """
    container = find(root, reference)
    if container.state.status == "starting" or settle.needs_mending(container):
        return settle_by_path(root, container.directory) or find(root, reference)
    return container


def start(
    root: Root,
    reference: str,
    warn: Warn = lambda message: None,
    on_created: Callable[[Path], None] | None = None,
    window: tuple[int, int] | None = None,
) -> Container:
    """Start a container that does not run; one that runs is left alone.

    `on_created` is called with the directory to attach in once the container is there and before anything
    of it runs, so that no output is missed. `window` is the size its terminal begins with, as (rows,
    columns). `warn` is told what was asked for and cannot be given here.

    Raises RuntimeFailure, with docker's exit codes, when it cannot be started.
    """
    if os.geteuid() != 0:
        reason = rootless.hindrance()
        raise RuntimeFailure(f"running a container needs root, or subordinate ids: {reason}", 125)
    with locked(find(root, reference).directory) as container:
        container = settle.settle(root, container)
        if container.state.active:
            return container
        try:
            return _start(root, container.with_state(restarts=0, restart_delay=0.0), warn, on_created, window)
        except BaseException as error:
            settle.abandon(load(container.directory), str(error), _exit_code(error))
            raise


def start_again(root: Root, container: Container) -> None:
    """Start a container that waits to be restarted; nothing happens when it does not any more.

    Raises RuntimeFailure when it cannot be started; the policy then says whether it is tried again.
    """
    with locked(container.directory) as container:
        if container.state.status != "restarting":
            return
        try:
            _start(root, container.with_state(restarts=container.state.restarts + 1))
        except BaseException as error:
            settle.abandon_restart(load(container.directory), str(error), _exit_code(error))
            raise


def start_all_wanted(root: Root) -> None:
    """Start what should run when a server begins: what the machine's end has ended, and all of policy always.

    What cannot be started is left as it is, with the error in its record.
    """
    for container in settle.settle_all(root):
        always = policies.parse(container.request.restart)[0] == "always"
        if always and container.state.status == "exited":
            with contextlib.suppress(RuntimeFailure, OSError):
                start(root, container.id)


def _exit_code(error: BaseException) -> int:
    return error.exit_code if isinstance(error, RuntimeFailure) and error.exit_code else 128


def _start(
    root: Root,
    container: Container,
    warn: Warn = lambda message: None,
    on_created: Callable[[Path], None] | None = None,
    window: tuple[int, int] | None = None,
) -> Container:
    """Start a container whose lock is held; it is `starting` when this fails."""
    previous = container.bundle
    container = container.with_state(
        status="starting", starts=container.state.starts + 1, error="", oom_killed=False, stopped=False
    ).save()
    for leftover in (previous, *container.directory.glob("exec-*")):
        shutil.rmtree(leftover, ignore_errors=True)
    container = _create(root, container, warn, window)
    if on_created is not None:
        on_created(container.bundle)
    rotation.catch_up(container)
    runtime_of(container).start(container.id)
    container = container.with_state(
        status="running", pid=_pid(container), started_at=now(), exit_code=0, finished_at=NEVER
    ).save()
    tell(root, container, "start")
    settle.accompany(root, container)
    return container


def _create(root: Root, container: Container, warn: Warn, window: tuple[int, int] | None) -> Container:
    """Mount the rootfs and let the OCI runtime create the container in it."""
    container.bundle.mkdir(mode=0o700)
    prepare_init_layer(container)
    rootfs.unmount(container.rootfs)  # what a killed command left
    rootfs.mount(
        lower_layers(container),
        container.upper,
        container.directory / "work",
        container.rootfs,
        volatile=container.request.remove,
        keeps=[lock_descriptor(container.directory)],
    )
    request = container.request
    if container.endpoints:
        container = networks.attach(root, container)
    config = spec.config(
        container,
        users.resolve(container.rootfs, container.process.user, request.group_add),
        _sources(root, container),
        network.write_files(root, container),
        namespaces.namespaces(root, container, container.netns if container.endpoints else None),
        _shm(root, container),
        window,
        warn,
    )
    write_atomically(container.bundle / "config.json", json.dumps(config, indent=1))
    programs = oci.candidates(root, container.request.runtime)
    for program in programs:
        container = container.with_state(runtime=program).save()
        try:
            monitor.create(
                monitor.Session(
                    directory=container.bundle,
                    container_id=container.id,
                    runtime=runtime_of(container),
                    console=monitor.Console(
                        terminal=container.request.tty,
                        stdin=container.request.stdin,
                        leave_stdin_open=_outlives_client(container),
                    ),
                    log=rotation.conmon_driver(container),
                    log_size=rotation.size_limit(container),
                ),
                container.name,
                monitor.cleanup_command(root.path, container.id),
            )
        except RuntimeFailure:
            runtime_of(container).delete(container.id)
            shutil.rmtree(container.directory / "oci", ignore_errors=True)
            if program == programs[-1]:
                raise
            continue
        if len(programs) > 1:
            oci.remember(root, program)
        break
    return container


def _outlives_client(container: Container) -> bool:
    """Whether stdin stays open when a client leaves; a terminal's always does, one can attach to it again."""
    request = container.request
    return request.stdin and (request.tty or not request.stdin_once)


def _sources(root: Root, container: Container) -> list[Bind]:
    """The host paths of bind mounts and volumes; at the first start, new volumes are filled."""
    binds = []
    for mount in container.mounts:
        if mount.kind == "bind":
            source = Path(mount.source)
            if mount.create_source:
                _make_source(source)
            elif not source.exists():
                raise RuntimeFailure(f"bind source path does not exist: {source}", 125)
            binds.append(Bind(source, mount))
        elif mount.kind == "volume":
            volume = volumes.create(root, mount.source)
            if mount.copy_up and container.state.starts == 1:
                volumes.copy_up(container.rootfs, mount.target, volume)
            binds.append(Bind(volume.data, mount))
    return binds


def _shm(root: Root, container: Container) -> Path | None:
    """The directory that is mounted on /dev/shm, for a container that shares it; None when it has its own."""
    mode = container.request.ipc
    if mode == "host":
        return Path("/dev/shm")
    other = namespaces.joined(root, mode)
    if other is not None:
        return Path("/dev/shm") if other.request.ipc == "host" else other.shm
    if mode == "shareable":
        container.shm.mkdir(exist_ok=True)
        rootfs.mount_tmpfs(container.shm, container.request.shm_size)
        return container.shm
    return None


def _make_source(source: Path) -> None:
    """A host path named by -v that does not exist becomes a directory, as docker makes it."""
    try:
        if not os.path.lexists(source):
            source.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RuntimeFailure(f"cannot make {source}: {error.strerror}", 125) from error


def kill(root: Root, reference: str, signal_name: str = "SIGKILL") -> None:
    """Send a signal to the container's first process.

    Raises RuntimeFailure when it does not run, or there is no such signal.
    """
    number = signal_number(signal_name)
    container = inspect(root, reference)
    if container.state.status not in ("running", "paused"):
        if container.state.status == "restarting":
            settle.cancel_restart(container)
            return
        raise RuntimeFailure(f"cannot kill container: {reference}: container {container.id} is not running")
    if number in (signal.SIGKILL, signal_number(container.process.stop_signal)):
        settle.mark_stopped(container)
    tell(root, container, "kill", signal=str(number))
    send_signal(container, number)


def send_signal(container: Container, number: int) -> None:
    """Send signal `number` to the first process of a container; one that has just ended is no error."""
    runtime = runtime_of(container)
    try:
        runtime.kill(container.id, number)
    except RuntimeFailure:
        if monitor.read_exit_code(container.bundle) is None and _alive(container):
            raise
    if number == signal.SIGKILL and container.state.status == "paused":
        _thaw(runtime, container)


def _thaw(runtime: Runtime, container: Container) -> None:
    """A frozen process does not die before it is let go (cgroup v1)."""
    try:
        runtime.resume(container.id)
    except RuntimeFailure:
        if _alive(container):
            raise


def _alive(container: Container) -> bool:
    return monitor.is_watched(container.bundle, container.id) and Path(f"/proc/{_pid(container)}").exists()


def stop(root: Root, reference: str, timeout: int | None = None, signal_name: str = "") -> None:
    """Ask the container to end with `signal_name`, or its stop signal, and kill it after `timeout` seconds.

    -1 is never. A restart policy does not start it again.

    Raises RuntimeFailure when there is no such container; one that does not run is no error.
    """
    number = signal_number(signal_name) if signal_name else 0
    container = inspect(root, reference)
    if container.state.status == "restarting":
        settle.cancel_restart(container)
        return
    if not container.state.live:
        return
    settle.mark_stopped(container)
    if container.state.status == "paused":
        unpause(root, reference)
    patience = container.request.stop_timeout if timeout is None else timeout
    watch = Watch(root, container)
    send_signal(container, number or signal_number(container.process.stop_signal))
    if watch.wait(None if patience < 0 else patience) is None:
        send_signal(container, signal.SIGKILL)
        watch.wait(None)
    tell(root, container, "stop")


def restart(
    root: Root,
    reference: str,
    timeout: int | None = None,
    signal_name: str = "",
    warn: Warn = lambda message: None,
    on_created: Callable[[Path], None] | None = None,
) -> Container:
    """Stop a container if it runs (see `stop`), and start it (see `start`).

    Raises RuntimeFailure when there is no such container, or it cannot be started.
    """
    container = inspect(root, reference)
    if container.request.remove:
        # Its end would remove it: it is taken from under the policy for as long.
        keep = update_record(container, request={"remove": False})
        try:
            stop(root, container.id, timeout, signal_name)
        finally:
            update_record(keep, request={"remove": True})
    else:
        stop(root, container.id, timeout, signal_name)
    started = start(root, container.id, warn, on_created)
    tell(root, started, "restart")
    return started


def update_record(container: Container, request: dict[str, Any]) -> Container:
    """Change fields of what was asked for; returns the container as it then is."""
    with locked(container.directory) as container:
        return dataclasses.replace(
            container, request=dataclasses.replace(container.request, **request)
        ).save()


class Watch:
    """Waits for a container's end, its removal included; made before the end, or it could be missed."""

    def __init__(self, root: Root, container: Container) -> None:
        self._root = root
        self._directory = container.directory
        self._starts = container.state.starts + (not container.state.live)  # the start whose end it is
        # The last exit code is left here, also when the container is removed (settle.leave_exit_code).
        self._lock = open(container.directory / "lock")  # noqa: SIM115 - it lives as long as this

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code; None when `timeout` seconds pass before."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _POLL
        while True:
            try:
                container = load(self._directory)
            except FileNotFoundError:
                return self._left()
            if settle.needs_mending(container):
                settle_by_path(self._root, self._directory)
                continue
            if not container.state.active or container.state.starts > self._starts:
                return self._left() if container.state.starts > self._starts else container.state.exit_code
            if container.state.status == "restarting" and container.state.starts == self._starts:
                return container.state.exit_code
            if deadline is not None and time.monotonic() > deadline:
                return None
            time.sleep(pause)
            pause = min(pause * 1.1, 0.25)

    def _left(self) -> int:
        """The last exit code that was left in the lock file."""
        self._lock.seek(0)
        return int(self._lock.read() or UNKNOWN_EXIT)


def wait(root: Root, reference: str) -> int:
    """Wait until the container does not run, and return its exit code.

    Raises RuntimeFailure when there is no such container.
    """
    code = Watch(root, inspect(root, reference)).wait()
    assert code is not None
    return code


def pause(root: Root, reference: str) -> None:
    """Freeze all processes of a container. Raises RuntimeFailure when it does not run."""
    _freeze(root, reference, "running")


def unpause(root: Root, reference: str) -> None:
    """Let the processes of a frozen container go on. Raises RuntimeFailure when it is not frozen."""
    _freeze(root, reference, "paused")


def _freeze(root: Root, reference: str, expected: str) -> None:
    with locked(inspect(root, reference).directory) as container:
        if container.state.status != expected:
            what = "already paused" if container.state.status == "paused" else f"not {expected}"
            raise RuntimeFailure(f"Container {container.id} is {what}")
        if expected == "running":
            runtime_of(container).pause(container.id)
            container.with_state(status="paused").save()
        else:
            runtime_of(container).resume(container.id)
            container.with_state(status="running").save()
        tell(root, container, "pause" if expected == "running" else "unpause")


def remove(root: Root, reference: str, force: bool = False, with_volumes: bool = False) -> None:
    """Remove a container: its layer, its log, and `with_volumes` its anonymous volumes.

    Raises RuntimeFailure when it runs (unless `force`), or there is no such container.
    """
    container = inspect(root, reference)
    if container.state.active:
        if not force:
            raise RuntimeFailure(
                f"cannot remove container {container.name!r}: container is {container.state.status}: "
                f"stop the container before removing or force remove"
            )
        settle.mark_stopped(container)
        if container.state.live:
            watch = Watch(root, container)
            send_signal(container, signal.SIGKILL)
            watch.wait(None)
    try:
        with locked(container.directory) as container:
            if container.state.active and not (force and not container.state.live):
                raise RuntimeFailure(f"cannot remove container {container.name!r}: it was started meanwhile")
            settle.remove_files(root, container, with_volumes)
    except Gone:  # it was run with --rm, or another was faster
        return


def _pid(container: Container) -> int:
    try:
        return int((container.bundle / "pid").read_text())
    except (FileNotFoundError, ValueError):
        return 0
