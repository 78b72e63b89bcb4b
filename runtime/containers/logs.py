"""Reading a container's log.

conmon's k8s-file driver writes the CRI format, one line for each line or part of a line:
`2016-10-06T00:17:09.669794202Z stdout F content` with P in place of F when the line goes on in the next
(Kubernetes, kubelet CRI logging design).
"""

from __future__ import annotations

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
) -> Iterator[Entry]:
    """The entries of the log `path`; no file is an empty log.

    `tail` is the number of lines to begin with at the end, `since` an instant or a duration back from now.
    `follow` is asked again and again whether more can come; without it the end of the file is the end.

    Raises RuntimeFailure when `since` is neither.
    """
    first = instant(since) if since else ""
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below, after this one error
    except FileNotFoundError:
        return
    with file:
        entries = _entries(file, None)
        if tail is not None:
            entries = iter(_last_lines(entries, tail))
        for entry in entries:
            if entry.time >= first:
                yield entry
        if follow is not None:
            for entry in _entries(file, follow):
                if entry.time >= first:
                    yield entry


def _entries(file: BinaryIO, follow: Callable[[], bool] | None) -> Iterator[Entry]:
    partial = b""
    while True:
        # Asked before the read: what was written before the end is then certainly seen.
        more = follow is not None and follow()
        for line in file:
            partial += line
            if partial.endswith(b"\n"):
                entry = parse_line(partial)
                partial = b""
                if entry:
                    yield entry
        if not more:
            return
        time.sleep(_POLL)


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


def instant(text: str) -> str:
    """docker's --since: RFC 3339, a date, seconds since the epoch, or a duration (1h30m) back from now."""
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
        raise RuntimeFailure(f'invalid value for "since": {text}') from error
