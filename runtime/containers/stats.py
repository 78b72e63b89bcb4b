"""What a running container uses, as its cgroup counts it (cgroups(7); version 1 and 2)."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from runtime.containers import cgroups
from runtime.containers.container import Container

_ANY = 1 << 62  # of version 1: what stands for "no limit" is a little less than 2**63


@dataclass(frozen=True)
class Interface:
    """The counters of a network interface, from its beginning."""

    name: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


@dataclass(frozen=True)
class Sample:
    """What a container has used until `when`; times are in nanoseconds, sizes in bytes."""

    when: int
    cpu: int = 0
    cpu_user: int = 0
    cpu_kernel: int = 0
    system: int = 0  # of all CPUs together, idle included
    cpus: int = 1
    memory: int = 0
    memory_cache: int = 0  # of it, what the kernel would give back first
    memory_peak: int = 0
    memory_limit: int = 0
    processes: int = 0
    pids_limit: int = 0  # 0 is none
    read: int = 0
    written: int = 0
    interfaces: tuple[Interface, ...] = ()


def sample(container: Container) -> Sample:
    """What the container has used so far; of one that does not run, nothing."""
    when = time.time_ns()
    if container.state.status not in ("running", "paused"):
        return Sample(when)
    reader = _V2(container.id) if cgroups.is_v2() else _V1(container.id)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    usage, cache, peak, limit = reader.memory()
    cpu, user, kernel = reader.cpu()
    read, written = reader.blocks()
    processes, pids_limit = reader.pids()
    return Sample(
        when=when,
        cpu=cpu,
        cpu_user=user,
        cpu_kernel=kernel,
        system=_system_time(),
        cpus=os.cpu_count() or 1,
        memory=usage,
        memory_cache=cache,
        memory_peak=peak,
        memory_limit=min(limit, machine) if limit else machine,
        processes=processes,
        pids_limit=pids_limit,
        read=read,
        written=written,
        interfaces=_interfaces(container.state.pid),
    )


def cpu_percent(before: Sample, after: Sample) -> float:
    """How much of one CPU was used between two samples, in percent; two whole CPUs are 200."""
    system = after.system - before.system
    return (after.cpu - before.cpu) / system * after.cpus * 100 if system > 0 else 0.0


class _V1:
    def __init__(self, container_id: str) -> None:
        self._group = cgroups.path_of(container_id).lstrip("/")

    def _path(self, controller: str, name: str) -> Path:
        return cgroups.MOUNT / controller / self._group / name

    def memory(self) -> tuple[int, int, int, int]:
        limit = _number(self._path("memory", "memory.limit_in_bytes"))
        return (
            _number(self._path("memory", "memory.usage_in_bytes")),
            _table(self._path("memory", "memory.stat")).get("total_inactive_file", 0),
            _number(self._path("memory", "memory.max_usage_in_bytes")),
            limit if limit < _ANY else 0,
        )

    def cpu(self) -> tuple[int, int, int]:
        total = _number(self._path("cpuacct", "cpuacct.usage"))
        ticks = _table(self._path("cpuacct", "cpuacct.stat"))
        tick = 10**9 // os.sysconf("SC_CLK_TCK")
        return total, ticks.get("user", 0) * tick, ticks.get("system", 0) * tick

    def blocks(self) -> tuple[int, int]:
        read = written = 0
        for line in _lines(self._path("blkio", "blkio.throttle.io_service_bytes")):
            words = line.split()
            if len(words) == 3 and words[1] == "Read":
                read += int(words[2])
            elif len(words) == 3 and words[1] == "Write":
                written += int(words[2])
        return read, written

    def pids(self) -> tuple[int, int]:
        return _number(self._path("pids", "pids.current")), _number(self._path("pids", "pids.max"))


class _V2:
    def __init__(self, container_id: str) -> None:
        self._directory = cgroups.MOUNT / cgroups.path_of(container_id).lstrip("/")

    def memory(self) -> tuple[int, int, int, int]:
        return (
            _number(self._directory / "memory.current"),
            _table(self._directory / "memory.stat").get("inactive_file", 0),
            _number(self._directory / "memory.peak"),
            _number(self._directory / "memory.max"),
        )

    def cpu(self) -> tuple[int, int, int]:
        table = _table(self._directory / "cpu.stat")
        keys = ("usage_usec", "user_usec", "system_usec")
        total, user, kernel = (table.get(key, 0) * 1000 for key in keys)
        return total, user, kernel

    def blocks(self) -> tuple[int, int]:
        read = written = 0
        for line in _lines(self._directory / "io.stat"):
            for word in line.split()[1:]:
                key, _, value = word.partition("=")
                read += int(value) if key == "rbytes" else 0
                written += int(value) if key == "wbytes" else 0
        return read, written

    def pids(self) -> tuple[int, int]:
        return _number(self._directory / "pids.current"), _number(self._directory / "pids.max")


def _lines(path: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return path.read_text().splitlines()
    return []


def _number(path: Path) -> int:
    """The number in a file; 0 when there is none, or `max`."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdecimal() else 0


def _table(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in _lines(path))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _system_time() -> int:
    """The time of all CPUs since the machine is up (proc(5), /proc/stat)."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:8]
    return sum(map(int, fields)) * 10**9 // os.sysconf("SC_CLK_TCK")


def _interfaces(pid: int) -> tuple[Interface, ...]:
    """The network interfaces that the process sees, loopback apart (proc(5), /proc/PID/net/dev)."""
    found = []
    for line in _lines(Path(f"/proc/{pid}/net/dev"))[2:]:
        name, _, numbers = line.partition(":")
        if name.strip() != "lo":
            counts = list(map(int, numbers.split()))
            found.append(Interface(name.strip(), *counts[:4], *counts[8:12]))
    return tuple(found)
