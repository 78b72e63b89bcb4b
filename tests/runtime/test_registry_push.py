"""Pushing: what others read of it, what is not sent twice, and what breaks on the way."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from image_builder import archive, digest, directory, docker_files, file, oci_files, tar, write_layout
from registry_server import Proxy, Registry
from unionctl_runner import Unionctl

from runtime.errors import NotFound, RuntimeFailure
from runtime.images.reference import parse
from runtime.images.store import ImageStore
from runtime.registry.client import Client, anonymous
from runtime.registry.endpoint import Patience
from runtime.registry.push import Pushed, push
from runtime.registry.report import Quiet
from runtime.registry.settings import Settings
from runtime.root import Root

LOWER = tar(directory("etc"), file("etc/large", b"large" * 400_000))
UPPER = tar(file("etc/b", b"b"))
LAYERS = [LOWER, UPPER]


class Kept(Quiet):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str, part: str = "") -> None:
        self.lines.append(f"{part}: {text}" if part else text)

    def count(self, words: str) -> int:
        return sum(words in line for line in self.lines)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(Root(tmp_path / "root"))


def load(store: ImageStore, name: str, layers: list[bytes] = LAYERS, oci: bool = True) -> None:
    files: dict[str, Any] = oci_files(layers, name) if oci else docker_files(layers, [name])
    store.load("-", stdin=io.BytesIO(archive(files)))


def pushed(store: ImageStore, name: str) -> tuple[Pushed, Kept]:
    report = Kept()
    client = Client(Settings({}), anonymous, Patience(tries=4, first=0.01, silence=20))
    return push(store, parse(name), client, report), report


def test_a_push_keeps_the_digest(store: ImageStore, registry: Registry, tmp_path: Path) -> None:
    name = f"{registry.host}/keeps/app:1"
    load(store, name)
    manifest = store.resolve(name).manifests[0]
    done, report = pushed(store, name)
    assert (done.digest, done.size) == (manifest.digest, manifest.size)
    assert report.lines[0] == f"The push refers to repository [{registry.host}/keeps/app]"
    assert report.lines[-1] == f"1: digest: {done.digest} size: {done.size}"
    assert report.count(": Pushed") == 2
    skopeo = ["skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{name}"]
    subprocess.run([*skopeo, f"docker-archive:{tmp_path}/copy.tar:copy:1"], check=True)
    (copy,) = store.load(str(tmp_path / "copy.tar"))
    assert copy.id == store.resolve(name).id


def test_plain_layers_are_packed_to_the_same_bytes(store: ImageStore, registry: Registry) -> None:
    name = f"{registry.host}/packs/app:1"
    load(store, name, oci=False)
    first, report = pushed(store, name)
    assert report.count(": Compressing") == report.count(": Pushed") == 2
    assert first.digest != store.resolve(name).manifests[0].digest
    assert [known.digest for known in store.resolve(name).digests] == [first.digest]
    assert store.resolve(f"{registry.host}/packs/app@{first.digest}") == store.resolve(name)
    second, report = pushed(store, name)
    assert second == first and report.count(": Layer already exists") == 2
    layers = json.loads(registry.manifest("packs/app", "1") or b"")["layers"]
    assert [layer["mediaType"].rpartition("+")[2] for layer in layers] == ["gzip", "gzip"]
    assert layers[0]["size"] < len(LOWER) / 100


def test_what_another_repository_has_is_mounted(store: ImageStore, proxy: Proxy) -> None:
    load(store, f"{proxy.host}/mounts/base:1", [LOWER])
    pushed(store, f"{proxy.host}/mounts/base:1")
    load(store, f"{proxy.host}/mounts/app:1")
    proxy.asked.clear()
    _, report = pushed(store, f"{proxy.host}/mounts/app:1")
    assert report.count(": Mounted from mounts/base") == 1 and report.count(": Pushed") == 1
    assert len(proxy.paths("PUT", "/blobs/uploads/")) == 2  # the other layer and the config


def test_a_broken_upload_is_tried_again(store: ImageStore, proxy: Proxy) -> None:
    load(store, f"{proxy.host}/breaks/app:1")
    proxy.faults.broken_uploads = 2
    done, _ = pushed(store, f"{proxy.host}/breaks/app:1")
    assert digest(proxy.registry.manifest("breaks/app", "1") or b"") == done.digest
    load(store, f"{proxy.host}/breaks/never:1", [tar(file("never", b"x" * 10_000))])
    proxy.faults.broken_uploads = 1000
    with pytest.raises(RuntimeFailure, match="broke"):
        pushed(store, f"{proxy.host}/breaks/never:1")
    assert proxy.registry.manifest("breaks/never", "1") is None


def test_what_cannot_be_pushed_is_said(store: ImageStore, registry: Registry) -> None:
    load(store, f"{registry.host}/said/app:1")
    with pytest.raises(NotFound, match="does not exist locally with the tag"):
        pushed(store, f"{registry.host}/said/app:2")
    with pytest.raises(RuntimeFailure, match="a digest is no tag"):
        pushed(store, f"{registry.host}/said/app@{digest(b'')}")


def test_commands(tmp_path: Path, registry: Registry) -> None:
    unionctl = Unionctl(tmp_path / "state")
    layout = write_layout(tmp_path / "layout", oci_files(LAYERS, f"{registry.host}/words/app"))
    unionctl("load", "-q", str(layout))
    assert unionctl.out("push", f"{registry.host}/words/app").startswith(
        "Using default tag: latest\nThe push"
    )
    assert unionctl.out("push", "-q", f"{registry.host}/words/app") == f"{registry.host}/words/app:latest"
    unionctl("tag", f"{registry.host}/words/app", f"{registry.host}/words/app:2")
    out = unionctl.out("push", "-a", f"{registry.host}/words/app")
    assert "\n2: digest: sha256:" in out and "\nlatest: digest: sha256:" in out
    assert "can't be used" in unionctl.err("push", "-a", f"{registry.host}/words/app:2", code=1)
    assert "does not exist locally" in unionctl.err("push", f"{registry.host}/words/none", code=1)
