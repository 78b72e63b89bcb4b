"""The words of --ulimit, parsed into data: NAME=SOFT[:HARD], as docker's (go-units, ParseUlimit)."""

from __future__ import annotations

import resource
from dataclasses import dataclass

from runtime.errors import RuntimeFailure


@dataclass(frozen=True)
class Ulimit:
    """One resource limit; -1 is "unlimited"."""

    name: str
    resource: int
    soft: int
    hard: int


def parse(text: str) -> Ulimit:
    """Parse NAME=SOFT[:HARD]; without HARD it is SOFT.

    Raises RuntimeFailure for an unknown name, what is no number, or a SOFT above HARD.
    """
    name, _, values = text.partition("=")
    soft_text, _, hard_text = values.partition(":")
    number = getattr(resource, f"RLIMIT_{name.upper()}", None)
    if number is None:
        raise RuntimeFailure(f"invalid ulimit type: {name}", 125)
    try:
        soft, hard = int(soft_text), int(hard_text or soft_text)
    except ValueError as error:
        raise RuntimeFailure(f"invalid ulimit argument: {text}", 125) from error
    if hard >= 0 and not 0 <= soft <= hard:
        raise RuntimeFailure(
            f"invalid ulimit argument: {text}: the soft limit must not be above the hard limit", 125
        )
    return Ulimit(name, number, soft, hard)
