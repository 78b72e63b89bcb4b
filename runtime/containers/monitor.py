"""conmon: the process that stays with a container, keeps its console and log, and learns how it ended.

conmon(8) says little; this is how it is called and how it answers:

* It forks at once; the child is what stays. The parent writes the child's pid and ends.
* `_OCI_SYNCPIPE` names the fd of a pipe on which it answers with a line of JSON: `{"data": PID}` once the
  runtime has created the container, or a negative number and the runtime's words. For an exec a second line
  tells the exit code at the end.
* `_OCI_STARTPIPE` names the fd of a pipe from which it reads before it does anything, and with
  `--exec-attach` once more before it executes; `_OCI_ATTACHPIPE` says in between that one can attach.
* In the bundle it makes `attach` (a seqpacket socket, see attach.py) and `ctl` (a FIFO that takes window
  sizes); with `--full-attach` the socket is really there, and is reached by way of an fd of the directory,
  since a unix socket's path may have 107 bytes only.
* At the end it writes the exit code to `exit` in the `--persist-dir`, and an empty file `oom` before if the
  cgroup ran out of memory; then it runs the `--exit-command`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from runtime.containers import oci
from runtime.containers.oci import Runtime
from runtime.errors import RuntimeFailure

_CONMON_API = "1"


@dataclass(frozen=True)
class Console:
    """How a process's stdio is kept."""

    terminal: bool = False
    stdin: bool = False
    leave_stdin_open: bool = False


@dataclass(frozen=True)
class Session:
    """A process in a container that conmon looks after: the container's first one, or an exec."""

    directory: Path  # where conmon keeps its sockets, pids and the exit code
    container_id: str
    runtime: Runtime
    console: Console
    log: str  # a conmon log specification: DRIVER:PATH
    log_size: int = 0  # bytes; conmon begins the file anew when it has as many

    @property
    def pid(self) -> int:
        """The process's number on the host; 0 as long as it is not known."""
        return _read_pid(self.directory / "pid")

    @property
    def exit_code(self) -> int | None:
        """How the process ended, or None as long as that is not known."""
        return read_exit_code(self.directory)


def read_exit_code(directory: Path) -> int | None:
    """What conmon wrote about the end of the process in `directory`, if it did."""
    try:
        return int((directory / "exit").read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def is_watched(directory: Path, container_id: str) -> bool:
    """Whether the conmon that was started for `directory` lives.

    The number alone could have gone to another process, so its command line is looked at.
    """
    return _is_conmon(_read_pid(directory / "conmon.pid"), container_id)


def create(session: Session, name: str, exit_command: list[str]) -> int:
    """Create the container of the bundle in `session.directory`, and return its first process's pid.

    The process waits for Runtime.start.

    Raises RuntimeFailure in the runtime's words and with docker's exit codes.
    """
    arguments = ["--bundle", str(session.directory), "--name", name, *_exit_command(exit_command)]
    return _spawn(session, arguments, None).first()


def execute(
    session: Session,
    process_file: Path,
    exit_command: list[str],
    on_ready: Callable[[Path], None] | None = None,
) -> tuple[int, BinaryIO]:
    """Execute one more process in a running container; returns its pid and conmon's answering pipe.

    `exit_command`, if not empty, is run when it has ended.

    `on_ready` is called with the session's directory when it can be attached to and before anything is
    executed, so that no output is missed.

    Raises RuntimeFailure as `create` does.
    """
    arguments = ["--bundle", str(session.directory), "--exec", "--exec-process-spec", str(process_file)]
    arguments += _exit_command(exit_command)
    if on_ready is not None:
        arguments.append("--exec-attach")
    sync = _spawn(session, arguments, on_ready)
    return sync.first(), sync.pipe


def exec_exit_code(pipe: BinaryIO) -> int | None:
    """Wait for the end of an exec: its exit code, or None when conmon ended without a word."""
    with pipe:
        line = pipe.readline()
    return int(json.loads(line)["data"]) if line else None


def end(directory: Path, container_id: str, patience: float = 5.0) -> None:
    """Wait for the conmon of `directory` to go, and kill it when it does not."""
    pid = _read_pid(directory / "conmon.pid")
    deadline = time.monotonic() + patience
    while _is_conmon(pid, container_id):
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.01)


