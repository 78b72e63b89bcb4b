"""The same Dockerfiles built by us and by buildah: the same files, the same config."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.layers import Dir, File, HardLink, Symlink
from support.layers import build as make
from support.snapshot import Picture, differences, snapshot
from unionctl_runner import Unionctl, dead_cgroups

from runtime.containers import rootfs
from runtime.images.store import ImageStore
from runtime.root import Root

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not shutil.which("buildah"), reason="needs buildah"),
]

FILES = {
    "a.txt": "a\n",
    "b.txt": File(content="b\n", mode=0o711, owner=(3, 4)),
    "left.out": "",
    "app": {
        "main": File(content="#!/bin/sh\necho main\n", mode=0o755),
        "twin": HardLink("app/main"),
        "link": Symlink(target="main"),
        "conf": Dir(
            mode=0o750, names={"x.conf": "x\n", "y.conf": "y\n", "deep": {"left.out": "", "z": "z\n"}}
        ),
        "empty": {},
    },
    ".dockerignore": "# not these\n**/*.out\n.dockerignore\nDockerfile*\n",
}

DOCKERFILES = {
    "copies": """
        FROM busybox
        COPY a.txt /one
        COPY a.txt b.txt /several/
        COPY *.txt /globbed/
        COPY app /srv/app/
        COPY --chown=1000:29 app/conf /owned/
        COPY --chown=alice a.txt /opt/
        WORKDIR /work
        COPY . .
        COPY app/link ./followed
        ADD a.txt packed.tar.gz /added/
    """,
    "runs": """
        FROM busybox
        ENV WHO=world GREETING="hello $WHO" PATH=/opt:$PATH
        RUN echo "$GREETING" >/greeting && mkdir -p /new/dir && ln /opt/one /opt/hard && chmod 700 /opt/two
        RUN rm -r /data /opt/three && mkdir /data && echo again >/data/again
        RUN mv /opt /moved; ln -s /moved/one /symlink; mkfifo /fifo; chown -R alice:audio /moved
        WORKDIR /w/x
        RUN ["sh", "-c", "pwd >/pwd; id -un >/id"]
        USER alice
        WORKDIR y
        RUN id -un >/tmp/id; touch /tmp/mine
    """,
    "settings": r"""
        ARG TAG=latest
        FROM busybox:$TAG AS base
        ARG NAME=anyone
        ARG UNSET
        ENV A=1 B="two words" C='$A' D=\$A \
            E=${A:-x}${UNSET:-default}${A:+set}
        ENV OLD the old form
        LABEL name=$NAME "two words"="a b" multi="x \
        y"
        EXPOSE 80 443/tcp 53/udp
        VOLUME /vol /other
        USER alice:audio
        STOPSIGNAL SIGQUIT
        HEALTHCHECK --interval=10s --timeout=3s --retries=2 CMD test -e /x
        ENTRYPOINT echo entry
        CMD echo $HOME
        SHELL ["/bin/ash", "-c"]
        ONBUILD RUN echo later
        MAINTAINER Some One <one@example.com>
        FROM base
        CMD ["plain", "words"]
    """,
    "stages": """
        FROM busybox AS first
        COPY --chown=5:6 a.txt /made/first
        RUN echo from first >/made/words
        FROM busybox AS second
        COPY --from=first /made /taken
        COPY --from=0 /made/words /words
        COPY --from=busybox /data /data2
        FROM second
        ENTRYPOINT ["/bin/cat"]
        CMD ["/words"]
    """,
}


class Buildah:
    """buildah with a storage of its own, without any driver of ours."""

    def __init__(self, place: Path) -> None:
        self._run = Path(tempfile.mkdtemp(dir="/tmp"))  # buildah refuses long paths here
        self._options = ["--storage-driver", "vfs", "--root", str(place), "--runroot", str(self._run)]

    def __call__(self, *words: str | Path) -> str:
        result = subprocess.run(["buildah", *self._options, *words], capture_output=True, timeout=180)
        assert result.returncode == 0, (words, result.stderr)
        return result.stdout.decode().strip()

    def end(self) -> None:
        """Remove all."""
        self("rm", "-a")
        self("rmi", "-a", "-f")
        shutil.rmtree(self._run)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unionctl]:
    cgroups = dead_cgroups()
    runner = Unionctl(tmp_path_factory.mktemp("ours") / "state")
    runner.load()
    yield runner
    runner.end(cgroups)


@pytest.fixture(scope="module")
def buildah(ours: Unionctl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    place = tmp_path_factory.mktemp("buildah")
    # buildah wants a history that tells of all layers: so we make the base, and it loads what we save.
    ours("build", "--no-pull", "-q", "-t", "busybox", "-", stdin=b"FROM busybox\nLABEL base=ours")
    ours("save", "-o", str(place / "busybox.tar"), "busybox")
    peer = Buildah(place / "graph")
    try:
        peer("pull", "-q", f"docker-archive:{place}/busybox.tar")
        yield peer
    finally:
        peer.end()


@pytest.fixture
def context(tmp_path: Path) -> Path:
    place = tmp_path / "context"
    make(place, FILES)
    (tmp_path / "packed").write_text("packed\n")
    subprocess.run(["tar", "-czf", place / "packed.tar.gz", "-C", tmp_path, "packed"], check=True)
    for name, text in DOCKERFILES.items():
        (place / f"Dockerfile.{name}").write_text(
            "\n".join(line.strip() for line in text.strip().splitlines())
        )
    return place


#: Places that buildah mounts something on, and leaves there; what VOLUME names is one of them.
STUBS = {b"dev", b"proc", b"run", b"sys", b"etc/hostname", b"etc/hosts", b"etc/resolv.conf", b"vol", b"other"}
NEW_NS = 1_700_000_000 * 10**9


def plain(pictures: dict[bytes, Picture]) -> dict[bytes, Picture]:
    """Without what builders do not agree on.

    That is the root's own attributes, nanoseconds, and the times of what was made just now.
    """
    return {
        path: replace(picture, mtime_ns=0 if _is_new(path, picture) else picture.mtime_ns // 10**9)
        for path, picture in pictures.items()
        if path != b"." and path not in STUBS
    }


def _is_new(path: bytes, picture: Picture) -> bool:
    return picture.mtime_ns > NEW_NS or path == b"etc"


def tree_of(state: Path, name: str, place: Path) -> dict[bytes, Picture]:
    """All that an image of ours holds."""
    image = ImageStore(Root(state)).resolve(name)
    place.mkdir()
    rootfs.mount_read_only(list(reversed(image.trees)), place)
    try:
        return plain(snapshot(place))
    finally:
        rootfs.unmount(place)


def config_of(value: dict[str, Any]) -> dict[str, Any]:
    """What of a config says how an image is run, without the order of variables and buildah's own label."""
    labels = {key: text for key, text in (value.get("Labels") or {}).items() if key != "io.buildah.version"}
    whole = {**value, "Labels": labels, "Env": sorted(value["Env"])}
    whole.pop("Hostname", None)
    return {key: found for key, found in whole.items() if found not in (None, "", [], {}, False)}


@pytest.mark.parametrize("name", DOCKERFILES)
def test_buildah_makes_the_same(
    ours: Unionctl, buildah: Buildah, context: Path, tmp_path: Path, name: str
) -> None:
    file = context / f"Dockerfile.{name}"
    ours("build", "--no-pull", "-q", "-t", name, "-f", str(file), str(context), timeout=180)
    buildah("build", "-q", "--isolation", "chroot", "--format", "docker", "-t", name, "-f", file, context)
    theirs = buildah("from", "--pull-never", name)
    mounted = Path(buildah("mount", theirs))
    assert differences(tree_of(ours.root, name, tmp_path / "tree"), plain(snapshot(mounted))) == []
    document = json.loads(ours.out("inspect", "--type", "image", name))[0]
    said = json.loads(buildah("inspect", "--type", "image", name))["Docker"]
    assert config_of(document["Config"]) == config_of(said["config"])
    assert document["Author"] == said.get("author", "")
