"""docker ps's --filter, and the API's filters."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from runtime.containers.container import Container
from runtime.containers.names import short
from runtime.errors import RuntimeFailure


def matches(subject: Container, filters: Iterable[str]) -> bool:
    """Whether a container passes all of docker ps's --filter arguments; several of one key are alternatives.

    Raises RuntimeFailure for a filter that is not known.
    """
    wanted: dict[str, list[str]] = {}
    for text in filters:
        key, equals, value = text.partition("=")
        if not equals:
            raise RuntimeFailure(f"invalid filter '{text}': bad format of filter (expected name=value)")
        wanted.setdefault(key, []).append(value)
    for key, values in wanted.items():
        if key not in _FILTERS:
            raise RuntimeFailure(f"invalid filter '{key}'")
        found = [_FILTERS[key](subject, value) for value in values]
        # Labels must all be there; of other keys one value is enough.
        if not (all(found) if key == "label" else any(found)):
            return False
    return True


def _has_label(subject: Container, text: str) -> bool:
    name, equals, value = text.partition("=")
    return name in subject.labels and (not equals or subject.labels[name] == value)


_FILTERS: dict[str, Callable[[Container, str], bool]] = {
    "id": lambda subject, value: subject.id.startswith(value),
    "name": lambda subject, value: value.lstrip("/^").rstrip("$") in subject.name,
    "status": lambda subject, value: subject.state.status == value,
    "label": _has_label,
    "ancestor": lambda subject, value: (
        value in (subject.request.image, f"{subject.request.image}:latest", subject.image_id)
        or (len(value) >= 4 and short(subject.image_id).startswith(value))
    ),
    "exited": lambda subject, value: (
        subject.state.status == "exited" and str(subject.state.exit_code) == value
    ),
    "volume": lambda subject, value: any(value in (mount.source, mount.target) for mount in subject.mounts),
    "network": lambda subject, value: subject.request.network == value,
}
