"""commit, save, export, import, history: what we write, others read."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from unionctl_runner import Unionctl

pytestmark = pytest.mark.root


def config_of(unionctl: Unionctl, name: str) -> dict[str, object]:
    return dict(json.loads(unionctl.out("inspect", "--type", "image", name))[0]["Config"])


def last_layer(unionctl: Unionctl, name: str) -> list[str]:
    """The names in the uppermost layer of an image, in its archive."""
    with tarfile.open(fileobj=io.BytesIO(unionctl("save", name).stdout)) as archive:
        manifest = archive.extractfile("manifest.json")
        assert manifest is not None
        layer = archive.extractfile(json.load(manifest)[0]["Layers"][-1])
        assert layer is not None
        with tarfile.open(fileobj=io.BytesIO(layer.read())) as tar:
            return tar.getnames()


def test_commit_makes_an_image_of_the_changes_alone(unionctl: Unionctl) -> None:
    unionctl(
        "run",
        "--name",
        "ct",
        "-e",
        "A=b",
        "busybox",
        "sh",
        "-c",
        "rm /opt/one; echo new >/opt/four; rm -r /data",
    )
    identifier = unionctl.out("commit", "-m", "a message", "-a", "Someone <s@example.com>", "ct", "made:1")
    assert identifier.startswith("sha256:")
    assert last_layer(unionctl, "made:1") == [".wh.data", "opt", "opt/four", "opt/.wh.one"]
    assert unionctl.out("run", "--rm", "made:1", "sh", "-c", "echo /opt/* $A; ls /data || echo none") == (
        "/opt/four /opt/three /opt/two b\nnone"
    )
    details = json.loads(unionctl.out("inspect", "made:1"))[0]
    assert (details["Author"], len(details["RootFS"]["Layers"])) == ("Someone <s@example.com>", 4)
    assert "a message" in unionctl.out("history", "made:1").splitlines()[1]
    unionctl("start", "-a", "ct", code=None)  # the container is as it was


def test_commit_of_a_running_container(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "ct", "busybox", "sh", "-c", "echo x >/f; sleep 1000")
    unionctl("commit", "ct", "made")
    assert unionctl.out("inspect", "-f", "{{.State.Status}}", "ct") == "running"
    assert unionctl.out("run", "--rm", "made", "cat", "/f") == "x"
    unionctl("commit", "--no-pause", "ct", "made")
    assert unionctl.err("commit", "nosuch", code=1) == "unionctl: No such container: nosuch\n"
    assert "invalid reference" in unionctl.err("commit", "ct", "NOT_A_NAME!", code=1)


def test_changes_of_the_config(unionctl: Unionctl) -> None:
    unionctl("run", "--name", "ct", "busybox", "true")
    unionctl("commit", "-c", "ENV A=1", "--change", 'CMD ["echo", "made"]', "-c", "EXPOSE 80", "ct", "made")
    config = config_of(unionctl, "made")
    assert config["ExposedPorts"] == {"80/tcp": {}}
    assert unionctl.out("run", "--rm", "made") == "made"
    assert "RUN is not a valid change" in unionctl.err("commit", "-c", "RUN x", "ct", "other", code=1)
    assert "invalid containerPort" in unionctl.err("commit", "-c", "EXPOSE x", "ct", "other", code=1)
    assert "other" not in unionctl.out("images")


def test_an_archive_comes_back_the_same(unionctl: Unionctl, tmp_path: Path) -> None:
    unionctl("tag", "busybox", "other:2")
    before = unionctl.out("images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}")
    unionctl("save", "-o", str(tmp_path / "a.tar"), "busybox", "other:2")
    unionctl("save", "-o", str(tmp_path / "b.tar"), "busybox", "other:2")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    unionctl("rmi", "busybox", "other:2")
    unionctl("load", "-i", str(tmp_path / "a.tar"))
    assert unionctl.out("images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}") == before


def test_save_writes_all_or_nothing(unionctl: Unionctl, tmp_path: Path) -> None:
    assert "No such image" in unionctl.err("save", "-o", str(tmp_path / "x.tar"), "busybox", "nosuch", code=1)
    unionctl("save", "--format", "oci-dir", "-o", str(tmp_path / "layout"), "busybox")
    assert "File exists" in unionctl.err(
        "save", "--format", "oci-dir", "-o", str(tmp_path / "layout"), "busybox", code=1
    )
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "state") == ["layout"]


@pytest.mark.skipif(not shutil.which("skopeo"), reason="needs skopeo")
@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci-dir"])
def test_skopeo_reads_what_we_save(unionctl: Unionctl, tmp_path: Path, form: str) -> None:
    unionctl("run", "--name", "ct", "busybox", "touch", "/made")
    unionctl("commit", "ct", "made:1")
    target = tmp_path / "saved"
    unionctl("save", "--format", form, "-o", str(target), "made:1")
    transport = "oci" if form == "oci-dir" else form
    subprocess.run(
        ["skopeo", "copy", "-q", "--insecure-policy", f"{transport}:{target}", f"oci:{tmp_path}/copy:x"],
        check=True,
    )
    index = json.loads((tmp_path / "copy/index.json").read_bytes())
    blobs = tmp_path / "copy/blobs/sha256"
    manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_bytes())
    config = (blobs / manifest["config"]["digest"][7:]).read_bytes()
    details = json.loads(unionctl.out("inspect", "made:1"))[0]
    assert json.loads(config)["rootfs"]["diff_ids"] == details["RootFS"]["Layers"]
    if form != "docker-archive":  # else it is written anew in OCI's words
        assert f"sha256:{hashlib.sha256(config).hexdigest()}" == details["Id"]


@pytest.mark.skipif(not shutil.which("podman"), reason="needs podman")
def test_podman_loads_what_we_save(unionctl: Unionctl, tmp_path: Path) -> None:
    unionctl(
        "run",
        "--name",
        "ct",
        "busybox",
        "sh",
        "-c",
        "rm /opt/one; ln /opt/two /opt/hard; chmod 4711 /opt/three",
    )
    unionctl("commit", "ct", "made:1")
    unionctl("save", "-o", str(tmp_path / "saved.tar"), "made:1")
    # podman refuses a runroot of more than 50 characters.
    run = tempfile.mkdtemp(dir="/tmp")
    podman = ["podman", "--storage-driver=vfs", f"--root={tmp_path}/graph", f"--runroot={run}"]
    loaded = subprocess.run(
        [*podman, "load", "-q", "-i", tmp_path / "saved.tar"], capture_output=True, check=True
    )
    assert b"made:1" in loaded.stdout
    mounted = subprocess.run([*podman, "image", "mount", "made:1"], capture_output=True, check=True)
    opt = Path(mounted.stdout.decode().strip()) / "opt"
    try:
        assert sorted(os.listdir(opt)) == ["hard", "three", "two"]
        assert os.stat(opt / "hard").st_ino == os.stat(opt / "two").st_ino
        assert os.stat(opt / "three").st_mode & 0o7777 == 0o4711
    finally:
        subprocess.run([*podman, "image", "umount", "-a"], capture_output=True, check=True)
        shutil.rmtree(run)


def test_export_is_what_the_container_sees(unionctl: Unionctl, tmp_path: Path) -> None:
    unionctl("run", "--name", "ct", "-v", "vol:/data", "busybox", "sh", "-c", "rm /opt/one; echo x >/opt/new")
    unionctl("export", "-o", str(tmp_path / "tree.tar"), "ct")
    with tarfile.open(tmp_path / "tree.tar") as tar:
        names = set(tar.getnames())
    assert {"opt/new", "opt/two", "bin/busybox", "etc/passwd"} <= names
    assert not {"opt/one", "opt/.wh.one"} & names
    identifier = unionctl.out("import", "-m", "from a tree", str(tmp_path / "tree.tar"), "flat:1")
    assert unionctl.out("run", "--rm", "flat:1", "/bin/cat", "/opt/new") == "x"
    assert unionctl.out("history", "-q", "--no-trunc", "flat:1") == identifier
    assert len(json.loads(unionctl.out("inspect", "flat:1"))[0]["RootFS"]["Layers"]) == 1


def test_export_of_a_running_container(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "ct", "busybox", "sh", "-c", "echo x >/f; sleep 1000")
    with tarfile.open(fileobj=io.BytesIO(unionctl("export", "ct").stdout)) as tar:
        assert "f" in tar.getnames()
    assert len(unionctl.mounts()) == 1


def test_import_refuses_what_is_no_tar(unionctl: Unionctl) -> None:
    before = unionctl.out("images", "-q")
    assert "is not a tar" in unionctl.err("import", "-", "x", stdin=b"no tar at all" * 100, code=1)
    assert unionctl.out("images", "-q") == before
    assert "cannot read /nosuch" in unionctl.err("import", "/nosuch", code=1)


def test_history_of_an_image_that_tells_none(unionctl: Unionctl) -> None:
    lines = unionctl.out("history", "busybox").splitlines()
    assert lines[0].split() == ["IMAGE", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
    assert len(lines) == 4
    assert json.loads(unionctl.out("history", "--format", "json", "busybox").splitlines()[0])["Size"] == "6B"
