"""What a stage has become so far: an image that is not one yet."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.build.settings import Settings
from runtime.images.documents import Descriptor, ImageConfig
from runtime.images.making import full_history
from runtime.images.platforms import host_platform
from runtime.images.steps import Step
from runtime.images.store import Image

Json = dict[str, Any]

#: Of a config, what docker wrote about how it was once built.
_OLD_FIELDS = ("container", "container_config", "docker_version", "id", "parent", "throwaway", "Size")


@dataclass
class State:
    """The layers and the config after the last instruction."""

    settings: Settings
    diff_ids: tuple[str, ...] = ()
    blobs: tuple[Descriptor, ...] = ()
    declared: list[str] = field(default_factory=list)  # ARGs of the stage

    @property
    def document(self) -> Json:
        """The image's config document; its `rootfs` is written at the end."""
        return self.settings.document

    @property
    def run_arguments(self) -> dict[str, str]:
        """The build's variables that a command sees: those that were declared and that ENV has not."""
        environment = self.settings.environment
        known = self.settings.arguments
        return {name: known[name] for name in self.declared if name in known and name not in environment}

    def history(self, step: Step, words: str, empty: bool) -> None:
        """Write down that an instruction was done."""
        entry: Json = {"created": step.created, "created_by": words}
        if empty:
            entry["empty_layer"] = True
        self.document["history"].append(entry)
        self.document["created"] = step.created

    def finished(self) -> Json:
        """The whole document."""
        return {**self.document, "rootfs": {"type": "layers", "diff_ids": list(self.diff_ids)}}

    def continued(self) -> State:
        """What a stage begins with that is FROM this one."""
        return State(Settings(copy.deepcopy(self.document)), self.diff_ids, self.blobs)


def from_scratch() -> State:
    """Nothing at all."""
    host = host_platform()
    document: Json = {"architecture": host.architecture, "os": host.os, "config": {}, "history": []}
    if host.variant:
        document["variant"] = host.variant
    return State(Settings(document))


def from_image(image: Image, blobs: tuple[Descriptor, ...]) -> State:
    """An image; `blobs` are its layers'."""
    raw: Mapping[str, Any] = image.config.raw
    document = copy.deepcopy({key: value for key, value in raw.items() if key not in _OLD_FIELDS})
    document["config"] = {
        key: value for key, value in (document.get("config") or {}).items() if value not in (None, "", [], {})
    }
    document["history"] = full_history(image.config)
    document.pop("rootfs", None)
    return State(Settings(document), image.config.diff_ids, blobs)


def as_config(document: Json) -> ImageConfig:
    """The document in the form that containers are made from; declared volumes are no mounts in a build."""
    import json

    config = {key: value for key, value in document["config"].items() if key not in ("Volumes", "Labels")}
    return ImageConfig.parse(json.dumps({**document, "config": config}).encode(), "the image that is built")
