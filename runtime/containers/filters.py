"""docker ps's --filter, and the API's filters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import get_args

from runtime.containers import health
from runtime.containers.container import Container, Status
from runtime.containers.names import short
from runtime.errors import RuntimeFailure

#: A key's values, in the order they were given.
Filters = dict[str, list[str]]


def parse(filters: Iterable[str]) -> Filters:
    """docker ps's --filter arguments, as key → values.

    Raises RuntimeFailure for a key that is not known, or a value that it cannot have.
    """
    wanted: Filters = {}
    for text in filters:
        key, equals, value = text.partition("=")
        if not equals:
            raise RuntimeFailure(f"invalid filter '{text}': bad format of filter (expected name=value)")
        if key not in _FILTERS:
            raise RuntimeFailure(f"invalid filter '{key}'")
        if key in _CHECKS and not _CHECKS[key](value):
            raise RuntimeFailure(f"invalid filter '{text}'")
        wanted.setdefault(key, []).append(value)
    return wanted


def matches(subject: Container, filters: Filters) -> bool:
    """Whether a container passes all `filters`; several values of one key are alternatives."""
    for key, values in filters.items():
        found = [_FILTERS[key](subject, value) for value in values]
        # Labels must all be there; of other keys one value is enough.
        if not (all(found) if key == "label" else any(found)):
            return False
    return True


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _has_label(subject: Container, text: str) -> bool:
    name, equals, value = text.partition("=")
    return name in subject.labels and (not equals or subject.labels[name] == value)


def _health(subject: Container) -> str:
    found = health.read(subject)
    return found.status if found else "none"


def _has_name(subject: Container, pattern: str) -> bool:
    """A regular expression, for the name with its slash or without."""
    return any(re.search(pattern, name) for name in (subject.name, f"/{subject.name}"))


#: What the values of a key have to be, where not everything is good.
_CHECKS: dict[str, Callable[[str], bool]] = {
    "name": _is_pattern,
    "status": lambda value: value in (*get_args(Status), "restarting", "removing", "dead"),
    "exited": lambda value: value.lstrip("-").isdecimal(),
    "health": lambda value: value in ("starting", "healthy", "unhealthy", "none"),
}

_FILTERS: dict[str, Callable[[Container, str], bool]] = {
    "id": lambda subject, value: subject.id.startswith(value),
    "name": _has_name,
    "status": lambda subject, value: subject.state.status == value,
    "label": _has_label,
    "ancestor": lambda subject, value: (
        value in (subject.request.image, f"{subject.request.image}:latest", subject.image_id)
        or (len(value) >= 4 and short(subject.image_id).startswith(value))
    ),
    "health": lambda subject, value: _health(subject) == value,
    "exited": lambda subject, value: (
        subject.state.status == "exited" and str(subject.state.exit_code) == value
    ),
    "volume": lambda subject, value: any(value in (mount.source, mount.target) for mount in subject.mounts),
    "network": lambda subject, value: (
        subject.request.network == value
        or any(value in (end.network, end.network_id) for end in subject.endpoints)
    ),
}
