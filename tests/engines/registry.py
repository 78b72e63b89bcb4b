"""A registry on this machine, and what an image in it holds."""

from __future__ import annotations

import hashlib
import json
import posixpath
import socket
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from machine import PATIENCE, end, run
from support.union import wait_until

CONFIG = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {place}/registry}}, delete: {{enabled: true}}}}
http: {{addr: 127.0.0.1:{port}}}
"""

#: Engines put these into containers, each in its own way.
OF_ENGINES = {
    "etc",
    "etc/hosts",
    "etc/hostname",
    "etc/resolv.conf",
    "etc/mtab",
    "run",
    "dev",
    "proc",
    "sys",
    "run/.containerenv",
}

#: Images and steps set times before this one (2021).
_LONG_AGO = 1_609_459_200


class Registry:
    """docker-registry(1) on a free port of the loopback device."""

    def __init__(self, place: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.place = place
        self.address = f"127.0.0.1:{port}"
        (place / "registry.yml").write_text(CONFIG.format(place=place, port=port))
        self._process = subprocess.Popen(
            ["docker-registry", "serve", place / "registry.yml"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: _listens(port), "the registry answers", PATIENCE)

    def pull(self, name: str) -> dict[str, File]:
        """What an image holds."""
        return contents(self.layers(name))

    def layers(self, name: str) -> list[Path]:
        """skopeo's copies of an image's layers, the lowest first."""
        place = self.place / name.replace(":", "-")
        source = f"docker://{self.address}/{name}"
        run("skopeo", "copy", "--insecure-policy", "--src-tls-verify=false", source, f"dir:{place}")
        manifest = json.loads((place / "manifest.json").read_text())
        return [place / layer["digest"].removeprefix("sha256:") for layer in manifest["layers"]]

    def close(self) -> None:
        """End it."""
        end(self._process)


@dataclass(frozen=True)
class File:
    """All that an image says of a file."""

    kind: bytes
    mode: int
    owner: tuple[int, int]
    content: str
    device: tuple[int, int]
    xattrs: tuple[tuple[str, str], ...]
    #: Seconds since 1970; None for a time that nobody has set, which is that of the test.
    mtime: int | None
    #: The other names of the same file.
    links: frozenset[str]


def contents(layers: Iterable[Path]) -> dict[str, File]:
    """The files of a stack of layers, the lowest first (OCI image-spec, layer.md)."""
    found: dict[str, File] = {}
    for layer in layers:
        with tarfile.open(layer) as archive:
            entries = [(posixpath.normpath(info.name).lstrip("/"), info) for info in archive]
            for name, _ in entries:
                parent, base = posixpath.split(name)
                if base == ".wh..wh..opq":
                    _remove(found, parent, itself=False)
                elif base.startswith(".wh."):
                    _remove(found, posixpath.join(parent, base.removeprefix(".wh.")))
            for name, info in entries:
                if not posixpath.basename(name).startswith(".wh."):
                    _add(found, name, info, archive)
    for name in OF_ENGINES & found.keys():
        del found[name]
    return found


def _add(found: dict[str, File], name: str, info: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
    if name in found and not (info.isdir() and found[name].kind == tarfile.DIRTYPE):
        _remove(found, name)
    links = frozenset((name,))
    if info.islnk():
        links |= found[posixpath.normpath(info.linkname).lstrip("/")].links
        info = archive._find_link_target(info)  # type: ignore[attr-defined]
    content = info.linkname if info.issym() else ""
    if info.isreg():
        file = archive.extractfile(info)
        assert file is not None
        content = f"{info.size} bytes {hashlib.file_digest(file, 'sha256').hexdigest()}"
    xattrs = sorted(
        (key.removeprefix("SCHILY.xattr."), value)
        for key, value in info.pax_headers.items()
        if key.startswith("SCHILY.xattr.")
    )
    kind = tarfile.REGTYPE if info.isreg() else info.type
    for each in links:
        found[each] = File(
            kind, info.mode & 0o7777, (info.uid, info.gid), content,
            (info.devmajor, info.devminor) if info.ischr() or info.isblk() else (0, 0),
            tuple(xattrs), int(info.mtime) if info.mtime < _LONG_AGO else None, links,
        )  # fmt: skip


def _remove(found: dict[str, File], name: str, *, itself: bool = True) -> None:
    below = f"{name}/" if name else ""
    for each in [each for each in found if each.startswith(below) or (itself and each == name)]:
        gone = found.pop(each)
        for other in gone.links - {each}:
            if other in found:
                kept = found[other]
                found[other] = replace(kept, links=kept.links - {each})


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
