"""The image store: images kept as an OCI layout, their layers unpacked once and shared.

How it stays whole. A load prepares all it needs in a workspace, without a lock: staged and verified blobs,
unpacked layers. Then, under the store's lock, it moves them into place and replaces index.json last. So an
image is in the index only when all of it is there and on disk. What a killed process left beside the index is
unreferenced, and the next load or remove sweeps it out. Removing goes the other way round: the index
first, then what nothing refers to any more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from runtime.errors import NotFound, RuntimeFailure
from runtime.images.documents import Descriptor, ImageConfig, Manifest
from runtime.images.layers import Layer, LayerStore, chain_id, stage_tree
from runtime.images.layout import Layout, name_of, named, origin_of, with_name, without_needless
from runtime.images.platforms import Platform
from runtime.images.progress import Progress, Silent
from runtime.images.reference import Reference, parse
from runtime.images.steps import Step, Steps, builder_of
from runtime.images.workspace import is_alive, locked, sync_filesystem, workspace
from runtime.root import Root

if TYPE_CHECKING:
    from runtime.images.archive import Blob, SourceImage
    from runtime.images.making import OwnLayer
    from runtime.images.streams import Limits

SHORT_ID = 12


@dataclass(frozen=True)
class Image:
    """An image of the store; `layers` go from the lowest up.

    `digests` are REPOSITORY@DIGEST, by which registries have it or would have it.
    """

    id: str
    names: tuple[Reference, ...]
    config: ImageConfig
    layers: tuple[Layer, ...]
    manifests: tuple[Descriptor, ...]
    digests: tuple[Reference, ...] = ()

    @property
    def short_id(self) -> str:
        """The ID as lists show it."""
        return self.id.removeprefix("sha256:")[:SHORT_ID]

    @property
    def trees(self) -> tuple[Path, ...]:
        """The directories to mount, lowest first. A layer that repeats is there once, at its uppermost place.

        What it has lower down says nothing that it does not say again above; overlayfs refuses it twice.
        """
        uppermost_first = dict.fromkeys(layer.path for layer in reversed(self.layers))
        return tuple(reversed(uppermost_first))

    @property
    def size(self) -> int:
        """The bytes of all files in its layers."""
        return sum(layer.size for layer in self.layers)


class _Vanished(Exception):
    """A layer that was in the store when a load began has been removed since."""


@dataclass(frozen=True)
class Intake:
    """Where a source puts what is to become images, and what the store has of it already.

    `staging` is for blobs, `making` for trees, `layers` for settled ones: nothing else may be there.
    `verified` holds the diff IDs that blobs are known to have.
    """

    staging: Path
    making: Path
    layers: Path
    limits: Limits
    verified: dict[str, str]  # a blob's digest → its diff ID
    _layout: Layout
    _layers: LayerStore

    def blob(self, descriptor: Descriptor) -> Blob | None:
        """A blob that the store has, linked into `staging`: so it stays, whoever removes it there.

        Raises RuntimeFailure when it does not have the size that the descriptor says.
        """
        from runtime.images.archive import Blob

        path = self.staging / descriptor.digest.removeprefix("sha256:")
        try:
            os.link(self._layout.blob_path(descriptor.digest), path)
        except FileNotFoundError:
            return None
        except FileExistsError:
            pass
        size = path.stat().st_size
        if size != descriptor.size:
            raise RuntimeFailure(f"blob {descriptor.digest[:19]} has {size} bytes, not {descriptor.size}")
        return Blob(path, descriptor.digest, size)

    def layer(self, diff_ids: Sequence[str]) -> Layer | None:
        """The unpacked layer of the last of `diff_ids`, when the store or `layers` has it."""
        return self._layers.find(diff_ids, self.layers)


@dataclass(frozen=True)
class Outgoing:
    """An image on its way out: its manifest, and its other blobs in `directory`, where more may be put.

    `homes` tells, for a layer's digest, the names of images that have it too.
    """

    entry: Descriptor
    data: bytes
    manifest: Manifest
    directory: Path
    homes: Mapping[str, Sequence[Reference]]

    def path(self, digest: str) -> Path:
        """Where a blob is."""
        return self.directory / digest.removeprefix("sha256:")


class ImageStore:
    """The images of one state root. Any number of processes may use it at once.

    `in_use` tells which images containers are made from, as image ID → a container's ID: what they
    need is neither removed unasked nor swept out.
    """

    def __init__(
        self, root: Root, in_use: Callable[[], Mapping[str, str]] = dict, limits: Limits | None = None
    ) -> None:
        self._root = root.prepare()
        self._in_use = in_use
        self._limits = limits
        self._layout = Layout(root.images)
        self._layers = LayerStore(root.layers)
        self.steps = Steps(root.steps)
        self._lock = root.path / "images.lock"
        self._workspaces_lock = root.tmp / "lock"
        self._layers.prepare()
        if not (root.images / "oci-layout").exists():
            with locked(self._lock):
                self._layout.prepare()

    # Reading

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let no image be removed during the block, in which a new container writes down what it uses."""
        with locked(self._lock, shared=True):
            yield

    def images(self) -> list[Image]:
        """All images, those made last first."""
        with self.reading():
            return self._images()

    def _images(self) -> list[Image]:
        by_id: dict[str, Image] = {}
        for entry in self._layout.entries():
            image = self._image(entry)
            known = by_id.get(image.id)
            if known is not None:
                image = replace(
                    known,
                    names=known.names + image.names,
                    digests=tuple(dict.fromkeys(known.digests + image.digests)),
                    manifests=tuple({m.digest: m for m in known.manifests + image.manifests}.values()),
                )
            by_id[image.id] = image
        return sorted(by_id.values(), key=_age, reverse=True)

    def resolve(self, name: str, platform: Platform | None = None) -> Image:
        """The image of a name, a digest reference (NAME@sha256:…), or an ID, which may be shortened.

        Raises NotFound when there is none, or it is not for `platform`, and RuntimeFailure when a short ID
        fits several.
        """
        image = _resolve(name, self.images())
        if platform is not None and not platform.runs(image.config.platform):
            raise NotFound(f"No such image: {name} for {platform}, only for {image.config.platform}")
        return image

    def _image(self, entry: Descriptor) -> Image:
        manifest = Manifest.parse(self._layout.read_blob(entry.digest), f"manifest {entry.digest}")
        image_id = manifest.config.digest
        config = ImageConfig.parse(self._layout.read_blob(image_id), f"config {image_id}")
        try:
            layers = self.layers_of(config.diff_ids)
        except RuntimeFailure as error:
            raise RuntimeFailure(f"{error} (of the image {image_id})") from None
        name = name_of(entry)
        names = (parse(name),) if name else ()
        digests = tuple(replace(known, tag=None, digest=origin_of(entry)) for known in names)
        return Image(image_id, names, config, layers, (named(entry, None),), digests)

    def layers_of(self, diff_ids: Sequence[str]) -> tuple[Layer, ...]:
        """The unpacked layers of `diff_ids`, lowest first; raises RuntimeFailure when one is missing."""
        layers = []
        for count, diff_id in enumerate(diff_ids, 1):
            layer = self._layers.find(diff_ids[:count])
            if layer is None:
                raise RuntimeFailure(f"the image store is damaged: layer {diff_id} is missing")
            layers.append(layer)
        return tuple(layers)

    def manifest_of(self, image: Image) -> Manifest:
        """The manifest of an image: the first, if it came with several."""
        digest = image.manifests[0].digest
        return Manifest.parse(self._layout.read_blob(digest), f"manifest {digest}")

    def blob(self, digest: str) -> Path:
        """The file of a blob; raises RuntimeFailure when it is missing."""
        path = self._layout.blob_path(digest)
        if not path.exists():
            raise RuntimeFailure(f"the image store is damaged: blob {digest} is missing")
        return path

    # Loading

    def load(
        self, source: str, progress: Progress | None = None, stdin: BinaryIO | None = None
    ) -> list[Image]:
        """Load the images of an archive or OCI layout; `-` reads the archive from `stdin`.

        Raises RuntimeFailure when anything in it is not as it has to be; the store is then as it was.
        """
        # What only loading needs: the start of a container should not wait for it.
        from runtime.images.archive import find_images, open_source

        progress = progress or Silent()

        def find(intake: Intake) -> list[SourceImage]:
            content = open_source(source, stdin, intake.staging, progress, intake.limits)
            return find_images(content, intake.staging)

        try:
            return self.take_in(find, progress)
        except OSError as error:
            raise RuntimeFailure(f"cannot load {source}: {error.strerror}") from error

    def take_in(self, find: Callable[[Intake], list[SourceImage]], progress: Progress) -> list[Image]:
        """Add the images that `find` puts into the intake it is called with; what it left packed is unpacked.

        Raises what `find` raises, and RuntimeFailure for refused layers; the store is then as it was.
        """
        from runtime.images.streams import Limits

        with self.working() as work:
            staging, making, staged = (work / name for name in ("staging", "making", "layers"))
            for place in (staging, making, staged):
                place.mkdir()
            limits = self._limits or Limits()
            intake = Intake(staging, making, staged, limits, {}, self._layout, self._layers)
            found = find(intake)
            while True:
                for image in found:
                    self._prepare(image, intake, progress)
                sync_filesystem(work)
                try:
                    with locked(self._lock):
                        return self._commit(found, intake.layers)
                except _Vanished:
                    continue

    @contextmanager
    def working(self) -> Iterator[Path]:
        """A workspace for what is to be published, gone at the end; what dead ones left goes first."""
        with workspace(self._root.tmp, self._workspaces_lock) as work:
            self._sweep(work)
            yield work

    def use_step(self, key: str, work: Path) -> Step | None:
        """The step of that key, if all of it is there; it stays as long as the workspace `work` does."""
        with locked(self._lock):
            return self._whole_step(key, work)

    def _whole_step(self, key: str, work: Path) -> Step | None:
        step = self.steps.find(key)
        if step is None:
            return None
        try:
            self._check_whole(step)
        except RuntimeFailure:
            return None
        self.steps.pin(work.name, step)
        return step

    def _check_whole(self, step: Step) -> None:
        self.layers_of(step.diff_ids)
        for blob in step.blobs:
            self.blob(blob.digest)

    def pin(self, step: Step, work: Path) -> None:
        """Keep the layers that a step names as long as the workspace `work` is there.

        Raises RuntimeFailure when one has been removed.
        """
        with locked(self._lock):
            self._check_whole(step)
            self.steps.pin(work.name, step)

    def keep_step(
        self, key: str, step: Step, layer: OwnLayer | None, work: Path, replace_it: bool = False
    ) -> Step:
        """Keep what a build's step made; `layer` is its own, the last of the step's, if it made one.

        Gives the step to go on with: another build's, if that was faster and `replace_it` is not asked for.
        Raises RuntimeFailure when a layer that it stands on is missing.
        """
        staged = work / f"layers-{key}"
        staged.mkdir()
        if layer is not None and self._layers.find(step.diff_ids) is None:
            stage_tree(layer.tree, layer.diff_id, layer.packed.size, layer.packed.entries, staged)
        if layer is not None:
            sync_filesystem(work)
        with locked(self._lock):
            known = None if replace_it else self._whole_step(key, work)
            if known is not None:
                return known
            self._layers.adopt(staged)
            if layer is not None:
                self._layout.add_blob(layer.blob.path, layer.blob.digest)
                self._layout.sync_blobs()
            self._check_whole(step)
            self.steps.write(key, step)
            self.steps.pin(work.name, step)
            return step

    def _prepare(self, image: SourceImage, intake: Intake, progress: Progress) -> None:
        from runtime.images.unpack_blob import unpack_blob, verify

        diff_ids = image.config.diff_ids
        below: list[Layer] = []
        for count, (blob, diff_id) in enumerate(zip(image.layers, diff_ids, strict=True), 1):
            layer = intake.layer(diff_ids[:count])
            known = intake.verified.get(blob.digest) == diff_id
            if layer is None:
                layer = unpack_blob(blob, below, diff_id, intake.layers, progress, intake.limits)
            elif not known and not self._layout.blob_path(blob.digest).exists():
                verify(blob, diff_id, progress, intake.limits)
            below.append(layer)

    def _commit(self, found: Sequence[SourceImage], staged: Path) -> list[Image]:
        for image in found:
            for count in range(1, len(image.config.diff_ids) + 1):
                if self._layers.find(image.config.diff_ids[:count], staged) is None:
                    raise _Vanished
        self._layers.adopt(staged)
        entries = self._layout.entries()
        for image in found:
            for blob in image.blobs:
                if blob.path.exists():  # not yet moved for another image
                    self._layout.add_blob(blob.path, blob.digest)
                self.blob(blob.digest)
            entry = Descriptor(image.media_type, image.manifest.digest, image.manifest.size, {}, None)
            for name in image.names or (None,):
                entries = with_name(entries, named(entry, str(name) if name else None, image.origin))
        self._layout.sync_blobs()
        self._layout.write_entries(entries)
        stored = {image.id: image for image in self._images()}
        return [replace(stored[image.blobs[1].digest], names=image.names) for image in found]

    # Giving out

    @contextmanager
    def outgoing(self, name: Reference) -> Iterator[Outgoing]:
        """The blobs of the image `name`, which stay for the block, whoever removes the image in it.

        Raises NotFound when there is no image of that name.
        """
        with workspace(self._root.tmp, self._workspaces_lock) as work:
            with self.reading():
                entries = self._layout.entries()
                entry = next((entry for entry in entries if name_of(entry) == str(name)), None)
                if entry is None:
                    raise NotFound(f"An image does not exist locally with the tag: {name.familiar}")
                data = self._layout.read_blob(entry.digest)
                manifest = Manifest.parse(data, f"manifest {entry.digest}")
                for digest in {manifest.config.digest, *(layer.digest for layer in manifest.layers)}:
                    os.link(self.blob(digest), work / digest.removeprefix("sha256:"))
                homes = self._homes(entries)
            yield Outgoing(entry, data, manifest, work, homes)

    def _homes(self, entries: Sequence[Descriptor]) -> dict[str, list[Reference]]:
        """Which names' images have a layer, by its digest."""
        homes: dict[str, list[Reference]] = {}
        for entry in entries:
            if name := name_of(entry):
                manifest = Manifest.parse(self._layout.read_blob(entry.digest), f"manifest {entry.digest}")
                for layer in manifest.layers:
                    homes.setdefault(layer.digest, []).append(parse(name))
        return homes

    def pushed(self, name: Reference, digest: str) -> None:
        """Remember that the registry has the image `name` by `digest`."""
        with locked(self._lock):
            entries = self._layout.entries()
            noted = [
                named(entry, str(name), digest) if name_of(entry) == str(name) else entry for entry in entries
            ]
            if noted != entries:
                self._layout.write_entries(noted)

    # Changing

    def tag(self, source: str, target: str) -> None:
        """Give the image `source` the name `target` too, which another image may lose by that."""
        name = parse(target).tagged()
        with locked(self._lock):
            image = _resolve(source, self._images())
            entries = with_name(self._layout.entries(), named(image.manifests[0], str(name)))
            self._layout.write_entries(entries)

    def remove(self, name: str, force: bool = False) -> list[str]:
        """Take a name from an image, and remove the image with its last one; an ID means all names.

        Gives the lines that docker prints. Raises RuntimeFailure when there is no such image, and, unless
        forced, when a container uses it or an ID has several names. An image that a container uses stays
        without a name when it is forced.
        """
        with workspace(self._root.tmp, self._workspaces_lock) as work, locked(self._lock):
            image = _resolve(name, self._images())
            user = self._in_use().get(image.id)
            names = _matching(image, name)
            by_id = not names
            names = names or image.names
            last = len(names) == len(image.names)
            if not force:
                _check_removable(image, name, by_id, last, user)
            lines = [f"Untagged: {gone.familiar}" for gone in names]
            entries = self._layout.entries()
            digests = {manifest.digest for manifest in image.manifests}
            gone_names = set(map(str, names))
            if last and not user:
                entries = [entry for entry in entries if entry.digest not in digests]
                lines.append(f"Deleted: {image.id}")
            else:
                entries = [named(entry, None) if name_of(entry) in gone_names else entry for entry in entries]
            self._layout.write_entries(without_needless(entries))
            gone_layers = self._sweep_locked(work)
        for count in range(len(image.layers), 0, -1):
            diff_ids = image.config.diff_ids[:count]
            if gone_layers & {chain_id(diff_ids), diff_ids[-1]}:
                lines.append(f"Deleted: {chain_id(diff_ids)}")
        return lines

    def _sweep(self, work: Path) -> None:
        with locked(self._lock):
            self._sweep_locked(work)

    def _sweep_locked(self, work: Path) -> set[str]:
        """Remove what no entry of the index needs; give the keys of the layers among it."""
        images = self._images()
        blobs = {manifest.digest for image in images for manifest in image.manifests}
        for digest in list(blobs):
            manifest = Manifest.parse(self._layout.read_blob(digest), f"manifest {digest}")
            blobs.update((manifest.config.digest, *(layer.digest for layer in manifest.layers)))
        layers = {layer.path: layer for image in images for layer in image.layers}
        for key, step in list(self.steps.all()):
            build = builder_of(key)
            if build is not None and not is_alive(self._root.tmp / build):
                self.steps.forget(key)
                continue
            try:
                layers |= {layer.path: layer for layer in self.layers_of(step.diff_ids)}
            except RuntimeFailure:  # no one can go on from it any more
                self.steps.forget(key)
            else:
                blobs.update(blob.digest for blob in step.blobs)
        self._layout.remove_blobs_except(blobs)
        trash = work / "trash"
        trash.mkdir(exist_ok=True)
        return self._layers.discard_except(list(layers.values()), trash)

    def forget_steps(self) -> int:
        """Forget what builds could use again, and remove what only they needed; give the bytes of layers."""
        with workspace(self._root.tmp, self._workspaces_lock) as work, locked(self._lock):
            self.steps.clear()
            before = self._layers.sizes()
            gone = self._sweep_locked(work)
            return sum(size for key, size in before.items() if key in gone)


