"""Where a workload runs, and how it says what was measured."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.material import Material

Unit = Literal["s", "B"]


@dataclass
class Stage:
    """One fresh mount. `rows` is what the workload has measured on it."""

    merged: Path
    material: Material
    mount_seconds: float
    servers: Callable[[], list[int]]
    rows: dict[str, tuple[float, Unit]] = field(default_factory=dict)

    @contextlib.contextmanager
    def clock(self, row: str) -> Iterator[None]:
        """Measure how long the block takes."""
        begun = time.perf_counter()
        yield
        self.rows[row] = (time.perf_counter() - begun, "s")

    def record(self, row: str, value: float, unit: Unit) -> None:
        """Note what was measured in another way."""
        self.rows[row] = (value, unit)

    def forget_caches(self) -> None:
        """Let the kernel forget every page, name and inode it can."""
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")

    def run(self, *command: str | Path, under: str = "") -> None:
        """Run a program in the mount; its words are thrown away unless it fails (CalledProcessError)."""
        subprocess.run(
            command,
            cwd=self.merged / under,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def private_memory(self) -> int:
        """Bytes that the server has for itself alone."""
        total = 0
        for pid in self.servers():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(("Private_Clean:", "Private_Dirty:")):
                    total += int(line.split()[1]) * 1024
        return total


@dataclass(frozen=True)
class Workload:
    """Something to be measured."""

    name: str
    run: Callable[[Stage], None]
    #: The lower layer's name in the material, or how many layers a tree lies in.
    lowers: str | int
    #: On the disk without any union: on the lower layer itself, in an empty directory, or not at all.
    on_disk: Literal["lower", "empty"] | None
    #: Whether it leaves large files, to be removed at once.
    large: bool
    #: Whether only filesystems that have a server can be asked.
    served: bool
    #: Makes what is used besides the layers, before anything is measured.
    prepare: Callable[[Material], object]


WORKLOADS: list[Workload] = []


def workload(
    name: str,
    lowers: str | int,
    *,
    on_disk: Literal["lower", "empty"] | None = None,
    large: bool = False,
    served: bool = False,
    prepare: Callable[[Material], object] = lambda material: None,
) -> Callable[[Callable[[Stage], None]], Callable[[Stage], None]]:
    """Put a function in the list of workloads; `lowers` is a layer's name, or how many layers."""

    def put(run: Callable[[Stage], None]) -> Callable[[Stage], None]:
        WORKLOADS.append(Workload(name, run, lowers, on_disk, large, served, prepare))
        return run

    return put
