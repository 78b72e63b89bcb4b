"""A container's changes become a new image; or all it sees, a plain tar."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.containers import cgroups, lifecycle, rootfs
from runtime.containers.container import Container, load
from runtime.containers.create import lower_layers, prepare_init_layer
from runtime.images.archive import SourceImage
from runtime.images.compress import Writable
from runtime.images.making import full_history, stage_image, stage_layer, stored_layers, timestamp
from runtime.images.pack import pack, pack_tree
from runtime.images.progress import Silent
from runtime.images.reference import Reference
from runtime.images.store import Image, ImageStore, Intake
from runtime.root import Root

Json = dict[str, Any]
Change = Callable[[Json], None]


@dataclass(frozen=True)
class Commit:
    """What is asked for beside the container: `change` edits the new image's config document in place."""

    name: Reference | None = None
    author: str = ""
    message: str = ""
    pause: bool = True
    change: Change = lambda config: None


def commit(root: Root, store: ImageStore, reference: str, wanted: Commit) -> Image:
    """Make an image of what the container `reference` changed on top of its own; the container goes on.

    It is frozen while its layer is read, unless `wanted.pause` is off. Raises RuntimeFailure when there is
    no such container, or its image is gone.
    """
    container = lifecycle.inspect(root, reference)
    image = store.resolve(container.image_id)
    config = _config(container, image, wanted)
    wanted.change(config)

    def make(intake: Intake) -> list[SourceImage]:
        with _still(root, container, wanted.pause):
            layer = stage_layer(intake.staging / "layer", lambda out: pack(container.upper, out))
        config["rootfs"]["diff_ids"] = [*image.config.diff_ids, layer.diff_id]
        layers = [*stored_layers(intake, store.manifest_of(image).layers), (layer.blob, layer.descriptor)]
        return [stage_image(intake, config, layers, [wanted.name] if wanted.name else [])]

    return store.take_in(make, Silent())[0]


def _config(container: Container, image: Image, wanted: Commit) -> Json:
    """The image's config document with what the container was given in place of the image's own."""
    document: Json = copy.deepcopy(dict(image.config.raw))
    config = document["config"] = dict(document.get("config") or {})
    process, request = container.process, container.request
    config |= {
        "Env": list(process.env) or None,
        "Cmd": list(process.command) or None,
        "Entrypoint": list(process.entrypoint) or None,
        "User": process.user,
        "Labels": dict(container.labels) or None,
    }
    if request.working_dir:
        config["WorkingDir"] = process.cwd
    if request.stop_signal:
        config["StopSignal"] = request.stop_signal
    volumes: Json = {mount.target: {} for mount in container.mounts if mount.kind == "volume"}
    if volumes:
        config["Volumes"] = {**(config.get("Volumes") or {}), **volumes}
    document["config"] = {key: value for key, value in config.items() if value not in (None, "")}
    now = timestamp()
    document["created"] = now
    if wanted.author:
        document["author"] = wanted.author
    step = {"created": now, "created_by": " ".join(process.args), "author": wanted.author}
    step["comment"] = wanted.message
    history = [*full_history(image.config), {key: value for key, value in step.items() if value}]
    document["history"] = history
    document["rootfs"] = {"type": "layers", "diff_ids": []}
    return document


@contextlib.contextmanager
def _still(root: Root, container: Container, pause: bool) -> Iterator[None]:
    """The container does not run during the block, if it did."""
    # Who may make no cgroups can freeze nothing.
    if not (pause and container.state.status == "running" and cgroups.can_be_made()):
        yield
        return
    lifecycle.pause(root, container.id)
    try:
        yield
    finally:
        lifecycle.unpause(root, container.id)


def export(root: Root, store: ImageStore, reference: str, out: Writable) -> None:
    """Write a tar of the whole tree that the container `reference` sees, without its volumes and mounts.

    Raises RuntimeFailure when there is no such container.
    """
    container = lifecycle.inspect(root, reference)
    with store.working() as work, _tree(container, work) as tree:
        fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
        try:
            pack_tree(fd, out)
        finally:
            os.close(fd)


@contextlib.contextmanager
def _tree(container: Container, work: Path) -> Iterator[Path]:
    """Where the container's tree is mounted: where it runs, else a mount for the block alone."""
    if load(container.directory).state.status in ("running", "paused"):
        yield container.rootfs
        return
    prepare_init_layer(container)
    target = work / "tree"
    target.mkdir()
    rootfs.mount_read_only([container.upper, *lower_layers(container)], target)
    try:
        yield target
    finally:
        rootfs.unmount(target)
