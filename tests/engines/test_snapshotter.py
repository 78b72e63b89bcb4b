"""containerd on unionfs-snapshotter: containers, diff and commit, and the snapshotter's sudden death."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import image
import pytest
from containerd import Containerd
from machine import BIN, PATIENCE, left_mounted, needs, public_place, run
from support.union import wait_until

pytestmark = pytest.mark.root
needs("containerd", "ctr", "runc", "mount.fuse3")
pytest.importorskip("grpc")


@pytest.fixture(scope="module")
def engine() -> Iterator[Containerd]:
    with public_place() as place, closing(Containerd(place)) as made:
        made.start_snapshotter()
        made.start()
        made.ctr("images", "import", "--snapshotter", "unionfs", image.write(place / "image.tar"))
        yield made
        made.ctr("images", "rm", "--sync", image.NAME)
        wait_until(lambda: not os.listdir(made.snapshots), "the files of all snapshots are removed", PATIENCE)
        assert not left_mounted(place)
        made.stop_snapshotter()


def ctr_run(engine: Containerd, name: str, *words: str, options: tuple[str, ...] = ("--rm",)) -> str:
    return engine.ctr("run", "--snapshotter", "unionfs", *options, image.NAME, name, *words)


def remove(engine: Containerd, name: str) -> None:
    """Kill a container and remove it, with its snapshot."""
    engine.ctr("tasks", "rm", "--force", name, code=None)
    engine.ctr("containers", "rm", name)


def shell(engine: Containerd, name: str, script: str) -> str:
    return engine.ctr("tasks", "exec", "--exec-id", "script", name, "sh", "-ec", script)


def snapshots(engine: Containerd) -> dict[str, str]:
    """Kind by key."""
    lines = engine.ctr("snapshots", "ls").splitlines()[1:]
    return {line.split()[0]: line.split()[-1] for line in lines}


def test_a_container_stands_on_a_union(engine):
    script = """grep ' / ' /proc/mounts; ls -d /*
    ls /kept /opaque; cat /replaced /data/two; stat -c %h:%u:%a /data/one"""
    said = ctr_run(engine, "look", "sh", "-ec", script)
    assert said.startswith("overlay / fuse.unionfs rw,")
    words = said.split("\n", 1)[1].split()
    assert "/gone" not in words and "/removed" not in words
    assert words[words.index("/kept:") :] == "/kept: deep new /opaque: new a file now one 2:1000:644".split()


def test_diff_and_commit(engine):
    ctr_run(engine, "writer", "sleep", "1000", options=("-d",))
    shell(engine, "writer", "echo new >/new; rm /replaced /bin/vi; rm -r /kept")
    shell(engine, "writer", "touch /data/one; mkdir -p /opaque/x; chown 7 /data/big")
    before = _names(engine, "writer")
    expected = ".wh.replaced bin/.wh.vi .wh.kept new data/one opaque/x data/big"
    assert set(expected.split()) <= before.keys()
    assert before["data/two"].linkname == "data/one" and before["data/big"].uid == 7
    assert "opaque/new" not in before and "data/attributes" not in before

    engine.ctr("tasks", "rm", "--force", "writer")
    engine.ctr("snapshots", "commit", "written", "writer")
    assert snapshots(engine)["written"] == "Committed" and "writer" not in snapshots(engine)
    engine.ctr("snapshots", "prepare", "again", "written")
    with _mounted(engine, "again") as root:
        assert (root / "new").read_text() == "new\n" and not (root / "kept").exists()
        assert (root / "data/big").stat().st_uid == 7 and os.listdir(root / "opaque/x") == []
    usage = {line.split()[0]: line.split()[1:] for line in engine.ctr("snapshots", "usage").splitlines()[1:]}
    assert usage["written"][:2] == ["1.0", "MiB"]  # the one large file of which the owner was changed
    engine.ctr("snapshots", "rm", "again")
    engine.ctr("containers", "rm", "writer")
    engine.ctr("snapshots", "rm", "written")
    assert list(snapshots(engine).values()) == ["Committed"] * 3


def test_ids_of_a_user_namespace_are_shown_without_a_chown(engine):
    options = ("--rm", "--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536", "--remap-labels")
    script = "echo x >/x; stat -c %u /x /data/big /data/one; cat /proc/self/uid_map"
    said = ctr_run(engine, "mapped", "sh", "-ec", script, options=options)
    assert said.split() == ["0", "0", "1000", "0", "100000", "65536"]


def test_the_snapshotter_dies_and_comes_back(engine):
    ctr_run(engine, "first", "sleep", "1000", options=("-d",))
    shell(engine, "first", "echo before >/word")
    engine.kill_snapshotter()
    assert shell(engine, "first", "echo and after >>/word; cat /word") == "before\nand after"
    ctr = ["ctr", "-a", engine.socket, "-n", engine.namespace]
    refused = subprocess.run(
        [*ctr, "run", "--snapshotter", "unionfs", image.NAME, "second", "true"], capture_output=True
    )
    assert refused.returncode != 0
    (engine.snapshots / "999").mkdir()  # as if it had been killed in the middle of a Prepare
    engine.start_snapshotter()
    assert not (engine.snapshots / "999").exists()
    assert shell(engine, "first", "cat /word") == "before\nand after"
    wait_until(lambda: _answers(engine), "containerd has found its snapshotter again", PATIENCE)
    engine.ctr("containers", "rm", "second", code=None)
    assert ctr_run(engine, "third", "cat", "/data/one") == "one"
    remove(engine, "first")
    assert list(snapshots(engine).values()) == ["Committed"] * 3


def test_a_root_is_one_snapshotters(engine):
    words = [
        BIN / "unionfs-snapshotter",
        "--root",
        engine.place / "snapshotter",
        "--address",
        engine.place / "s",
    ]
    second = subprocess.run(words, capture_output=True, timeout=PATIENCE)
    assert second.returncode == 1
    root = engine.place / "snapshotter"
    assert second.stderr.decode() == f"unionfs-snapshotter: {root}: another unionfs-snapshotter works here\n"


def test_what_the_service_refuses(engine):
    import grpc

    from runtime.snapshotter import snapshots_pb2 as pb
    from runtime.snapshotter.service import NAME

    with grpc.insecure_channel(f"unix:{engine.place}/snapshotter.sock") as channel:

        def call(method: str, request: object) -> bytes:
            return channel.unary_unary(
                f"/{NAME}/{method}", request_serializer=lambda message: message.SerializeToString()
            )(request, timeout=PATIENCE)

        def status(method: str, request: object) -> str:
            with pytest.raises(grpc.RpcError) as caught:
                call(method, request)
            return caught.value.code().name

        assert status("Stat", pb.KeyRequest(key="none")) == "NOT_FOUND"
        assert status("Prepare", pb.PrepareRequest(key="")) == "INVALID_ARGUMENT"
        assert status("Prepare", pb.PrepareRequest(key="x", parent="none")) == "NOT_FOUND"
        labels = {"containerd.io/snapshot/uidmapping": "0:x:1"}
        assert status("Prepare", pb.PrepareRequest(key="x", labels=labels)) == "INVALID_ARGUMENT"
        call("Prepare", pb.PrepareRequest(key="ns/1/one", labels={"a": "1"}))
        assert status("Prepare", pb.PrepareRequest(key="ns/1/one")) == "ALREADY_EXISTS"
        call("Commit", pb.CommitRequest(key="ns/1/one", name="ns/2/done", labels={"b": "2"}))
        assert status("Commit", pb.CommitRequest(key="ns/2/done", name="x")) == "FAILED_PRECONDITION"
        assert status("Mounts", pb.KeyRequest(key="ns/2/done")) == "FAILED_PRECONDITION"
        call("View", pb.PrepareRequest(key="ns/3/look", parent="ns/2/done"))
        assert status("Remove", pb.KeyRequest(key="ns/2/done")) == "FAILED_PRECONDITION"
        listing = channel.unary_stream(
            f"/{NAME}/List",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=pb.ListResponse.FromString,
        )
        answers = listing(pb.ListRequest(filters=["labels.b==2", "kind==view"]), timeout=PATIENCE)
        found = {info.name: info for answer in answers for info in answer.info}
        assert sorted(found) == ["ns/2/done", "ns/3/look"]
        assert found["ns/2/done"].kind == pb.COMMITTED and dict(found["ns/2/done"].labels) == {"b": "2"}
        call("Remove", pb.KeyRequest(key="ns/3/look"))
        call("Remove", pb.KeyRequest(key="ns/2/done"))
        call("Cleanup", pb.CleanupRequest())


def _answers(engine: Containerd) -> bool:
    ctr = ["ctr", "-a", engine.socket, "-n", engine.namespace, "snapshots", "--snapshotter", "unionfs", "ls"]
    return subprocess.run(ctr, capture_output=True).returncode == 0


@contextlib.contextmanager
def _mounted(engine: Containerd, key: str) -> Iterator[Path]:
    """A snapshot, mounted as its mounts say."""
    root = engine.place / "mnt"
    root.mkdir(exist_ok=True)
    kind, source, target, _, options = engine.ctr("snapshots", "mounts", root, key).split()[2:]
    run(kind.removeprefix("fuse3."), source, target, "-o", options)
    try:
        yield root
    finally:
        run("fusermount3", "-u", root)


def _names(engine: Containerd, key: str) -> dict[str, tarfile.TarInfo]:
    """The entries of a snapshot's diff."""
    ctr = ["ctr", "-a", engine.socket, "-n", engine.namespace, "snapshots", "--snapshotter", "unionfs"]
    data = subprocess.run([*ctr, "diff", key], capture_output=True, check=True, timeout=PATIENCE).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {info.name.rstrip("/"): info for info in archive}
