"""The mount language of the command line, parsed into data: -v, --mount and --tmpfs.

Nothing is looked at or made here but the words; lifecycle makes the sources and spec writes the mounts.
The syntax is docker's (docker-run(1), "--volume", "--mount", "--tmpfs").
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass

from runtime.containers.names import check_name
from runtime.errors import RuntimeFailure

_PROPAGATION = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
_BIND_OPTIONS = (*_PROPAGATION, "bind", "rbind", "exec", "noexec", "suid", "nosuid", "dev", "nodev")
#: SELinux labels and Docker Desktop's consistency hints: words that need nothing done here.
_IGNORED = ("z", "Z", "cached", "delegated", "consistent", "default")
_TMPFS_DEFAULTS = ("noexec", "nosuid", "nodev")
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True)
class Mount:
    """One thing to be mounted in a container.

    `source` is a host path for a bind, a volume's name for a volume ("" for a new anonymous one), and ""
    for a tmpfs. `options` are the runtime's own words: mount(8) options, tmpfs data.
    """

    kind: str  # bind, volume or tmpfs
    source: str
    target: str
    read_only: bool = False
    options: tuple[str, ...] = ()
    create_source: bool = False  # -v makes a missing host directory, --mount does not
    copy_up: bool = True  # a new volume starts with what the image has at `target`
    anonymous: bool = False  # the volume was made for this container alone


def size_in_bytes(text: str) -> int:
    """`256m`, `1.5g`, `4096`, `10kb` as a number of bytes (binary units, as docker's).

    Raises RuntimeFailure when it is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([bkmgt]?)(?:i?b)?", text.strip().lower())
    if not match:
        raise RuntimeFailure(f"invalid size: '{text}'")
    return int(float(match[1]) * _UNITS[match[2]])


def parse_volume(text: str) -> Mount:
    """Parse the argument of -v: [SOURCE:]TARGET[:OPTIONS]; a SOURCE that is no path names a volume.

    Raises RuntimeFailure for an empty part, a relative target, an unknown option.
    """
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise RuntimeFailure(f"invalid volume specification: '{text}'")
    if len(parts) == 1:
        return Mount("volume", "", _target(parts[0], text), anonymous=True)
    source, target = parts[0], _target(parts[1], text)
    words = parts[2].split(",") if len(parts) == 3 else []
    if source.startswith(("/", ".", "~")):
        path = os.path.abspath(os.path.expanduser(source))
        read_only, options, _ = _words(words, text)
        return Mount("bind", path, target, read_only, options, create_source=True)
    read_only, options, copy_up = _words(words, text)
    return Mount("volume", check_name(source, "volume"), target, read_only, options, copy_up=copy_up)


def parse_tmpfs(text: str) -> Mount:
    """Parse the argument of --tmpfs: TARGET[:OPTION,…] with the options of tmpfs(5).

    Raises RuntimeFailure for a relative target.
    """
    target, _, words = text.partition(":")
    return Mount("tmpfs", "", _target(target, text), options=_TMPFS_DEFAULTS + _tmpfs_data(words.split(",")))


def parse_mount(text: str) -> Mount:
    """Parse the argument of --mount: type=…,source=…,target=…[,readonly][,…].

    Raises RuntimeFailure for an unknown key or a missing one.
    """
    fields: dict[str, str] = {}
    for field in text.split(","):
        key, _, value = field.partition("=")
        fields[_MOUNT_KEYS.get(key.strip().lower(), key.strip().lower())] = value
    kind = fields.pop("type", "volume")
    if kind not in _KIND_KEYS:
        raise RuntimeFailure(f"invalid argument '{text}' for --mount: mount type '{kind}' is not known")
    unknown = fields.keys() - _KIND_KEYS[kind] - {"target", "readonly"}
    if unknown:
        raise RuntimeFailure(
            f"invalid argument '{text}' for --mount: unexpected key '{min(unknown)}' for type {kind}"
        )
    if not fields.get("target"):
        raise RuntimeFailure(f"invalid argument '{text}' for --mount: target is required")
    target = _target(fields["target"], text)
    read_only = _true(fields.get("readonly"))
    source = fields.get("source", "")
    if kind == "bind":
        if not source:
            raise RuntimeFailure(f"invalid argument '{text}' for --mount: source is required for a bind")
        recursive = "bind" if _true(fields.get("bind-nonrecursive")) else "rbind"
        propagation = fields.get("bind-propagation", "rprivate")
        if propagation not in _PROPAGATION:
            raise RuntimeFailure(f"invalid propagation: '{propagation}'")
        return Mount("bind", os.path.abspath(source), target, read_only, (recursive, propagation))
    if kind == "volume":
        if fields.get("volume-driver", "local") not in ("", "local"):
            raise RuntimeFailure(f"volume driver '{fields['volume-driver']}' not found: there is only local")
        copy_up = not _true(fields.get("volume-nocopy"))
        name = check_name(source, "volume") if source else ""
        return Mount("volume", name, target, read_only, copy_up=copy_up, anonymous=not source)
    words = []
    if "tmpfs-size" in fields:
        words.append(f"size={fields['tmpfs-size']}")
    if "tmpfs-mode" in fields:
        words.append(f"mode={fields['tmpfs-mode']}")
    return Mount("tmpfs", "", target, read_only, _TMPFS_DEFAULTS + _tmpfs_data(words))


_MOUNT_KEYS = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}
_KIND_KEYS = {
    "bind": {"source", "bind-propagation", "bind-nonrecursive", "consistency"},
    "volume": {"source", "volume-nocopy", "volume-driver", "consistency"},
    "tmpfs": {"tmpfs-size", "tmpfs-mode", "consistency"},
}


