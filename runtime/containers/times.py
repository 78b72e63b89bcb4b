"""Lengths of time as docker's users and its API write them: `1h30m`, `500ms`, or whole nanoseconds."""

from __future__ import annotations

import re

from runtime.errors import RuntimeFailure

SECOND = 10**9

_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def parse_duration(text: str, what: str) -> int:
    """`text` (Go's time.ParseDuration: numbers with units, none negative) in nanoseconds; `what` names it.

    Raises RuntimeFailure when it is no length of time.
    """
    if text == "0":
        return 0
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise RuntimeFailure(f"invalid argument '{text}' for {what}: it is a duration like 30s or 1m30s", 125)
    return sum(round(float(number) * _UNITS[unit]) for number, unit in parts)


def duration_text(nanoseconds: int) -> str:
    """A length of time as Go prints it: 1m30s, 500ms, 0s."""
    if nanoseconds < SECOND:
        return f"{nanoseconds / 10**6:g}ms" if nanoseconds else "0s"
    minutes, rest = divmod(nanoseconds, 60 * SECOND)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / SECOND:g}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