@dataclass(frozen=True)
class _Sync:
    """conmon's answers."""

    pipe: BinaryIO

    def first(self) -> int:
        """The pid, from the first answer."""
        line = self.pipe.readline()
        if not line:
            self.pipe.close()
            raise RuntimeFailure("conmon ended without an answer", 125)
        answer = json.loads(line, strict=False)
        if int(answer["data"]) <= 0:
            self.pipe.close()
            raise oci.failure(answer.get("message", ""))
        return int(answer["data"])


def _spawn(session: Session, arguments: list[str], on_ready: Callable[[Path], None] | None) -> _Sync:
    """Start conmon, take it through its pipes, and return the one it answers on."""
    program = shutil.which("conmon") or shutil.which("conmon", path="/usr/bin:/usr/libexec/podman:/usr/sbin")
    if program is None:
        raise RuntimeFailure("conmon is not installed, and is needed to run containers", 125)
    directory = session.directory
    command = [
        program,
        *("--api-version", _CONMON_API),
        *("--cid", session.container_id, "--cuuid", session.container_id),
        *("--runtime", session.runtime.program, f"--runtime-arg=--root={session.runtime.state}"),
        *("--container-pidfile", str(directory / "pid"), "--conmon-pidfile", str(directory / "conmon.pid")),
        *("--persist-dir", str(directory), "--log-path", session.log, "--full-attach"),
        *(["--log-size-max", str(session.log_size)] if session.log_size else []),
        *arguments,
    ]
    console = session.console
    command += ["--terminal"] if console.terminal else []
    command += ["--stdin"] if console.stdin else []
    command += ["--leave-stdin-open"] if console.leave_stdin_open else []

    sync_read, sync_write = os.pipe()
    start_read, start_write = os.pipe()
    attach_read, attach_write = os.pipe()
    handed = [sync_write, start_read, attach_write]
    environment = {
        **{name: value for name, value in os.environ.items() if name in _KEPT_ENVIRONMENT},
        "PATH": os.environ.get("PATH") or os.defpath,
        "_OCI_SYNCPIPE": str(sync_write),
        "_OCI_STARTPIPE": str(start_read),
        "_OCI_ATTACHPIPE": str(attach_write),
    }
    sync = open(sync_read, "rb")  # noqa: SIM115 - handed to the caller
    try:
        try:
            started = subprocess.Popen(
                command,
                cwd=directory,  # where conmon leaves a file "oom", too
                env=environment,
                pass_fds=handed,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                umask=0o022,
            )
        finally:
            os.close(sync_write)
            os.close(start_read)
            os.close(attach_write)
        os.write(start_write, b"\0")
        # The child that stays has let go of stderr; this is the parent's.
        _, words = started.communicate()
        if started.returncode != 0:
            raise RuntimeFailure(f"conmon failed: {words.decode(errors='replace').strip()}", 125)
        if on_ready is not None:
            with open(attach_read, "rb", closefd=False) as ready:
                if ready.readline():
                    on_ready(directory)
            os.write(start_write, b"\0")
        return _Sync(sync)
    except BaseException:
        sync.close()
        raise
    finally:
        os.close(start_write)
        os.close(attach_read)


#: What conmon, the runtime and the exit command need of our environment.
_KEPT_ENVIRONMENT = (
    "PYTHONPATH",
    "XDG_RUNTIME_DIR",
    "DBUS_SESSION_BUS_ADDRESS",
    "TMPDIR",
    "LC_ALL",
    "LANG",
)


def cleanup_command(root: Path, container_id: str, exec_directory: Path | None = None) -> list[str]:
    """What conmon runs when the container, or an exec in it, has ended."""
    command = [sys.executable, "-P", "-m", "runtime.containers.cleanup", str(root), container_id]
    return [*command, str(exec_directory)] if exec_directory else command


def _exit_command(command: list[str]) -> list[str]:
    """conmon's options for it, each in one word: GLib takes an argument with a dash for an option."""
    if not command:
        return []
    return [f"--exit-command={command[0]}", *(f"--exit-command-arg={word}" for word in command[1:])]


def _read_pid(path: Path) -> int:
    try:
        return int(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return 0


def _is_conmon(pid: int, container_id: str) -> bool:
    if pid <= 0:
        return False
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return container_id.encode() in command
