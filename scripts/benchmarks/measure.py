"""One workload on one peer: a fresh mount in a fresh directory, in a process that can be ended."""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import subprocess
import time
import traceback
from pathlib import Path

from benchmarks import peers
from benchmarks.material import MEBIBYTE, Material
from benchmarks.peers import DISK, Peer, PeerError, Place
from benchmarks.stage import Stage, Unit, Workload

#: Seconds after which a workload is ended.
PATIENCE = 900

Rows = dict[str, tuple[float, Unit]]


def applies(workload: Workload, peer: Peer) -> bool:
    """Whether the workload can be run on the peer."""
    if peer.name == DISK:
        return workload.on_disk is not None
    return peer.served or not workload.served


class Bench:
    """Gives every measurement a directory of its own, and takes all away at the end.

    ext4 avoids the inodes of files that were just deleted, which makes creating others slow for minutes. So
    what was written stays until the end, and each directory is put in another part of the disk
    (chattr(1), the attribute T).
    """

    def __init__(self, directory: Path, material: Material) -> None:
        self._directory = directory / "runs"
        self._directory.mkdir()
        subprocess.run(["chattr", "+T", self._directory], capture_output=True, check=False)
        self._material = material
        self._numbers = itertools.count()

    def measure(self, workload: Workload, peer: Peer) -> Rows:
        """Run it; returns the rows. Raises PeerError when it cannot be mounted, fails, or takes too long."""
        own = self._directory / f"{next(self._numbers):04}-{peer.name}"
        workload.prepare(self._material)
        lowers = self._material.lowers(workload.lowers)
        if peer.name == DISK and workload.on_disk == "empty":
            lowers = ()
        place = Place(self._material.base, lowers, own / "upper", own / "work", own / "merged")
        for path in (own, place.upper, place.work, place.merged):
            path.mkdir()
        try:
            seconds = peers.mount(peer, place)
            return self._in_a_child(workload, peer, place, seconds)
        finally:
            peers.unmount(place.merged)
            if workload.large:
                _remove_large(place.upper)

    def _in_a_child(self, workload: Workload, peer: Peer, place: Place, mount_seconds: float) -> Rows:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            os.setsid()
            stage = Stage(
                place.merged,
                self._material,
                mount_seconds,
                lambda: peers.servers(place.merged),
            )
            os._exit(_run(workload, stage, writer))
        os.close(writer)
        try:
            answer = _read_all(reader, time.monotonic() + PATIENCE)
        except BaseException:
            os.killpg(child, signal.SIGKILL)
            raise
        finally:
            os.close(reader)
            _reap(child, place)
        if answer is None:
            raise PeerError(f"{peer.name}: {workload.name}: not done after {PATIENCE} seconds")
        said = json.loads(answer) if answer else {"error": "its process died"}
        if "error" in said:
            raise PeerError(f"{peer.name}: {workload.name}: {said['error']}")
        return {row: tuple(measured) for row, measured in said.items()}


def _run(workload: Workload, stage: Stage, writer: int) -> int:
    """In the child: run it and send what was measured."""
    said: object
    try:
        workload.run(stage)
        said = stage.rows
    except subprocess.CalledProcessError as error:
        words = error.stderr.decode(errors="replace").strip().splitlines()
        said = {"error": words[-1] if words else str(error)}
    except OSError as error:
        said = {"error": str(error)}
    except Exception:
        said = {"error": traceback.format_exc().splitlines()[-1]}
    with os.fdopen(writer, "w") as pipe:
        json.dump(said, pipe)
    return 0


def _read_all(reader: int, deadline: float) -> bytes | None:
    """All that comes, or None when the time is up."""
    parts: list[bytes] = []
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        part = os.read(reader, 65536)
        if not part:
            return b"".join(parts)
        parts.append(part)


def _reap(child: int, place: Place) -> None:
    """Wait for the child; one that hangs in the mount is let go by ending the connection."""
    for _ in range(200):
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    for _ in range(200):
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(0.005)
    subprocess.run(["umount", "-f", str(place.merged)], capture_output=True, check=False)
    os.waitpid(child, 0)


def _remove_large(upper: Path) -> None:
    for path in upper.iterdir():
        if path.is_file() and path.stat().st_size >= MEBIBYTE:
            path.unlink()
