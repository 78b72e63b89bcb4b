"""unionctl as a user calls it, on a state root of the test's own, and what it may leave behind: nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from image_builder import archive, directory, docker_files, file, symlink, tar

APPLETS = """
sh ash ls cat echo true false id env pwd sleep stty mount umount dd md5sum hostname touch rm mkdir ps kill
head tail stat wc df printf yes ln mv chmod chown find test grep sed nproc cp readlink mknod nc unshare tty
date sync
"""

PASSWD = b"root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000:Alice:/home/alice:/bin/sh\n"
GROUP = b"root:x:0:\nalice:x:1000:\nwheel:x:10:root,alice\naudio:x:29:alice\n"


def busybox_layers() -> list[bytes]:
    """Three layers: a busybox system; a directory with owners, modes and links; one that changes both."""
    busybox = Path("/bin/busybox").read_bytes()
    system = tar(
        directory("bin"),
        file("bin/busybox", busybox, mode=0o755),
        *(symlink(f"bin/{name}", "busybox") for name in APPLETS.split()),
        directory("etc"),
        file("etc/passwd", PASSWD),
        file("etc/group", GROUP),
        file("etc/text", b"a text\n"),
        directory("root", mode=0o700),
        directory("tmp", mode=0o1777),
    )
    data = tar(
        directory("data", mode=0o750, uid=1000, gid=1000),
        file("data/seed", b"seed\n", mode=0o640, uid=1000, gid=29),
        symlink("data/link", "seed"),
        directory("data/inner", mode=0o711),
        file("data/inner/deep", b"deep\n"),
    )
    changes = tar(
        directory("opt"), file("opt/one", b"1\n"), file("opt/two", b"2\n"), file("opt/three", b"3\n")
    )
    return [system, data, changes]


def busybox_archive(name: str = "busybox:latest", **settings: Any) -> bytes:
    """A docker-archive of a busybox image; `settings` are its config's: Cmd, Env, User, …"""
    layers = busybox_layers()
    settings = {"Env": ["PATH=/bin", "FROM=image"], "Cmd": ["sh"], **settings}
    return archive(docker_files(layers, [name], config=settings))


class Unionctl:
    """Runs unionctl on the state root `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # No test but those of networks changes the machine's network.
        self.environment = {**os.environ, "UNIONCTL_ROOT": str(root), "UNIONCTL_NETWORK": "none"}
        self.command = [sys.executable, "-c", "from runtime.cli import main; main()"]

    def __call__(
        self, *words: str, code: int | None = 0, stdin: bytes = b"", timeout: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end; `code` is what it has to end with, None for anything."""
        result = subprocess.run(
            [*self.command, *words], input=stdin, capture_output=True, env=self.environment, timeout=timeout
        )
        if code is not None:
            assert result.returncode == code, (words, result.returncode, result.stdout, result.stderr)
        return result

    def out(self, *words: str, **keywords: Any) -> str:
        """Run a command, and give what it says on stdout."""
        return self(*words, **keywords).stdout.decode().rstrip("\n")

    def err(self, *words: str, **keywords: Any) -> str:
        """Run a command, and give what it says on stderr."""
        return self(*words, **keywords).stderr.decode()

    def popen(self, *words: str, **keywords: Any) -> subprocess.Popen[bytes]:
        """Start a command."""
        return subprocess.Popen([*self.command, *words], env=self.environment, **keywords)

    def load(self, name: str = "busybox:latest", **settings: Any) -> None:
        """Load a busybox image whose config has `settings`."""
        self("load", "-q", stdin=busybox_archive(name, **settings))

    def directory(self, name: str) -> Path:
        """A container's directory."""
        return self.root / "containers" / self.out("inspect", "-f", "{{.Id}}", name)

    # What there must not be at the end

    def mounts(self) -> list[str]:
        """What is mounted below the state root."""
        table = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line for line in table if line.split()[4].startswith(f"{self.root}/")]

    def processes(self) -> dict[int, str]:
        """The processes that have the state root in their command line, by number."""
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and int(entry.name) != os.getpid():
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if f"{self.root}/" in command or f"{self.root} " in command:
                        found[int(entry.name)] = command
        return found

    def leftovers(self, cgroups_before: Iterable[Path]) -> list[str]:
        """All that a test has left: mounts, processes, cgroups, directories."""
        found = [f"mount: {line}" for line in self.mounts()]
        found += [f"process {pid}: {command}" for pid, command in self.processes().items()]
        found += [f"cgroup: {path}" for path in dead_cgroups() - set(cgroups_before)]
        found += [f"container: {path}" for path in self.root.glob("containers/?*") if path.name != ".lock"]
        found += [f"half-made: {path}" for path in self.root.glob("tmp/*") if path.name != "lock"]
        return found

    def end(self, cgroups_before: Iterable[Path]) -> None:
        """Remove every container; fails when that leaves anything, and clears it away."""
        names = self.out("ps", "-aq").split()
        if names:
            self("rm", "-f", "-v", *names)
        try:
            eventually(lambda: not self.leftovers(cgroups_before), 10)
        finally:
            left = self.leftovers(cgroups_before)
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for line in self.mounts():
                subprocess.run(["umount", "-l", line.split()[4]], check=False)
        assert not left, "\n".join(left)


def dead_cgroups() -> set[Path]:
    """Cgroups of containers in which there is no process."""
    found = set()
    for path in Path("/sys/fs/cgroup").glob("*/unionfs-*"):
        with contextlib.suppress(OSError):
            if not (path / "cgroup.procs").read_text():
                found.add(path)
    return found


def eventually(condition: Callable[[], object], seconds: float = 10) -> bool:
    """Whether `condition` becomes true in that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.03)
    return True
