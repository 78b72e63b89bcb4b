"""containerd's filters: which snapshots a list holds.

A filter is `SELECTOR[,SELECTOR…]`, all of which must hold; of several filters one must. A selector is a
field, and after it nothing (it must be there), or `==`, `!=` or `~=` and a value. Fields are `name`,
`parent`, `kind` and `labels.KEY`, where KEY is quoted if it is more than a word.
(containerd, filters/filter.go)
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable

from runtime.snapshotter.errors import InvalidArgument
from runtime.snapshotter.snapshot import Snapshot

Filter = Callable[[Snapshot], bool]

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
#: A regular expression may also stand between these, without escapes but that of the delimiter.
_DELIMITED = re.compile(r"/((?:[^/\\]|\\.)*)/|\|((?:[^|\\]|\\.)*)\|")
_PLAIN = re.compile(r"[^\s,]+")
_OPERATOR = re.compile(r"==|!=|~=")


def parse(texts: Iterable[str]) -> Filter:
    """One filter that is true where any of `texts` is; without any, for every snapshot.

    Raises InvalidArgument, with the place of what is wrong.
    """
    filters = [_Parser(text).filter() for text in texts if text]
    if not filters:
        return lambda snapshot: True
    return lambda snapshot: any(each(snapshot) for each in filters)


def _field(snapshot: Snapshot, path: list[str]) -> str | None:
    """The value of a field, None where there is none."""
    match path:
        case ["name"]:
            return snapshot.name
        case ["parent"]:
            return snapshot.parent
        case ["kind"]:
            return snapshot.kind.value
        case ["labels", *key]:
            return snapshot.labels.get(".".join(key))
    return None


class _Parser:
    """One filter's text, and how far it was read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def filter(self) -> Filter:
        """All of the text: selectors between commas."""
        selectors = [self._selector()]
        while self.at < len(self.text):
            if self._take(re.compile(",")) is None:
                raise self._wrong("a ',' must stand between selectors")
            selectors.append(self._selector())
        return lambda snapshot: all(each(snapshot) for each in selectors)

    def _selector(self) -> Filter:
        path = [self._part()]
        while self._take(re.compile(r"\.")) is not None:
            path.append(self._part())
        operator = self._take(_OPERATOR)
        if operator is None:
            return lambda snapshot: _field(snapshot, path) is not None
        if operator == "~=":
            pattern = self._pattern()
            return lambda snapshot: bool(pattern.search(_field(snapshot, path) or ""))
        value = self._value()
        if operator == "==":
            return lambda snapshot: _field(snapshot, path) == value
        return lambda snapshot: _field(snapshot, path) != value

    def _part(self) -> str:
        """One part of a field's path."""
        quoted = self._take(_QUOTED)
        if quoted is not None:
            return self._unquote(quoted)
        word = self._take(_WORD)
        if word is None:
            raise self._wrong("a field must stand here")
        return word

    def _value(self) -> str:
        quoted = self._take(_QUOTED)
        if quoted is not None:
            return self._unquote(quoted)
        plain = self._take(_PLAIN)
        if plain is None:
            raise self._wrong("a value must follow the operator")
        return plain

    def _pattern(self) -> re.Pattern[str]:
        delimited = self._take(_DELIMITED)
        text = delimited[1:-1] if delimited is not None else self._value()
        try:
            return re.compile(text)
        except re.error as error:
            raise InvalidArgument(
                f"filter '{self.text}': '{text}' is no regular expression: {error}"
            ) from None

    def _unquote(self, quoted: str) -> str:
        """The string of a Go literal; those escapes that are in use mean the same in Python."""
        try:
            return str(ast.literal_eval(quoted))
        except (SyntaxError, ValueError):
            raise self._wrong(f"{quoted} is no string") from None

    def _take(self, what: re.Pattern[str]) -> str | None:
        found = what.match(self.text, self.at)
        if found is None:
            return None
        self.at = found.end()
        return found[0]

    def _wrong(self, reason: str) -> InvalidArgument:
        return InvalidArgument(f"filter '{self.text}': at character {self.at + 1}: {reason}")
