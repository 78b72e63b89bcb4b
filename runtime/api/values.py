"""What clients send, read with its types checked: query strings, filters, JSON objects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

from runtime.api.errors import ApiError
from runtime.errors import RuntimeFailure
from runtime.images.documents import Document

Json = dict[str, Any]
Filters = dict[str, list[str]]

_FALSE = ("", "0", "no", "false", "none")


class Query:
    """A query string; of a key given several times the first value counts."""

    def __init__(self, text: str) -> None:
        self.values: Mapping[str, list[str]] = parse_qs(text, keep_blank_values=True, errors="replace")

    def text(self, key: str, default: str = "") -> str:
        """The value of `key`."""
        return self.values.get(key, [default])[0]

    def texts(self, key: str) -> list[str]:
        """All values of `key`."""
        return list(self.values.get(key, []))

    def flag(self, key: str, default: bool = False) -> bool:
        """A truth value, by docker's rule: all but `0`, `no`, `false`, `none` and nothing is true."""
        if key not in self.values:
            return default
        return self.text(key).strip().lower() not in _FALSE

    def number(self, key: str) -> int | None:
        """A whole number; None when it is absent or empty. Raises ApiError 400 for anything else."""
        text = self.text(key)
        try:
            return int(text) if text else None
        except ValueError:
            raise ApiError(400, f'invalid value for "{key}": {text!r} is not a number') from None

    def filters(self, known: tuple[str, ...]) -> Filters:
        """docker's `filters`: JSON of key → values, or (of old clients) key → {value: true}.

        Raises ApiError 400 for what is no such JSON, or a key that is not `known`.
        """
        text = self.text("filters")
        if not text:
            return {}
        try:
            given = json.loads(text)
            found = {str(key): [str(value) for value in values] for key, values in given.items()}
        except (ValueError, AttributeError, TypeError):
            raise ApiError(400, f"invalid filters: {text!r}") from None
        for key in found:
            if key not in known:
                raise ApiError(400, f"invalid filter '{key}'")
        return {key: values for key, values in found.items() if values}


class Fields(Document):
    """A JSON object of a request."""

    @classmethod
    def of(cls, value: object, where: str = "invalid JSON") -> Fields:
        """`value` as an object; null is an empty one."""
        return cls({} if value is None else value, where)

    def flag(self, key: str) -> bool:
        """A truth value; absent or null is false."""
        value = self.value.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return bool(value)

    def number(self, key: str, default: int = 0) -> int:
        """A whole number; `default` when it is absent or null."""
        value = self.value.get(key)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong(key, "a number")
        return value

    def text(self, key: str) -> str:
        """A string; empty when it is absent or null."""
        return self.string(key, "")

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty when it is absent or null."""
        return self.strings(key) or ()

    def words(self, key: str) -> tuple[str, ...] | None:
        """A command: a list of strings or one string; None when it is absent or null."""
        value = self.value.get(key)
        return (value,) if isinstance(value, str) else self.strings(key)

    def fields(self, key: str) -> Fields:
        """An object; empty when it is absent or null."""
        return Fields.of(self.value.get(key), f"{self.where}: {key}")

    def list(self, key: str) -> list[Fields]:
        """A list of objects; empty when it is absent or null."""
        return [Fields.of(document.value, document.where) for document in self.objects(key)]


def has_labels(labels: Mapping[str, str], wanted: list[str]) -> bool:
    """Whether `labels` has all that are `wanted`: NAME or NAME=VALUE."""
    for text in wanted:
        name, equals, value = text.partition("=")
        if name not in labels or (equals and labels[name] != value):
            return False
    return True


def truth(filters: Filters, key: str) -> bool | None:
    """The truth value of a filter; None when it is not given.

    Raises RuntimeFailure when it is neither true nor false.
    """
    if key not in filters:
        return None
    value = filters[key][0].lower()
    if value not in ("0", "1", "true", "false"):
        raise RuntimeFailure(f"invalid filter '{key}={value}'")
    return value in ("1", "true")
