"""Patterns of .dockerignore and --exclude: which paths do not count.

The rules are those of docker's build context documentation: one pattern a line, # for comments, `!` takes
back, the last one that fits decides. `*` and `?` stay within a name, `**` crosses directories; a pattern
fits a directory with all that is in it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from runtime.errors import RuntimeFailure


@dataclass(frozen=True)
class _Pattern:
    expression: re.Pattern[str]
    takes_back: bool


class Patterns:
    """Patterns in their order."""

    def __init__(self, patterns: Sequence[str], where: str) -> None:
        """Raises RuntimeFailure, naming `where`, for a pattern that is none."""
        self._patterns = []
        for text in patterns:
            takes_back = text.startswith("!")
            clean = posixpath.normpath("/" + text.removeprefix("!").strip()).lstrip("/")
            if takes_back and not text[1:].strip():
                raise RuntimeFailure(f"{where}: illegal exclusion pattern: {text!r}")
            try:
                self._patterns.append(_Pattern(re.compile(translate(clean)), takes_back))
            except re.error as error:
                raise RuntimeFailure(f"{where}: {text!r} is not a pattern: {error}") from error
        self.take_back = any(pattern.takes_back for pattern in self._patterns)

    def match(self, path: str) -> bool:
        """Whether the relative `path` does not count."""
        if not self._patterns:
            return False
        parts = path.split("/")
        parents = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        ignored = False
        for pattern in self._patterns:
            if pattern.takes_back == ignored and any(map(pattern.expression.fullmatch, parents)):
                ignored = not ignored
        return ignored


def read(data: bytes, where: str) -> Patterns:
    """The patterns of a .dockerignore file; raises RuntimeFailure when it has one that is none."""
    text = data.decode("utf-8-sig", "surrogateescape")
    return Patterns(list(_lines(text.splitlines())), where)


def _lines(lines: Iterable[str]) -> Iterable[str]:
    for line in lines:
        if not line.startswith("#") and line.strip():
            yield line.strip()


def translate(pattern: str) -> str:
    """A pattern as a regular expression (Go's filepath.Match, and `**`)."""
    result, place = "", 0
    while place < len(pattern):
        char = pattern[place]
        place += 1
        if pattern.startswith("**", place - 1):
            place += 1
            if pattern[place : place + 1] == "/":
                place += 1
                result += "(?:.*/)?"
            else:
                result += ".*"
        elif char == "*":
            result += "[^/]*"
        elif char == "?":
            result += "[^/]"
        elif char == "[":
            end = pattern.find("]", place + 1)
            if end < 0:
                raise re.error("a [ is not closed")
            inside = pattern[place:end].replace("\\", "\\\\")
            result += f"[{'^' + inside[1:] if inside[0] in '^!' else inside}]"
            place = end + 1
        elif char == "\\" and place < len(pattern):
            result += re.escape(pattern[place])
            place += 1
        else:
            result += re.escape(char)
    return f"(?s:{result})"
