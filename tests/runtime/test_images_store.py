"""The store over time: names, removal, many processes at once, and death at any instant."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from image_builder import archive, config, digest, directory, docker_files, file, oci_files, tar, tree

from runtime.errors import RuntimeFailure
from runtime.images.store import Image, ImageStore
from runtime.root import Root

BASE = tar(directory("etc"), file("etc/base", b"base"))
ONE = tar(directory("etc"), file("etc/one", b"1"))
TWO = tar(directory("etc"), file("etc/two", b"22"))


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path / "root")


@pytest.fixture
def store(root: Root) -> ImageStore:
    return ImageStore(root)


def load(store: ImageStore, layers: list[bytes], *tags: str) -> Image:
    return store.load("-", stdin=io.BytesIO(archive(docker_files(layers, tags))))[0]


def unpacked(root: Root) -> set[str]:
    return {f"sha256:{name}" for name in os.listdir(root.layers / "sha256")}


def unionctl(root: Root, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from runtime.cli import main; main()", "--root", str(root.path), *words]
    return subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]


def test_a_layer_of_two_images_is_unpacked_once(root: Root, store: ImageStore) -> None:
    one = load(store, [BASE, ONE], "one:1")
    inode = os.stat(one.layers[0].path / "etc/base").st_ino
    two = load(store, [BASE, TWO], "two:1")
    assert one.layers[0] == two.layers[0]
    assert os.stat(two.layers[0].path / "etc/base").st_ino == inode
    assert unpacked(root) == {digest(BASE), digest(ONE), digest(TWO)}


def test_images_are_found_by_name_id_and_digest(store: ImageStore) -> None:
    one = load(store, [BASE, ONE], "one:1", "example.org/one:2")
    load(store, [BASE, TWO], "two:1")
    for name in (
        "one:1",
        "docker.io/library/one:1",
        "example.org/one:2",
        one.id,
        one.id[7:],
        one.short_id,
        f"sha256:{one.short_id}",
        f"one@{one.manifests[0].digest}",
    ):
        assert store.resolve(name) == one
    for name in ("one", "one:2", "nothing", "0" * 64, f"two@{one.manifests[0].digest}", "", "A B"):
        with pytest.raises(RuntimeFailure, match=f"^No such image: {name}$"):
            store.resolve(name)


def test_an_id_that_fits_several_is_ambiguous(store: ImageStore) -> None:
    digits = set()
    for number in range(17):
        image = load(store, [BASE, tar(file(str(number)))], f"name{number}:2")
        first = image.id[7:8]
        if first in digits:
            with pytest.raises(RuntimeFailure, match="ambiguous"):
                store.resolve(first)
            return
        digits.add(first)
    pytest.fail("17 IDs of 16 first digits")


def test_a_name_moves_to_the_image_loaded_last(root: Root, store: ImageStore) -> None:
    one = load(store, [BASE, ONE], "app:1")
    two = load(store, [BASE, TWO], "app:1")
    assert store.resolve("app:1").id == two.id
    assert store.resolve(one.id).names == ()
    assert store.remove(one.id) == [f"Deleted: {one.id}", "Deleted: " + _chain(BASE, ONE)]
    assert unpacked(root) == {digest(BASE), digest(TWO)}


def _chain(*layers: bytes) -> str:
    chain = digest(layers[0])
    for layer in layers[1:]:
        chain = digest(f"{chain} {digest(layer)}".encode())
    return chain


def test_tags(store: ImageStore) -> None:
    one = load(store, [BASE, ONE], "one:1")
    store.tag("one:1", "example.org/copy")
    assert store.resolve("example.org/copy:latest").id == one.id
    assert len(store.resolve("one:1").names) == 2
    assert store.remove("one:1") == ["Untagged: one:1"]
    assert [name.familiar for name in store.resolve(one.id).names] == ["example.org/copy:latest"]
    with pytest.raises(RuntimeFailure):
        store.tag("example.org/copy", f"x@{one.id}")
    with pytest.raises(RuntimeFailure, match="No such image"):
        store.tag("one:1", "y")


def test_removal_leaves_an_empty_store(root: Root, store: ImageStore) -> None:
    one = load(store, [BASE, ONE], "one:1")
    load(store, [BASE, TWO], "two:1")
    assert store.remove("one:1") == ["Untagged: one:1", f"Deleted: {one.id}", f"Deleted: {_chain(BASE, ONE)}"]
    assert unpacked(root) == {digest(BASE), digest(TWO)}
    store.remove("two:1")
    assert unpacked(root) == set()
    assert os.listdir(root.images / "blobs/sha256") == []
    assert json.loads((root.images / "index.json").read_text())["manifests"] == []


def test_the_same_image_from_two_kinds_of_archive_is_one(root: Root, store: ImageStore) -> None:
    load(store, [BASE, ONE], "docker:1")
    store.load("-", stdin=io.BytesIO(archive(oci_files([BASE, ONE], "oci:1"))))
    (image,) = store.images()
    assert {name.familiar for name in image.names} == {"docker:1", "oci:1"}
    assert len(image.manifests) == 2
    store.remove("docker:1")
    store.remove("oci:1")
    assert os.listdir(root.images / "blobs/sha256") == []


def test_what_a_container_uses_stays(root: Root) -> None:
    used: dict[str, str] = {}
    store = ImageStore(root, lambda: used)
    one = load(store, [BASE, ONE], "one:1", "one:2")
    used[one.id] = "c" * 64
    assert store.remove("one:2") == ["Untagged: one:2"]
    with pytest.raises(
        RuntimeFailure, match=rf"must force\) - container {'c' * 12} is using .* {one.short_id}"
    ):
        store.remove("one:1")
    with pytest.raises(RuntimeFailure, match="is being used by container"):
        store.remove(one.short_id)
    assert store.remove("one:1", force=True) == ["Untagged: one:1"]
    assert store.resolve(one.id).layers == one.layers
    assert (one.layers[1].path / "etc/one").exists()
    used.clear()
    assert f"Deleted: {one.id}" in store.remove(one.id)
    assert unpacked(root) == set()


def test_an_id_of_several_names_must_be_forced(store: ImageStore) -> None:
    one = load(store, [BASE, ONE], "one:1", "one:2")
    with pytest.raises(RuntimeFailure, match="referenced in multiple repositories"):
        store.remove(one.short_id)
    assert store.remove(one.short_id, force=True)[:3] == [
        "Untagged: one:1",
        "Untagged: one:2",
        f"Deleted: {one.id}",
    ]


def test_concurrent_loads_and_removals(root: Root, tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(archive(docker_files([BASE, ONE], ["app:1"])))
    script = (
        "import sys; from pathlib import Path; from runtime.root import Root\n"
        "from runtime.images.store import ImageStore; from runtime.errors import RuntimeFailure\n"
        "store = ImageStore(Root(Path(sys.argv[1])))\n"
        "for turn in range(8):\n"
        "    (image,) = store.load(sys.argv[2])\n"
        "    try: store.remove('app:1')\n"
        "    except RuntimeFailure as error: assert 'No such image' in str(error), error\n"
        "store.load(sys.argv[2])\n"
    )
    workers = [subprocess.Popen([sys.executable, "-c", script, root.path, path]) for _ in range(4)]
    assert [worker.wait() for worker in workers] == [0] * 4
    (image,) = ImageStore(root).images()
    assert (image.layers[1].path / "etc/one").read_bytes() == b"1"
    assert unpacked(root) == {digest(BASE), digest(ONE)}
    assert os.listdir(root.tmp) == ["lock"]


def test_a_load_killed_at_any_instant(root: Root, tmp_path: Path) -> None:
    big = tar(directory("d"), *(file(f"d/{number}", os.urandom(20_000)) for number in range(400)))
    path = tmp_path / "image.tar"
    path.write_bytes(archive(docker_files([BASE, big], ["big:1"])))
    kept = load(ImageStore(root), [BASE, ONE], "kept:1")
    clean = tree(root.path)
    script = "import sys; from runtime.cli import main; main()"
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", script, "--root", root.path, "load", path], check=True)
    duration = time.monotonic() - begun
    ImageStore(root).remove("big:1")
    chance = random.Random(1)
    for _ in range(12):
        worker = subprocess.Popen([sys.executable, "-c", script, "--root", root.path, "load", "-q", path])
        time.sleep(chance.uniform(0, duration))
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        store = ImageStore(root)
        assert store.resolve("kept:1") == kept
        for image in store.images():
            (tag,) = image.names
            assert (
                len(os.listdir(image.layers[1].path / "d")) == 400
                if tag.repository == "big"
                else image == kept
            )
    store = ImageStore(root)
    store.load(str(path))
    assert len(os.listdir(store.resolve("big:1").layers[1].path / "d")) == 400
    store.remove("big:1")
    assert tree(root.path) == clean


def test_the_commands(root: Root, tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(archive(docker_files([BASE, ONE], ["app:1", "app:2"])))
    loaded = unionctl(root, "load", "-i", str(path))
    assert (loaded.returncode, loaded.stdout, loaded.stderr) == (
        0,
        "Loaded image: app:1\nLoaded image: app:2\n",
        "",
    )
    image_id = digest(config([BASE, ONE]))

    listed = unionctl(root, "images").stdout.splitlines()
    assert listed[0].split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert [line.split()[:3] for line in listed[1:]] == [
        ["app", "1", image_id[7:19]],
        ["app", "2", image_id[7:19]],
    ]
    assert listed[1].endswith("years ago   5B")
    assert unionctl(root, "images", "-q").stdout == f"{image_id[7:19]}\n"
    assert unionctl(root, "images", "-q", "--no-trunc").stdout == f"{image_id}\n"
    assert unionctl(root, "images", "app:2", "--format", "{{.Repository}}|{{.Tag}}").stdout == "app|2\n"
    assert unionctl(root, "images", "other").stdout.count("\n") == 1
    rows = unionctl(root, "images", "--format", "json").stdout.splitlines()
    assert json.loads(rows[0])["Repository"] == "app"
    assert unionctl(root, "images", "--format", "{{.Nope}}").returncode == 1

    assert unionctl(root, "tag", "app:1", "other").returncode == 0
    removed = unionctl(root, "rmi", "app:1", "nothing", "other")
    assert removed.stdout == "Untagged: app:1\nUntagged: other:latest\n"
    assert (removed.returncode, removed.stderr) == (1, "unionctl: No such image: nothing\n")
    refused = unionctl(root, "load", "-i", str(tmp_path / "nothing.tar"))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.count("\n") == 1
    piped = unionctl(root, "load", input="no archive")
    assert (piped.returncode, piped.stderr.count("\n")) == (1, 1)
