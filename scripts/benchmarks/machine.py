"""The machine in one line, for the report."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from benchmarks.peers import OURS


def describe() -> str:
    """Processor, memory, kernel, Python."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return (
        f"{os.cpu_count()} x {model}, {pages / (1 << 30):.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()} ({OURS})"
    )
