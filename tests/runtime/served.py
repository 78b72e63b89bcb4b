"""`unionctl serve` on a socket of the test's own, and docker's real clients talking to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from unionctl_runner import Unionctl, eventually

PATIENCE = 120  # seconds; for what ends in one when nothing else runs


class Served:
    """A server and the docker command, in a state root of their own."""

    def __init__(self, directory: Path) -> None:
        self.unionctl = Unionctl(directory / "state")
        self.socket = directory / "docker.sock"
        self.address = f"unix://{self.socket}"
        home = directory / "home"
        home.mkdir(exist_ok=True)
        # Not the settings, contexts and plugins of whoever runs the tests.
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")},
            "DOCKER_HOST": self.address,
            "DOCKER_BUILDKIT": "0",
            "HOME": str(home),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Start the server; it answers when this returns."""
        self.process = self.unionctl.popen(
            "serve", *(options or ("-H", self.address)), stderr=subprocess.PIPE
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert b"API listen on" in line, line + self.process.stderr.read()

    def stop(self) -> str:
        """End the server, and give what it said; it must end well."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        _, words = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, words
        return words.decode()

    def docker(
        self, *words: str, code: int | None = 0, stdin: bytes = b"", **keywords: Any
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the docker command to its end; `code` is what it has to end with, None for anything."""
        result = subprocess.run(
            ["docker", *words],
            input=stdin,
            capture_output=True,
            env=self.environment,
            timeout=PATIENCE,
            **keywords,
        )
        if code is not None:
            assert result.returncode == code, (words, result.returncode, result.stdout, result.stderr)
        return result

    def out(self, *words: str, **keywords: Any) -> str:
        """Run the docker command, and give what it says on stdout."""
        return self.docker(*words, **keywords).stdout.decode().rstrip("\n")

    def popen(self, *words: str, **keywords: Any) -> subprocess.Popen[bytes]:
        """Start the docker command."""
        return subprocess.Popen(["docker", *words], env=self.environment, **keywords)

    def inspect(self, name: str) -> dict[str, Any]:
        """What docker inspect says of one thing."""
        found = json.loads(self.out("inspect", name))
        assert len(found) == 1
        return dict(found[0])

    def remove_all(self) -> None:
        """Leave no container and no volume."""
        if names := self.unionctl.out("ps", "-aq").split():
            self.unionctl("rm", "-f", "-v", *names)
        if names := self.unionctl.out("volume", "ls", "-q").split():
            self.unionctl("volume", "rm", *names)
        assert eventually(lambda: not self.unionctl.mounts(), PATIENCE)
