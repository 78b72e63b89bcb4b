"""One more process in a container that runs."""

from __future__ import annotations

import json
import os
import posixpath
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from runtime.containers import lifecycle, monitor, spec, users
from runtime.containers.container import Container
from runtime.containers.settle import UNKNOWN_EXIT, runtime_of
from runtime.errors import RuntimeFailure
from runtime.root import Root


@dataclass(frozen=True)
class ExecRequest:
    """What is to be executed; what is empty is as the container's first process has it."""

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    tty: bool = False
    stdin: bool = False
    privileged: bool = False


@dataclass(frozen=True)
class Exec:
    """A process that was started by `start`."""

    pid: int
    directory: Path
    answers: BinaryIO

    def wait(self) -> int:
        """Its exit code, once it has ended; nothing of it is left then."""
        code = monitor.exec_exit_code(self.answers)
        shutil.rmtree(self.directory, ignore_errors=True)
        return UNKNOWN_EXIT if code is None else code

    def forget(self) -> None:
        """Do not wait for it; nothing of it is left on disk."""
        self.answers.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def start(
    root: Root,
    reference: str,
    request: ExecRequest,
    on_ready: Callable[[Path], None] | None = None,
    window: tuple[int, int] | None = None,
) -> Exec:
    """Execute `request` in a running container.

    `on_ready` is called with the directory to attach in before anything is executed; without it nobody sees
    the output, and the traces of the process are removed when it ends.

    Raises RuntimeFailure when the container does not run; with 126 or 127 when the command cannot.
    """
    container = lifecycle.inspect(root, reference)
    if container.state.status == "paused":
        raise RuntimeFailure(f"Container {reference} is paused, unpause the container before exec")
    if container.state.status != "running":
        raise RuntimeFailure(f"container {container.id} is not running")
    try:
        os.statvfs(container.rootfs)  # always asks the server; stat may answer from the kernel's cache
    except OSError as error:  # its server was killed
        raise RuntimeFailure(
            f"the root filesystem of container {reference} is gone ({error.strerror}): stop and start it", 126
        ) from error
    directory = container.directory / f"exec-{secrets.token_hex(8)}"
    directory.mkdir(mode=0o700)
    try:
        process_file = directory / "process.json"
        process_file.write_text(json.dumps(_process(container, request, window)))
        session = monitor.Session(
            directory=directory,
            container_id=container.id,
            runtime=runtime_of(container),
            console=monitor.Console(terminal=request.tty, stdin=request.stdin),
            log="none",
        )
        at_end = monitor.cleanup_command(root.path, container.id, directory) if on_ready is None else []
        pid, answers = monitor.execute(session, process_file, at_end, on_ready)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return Exec(pid, directory, answers)


def _process(container: Container, request: ExecRequest, window: tuple[int, int] | None) -> spec.Json:
    """The `process` object of the runtime specification."""
    try:
        user = users.resolve(
            container.rootfs, request.user or container.process.user, container.request.group_add
        )
    except RuntimeFailure as error:
        raise RuntimeFailure(error.message, 126) from error
    env = [*container.process.env, *request.env]
    process: spec.Json = {
        "terminal": request.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.additional_gids)},
        "args": list(request.args),
        "env": spec.environment(env, container, user, request.tty),
        "cwd": posixpath.normpath(request.working_dir or container.process.cwd),
        "capabilities": spec.capability_sets(
            user, spec.container_capabilities(container, request.privileged)
        ),
        "noNewPrivileges": container.request.no_new_privileges,
    }
    if request.tty and window:
        process["consoleSize"] = {"height": window[0], "width": window[1]}
    return process
