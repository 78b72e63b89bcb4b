"""A small image that holds what unions find hard, as the archive that every engine loads."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

NAME = "localhost/union-test:1"

BUSYBOX = Path("/bin/busybox")

MTIME = 1_600_000_000

#: CAP_NET_BIND_SERVICE, as capabilities(7) has it in an xattr.
CAPABILITY = "\1\0\0\2" + "\0\4\0\0" + "\0" * 12


def write(path: Path, name: str = NAME, command: Sequence[str] = ("sh",)) -> Path:
    """Write the image as a docker archive, and return its place."""
    layers = [_base(), _files(), _changes()]
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": "2020-01-01T00:00:00Z",
            "config": {"Env": ["PATH=/bin"], "Cmd": list(command)},
            "history": [{"created_by": name} for name in ("base", "files", "changes")],
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers],
            },
        }
    ).encode()
    names = [f"{hashlib.sha256(layer).hexdigest()}/layer.tar" for layer in layers]
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [name], "Layers": names}]).encode()
    with tarfile.open(path, "w") as archive:
        for name, data in [
            ("config.json", config),
            ("manifest.json", manifest),
            *zip(names, layers, strict=True),
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


class _Layer:
    """A layer's tar, entry by entry."""

    def __init__(self) -> None:
        self.buffer = io.BytesIO()
        self.tar = tarfile.TarFile(fileobj=self.buffer, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **attributes: object) -> None:
        info = tarfile.TarInfo(name)
        info.type = kind
        info.size = len(data)
        info.mtime = MTIME
        info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
        for attribute, value in attributes.items():
            setattr(info, attribute, value)
        self.tar.addfile(info, io.BytesIO(data))

    def done(self) -> bytes:
        self.tar.close()
        return self.buffer.getvalue()


def _base() -> bytes:
    """busybox with all its names, and what a root filesystem has to have."""
    layer = _Layer()
    for name in ("bin", "etc", "root", "tmp", "proc", "sys", "dev", "var", "var/lib"):
        layer.add(name, tarfile.DIRTYPE, mode=0o1777 if name == "tmp" else 0o755)
    layer.add("bin/busybox", data=BUSYBOX.read_bytes(), mode=0o755)
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        if applet != "busybox":
            layer.add(f"bin/{applet}", tarfile.SYMTYPE, linkname="busybox")
    layer.add("etc/passwd", data=b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/:/bin/sh\n")
    layer.add("etc/group", data=b"root:x:0:\napp:x:1000:\n")
    return layer.done()


def _files() -> bytes:
    """Files with all that a file can have, and directories whose fate is the next layer's."""
    layer = _Layer()
    layer.add("data", tarfile.DIRTYPE, uid=1000, gid=1000, mode=0o2775)
    layer.add("data/one", data=b"one\n", uid=1000, gid=1000)
    layer.add("data/two", tarfile.LNKTYPE, linkname="data/one", uid=1000, gid=1000)
    layer.add("data/setuid", data=b"#!/bin/sh\n", mode=0o4755)
    layer.add("data/attributes", data=b"x", pax_headers={"SCHILY.xattr.user.colour": "blue"})
    layer.add("data/capable", mode=0o755, pax_headers={"SCHILY.xattr.security.capability": CAPABILITY})
    layer.add("data/link", tarfile.SYMTYPE, linkname="one", uid=1000)
    layer.add("data/fifo", tarfile.FIFOTYPE, mode=0o600)
    layer.add("data/big", data=bytes(range(256)) * 4096)
    for name in ("gone", "opaque", "replaced", "kept", "kept/deep"):
        layer.add(name, tarfile.DIRTYPE)
        layer.add(f"{name}/old", data=b"old\n")
    layer.add("removed", data=b"removed\n")
    return layer.done()


def _changes() -> bytes:
    """Whiteouts, an opaque directory, a directory that becomes a file, and files that change."""
    layer = _Layer()
    layer.add(".wh.gone")
    layer.add(".wh.removed")
    layer.add("opaque", tarfile.DIRTYPE, mode=0o700)
    layer.add("opaque/.wh..wh..opq")
    layer.add("opaque/new", data=b"new\n")
    layer.add("replaced", data=b"a file now\n")
    layer.add("kept", tarfile.DIRTYPE)
    layer.add("kept/.wh.old")
    layer.add("kept/new", data=b"new\n")
    layer.add("data", tarfile.DIRTYPE, uid=1000, gid=1000, mode=0o2775)
    layer.add("data/changed", data=b"changed\n")
    return layer.done()
