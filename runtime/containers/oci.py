"""The OCI runtime: which one, and the calls that are made to it directly.

`create` and `exec` are made by conmon (see monitor), which keeps the stdio that they hand to the container.
The command line is runc's, which crun has too (runc(8)).

Which runtime works depends on the machine: crun may refuse its cgroup layout, or either be absent. That is
found out by trying: the first real container that one fails to create is tried with the next, and the answer
is kept for as long as the machine is up and the programs are the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.containers.container import write_atomically
from runtime.errors import RuntimeFailure
from runtime.root import Root

#: In the order in which they are tried; crun starts in a third of runc's time.
KNOWN = ("crun", "runc")

_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Runtime:
    """An OCI runtime's program with the state directory of one container."""

    program: str
    state: Path

    def start(self, container_id: str) -> None:
        """Let the created container's process go.

        Raises RuntimeFailure, with docker's exit codes for a command that cannot be executed.
        """
        self._call("start", container_id)

    def kill(self, container_id: str, signal: int, everything: bool = False) -> None:
        """Send `signal` to the container's first process, or to all.

        Raises RuntimeFailure when there is none.
        """
        self._call("kill", *(["--all"] if everything else []), container_id, str(signal))

    def pause(self, container_id: str) -> None:
        """Freeze all processes. Raises RuntimeFailure when the runtime cannot."""
        self._call("pause", container_id)

    def resume(self, container_id: str) -> None:
        """Let frozen processes go on. Raises RuntimeFailure when the runtime cannot."""
        self._call("resume", container_id)

    def update(self, container_id: str, resources: dict[str, Any]) -> None:
        """Change the limits of a running container. Raises RuntimeFailure when the runtime cannot."""
        self._call("update", "--resources", "-", container_id, stdin=json.dumps(resources))

    def delete(self, container_id: str) -> None:
        """Kill what is left of the container and remove its cgroup and state; done already is fine."""
        if self.program and self.state.exists():
            with contextlib.suppress(RuntimeFailure):
                self._call("delete", "--force", container_id)

    def _call(self, *arguments: str, stdin: str = "") -> None:
        try:
            result = subprocess.run(
                [self.program, f"--root={self.state}", *arguments],
                input=stdin,
                capture_output=True,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise RuntimeFailure(f"cannot run {self.program}: {error.strerror}") from error
        if result.returncode != 0:
            raise failure(result.stderr)


def candidates(root: Root, wanted: str) -> list[str]:
    """The programs to try, in order: `wanted` alone if given, else what worked here, else all there are.

    Raises RuntimeFailure when there is none.
    """
    if wanted:
        program = shutil.which(wanted, path=f"{os.environ.get('PATH', '')}:{_SEARCH}")
        if program is None:
            raise RuntimeFailure(f"unknown or invalid runtime name: {wanted}", 125)
        return [os.path.abspath(program)]
    found = _installed()
    if not found:
        raise RuntimeFailure(f"no OCI runtime is installed; one of {', '.join(KNOWN)} is needed", 125)
    with contextlib.suppress(OSError, ValueError, KeyError):
        remembered = json.loads(_memory(root).read_text())
        if remembered["machine"] == _machine(found) and remembered["works"] in found:
            return [remembered["works"]]
    return found


def remember(root: Root, program: str) -> None:
    """Keep in mind that `program` works here."""
    record = {"machine": _machine(_installed()), "works": program}
    write_atomically(_memory(root), json.dumps(record, indent=1))


def _installed() -> list[str]:
    programs = (shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_SEARCH}") for name in KNOWN)
    return [program for program in programs if program]


def _memory(root: Root) -> Path:
    return root.path / "oci-runtime.json"


def _machine(programs: list[str]) -> str:
    """What the answer depends on: this boot, and the programs as they are installed."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    versions = [f"{program}@{os.stat(program).st_mtime_ns}" for program in programs]
    return " ".join([boot, *versions])


def failure(words: str) -> RuntimeFailure:
    """A runtime's complaint as a failure with docker's exit code.

    127: the command was not found; 126: it cannot be executed; 125: anything else.
    """
    message = _message(words)
    about_command = re.search(r'\bexec\b|executable|stat "|chdir to cwd', message) is not None
    lowered = message.lower()
    if about_command and ("no such file or directory" in lowered or "not found in $path" in lowered):
        return RuntimeFailure(message, 127)
    if about_command and any(
        cause in lowered for cause in ("permission denied", "is a directory", "exec format error")
    ):
        return RuntimeFailure(message, 126)
    return RuntimeFailure(message, 125)


def _message(words: str) -> str:
    """The last error in a runtime's output, without the clothes of its log line."""
    lines = [line for line in words.splitlines() if line.strip()]
    for line in reversed(lines):
        match = re.search(r'level=(?:error|fatal) msg=("(?:[^"\\]|\\.)*")', line)
        if match:
            return str(json.loads(match[1]))
    last = lines[-1] if lines else "the OCI runtime failed and said nothing"
    return re.sub(r"^\S+T\S+Z?:? ", "", last)