def _age(image: Image) -> float:
    return image.config.created.timestamp() if image.config.created else 0.0


def _answers_to(image: Image, reference: Reference) -> bool:
    if reference.digest is None:
        return reference in image.names
    if replace(reference, tag=None) in image.digests:
        return True
    repositories = {name.repository for name in image.names}
    digests = {manifest.digest for manifest in image.manifests}
    return reference.repository in repositories and reference.digest in digests


def _resolve(name: str, images: Sequence[Image]) -> Image:
    bare = name.removeprefix("sha256:")
    try:
        reference = parse(name)
    except RuntimeFailure:
        reference = None
    for image in images:
        if image.id == f"sha256:{bare}" or (reference and _answers_to(image, reference)):
            return image
    if bare and all(character in "0123456789abcdef" for character in bare):
        fitting = [image for image in images if image.id.startswith(f"sha256:{bare}")]
        if len(fitting) > 1:
            raise RuntimeFailure(f"image ID {name} is ambiguous: {len(fitting)} images have it")
        if fitting:
            return fitting[0]
    raise NotFound(f"No such image: {name}")


def _matching(image: Image, name: str) -> tuple[Reference, ...]:
    try:
        wanted = parse(name)
    except RuntimeFailure:  # an ID
        return ()
    if wanted.digest is None:
        return tuple(known for known in image.names if known == wanted)
    return tuple(known for known in image.names if known.repository == wanted.repository)


def _check_removable(image: Image, name: str, by_id: bool, last: bool, user: str | None) -> None:
    conflict = f"conflict: unable to delete {image.short_id} (must be forced)"
    if by_id and len(image.names) > 1:
        raise RuntimeFailure(f"{conflict} - image is referenced in multiple repositories")
    if last and user:
        container = user[:SHORT_ID]
        if by_id:
            raise RuntimeFailure(f"{conflict} - image is being used by container {container}")
        raise RuntimeFailure(
            f'conflict: unable to remove repository reference "{name}" (must force) - '
            f"container {container} is using its referenced image {image.short_id}"
        )
