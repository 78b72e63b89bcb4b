"""How much room images, containers and volumes take, and how much of it nobody needs: docker's system df."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.containers import volumes
from runtime.containers.settle import settle_all
from runtime.images.store import ImageStore
from runtime.root import Root


@dataclass(frozen=True)
class Usage:
    """One line of system df; sizes in bytes on disk."""

    kind: str
    total: int
    active: int
    size: int
    reclaimable: int


def usage(root: Root, store: ImageStore) -> list[Usage]:
    """What there is of each kind. Layers that images share count once."""
    containers = settle_all(root)
    images = store.images()
    used = {container.image_id for container in containers}
    layers = {layer.path: layer.size for image in images for layer in image.layers}
    needed = {layer.path for image in images if image.id in used for layer in image.layers}
    kept = {container.id: volumes.disk_usage(container.upper) for container in containers}
    idle = sum(kept[container.id] for container in containers if not container.state.active)
    data = {volume.name: volumes.disk_usage(volume.data) for volume in volumes.list_all(root)}
    free = [name for name in data if not volumes.users(root, name)]
    return [
        Usage(
            "Images",
            len(images),
            sum(image.id in used for image in images),
            sum(layers.values()),
            sum(size for path, size in layers.items() if path not in needed),
        ),
        Usage(
            "Containers",
            len(containers),
            sum(container.state.active for container in containers),
            sum(kept.values()),
            idle,
        ),
        Usage(
            "Local Volumes",
            len(data),
            len(data) - len(free),
            sum(data.values()),
            sum(data[name] for name in free),
        ),
        Usage("Build Cache", 0, 0, 0, 0),
    ]
