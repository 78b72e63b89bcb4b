"""What every engine leaves on a machine, found by the directory that its test has, and taken away."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest
from support.union import detach, mounts, wait_until

#: Seconds for what ends in one or two when nothing else runs.
PATIENCE = 180

#: Where the commands of this environment are: unionfs, unionfs-snapshotter.
BIN = Path(sys.executable).parent


@contextlib.contextmanager
def public_place() -> Iterator[Path]:
    """A directory that other users, and containers' ids, can pass through.

    pytest closes the one that all of its own are in whenever it starts, here or in another run.
    """
    with tempfile.TemporaryDirectory(prefix="union-", ignore_cleanup_errors=True) as name:
        place = Path(name)
        place.chmod(0o755)
        yield place
        assert not left_mounted(place), left_mounted(place)


def drop_in(place: Path, program: Path = BIN / "unionfs") -> Path:
    """A program by the name that engines know, in a `bin` of the place's own."""
    named = place / "bin" / "fuse-overlayfs"
    named.parent.mkdir(exist_ok=True)
    named.symlink_to(program)
    return named


def missing_of(*programs: str) -> list[str]:
    """Those of the programs that are not installed."""
    return [program for program in programs if shutil.which(program) is None]


def needs(*programs: str) -> None:
    """Skip a test whose engine is not installed."""
    missing = missing_of(*programs)
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}", allow_module_level=True)


def run(
    *words: str | Path,
    code: int | None = 0,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> str:
    """Run a command to its end; what it says on stdout. `code` is what it must end with, None for any."""
    done = subprocess.run(
        list(map(str, words)),
        input=stdin,
        capture_output=True,
        timeout=PATIENCE,
        env={**os.environ, **(environment or {})},
        cwd=directory,
    )
    said = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    assert code is None or done.returncode == code, (*map(str, words), done.returncode, *said)
    return said[0].rstrip("\n")


def processes(place: Path) -> list[int]:
    """Those of which a word of the command line names a directory, or a file below it."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and os.fsencode(place) in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


def end(process: subprocess.Popen[bytes] | None) -> None:
    """SIGTERM, and SIGKILL for who does not hear."""
    if process is None:
        return
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def clean(place: Path, cgroups: Iterable[str] = ()) -> None:
    """End what runs in a place, unmount what is mounted there, remove the cgroups that it made.

    After a test that ended well there is nothing of it. Waits, so that the next test finds a clean machine.
    """
    for _ in range(3):  # a shim may start something while it is killed
        for pid in processes(place):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        detach(place)
    wait_until(lambda: not processes(place), "nothing runs in the place", PATIENCE)
    for name in cgroups:
        for group in Path("/sys/fs/cgroup").glob(f"**/{name}"):
            _remove_cgroup(group)


def _remove_cgroup(group: Path) -> None:
    """Remove a cgroup, and those below it; what is in them is killed."""
    for place, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            for pid in (Path(place) / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
        # A cgroup is busy until the kernel has done away with what was in it.
        with contextlib.suppress(FileNotFoundError):
            wait_until(lambda place=place: _rmdir(place), f"{place} can be removed")


def _rmdir(place: str) -> bool:
    try:
        os.rmdir(place)
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


def left_mounted(place: Path) -> list[str]:
    """What is mounted in a place."""
    return [point for point, _ in mounts() if point.startswith(f"{place}/")]