def combine(
    requested: Iterable[Mount], image_volumes: Iterable[str], shared: Iterable[Mount] = ()
) -> tuple[Mount, ...]:
    """`requested`, then what is `shared` with other containers, then the image's volumes as anonymous ones.

    Of the last two, each only where nothing else covers its target.

    Ordered so that a mount below another's target comes after it.

    Raises RuntimeFailure when two mounts have one target.
    """
    mounts: dict[str, Mount] = {}
    for mount in requested:
        if mount.target in mounts:
            raise RuntimeFailure(f"Duplicate mount point: {mount.target}")
        mounts[mount.target] = mount
    for mount in shared:
        mounts.setdefault(mount.target, mount)
    for path in image_volumes:
        target = _target(path, path)
        mounts.setdefault(target, Mount("volume", "", target, anonymous=True))
    return tuple(sorted(mounts.values(), key=lambda mount: mount.target.split("/")))


def _target(path: str, text: str) -> str:
    """`path` without `.`, `..` and doubled slashes."""
    if not path.startswith("/"):
        raise RuntimeFailure(f"invalid mount '{text}': the path in the container must be absolute")
    clean = posixpath.normpath("/" + path.lstrip("/"))
    if clean == "/":
        raise RuntimeFailure(f"invalid mount '{text}': the path in the container can't be '/'")
    return clean


def _words(words: list[str], text: str) -> tuple[bool, tuple[str, ...], bool]:
    """The option words of -v as (read only, runtime options, copy up)."""
    read_only, copy_up, options = False, True, []
    for word in words:
        if word in ("ro", "rw"):
            read_only = word == "ro"
        elif word == "nocopy":
            copy_up = False
        elif word in _BIND_OPTIONS:
            options.append(word)
        elif word not in _IGNORED:
            raise RuntimeFailure(f"invalid mode: '{word}' in '{text}'")
    return read_only, tuple(options), copy_up


def _tmpfs_data(words: Iterable[str]) -> tuple[str, ...]:
    """tmpfs(5) options, with sizes as plain bytes so that every runtime understands them."""
    options = []
    for word in words:
        key, _, value = word.partition("=")
        if key == "size" and not value.endswith("%"):
            options.append(f"size={size_in_bytes(value)}")
        elif word:
            options.append(word)
    return tuple(options)


def _true(value: str | None) -> bool:
    """Whether a key of --mount is on: given alone, or with a true value."""
    return value is not None and value.lower() in ("", "1", "true", "yes", "on")
