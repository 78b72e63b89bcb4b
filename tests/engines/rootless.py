"""A user without rights, in a mount namespace where that user exists and may open /dev/fuse."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pyfuse3
import pytest
from machine import PATIENCE, clean, drop_in
from podman import CONTAINERS
from support.union import wait_until

import unionfs

#: Nobody's on this machine, and another one's in each run.
UID = 40_000 + os.getpid() % 10_000

STORAGE = """
[storage]
driver = "overlay"
graphroot = "{place}/home/graph"
rootless_storage_path = "{place}/home/graph"
runroot = "{place}/run/containers"
[storage.options.overlay]
mount_program = "{place}/bin/fuse-overlayfs"
"""

#: The program as another user can start it, who may not enter the place where the tests' own Python is.
PROGRAM = """#!{python}
import sys
sys.path[:0] = {paths}
from {module}.cli import main
sys.exit(main())
"""

#: Until the last line, what makes a machine with such a user of this one.
ENTER = """
for file in passwd group subuid subgid; do mount --bind {place}/etc/$file /etc/$file; done
mount --bind {place}/fuse /dev/fuse
[ ! -e /dev/net/tun ] || mount --bind {place}/tun /dev/net/tun
mount --make-rshared /
exec setpriv --reuid {uid} --regid {uid} --init-groups sh -ec "$1"
"""


class User:
    """A user, who can run scripts."""

    def __init__(self, place: Path, program: Path | None = None) -> None:
        """`program` is Podman's mount_program, in the place of ours."""
        self.place = place
        self.home = place / "home"
        for directory in ("bin", "etc", "home", "run", "tmp"):
            (place / directory).mkdir()
        line = f"union:x:{UID}:{UID}::{self.home}:/bin/sh\n"
        for file, text in {"passwd": line, "group": f"union:x:{UID}:\n"}.items():
            (place / "etc" / file).write_text(Path("/etc", file).read_text() + text)
        for file in ("subuid", "subgid"):
            (place / "etc" / file).write_text("union:600000:65536\n")
        for device, minor in (("fuse", 229), ("tun", 200)):
            os.mknod(place / device, stat.S_IFCHR | 0o666, os.makedev(10, minor))
            (place / device).chmod(0o666)
        self.python_path = ":".join(
            str(Path(module.__file__ or "").parent.parent) for module in (unionfs, pyfuse3)
        )
        if program is None:
            self.install("fuse-overlayfs", "unionfs")
        else:
            drop_in(place, program)
        (self.home / "storage.conf").write_text(STORAGE.format(place=place))
        # Locks in files are not opened again by who has lost root's rights; those in memory are a user's own.
        settings = CONTAINERS.format(place=self.home).replace('lock_type = "file"', 'lock_type = "shm"')
        (self.home / "containers.conf").write_text(settings)
        for directory in (self.home, place / "run", place / "tmp"):
            subprocess.run(["chown", "-R", f"{UID}:{UID}", directory], check=True)
        (place / "run").chmod(0o700)

    def install(self, name: str, package: str) -> None:
        """Put the command of a package of ours where the user can start it; skips the test if he cannot."""
        program = self.place / "bin" / name
        for python in (sys.executable, "/usr/bin/python3"):
            paths = self.python_path.split(":")
            program.write_text(PROGRAM.format(python=python, paths=paths, module=package))
            program.chmod(0o755)
            try_it = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "env", program]
            done = subprocess.run([*try_it, "--version"], capture_output=True, cwd="/")
            if done.returncode == 0:
                return
        pytest.skip(f"a plain user can start no Python that has {package}: {done.stderr.decode()[-200:]}")

    def sh(self, script: str) -> str:
        """Run a script as the user; what it says on stdout."""
        enter = ENTER.format(place=self.place, uid=UID)
        done = subprocess.run(
            ["unshare", "-m", "--propagation", "private", "sh", "-ec", enter, "sh", script],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            cwd=self.place,
            env={
                "PATH": f"{self.place}/bin:{os.environ['PATH']}",
                "PYTHONPATH": self.python_path,
                "HOME": str(self.home),
                "XDG_RUNTIME_DIR": f"{self.place}/run",
                "TMPDIR": f"{self.place}/tmp",
                "CONTAINERS_STORAGE_CONF": f"{self.home}/storage.conf",
                "CONTAINERS_CONF": f"{self.home}/containers.conf",
            },
        )
        assert done.returncode == 0, (script, done.stdout, done.stderr)
        return done.stdout

    def close(self) -> None:
        """End all that the user runs: Podman leaves a process that keeps its namespaces."""
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self._processes(), "the user runs nothing", PATIENCE)
        clean(self.place)
        Path(f"/dev/shm/libpod_rootless_lock_{UID}").unlink(missing_ok=True)

    def _processes(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and entry.stat().st_uid == UID and (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found
