"""Reading a container's log.

conmon's k8s-file driver writes the CRI format, one line for each line or part of a line:
`2016-10-06T00:17:09.669794202Z stdout F content` with P in place of F when the line goes on in the next
(Kubernetes, kubelet CRI logging design).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from runtime.errors import RuntimeFailure

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_POLL = 0.05


@dataclass(frozen=True)
class Entry:
    """A piece of what the container wrote; whole lines end with a newline."""

    time: str
    stream: str
    data: bytes


def parse_line(line: bytes) -> Entry | None:
    """One line of the log; None when it is damaged (the machine went down while it was written)."""
    fields = line.rstrip(b"\n").split(b" ", 3)
    if len(fields) != 4 or not line.endswith(b"\n") or fields[1] not in (b"stdout", b"stderr"):
        return None
    when = _utc(fields[0].decode("ascii", "replace"))
    end = b"\n" if fields[2] == b"F" else b""
    return Entry(when, fields[1].decode(), fields[3] + end)


def read(
    path: Path,
    follow: Callable[[], bool] | None = None,
    tail: int | None = None,
    since: str = "",
    until: str = "",
) -> Iterator[Entry]:
    """The entries of the log `path`, and before them of the older files of it; no file is an empty log.

    `tail` is the number of lines to begin with at the end; `since` and `until` are instants or durations back
    from now. `follow` is asked again and again whether more can come; without it the end of the file is the
    end.

    Raises RuntimeFailure when `since` or `until` is neither.
    """
    first = instant(since, "since") if since else ""
    last = instant(until, "until") if until else ""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(file) for file in _open_all(path)]
        if not files:
            return
        entries: Iterator[Entry] = (entry for file in files for entry in _entries(file))
        if tail is not None:
            entries = iter(_last_lines(entries, tail))
        more = _following(path, files[-1], follow) if follow is not None else iter(())
        for entry in itertools.chain(entries, more):
            if last and entry.time > last:
                return
            if entry.time >= first:
                yield entry


def _open_all(path: Path) -> list[BinaryIO]:
    """The files of a log, the oldest first (see rotation); the last one is the one that is written to."""
    numbered = (entry for entry in path.parent.glob(f"{path.name}.*") if entry.suffix[1:].isdecimal())
    files = []
    for name in (*sorted(numbered, key=lambda entry: -int(entry.suffix[1:])), path):
        with contextlib.suppress(FileNotFoundError):
            files.append(open(name, "rb"))  # noqa: SIM115 - for the caller to close
    # log.0 is another name of the present file, until that is replaced.
    identities = [os.fstat(file.fileno()).st_ino for file in files]
    return [file for index, file in enumerate(files) if identities[index] not in identities[index + 1 :]]


def _following(path: Path, file: BinaryIO, follow: Callable[[], bool]) -> Iterator[Entry]:
    """What comes into `file`, and into the files that take its place, as long as `follow` says so."""
    more = True
    while more:
        # Asked before the read: what was written before the end is then certainly seen.
        more = follow()
        yield from _entries(file)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino != os.fstat(file.fileno()).st_ino:
                yield from _entries(file)  # what came before it was replaced
                file.close()
                file = open(path, "rb")  # noqa: SIM115 - closed below
                continue
        if more:
            time.sleep(_POLL)
    file.close()


def _entries(file: BinaryIO) -> Iterator[Entry]:
    """The whole lines up to the present end of `file`; one that is being written is left for later."""
    for line in file:
        if not line.endswith(b"\n"):
            file.seek(-len(line), os.SEEK_CUR)
            return
        entry = parse_line(line)
        if entry:
            yield entry


def _last_lines(entries: Iterator[Entry], count: int) -> list[Entry]:
    """The entries from where the `count`th line from the end begins; each stream has lines of its own."""
    kept = list(entries)
    unfinished: set[str] = set()
    starts = []
    for index, entry in enumerate(kept):
        if entry.stream not in unfinished:
            starts.append(index)
        if entry.data.endswith(b"\n"):
            unfinished.discard(entry.stream)
        else:
            unfinished.add(entry.stream)
    if count >= len(starts):
        return kept
    return kept[starts[-count] :] if count else []


def _utc(stamp: str) -> str:
    """An RFC 3339 time in UTC with nine digits, so that times compare as strings."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)?", stamp)
    if not match:
        return stamp
    moment = datetime.fromisoformat(match[1] + (match[3] or "Z").replace("Z", "+00:00")).astimezone(UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{(match[2] or '').ljust(9, '0')[:9]}Z"


def nanoseconds(text: str, what: str = "since") -> int:
    """An instant as `instant` reads it, in nanoseconds since the epoch."""
    stamp = instant(text, what)
    try:
        seconds = datetime.fromisoformat(f"{stamp[:19]}+00:00").timestamp()
    except ValueError:
        raise RuntimeFailure(f'invalid value for "{what}": {text}') from None
    return int(seconds) * 10**9 + int(stamp[20:29])


def instant(text: str, what: str = "since") -> str:
    """docker's --since and --until: RFC 3339, a date, seconds since the epoch, or how long ago (1h30m)."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        seconds, _, fraction = text.partition(".")
        moment = datetime.fromtimestamp(int(seconds), UTC)
        return f"{moment:%Y-%m-%dT%H:%M:%S}.{fraction.ljust(9, '0')[:9]}Z"
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|h|m|s)", text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        back = timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))
        return f"{datetime.now(UTC) - back:%Y-%m-%dT%H:%M:%S.%f}000Z"
    if re.match(r"\d{4}-\d\d-\d\dT", text):
        return _utc(text)
    try:
        return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%dT%H:%M:%S}.000000000Z"
    except ValueError as error:
        raise RuntimeFailure(f'invalid value for "{what}": {text}') from error
