"""The events of containers."""

from __future__ import annotations

from runtime import events
from runtime.containers.container import Container
from runtime.events import Event
from runtime.root import Root


def of_container(container: Container, action: str, **attributes: str) -> Event:
    """An event of a container, with the attributes that docker gives it."""
    common = {**container.labels, "image": container.request.image, "name": container.name}
    return Event("container", action, container.id, {**common, **attributes})


def tell(root: Root, container: Container, action: str, **attributes: str) -> None:
    """Write down what happened to a container."""
    events.record(root, of_container(container, action, **attributes))
