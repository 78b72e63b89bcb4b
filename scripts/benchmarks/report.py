"""Medians and ratios, as Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.peers import OURS
from benchmarks.stage import Unit

#: What stands before a row that a peer could not do.
FAILED = "failed"


@dataclass
class Results:
    """Everything measured: row → peer → values, in the order in which they came."""

    peers: Sequence[str]
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    units: dict[str, Unit] = field(default_factory=dict)
    #: What went wrong, each line once.
    failures: dict[str, None] = field(default_factory=dict)

    def add(self, row: str, peer: str, value: float, unit: Unit) -> None:
        """Take one value in."""
        self.units[row] = unit
        self.values.setdefault(row, {}).setdefault(peer, []).append(value)

    def median(self, row: str, peer: str) -> float | None:
        """The median of a row, None when the peer has none."""
        values = self.values.get(row, {}).get(peer)
        return statistics.median(values) if values else None

    def ratio(self, row: str, peer: str) -> float | None:
        """How many times as much the peer needs as we do, by the medians."""
        mine, theirs = self.median(row, OURS), self.median(row, peer)
        return theirs / mine if mine and theirs else None

    def mean_ratio(self, peer: str) -> float | None:
        """The geometric mean of the ratios of all rows that are times."""
        ratios = [self.ratio(row, peer) for row in self.values if self.units[row] == "s"]
        return geometric_mean(ratio for ratio in ratios if ratio is not None)


def geometric_mean(values: Iterable[float]) -> float | None:
    """None when there are no values."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else None


def shown(value: float, unit: Unit) -> str:
    """A value with its unit, to three digits."""
    if unit == "B":
        return f"{value / (1 << 20):.1f} MiB"
    for factor, name in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if value * factor >= 1 or name == "µs":
            return f"{value * factor:.{max(0, 2 - len(str(int(value * factor))) + 1)}f} {name}"
    raise AssertionError("unreachable")


def markdown(results: Results) -> str:
    """The table: our median, and for each peer its median and how many times ours that is."""
    others = [peer for peer in results.peers if peer != OURS]
    lines = [
        "| | " + " | ".join([OURS, *others]) + " |",
        "|---|" + "---:|" * (1 + len(others)),
    ]
    for row in results.values:
        mine = results.median(row, OURS)
        cells = [FAILED if mine is None else shown(mine, results.units[row])]
        for peer in others:
            theirs, ratio = results.median(row, peer), results.ratio(row, peer)
            if theirs is None:
                cells.append("-")
            else:
                times = "" if ratio is None else f" ({ratio:.2f}x)"
                cells.append(shown(theirs, results.units[row]) + times)
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    means = [results.mean_ratio(peer) for peer in others]
    shown_means = ["-" if mean is None else f"**{mean:.2f}x**" for mean in means]
    lines.append("| **geometric mean of the times** | 1 | " + " | ".join(shown_means) + " |")
    return "\n".join(lines) + "\n"
