"""`scripts/bench-engines`: every engine's script on both programs in turn, round after round → Markdown."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import image
from machine import BIN, missing_of

from benchmarks import peers
from benchmarks.engines.scripts import SCRIPTS
from benchmarks.machine import describe
from benchmarks.peers import OURS
from benchmarks.report import Results, markdown

THEIRS = "fuse-overlayfs"

#: What the sum of an engine's steps is called.
WHOLE = "all of it"


def main() -> int:
    """Returns 0, or 1 when an engine failed on either program."""
    parser = argparse.ArgumentParser(
        prog="bench-engines",
        description="Time container engines on unionfs and on fuse-overlayfs, as a Markdown table.",
    )
    parser.add_argument(
        "engines", nargs="*", metavar="ENGINE", help=f"of {', '.join(SCRIPTS)}; all without one"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured [%(default)s]")
    parser.add_argument(
        "--against", default="/usr/bin/fuse-overlayfs", metavar="PROGRAM", help="[%(default)s]"
    )
    arguments = parser.parse_args()
    unknown = [name for name in arguments.engines if name not in SCRIPTS]
    if unknown or arguments.rounds < 1:
        parser.error(f"'{unknown[0]}': no such engine" if unknown else "--rounds: at least one")
    against = Path(arguments.against)
    if shutil.which(against) is None:
        parser.error(f"--against: '{against}' is not installed")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that engines are ended
    programs = {OURS: BIN / "unionfs", THEIRS: against.resolve()}
    results = Results(list(programs))
    for engine in arguments.engines or SCRIPTS:
        missing = missing_of(*SCRIPTS[engine].needs)
        if missing:
            results.failures[f"{engine}: not installed: {', '.join(missing)}"] = None
            continue
        for turn in range(arguments.rounds):
            # Who is first changes: what one leaves in the machine's caches helps the other as often.
            for name in sorted(programs, reverse=bool(turn % 2)):
                _measure(engine, name, programs[name], results)
    print(f"{describe()}\n\nMedians of {arguments.rounds}; in brackets how many times as long as {OURS}.\n")
    print(markdown(results))
    for failure in results.failures:
        print(f"- {failure}")
    return 1 if results.failures else 0


def _measure(engine: str, name: str, program: Path, results: Results) -> None:
    """Run an engine's script once, in a fresh place."""
    with tempfile.TemporaryDirectory(prefix="union-bench-", ignore_cleanup_errors=True) as directory:
        place = Path(directory)
        place.chmod(0o755)
        archive = image.write(place / "image.tar")
        archive.chmod(0o644)
        whole = 0.0
        try:
            with closing(SCRIPTS[engine](place, program, archive)) as script:
                for step, run in script.steps().items():
                    begin = time.monotonic()
                    run()
                    seconds = time.monotonic() - begin
                    results.add(f"{engine}: {step}", name, seconds, "s")
                    whole += seconds
            results.add(f"**{engine}: {WHOLE}**", name, whole, "s")
        except (AssertionError, OSError) as error:
            # What a command said comes last.
            results.failures[f"{engine} on {name}: …{str(error)[-300:]}"] = None
        print(f"{engine} on {name}: {whole:.1f} s", file=sys.stderr, flush=True)
    assert not [point for point in peers.mounted() if point.startswith(directory)]


if __name__ == "__main__":
    sys.exit(main())
