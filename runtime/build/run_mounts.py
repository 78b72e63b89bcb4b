"""RUN --mount: what is there while a command runs, and not in the layer it makes.

The keys are those of the Dockerfile reference, "RUN --mount".
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import posixpath
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from runtime.build.copying import Look, Source, Target
from runtime.build.dockerfile import Instruction
from runtime.build.request import Secret
from runtime.build.settings import Settings
from runtime.build.trees import Tree
from runtime.containers import rootfs
from runtime.containers.mounts import Mount, size_in_bytes
from runtime.errors import RuntimeFailure

_KEYS = {
    "bind": {"from", "source", "rw"},
    "cache": {"id", "from", "source", "rw", "sharing", "mode", "uid", "gid"},
    "tmpfs": {"size"},
    "secret": {"id", "required", "mode", "uid", "gid", "env"},
}
_OTHER_WORDS = {
    "dst": "target",
    "destination": "target",
    "src": "source",
    "readwrite": "rw",
    "readonly": "ro",
}
_SHARINGS = ("shared", "private", "locked")
#: The runtime mounts filesystems of its own here; mount points below need not be in any layer.
_COVERED = ("/dev/", "/proc/", "/sys/")


@dataclass(frozen=True)
class RunMount:
    """One --mount, its words checked."""

    kind: str
    target: str
    source: str
    origin: str  # from=: a stage or an image, "" for the context
    id: str
    writable: bool
    sharing: str
    mode: int
    uid: int
    gid: int
    size: int
    required: bool
    env: str


@dataclass(frozen=True)
class Prepared:
    """The mounts of one RUN, ready for the container."""

    mounts: tuple[Mount, ...]
    points: tuple[str, ...]  # mount points that must not show in the layer
    env: tuple[str, ...]


def parse(instruction: Instruction, text: str, settings: Settings) -> RunMount:
    """Read one --mount; raises DockerfileError for a key or a value that makes no sense."""
    fields: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        key = _OTHER_WORDS.get(key.lower(), key.lower())
        fields[key] = settings.expand(instruction, value) if equals else "true"
    kind = fields.pop("type", "bind")
    if kind == "ssh":
        raise instruction.error("--mount=type=ssh: no agent is passed on here; use a secret", text)
    if kind not in _KEYS:
        raise instruction.error(f"--mount: unsupported type {kind!r}: there are {', '.join(_KEYS)}", text)
    unknown = fields.keys() - _KEYS[kind] - {"target", "ro"}
    if unknown:
        raise instruction.error(f"--mount: unexpected key {min(unknown)!r} for type {kind}", text)
    target = fields.get("target", "")
    identifier = fields.get("id", "")
    if kind == "secret":
        identifier = identifier or posixpath.basename(target)
        if not identifier:
            raise instruction.error("--mount: a secret has an id or a target", text)
        if not target and "env" not in fields:
            target = f"/run/secrets/{identifier}"
    elif not target:
        raise instruction.error("--mount: target is required", text)
    sharing = fields.get("sharing", "shared")
    if sharing not in _SHARINGS:
        raise instruction.error(
            f"--mount: unknown sharing {sharing!r}: there are {', '.join(_SHARINGS)}", text
        )
    clean = posixpath.normpath(posixpath.join(settings.working_dir, target)) if target else ""
    if clean == "/":
        raise instruction.error("--mount: the target can't be /", text)

    def number(key: str, default: int, base: int = 10) -> int:
        try:
            return int(fields.get(key) or str(default), base) if key in fields else default
        except ValueError:
            raise instruction.error(f"--mount: {key} is not a number: {fields[key]!r}", text) from None

    try:
        size = size_in_bytes(fields["size"]) if "size" in fields else 0
    except RuntimeFailure as error:
        raise instruction.error(f"--mount: {error}", text) from error
    read_only = _true(fields.get("ro")) or ("rw" in fields and not _true(fields["rw"]))
    return RunMount(
        kind=kind,
        target=clean,
        source=fields.get("source", ""),
        origin=fields.get("from", ""),
        id=identifier or clean,
        writable=not read_only if kind == "cache" else _true(fields.get("rw")),
        sharing=sharing,
        mode=number("mode", 0o400 if kind == "secret" else 0o755, 8),
        uid=number("uid", 0),
        gid=number("gid", 0),
        size=size,
        required=_true(fields.get("required")),
        env=fields.get("env", ""),
    )


@dataclass(frozen=True)
class Preparer:
    """Makes what mounts need; all of it ends with `stack`."""

    work: Path  # a new directory on the state root's filesystem
    memory: Callable[[], Path]  # a directory in memory, for what must not be on disk
    caches: Path
    secrets: Mapping[str, Secret]
    tree: Callable[[str], Tree]  # from= → where it is
    stack: ExitStack

    def prepare(self, instruction: Instruction, wanted: list[RunMount]) -> Prepared:
        """The container's mounts. Raises DockerfileError when a source or a demanded secret is missing."""
        mounts: list[Mount] = []
        points: list[str] = []
        env: list[str] = []
        for number, mount in enumerate(wanted):
            made = self._make(instruction, mount, self.work / str(number), env)
            if made is None:
                continue
            mounts.append(made)
            if not mount.target.startswith(_COVERED):
                is_file = made.kind == "bind" and not os.path.isdir(made.source)
                points.append(mount.target.lstrip("/") + ("" if is_file else "/"))
        return Prepared(tuple(mounts), tuple(points), tuple(env))

    def _make(self, instruction: Instruction, mount: RunMount, place: Path, env: list[str]) -> Mount | None:
        if mount.kind == "tmpfs":
            size = (f"size={mount.size}",) if mount.size else ()
            return Mount("tmpfs", "", mount.target, options=("nosuid", "nodev", "mode=1777", *size))
        if mount.kind == "secret":
            return self._secret(instruction, mount, env)
        if mount.kind == "cache":
            source = self._cache(instruction, mount)
            return Mount("bind", str(source), mount.target, not mount.writable, ("rbind", "rprivate"))
        source = self._source(instruction, mount)
        tree = self.tree(mount.origin)
        if source.is_dir() and tree.ignores:
            source = self._copied(tree, mount.source, place / "files")
        if mount.writable and source.is_dir():
            source = self._discarded(source, place)
        return Mount(
            "bind",
            str(source),
            mount.target,
            not mount.writable or not source.is_dir(),
            ("rbind", "rprivate"),
        )

    def _source(self, instruction: Instruction, mount: RunMount) -> Path:
        try:
            return self.tree(mount.origin).real_path(mount.source)
        except OSError as error:
            raise instruction.error(
                f"--mount: {mount.source!r} not found: {error.strerror}", mount.source
            ) from error

    @staticmethod
    def _copied(tree: Tree, path: str, place: Path) -> Path:
        """What the tree shows below `path`: a bind mount of it would show what is ignored, too."""
        place.mkdir(parents=True)
        target = Target(place)
        try:
            target.copy([Source(tree, path)], "/", Look((0, 0)))
        finally:
            target.close()
        return place

    def _discarded(self, source: Path, place: Path) -> Path:
        """The directory `source`, which can be written to, and what is written is forgotten."""
        for part in ("upper", "work", "merged"):
            (place / part).mkdir(parents=True)
        rootfs.mount([source], place / "upper", place / "work", place / "merged", volatile=True)
        self.stack.callback(rootfs.unmount, place / "merged")
        return place / "merged"

    def _secret(self, instruction: Instruction, mount: RunMount, env: list[str]) -> Mount | None:
        secret = self.secrets.get(mount.id)
        if secret is None:
            if mount.required:
                raise instruction.error(f"secret {mount.id}: not found; give it by --secret", mount.id)
            return None
        if mount.env:
            env.append(f"{mount.env}={secret.data.decode('utf-8', 'surrogateescape')}")
        if not mount.target:
            return None
        path = self.memory() / hashlib.sha256(f"{mount}".encode()).hexdigest()
        path.write_bytes(secret.data)
        os.chown(path, mount.uid, mount.gid)
        path.chmod(mount.mode)
        return Mount("bind", str(path), mount.target, True, ("rbind", "rprivate"))

    def _cache(self, instruction: Instruction, mount: RunMount) -> Path:
        """The cache's directory, locked for as long as the command runs unless it is shared."""
        self.caches.mkdir(mode=0o700, exist_ok=True)
        key = hashlib.sha256(mount.id.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        number = 0
        while True:
            place = self.caches / (f"{key}-{number}" if number else key)
            if self._lock(place, mount.sharing):
                break
            number += 1
        if not place.exists():
            making = self.work / f"cache-{place.name}"
            making.mkdir()
            if mount.origin:
                target = Target(making)
                tree = Tree(self._source(instruction, mount))
                try:
                    target.copy([Source(tree, "")], "/", Look())
                finally:
                    target.close()
            os.chown(making, mount.uid, mount.gid)
            making.chmod(mount.mode)
            try:
                making.rename(place)
            except OSError:
                if not place.exists():
                    raise
        return place

    def _lock(self, place: Path, sharing: str) -> bool:
        """Hold the cache; False when it is in use and another one will do."""
        fd = os.open(place.with_name(f"{place.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.stack.callback(os.close, fd)
        how = fcntl.LOCK_SH if sharing == "shared" else fcntl.LOCK_EX
        try:
            fcntl.flock(fd, how | (fcntl.LOCK_NB if sharing == "private" else 0))
        except BlockingIOError:
            return False
        return True


def _true(value: str | None) -> bool:
    return value is not None and value.lower() in ("", "1", "true")
