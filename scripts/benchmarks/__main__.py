"""`scripts/bench`: arguments → material → every workload on every peer, round after round → report."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from benchmarks import changing, peers, programs, reading
from benchmarks.machine import describe
from benchmarks.material import FULL, QUICK, Material, Sizes
from benchmarks.measure import Bench, applies
from benchmarks.peers import Peer, PeerError
from benchmarks.plot import svg
from benchmarks.report import Results, markdown, shown
from benchmarks.stage import WORKLOADS, Workload

#: Importing these is what fills the list, in an order that is the linter's; this one is the report's.
_KINDS = [kind.__name__ for kind in (reading, changing, programs)]
WORKLOADS.sort(key=lambda workload: _KINDS.index(workload.run.__module__))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(1, f"bench: {message} (see scripts/bench --help)\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="scripts/bench",
        description="Compare unionfs with the union filesystems that this machine has.",
        epilog=f"workloads: {', '.join(workload.name for workload in WORKLOADS)}",
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true", help="small sizes and one round: about a minute")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often each is measured (5; quick: 1)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="WORKLOAD", help="only this one; repeatable"
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="one peer more, that takes the arguments of fuse-overlayfs; repeatable",
    )
    parser.add_argument(
        "--without", action="append", default=[], metavar="NAME", help="leave a peer out; repeatable"
    )
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on which disk (/var/tmp)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("build/bench"),
        metavar="DIR",
        help="where table, plot and values go (build/bench)",
    )
    return parser.parse_args(arguments)


def _refuse(reason: str) -> int:
    print(f"bench: {reason}", file=sys.stderr)
    return 1


def _chosen_workloads(names: Sequence[str]) -> list[Workload]:
    unknown = set(names) - {workload.name for workload in WORKLOADS}
    if unknown:
        raise ValueError(f"'{min(unknown)}': no such workload (see scripts/bench --help)")
    return [workload for workload in WORKLOADS if not names or workload.name in names]


def _fits(workload: Workload, sizes: Sizes) -> bool:
    return isinstance(workload.lowers, str) or workload.lowers in sizes.layers


def _chosen_peers(given: Sequence[str], without: Sequence[str]) -> list[Peer]:
    chosen = [*peers.found(), *(peers.given(text) for text in given)]
    unknown = set(without) - {peer.name for peer in chosen}
    if unknown:
        raise ValueError(f"'{min(unknown)}': no such peer here")
    return [peer for peer in chosen if peer.name not in without]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 with a line on stderr, 130 when interrupted."""
    parsed = _parse(arguments)
    if os.geteuid() != 0:
        return _refuse("only root can mount all peers and forget caches")
    try:
        workloads = _chosen_workloads(parsed.only)
        chosen = _chosen_peers(parsed.peer, parsed.without)
        if parsed.rounds is not None and parsed.rounds < 1:
            raise ValueError(f"--rounds {parsed.rounds}: at least one is needed")
        directory = Path(tempfile.mkdtemp(prefix="unionfs-bench-", dir=parsed.directory))
    except (ValueError, OSError) as error:
        return _refuse(str(error))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    results = Results([peer.name for peer in chosen])
    rounds = parsed.rounds or (1 if parsed.quick else 5)
    interrupted = False
    try:
        directory.chmod(0o755)
        sizes = QUICK if parsed.quick else FULL
        bench = Bench(directory, Material(directory, sizes))
        workloads = [workload for workload in workloads if _fits(workload, sizes)]
        _run(bench, workloads, chosen, rounds, results)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _say("cleaning up")
        _clean_up(directory)
    if results.values:
        _write(parsed.output, results, chosen, rounds, quick=parsed.quick)
    return 130 if interrupted else 0


def _say(words: str) -> None:
    print(f"bench: {words}", file=sys.stderr, flush=True)


def _clean_up(directory: Path) -> None:
    """Nothing is removed through a mount that would not go."""
    peers.unmount_all(directory)
    if any(point.startswith(f"{directory}/") for point in peers.mounted()):
        _say(f"something is still mounted below {directory}, which is left as it is")
    else:
        shutil.rmtree(directory, ignore_errors=True)


def _run(
    bench: Bench, workloads: Sequence[Workload], chosen: Sequence[Peer], rounds: int, results: Results
) -> None:
    """Every peer in turn, each round beginning with another."""
    for number in range(rounds):
        turn = number % len(chosen)
        for workload in workloads:
            said = []
            for peer in [*chosen[turn:], *chosen[:turn]]:
                if not applies(workload, peer):
                    continue
                try:
                    rows = bench.measure(workload, peer)
                except PeerError as error:
                    results.failures[str(error)] = None
                    _say(str(error))
                    continue
                for row, (value, unit) in rows.items():
                    results.add(row, peer.name, value, unit)
                first = next(iter(rows.values()), None)
                if first is not None:
                    said.append(f"{peer.name} {shown(*first)}")
            _say(f"round {number + 1} of {rounds}, {workload.name}: {', '.join(said)}")


def _write(output: Path, results: Results, chosen: Sequence[Peer], rounds: int, *, quick: bool) -> None:
    """Print the report, and keep it with the plot and the values."""
    how = "small sizes (--quick), " if quick else ""
    lines = [
        f"{describe()}",
        "",
        f"Medians of {rounds} rounds, {how}what a peer needs for 1 of ours in brackets.",
        "",
    ]
    versions = [f"{peer.name}: {peers.version(peer)}" for peer in chosen if peer.version]
    report = "\n".join([*lines, *[f"- {line}" for line in versions], "", markdown(results)])
    if results.failures:
        report += "\n" + "\n".join(["Failures:", *[f"- {line}" for line in results.failures]]) + "\n"
    print(report)
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.md").write_text(report)
    (output / "ratios.svg").write_text(svg(results))
    (output / "values.json").write_text(
        json.dumps({"units": results.units, "values": results.values}, indent=1)
    )
    _say(f"written to {output}: report.md, ratios.svg, values.json")


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
