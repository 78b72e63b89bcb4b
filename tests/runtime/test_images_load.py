"""Loading archives and layouts, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from image_builder import (
    COMPRESSIONS,
    archive,
    config,
    device,
    digest,
    directory,
    docker_files,
    file,
    hard_link,
    oci_files,
    opaque,
    symlink,
    tar,
    tree,
    whiteout,
    write_layout,
)

from runtime.containers import present
from runtime.errors import RuntimeFailure
from runtime.images.documents import REF_NAME
from runtime.images.store import Image, ImageStore
from runtime.images.streams import Limits
from runtime.root import Root

LOWER = tar(directory("etc"), file("etc/a", b"a"), file("etc/b", b"b"), directory("tmp", mode=0o1777))
UPPER = tar(directory("etc"), whiteout("etc/a"), file("etc/c", b"c" * 5000), file("tmp/x", b"x"))
LAYERS = [LOWER, UPPER]


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path / "root")


@pytest.fixture
def store(root: Root) -> ImageStore:
    return ImageStore(root)


def load(store: ImageStore, data: bytes) -> list[Image]:
    return store.load("-", stdin=io.BytesIO(data))


def check(store: ImageStore, images: list[Image], name: str | None = "test:1") -> None:
    (image,) = images
    assert [known.familiar for known in image.names] == ([name] if name else [])
    assert image.id == digest(config(LAYERS))
    assert store.resolve(name or image.id) == image
    lower, upper = image.layers
    assert (lower.path / "etc/a").read_bytes() == b"a"
    assert stat.S_ISCHR(os.lstat(upper.path / "etc/a").st_mode)
    assert (upper.path / "etc/c").read_bytes() == b"c" * 5000
    assert image.config.env == ("PATH=/bin",)
    assert image.config.cmd == ("sh",)
    assert image.config.entrypoint is None
    assert image.config.volumes == ("/data",)
    assert image.size == 5003


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_docker_archive(store: ImageStore, old: bool, compression: str) -> None:
    data = archive(docker_files(LAYERS, old=old))
    check(store, load(store, COMPRESSIONS[compression](data)))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_an_oci_archive(store: ImageStore, compression: str) -> None:
    check(store, load(store, archive(oci_files(LAYERS, compression=compression))))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_an_oci_layout(store: ImageStore, tmp_path: Path, compression: str) -> None:
    layout = write_layout(tmp_path / "layout", oci_files(LAYERS, compression=compression))
    before = tree(layout)
    check(store, store.load(str(layout)))
    assert tree(layout) == before


def test_a_file(store: ImageStore, tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(archive(docker_files(LAYERS)))
    check(store, store.load(str(path)))


def test_an_image_without_a_name(store: ImageStore) -> None:
    check(store, load(store, archive(docker_files(LAYERS, tags=None))), None)
    check(store, load(store, archive(oci_files(LAYERS, name=None))), None)
    assert len(store.images()) == 1


def test_a_repeated_layer_is_a_symlink_in_an_old_archive(store: ImageStore) -> None:
    (image,) = load(store, archive(docker_files([LOWER, LOWER], old=True)))
    assert image.layers[0].path == image.layers[1].path


def test_the_platform_of_this_machine_is_chosen(store: ImageStore) -> None:
    mine, other = oci_files(LAYERS), oci_files([LOWER], architecture="other")

    def listed(files: dict[str, Any], architecture: str) -> dict[str, Any]:
        (entry,) = json.loads(files["index.json"])["manifests"]
        return entry | {"platform": {"os": "linux", "architecture": architecture}, "annotations": {}}

    machine = os.uname().machine
    host = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
    nested = json.dumps({"manifests": [listed(other, "other"), listed(mine, host)]}).encode()
    index_type = "application/vnd.oci.image.index.v1+json"
    entry = {"mediaType": index_type, "digest": digest(nested), "size": len(nested)}
    entry["annotations"] = {"org.opencontainers.image.ref.name": "test:1"}
    files = mine | other | {f"blobs/sha256/{digest(nested)[7:]}": nested}
    check(store, load(store, archive(files | {"index.json": json.dumps({"manifests": [entry]}).encode()})))

    foreign = json.dumps({"manifests": [listed(other, "other"), listed(mine, "another")]}).encode()
    with pytest.raises(
        RuntimeFailure, match=f"nothing for linux/{host}, only for linux/another, linux/other"
    ):
        load(store, archive(files | {"index.json": foreign}))


def test_several_images_at_once(store: ImageStore) -> None:
    first, second = docker_files(LAYERS, ["one:1", "one:2"]), docker_files([LOWER], ["two:1"])
    listing = json.loads(first["manifest.json"]) + json.loads(second["manifest.json"])
    images = load(store, archive(first | second | {"manifest.json": json.dumps(listing).encode()}))
    assert [[name.familiar for name in image.names] for image in images] == [["one:1", "one:2"], ["two:1"]]


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive", "oci", "dir of docker"])
@pytest.mark.skipif(not shutil.which("skopeo") or not shutil.which("umoci"), reason="needs skopeo and umoci")
def test_what_other_tools_write(store: ImageStore, tmp_path: Path, kind: str) -> None:
    layout = f"{tmp_path}/made"
    bundle = tmp_path / "bundle"

    def run(*words: str) -> None:
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:img")
    for step in range(3):
        rootless = [] if os.geteuid() == 0 else ["--rootless"]
        run("umoci", "unpack", *rootless, "--image", f"{layout}:img", str(bundle))
        rootfs = bundle / "rootfs"
        if step == 0:
            (rootfs / "d").mkdir()
            (rootfs / "d/a").write_text("a")
            (rootfs / "gone").write_text("x")
        elif step == 1:
            (rootfs / "gone").unlink()
        else:
            (rootfs / "d/a").write_text("changed")
        run("umoci", "repack", "--image", f"{layout}:img", str(bundle))
        shutil.rmtree(bundle)
    source = {
        "docker-archive": f"{tmp_path}/d.tar",
        "oci-archive": f"{tmp_path}/o.tar",
        "oci": layout,
        "dir of docker": f"{tmp_path}/unpacked",
    }[kind]
    if kind == "dir of docker":
        run("skopeo", "copy", f"oci:{layout}:img", f"docker-archive:{tmp_path}/d.tar:img:latest")
        os.mkdir(source)
        run("tar", "-C", source, "-xf", f"{tmp_path}/d.tar")
    elif kind != "oci":
        run("skopeo", "copy", f"oci:{layout}:img", f"{kind}:{source}:img:latest")
    (image,) = store.load(source)
    assert [name.familiar for name in image.names] == ["img:latest"]
    assert (image.layers[0].path / "gone").read_text() == "x"
    assert stat.S_ISCHR(os.lstat(image.layers[1].path / "gone").st_mode)
    assert (image.layers[2].path / "d/a").read_text() == "changed"
    # And they read what we keep.
    name = "docker.io/library/img:latest"
    inspected = subprocess.run(
        ["skopeo", "inspect", "--config", f"oci:{store._layout.directory}:{name}"],
        check=True,
        stdout=subprocess.PIPE,
    )
    assert json.loads(inspected.stdout)["rootfs"]["diff_ids"] == list(image.config.diff_ids)


def test_inspect_speaks_as_docker(store: ImageStore) -> None:
    (image,) = load(store, archive(docker_files(LAYERS)))
    shown = json.loads(json.dumps(present.image(image)))
    assert shown["Id"] == image.id
    assert shown["RepoTags"] == ["test:1"]
    assert shown["RepoDigests"] == [f"test@{image.manifests[0].digest}"]
    assert shown["Created"] == "2020-01-02T03:04:05.123456789Z"
    assert shown["Config"]["Cmd"] == ["sh"]
    assert shown["RootFS"] == {"Type": "layers", "Layers": [digest(layer) for layer in LAYERS]}
    assert (shown["Architecture"], shown["Os"], shown["Size"]) == ("amd64", "linux", 5003)


# Refused


def edit(files: dict[str, Any], name: str, change: Callable[[Any], Any]) -> dict[str, Any]:
    """The files with the JSON document `name` changed."""
    value = json.loads(files[name])
    return files | {name: json.dumps(change(value) or value).encode()}


def docker_with(change: Callable[[Any], Any]) -> bytes:
    return archive(edit(docker_files(LAYERS), "manifest.json", lambda value: change(value[0])))


def oci_with(change: Callable[[Any], Any]) -> bytes:
    return archive(edit(oci_files(LAYERS), "index.json", lambda value: change(value["manifests"][0])))


def without(files: dict[str, Any], name: str) -> bytes:
    return archive({known: data for known, data in files.items() if known != name})


LAYER_BLOB = f"blobs/sha256/{digest(UPPER)[7:]}"
CONFIG_BLOB = f"blobs/sha256/{digest(config(LAYERS))[7:]}"
GZIP_BLOB = f"blobs/sha256/{digest(COMPRESSIONS['+gzip'](UPPER))[7:]}"
DOCKER = docker_files(LAYERS)
OCI = oci_files(LAYERS)


def wrong_config(**changes: Any) -> bytes:
    return archive(docker_files(LAYERS, **changes))


REFUSED: dict[str, bytes] = {
    "nothing": b"",
    "no tar": b"what is this" * 100,
    "zeros": bytes(10240),
    "only gzip's magic": b"\x1f\x8b",
    "only zstd's magic": b"\x28\xb5\x2f\xfd",
    "xz": b"\xfd7zXZ\x00" + bytes(100),
    "no image": archive({"readme": b"hello"}),
    "cut short": archive(DOCKER)[:9000],
    "cut short in the middle": archive(OCI)[: len(archive(OCI)) // 2],
    "gzip cut short": gzip.compress(archive(DOCKER))[:-20],
    "missing layer": without(DOCKER, LAYER_BLOB),
    "missing config": without(DOCKER, CONFIG_BLOB),
    "missing oci layer": without(OCI, GZIP_BLOB),
    "missing oci-layout": without(OCI, "oci-layout"),
    "unknown layout version": archive(OCI | {"oci-layout": b'{"imageLayoutVersion": "2.0.0"}'}),
    "another layer": archive(DOCKER | {LAYER_BLOB: LOWER}),
    "another layer, honest name": archive(docker_files(LAYERS, rootfs={"diff_ids": [digest(LOWER)] * 2})),
    "another oci layer": archive(OCI | {GZIP_BLOB: gzip.compress(LOWER)}),
    "another config": archive(DOCKER | {CONFIG_BLOB: config(LAYERS, os="other")}),
    "fewer diff IDs": wrong_config(rootfs={"type": "layers", "diff_ids": [digest(LOWER)]}),
    "no layers": archive(docker_files([])),
    "manifest is no JSON": archive(DOCKER | {"manifest.json": b"{"}),
    "manifest is deep": archive(DOCKER | {"manifest.json": b"[" * 100_000}),
    "manifest is empty": archive(DOCKER | {"manifest.json": b"[]"}),
    "manifest is a string": archive(DOCKER | {"manifest.json": b'"x"'}),
    "manifest holds numbers": archive(DOCKER | {"manifest.json": b"[1, 2]"}),
    "config name is a number": docker_with(lambda image: image.update(Config=7)),
    "layers are numbers": docker_with(lambda image: image.update(Layers=[1, 2])),
    "layers are a string": docker_with(lambda image: image.update(Layers="abc")),
    "tags are numbers": docker_with(lambda image: image.update(RepoTags=[1])),
    "tag is no name": docker_with(lambda image: image.update(RepoTags=["Not A Name"])),
    "layer leads out": docker_with(lambda image: image.update(Layers=["../../etc/passwd"] * 2)),
    "config leads out": docker_with(lambda image: image.update(Config="/etc/passwd")),
    "config is a list": archive(docker_files(LAYERS, config=[1])),
    "Env is a string": wrong_config(config={"Env": "A=1"}),
    "Env holds numbers": wrong_config(config={"Env": [1]}),
    "Cmd is an object": wrong_config(config={"Cmd": {}}),
    "User is a number": wrong_config(config={"User": 0}),
    "Labels are a list": wrong_config(config={"Labels": [1]}),
    "diff IDs are numbers": wrong_config(rootfs={"diff_ids": [1, 2]}),
    "rootfs is a string": wrong_config(rootfs="x"),
    "created is a number": wrong_config(created=5),
    "created is no time": wrong_config(created="yesterday"),
    "a lone surrogate": wrong_config(author="\ud800"),
    "size is a string": oci_with(lambda entry: entry.update(size="12")),
    "size is wrong": oci_with(lambda entry: entry.update(size=entry["size"] + 1)),
    "size is negative": oci_with(lambda entry: entry.update(size=-1)),
    "size is true": oci_with(lambda entry: entry.update(size=True)),
    "digest is a number": oci_with(lambda entry: entry.update(digest=1)),
    "digest leads out": oci_with(lambda entry: entry.update(digest="sha256:../../../../etc/passwd")),
    "digest of another kind": oci_with(lambda entry: entry.update(digest="md5:" + "0" * 32)),
    "unknown media type": oci_with(lambda entry: entry.update(mediaType="text/plain")),
    "media type is null": oci_with(lambda entry: entry.update(mediaType=None)),
    "annotations are a list": oci_with(lambda entry: entry.update(annotations=[1])),
    "name is a number": oci_with(lambda entry: entry["annotations"].update({REF_NAME: 1})),
    "manifests are an object": archive(OCI | {"index.json": b'{"manifests": {"a": 1}}'}),
    "index is a list": archive(OCI | {"index.json": b"[]"}),
    "index is empty": archive(OCI | {"index.json": b'{"manifests": []}'}),
    "member leads out": tar(file("../x", b"x")),
    "member is absolute": tar(file("/x", b"x")),
    "link leads out": tar(symlink("manifest.json", "../../etc/passwd")),
    "links in a circle": tar(symlink("manifest.json", "a"), symlink("a", "manifest.json")),
    "member is a device": tar(device("manifest.json", 1, 5)),
    "layer is no tar": archive(docker_files([LOWER, b"no tar" * 200])),
    "layer leads out of itself": archive(docker_files([LOWER, tar(file("../../x"))])),
    "layer uses a symlink": archive(docker_files([LOWER, tar(symlink("a", "/etc"), file("a/x"))])),
    "layer forges a whiteout": archive(docker_files([LOWER, tar(device("etc", 0, 0))])),
    "layer links below": archive(docker_files([LOWER, tar(hard_link("x", "etc/a"))])),
}  # fmt: skip


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_a_refused_archive_leaves_nothing_behind(root: Root, store: ImageStore, data: bytes) -> None:
    load(store, archive(docker_files([tar(file("kept", b"kept"))], ["kept:1"])))
    with pytest.raises(RuntimeFailure):  # the workspace's lock file is made by then
        load(store, b"no archive")
    before = tree(root.path)
    with pytest.raises(RuntimeFailure) as failure:
        load(store, data)
    assert "\n" not in failure.value.message
    assert tree(root.path) == before


def test_bombs_are_refused(root: Root) -> None:
    store = ImageStore(root, limits=Limits(ratio=10, slack=1 << 20))
    zeros = tar(file("zeros", bytes(16 << 20)))
    before = None
    for data in (
        archive(oci_files([zeros], compression="+gzip")),
        archive(oci_files([zeros], compression="+zstd")),
        COMPRESSIONS["+gzip"](archive(docker_files([zeros]))),
    ):
        with pytest.raises(RuntimeFailure, match="bomb"):
            load(store, data)
        before = before or tree(root.path)
        assert tree(root.path) == before
    assert not store.images()


def test_a_known_layer_under_a_false_compressed_blob_is_refused(root: Root, store: ImageStore) -> None:
    load(store, archive(docker_files(LAYERS)))
    before = tree(root.path)
    false = oci_files([LOWER, tar(file("other"))], rootfs={"diff_ids": [digest(layer) for layer in LAYERS]})
    with pytest.raises(RuntimeFailure, match="not what the config says"):
        load(store, archive(false))
    assert tree(root.path) == before


def test_a_layout_with_a_fifo_does_not_hang(store: ImageStore, tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", oci_files(LAYERS))
    (layout / GZIP_BLOB).unlink()
    os.mkfifo(layout / GZIP_BLOB)
    with pytest.raises(RuntimeFailure, match="is not a file"):
        store.load(str(layout))


def test_a_source_that_is_not_there(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match=r"cannot read .*nothing: No such file or directory"):
        store.load(str(tmp_path / "nothing"))


# Directories that a layer leaves out


def test_a_directory_left_out_looks_as_in_the_layers_below(store: ImageStore) -> None:
    (image,) = load(store, archive(docker_files(LAYERS)))
    assert stat.S_IMODE(os.stat(image.layers[1].path / "tmp").st_mode) == 0o1777
    (other,) = load(store, archive(docker_files([tar(directory("tmp", mode=0o711)), UPPER], ["other:1"])))
    assert other.layers[1].diff_id == image.layers[1].diff_id
    assert stat.S_IMODE(os.stat(other.layers[1].path / "tmp").st_mode) == 0o711
    assert stat.S_IMODE(os.stat(image.layers[1].path / "tmp").st_mode) == 0o1777
    (alone,) = load(store, archive(docker_files([UPPER], ["alone:1"])))
    assert stat.S_IMODE(os.stat(alone.layers[0].path / "tmp").st_mode) == 0o755


@pytest.mark.parametrize(
    "hiding", [whiteout("tmp"), file("tmp"), opaque("")], ids=["whiteout", "file", "opaque"]
)
def test_a_hidden_directory_gives_nothing(store: ImageStore, hiding: Any) -> None:
    (image,) = load(store, archive(docker_files([LOWER, tar(hiding), UPPER])))
    assert stat.S_IMODE(os.stat(image.layers[2].path / "tmp").st_mode) == 0o755


def test_a_layer_that_repeats_above_another_is_unpacked_for_its_place(store: ImageStore) -> None:
    middle = tar(directory("tmp", mode=0o1777))
    (image,) = load(store, archive(docker_files([UPPER, middle, UPPER])))
    assert stat.S_IMODE(os.stat(image.layers[0].path / "tmp").st_mode) == 0o755
    assert stat.S_IMODE(os.stat(image.layers[2].path / "tmp").st_mode) == 0o1777
    (simple,) = load(store, archive(docker_files([LOWER, middle, LOWER], ["simple:1"])))
    assert simple.layers[0].path == simple.layers[2].path
    assert simple.trees == (simple.layers[1].path, simple.layers[2].path)
