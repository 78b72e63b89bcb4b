"""Podman for a user without rights, in a mount namespace where that user exists and may open /dev/fuse."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import image
import pyfuse3
import pytest
import steps
from machine import PATIENCE, clean, needs
from podman import CONTAINERS
from support.union import wait_until

import unionfs

pytestmark = pytest.mark.root
needs("podman", "runc", "conmon", "newuidmap", "unshare", "setpriv")

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
from unionfs.cli import main
sys.exit(main())
"""

#: Until the last line, what makes a machine with such a user of this one.
ENTER = """
for file in passwd group subuid subgid; do mount --bind {place}/etc/$file /etc/$file; done
mount --bind {place}/fuse /dev/fuse
mount --make-rshared /
exec setpriv --reuid {uid} --regid {uid} --init-groups sh -ec "$1"
"""


class User:
    """A user, who can run scripts."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.home = place / "home"
        for directory in ("bin", "etc", "home", "run", "tmp"):
            (place / directory).mkdir()
        line = f"union:x:{UID}:{UID}::{self.home}:/bin/sh\n"
        for file, text in {"passwd": line, "group": f"union:x:{UID}:\n"}.items():
            (place / "etc" / file).write_text(Path("/etc", file).read_text() + text)
        for file in ("subuid", "subgid"):
            (place / "etc" / file).write_text("union:600000:65536\n")
        os.mknod(place / "fuse", stat.S_IFCHR | 0o666, os.makedev(10, 229))
        (place / "fuse").chmod(0o666)
        self._make_program()
        (self.home / "storage.conf").write_text(STORAGE.format(place=place))
        # Locks in files are not opened again by who has lost root's rights; those in memory are a user's own.
        settings = CONTAINERS.format(place=self.home).replace('lock_type = "file"', 'lock_type = "shm"')
        (self.home / "containers.conf").write_text(settings)
        for directory in (self.home, place / "run", place / "tmp"):
            subprocess.run(["chown", "-R", f"{UID}:{UID}", directory], check=True)
        (place / "run").chmod(0o700)

    def _make_program(self) -> None:
        paths = [str(Path(module.__file__ or "").parent.parent) for module in (unionfs, pyfuse3)]
        program = self.place / "bin" / "fuse-overlayfs"
        for python in (sys.executable, "/usr/bin/python3"):
            program.write_text(PROGRAM.format(python=python, paths=paths))
            program.chmod(0o755)
            try_it = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "env", program]
            done = subprocess.run([*try_it, "--version"], capture_output=True, cwd="/")
            if done.returncode == 0:
                return
        pytest.skip("a plain user can start no Python that has the driver")

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
                "PATH": os.environ["PATH"],
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


@pytest.fixture
def user(place: Path) -> Iterator[User]:
    made = User(place)
    try:
        yield made
    finally:
        made.close()


def test_rootless(user):
    image.write(user.place / "image.tar").chmod(0o644)
    context = steps.context(user.place / "context")
    user.sh(f"podman load -q -i {user.place}/image.tar")
    said = user.sh(
        f"podman run --rm {image.NAME} sh -ec \"grep -o ' / fuse.unionfs' /proc/mounts; cat /data/two\""
    )
    assert said == " / fuse.unionfs\none\n"
    user.sh(f"podman run --name one {image.NAME} sh -ec '{steps.SCRIPT.replace(chr(39), chr(34))}'")
    changed = set(user.sh("podman diff one").splitlines())
    assert {"A /new", "D /kept", "D /bin/vi", "C /data/one", "C /data/two", "A /opaque/again"} <= changed
    assert "C /data/fifo" not in changed
    user.sh("podman commit -q one localhost/made:1; podman rm one")
    look = "cat /data/two; stat -c '%h %u:%g %a' /new-link"
    assert (
        user.sh(f'podman run --rm localhost/made:1 sh -ec "{look}"') == f"{steps.APPENDED[1]}\n2 3:4 4751\n"
    )
    user.sh(f"podman build -q -t localhost/built:1 {context}")
    assert user.sh(f'podman run --rm localhost/built:1 sh -ec "{steps.LOOK}"') == f"{steps.SEEN}\n"
    said = user.sh(
        f"podman run --rm -v {context}:/src:O {image.NAME} sh -ec 'echo x >/src/local; cat /src/local'"
    )
    assert said == "x\n" and (context / "local").read_text() == "local\n"
    assert user.sh("podman unshare cat /proc/self/uid_map").split() == [
        "0",
        str(UID),
        "1",
        "1",
        "600000",
        "65536",
    ]
    user.sh("podman system migrate")
