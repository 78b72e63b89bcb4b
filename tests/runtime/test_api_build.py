"""docker build, commit, save, export, import and history against `unionctl serve`."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import PATIENCE, Served
from support.layers import build as make
from unionctl_runner import busybox_archive, dead_cgroups, eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not shutil.which("docker"), reason="needs the docker command"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    cgroups = dead_cgroups()
    served = Served(tmp_path_factory.mktemp("api"))
    served.start()
    served.docker("load", stdin=busybox_archive())
    yield served
    words = served.stop()
    served.unionctl.end(cgroups)
    assert "Traceback" not in words, words


@pytest.fixture
def served(server: Served) -> Iterator[Served]:
    yield server
    server.remove_all()


def context(place: Path, *lines: str) -> str:
    make(
        place,
        {"Dockerfile": "\n".join(lines), "file": "content\n", ".dockerignore": "left-out", "left-out": ""},
    )
    return str(place)


def test_build(served: Served, tmp_path: Path) -> None:
    place = context(
        tmp_path / "context",
        "FROM busybox AS one",
        "ARG V=1",
        "RUN echo built $V >/built; echo said; echo ü >&2",
        "COPY . /all/",
        "FROM one",
        'CMD ["cat", "/built"]',
    )
    options = ("--build-arg", "V=2", "--label", "l=x", "-t", "made:1", "-t", "other")
    said = served.out("build", *options, place)
    for words in ("Step 1/6 : FROM busybox AS one\n", "said\n", "ü\n", "Successfully tagged made:1\n"):
        assert words in said, said
    assert served.out("run", "--rm", "made:1") == "built 2"
    assert served.out("run", "--rm", "other", "ls", "-A", "/all") == ".dockerignore\nDockerfile\nfile"
    again = served.out("build", "-q", *options, place)
    assert again == served.inspect("made:1")["Id"]
    assert served.out("build", "--target", "one", "--build-arg", "V=2", place).count("Using cache") == 2
    piped = served.docker("build", "-t", "piped", "-", stdin=b"FROM busybox\nENV A=b")
    assert b"Successfully built" in piped.stdout
    assert "A=b" in served.inspect("piped")["Config"]["Env"]
    assert (
        json.loads(served.out("history", "--format", "json", "made:1").splitlines()[0])["CreatedBy"]
        == "LABEL l=x"
    )


def test_builds_that_fail(served: Served, tmp_path: Path) -> None:
    failing = context(tmp_path / "failing", "FROM busybox", "RUN echo said; exit 7")
    result = served.docker("build", failing, code=7)
    assert b"returned a non-zero code: 7" in result.stderr and b"said\n" in result.stdout
    wrong = context(tmp_path / "wrong", "FROM busybox", "RUNN x")
    assert b"unknown instruction: RUNN" in served.docker("build", wrong, code=1).stderr
    missing = context(tmp_path / "missing", "FROM busybox", "COPY none /")
    assert b"file not found" in served.docker("build", missing, code=1).stderr
    assert served.unionctl.out("ps", "-aq") == ""


def test_a_client_that_goes_ends_the_build(served: Served, tmp_path: Path) -> None:
    place = context(tmp_path / "context", "FROM busybox", "RUN echo begun; sleep 1000")
    process = served.popen("build", place, stdout=subprocess.PIPE)
    assert process.stdout is not None
    while (line := process.stdout.readline()) != b"begun\n":
        assert line
    process.terminate()
    process.communicate(timeout=PATIENCE)
    assert eventually(lambda: not served.unionctl.mounts(), PATIENCE)
    assert eventually(lambda: served.unionctl.out("ps", "-aq") == "", PATIENCE)


def test_commit_save_export_and_import(served: Served, tmp_path: Path) -> None:
    served.docker("run", "--name", "changed", "busybox", "sh", "-c", "echo new >/new; rm /opt/one")
    identifier = served.out(
        "commit", "-m", "words", "-a", "me", "-c", 'CMD ["cat", "/new"]', "changed", "made:2"
    )
    assert served.out("run", "--rm", "made:2") == "new"
    details = served.inspect("made:2")
    assert (details["Id"], details["Author"]) == (identifier, "me")
    archive = tmp_path / "saved.tar"
    served.docker("save", "-o", str(archive), "made:2", "busybox")
    served.docker("rmi", "made:2")
    assert "Loaded image: made:2" in served.out("load", "-i", str(archive))
    assert served.inspect("made:2")["Id"] == identifier
    exported = served.docker("export", "changed").stdout
    with tarfile.open(fileobj=io.BytesIO(exported)) as tar:
        names = set(tar.getnames())
    assert "new" in names and "opt/one" not in names
    flat = (
        served.docker("import", "-c", "CMD cat /new", "-", "flat:1", stdin=exported).stdout.decode().strip()
    )
    assert served.inspect("flat:1")["Id"] == flat
    assert served.out("run", "--rm", "flat:1") == "new"
    assert b"No such image" in served.docker("save", "-o", str(archive), "nosuch", code=1).stderr
