"""Who is told how a transfer goes, in docker's words."""

from __future__ import annotations

from typing import Protocol


class Report(Protocol):
    """Called from several threads. A part is a layer, by the first digits of its digest."""

    def say(self, text: str, part: str = "") -> None:
        """A line of the whole; or, with a part, what becomes of it now: "Download complete"."""
        ...

    def advance(self, text: str, part: str, current: int, total: int) -> None:
        """How many bytes of a part are done: "Downloading", "Extracting", "Pushing"."""
        ...


class Quiet:
    """Nobody."""

    def say(self, text: str, part: str = "") -> None:
        """Tell no one."""

    def advance(self, text: str, part: str, current: int, total: int) -> None:
        """Tell no one."""


def short(digest: str) -> str:
    """A digest as docker shows it."""
    return digest.removeprefix("sha256:")[:12]
