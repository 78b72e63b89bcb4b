"""unionctl cp: files into containers and out of them, whatever a container puts in the way."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from unionctl_runner import Unionctl, dead_cgroups, eventually

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unionctl]:
    """One that runs (`up`) and one that was never started (`down`), both with a volume."""
    cgroups = dead_cgroups()
    unionctl = Unionctl(tmp_path_factory.mktemp("cp") / "state")
    unionctl.load()
    unionctl("run", "-d", "--name", "up", "-v", "kept:/vol", "--tmpfs", "/mem", "busybox", "sleep", "1000")
    unionctl("run", "--name", "down", "-v", "kept:/vol", "busybox", "true")
    yield unionctl
    unionctl.end(cgroups)


@pytest.fixture(params=["up", "down"])
def box(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def content(unionctl: Unionctl, box: str, path: str) -> bytes:
    """The file `path` as cp gives it as a tar."""
    data = unionctl("cp", f"{box}:{path}", "-").stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        member = tar.next()
        assert member is not None
        file = tar.extractfile(member)
        assert file is not None
        return file.read()


def test_a_file_out(shared: Unionctl, box: str, tmp_path: Path) -> None:
    shared("cp", f"{box}:/etc/text", str(tmp_path / "new"))
    assert (tmp_path / "new").read_text() == "a text\n"
    shared("cp", f"{box}:/etc/text", str(tmp_path))
    assert (tmp_path / "text").read_text() == "a text\n"
    shared("cp", f"{box}:etc/text", str(tmp_path / "new"))
    assert "no such directory" in shared.err("cp", f"{box}:/etc/text", str(tmp_path / "no/such"), code=1)
    assert "no such directory" in shared.err("cp", f"{box}:/etc/text", f"{tmp_path}/no/", code=1)
    assert "no such file" in shared.err("cp", f"{box}:/no/such", str(tmp_path), code=1)
    assert not list(tmp_path.glob(".*"))


def test_a_directory_out(shared: Unionctl, box: str, tmp_path: Path) -> None:
    shared("cp", f"{box}:/data", str(tmp_path / "new"))  # what is not there becomes it
    assert sorted(os.listdir(tmp_path / "new")) == ["inner", "link", "seed"]
    shared("cp", f"{box}:/data", str(tmp_path))  # what is there gets it
    assert (tmp_path / "data/inner/deep").read_text() == "deep\n"
    shared("cp", f"{box}:/data/.", str(tmp_path))  # and its content
    assert os.readlink(tmp_path / "link") == "seed"
    (tmp_path / "file").touch()
    assert "cannot copy directory" in shared.err("cp", f"{box}:/data", str(tmp_path / "file"), code=1)


def test_owners_are_kept_when_asked_for(shared: Unionctl, box: str, tmp_path: Path) -> None:
    shared("cp", f"{box}:/data/seed", str(tmp_path / "mine"))
    shared("cp", "-a", f"{box}:/data/seed", str(tmp_path / "theirs"))
    mine, theirs = (tmp_path / "mine").stat(), (tmp_path / "theirs").stat()
    assert (mine.st_uid, mine.st_gid) == (os.geteuid(), 0)
    assert (theirs.st_uid, theirs.st_gid, stat.S_IMODE(theirs.st_mode)) == (1000, 29, 0o640)
    assert theirs.st_mtime == 1_600_000_000


def test_into_it(shared: Unionctl, box: str, tmp_path: Path) -> None:
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/file").write_text("content")
    (tmp_path / "tree/run").write_text("#!")
    (tmp_path / "tree/run").chmod(0o4755)
    (tmp_path / "tree/link").symlink_to("sub/file")
    os.link(tmp_path / "tree/sub/file", tmp_path / "tree/hard")
    os.mkfifo(tmp_path / "tree/fifo")
    shared("cp", str(tmp_path / "tree"), f"{box}:/opt")
    assert content(shared, box, "/opt/tree/sub/file") == b"content"
    shared("cp", f"{tmp_path}/tree/.", f"{box}:/opt")
    shared("cp", str(tmp_path / "tree/sub/file"), f"{box}:/opt/one")  # over a file
    assert content(shared, box, "/opt/one") == b"content"
    shared("cp", "-a", f"{box}:/opt/tree", str(tmp_path / "back"))
    assert stat.S_IMODE((tmp_path / "back/run").stat().st_mode) == 0o4755
    assert os.readlink(tmp_path / "back/link") == "sub/file"
    assert os.path.samefile(tmp_path / "back/hard", tmp_path / "back/sub/file")
    assert stat.S_ISFIFO((tmp_path / "back/fifo").stat().st_mode)
    assert "no such directory" in shared.err("cp", str(tmp_path / "tree"), f"{box}:/no/such", code=1)
    words = shared.err("cp", f"{tmp_path}/tree/sub/file", f"{box}:/opt/tree/sub/file/", code=1)
    assert "no such directory" in words


def test_a_volume_is_seen(shared: Unionctl, box: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(box)
    shared("cp", str(tmp_path / "file"), f"{box}:/vol/{box}")
    assert (shared.root / f"volumes/kept/_data/{box}").read_text() == box
    assert content(shared, box, f"/vol/{box}") == box.encode()
    assert len(shared.mounts()) == 1  # of the one that runs


def test_streams(shared: Unionctl, box: str) -> None:
    data = shared("cp", f"{box}:/data", "-").stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert sorted(tar.getnames()) == ["data", "data/inner", "data/inner/deep", "data/link", "data/seed"]
    shared("cp", "-", f"{box}:/tmp", stdin=data)
    assert content(shared, box, "/tmp/data/inner/deep") == b"deep\n"
    assert "invalid tar" in shared.err("cp", "-", f"{box}:/tmp", stdin=b"no tar" * 1000, code=1)
    assert "not a directory" in shared.err("cp", "-", f"{box}:/etc/text", stdin=data, code=1)


def test_links_are_followed_when_asked_for(shared: Unionctl, box: str, tmp_path: Path) -> None:
    shared("cp", f"{box}:/data/link", str(tmp_path / "link"))
    assert os.readlink(tmp_path / "link") == "seed"
    shared("cp", "-L", f"{box}:/data/link", str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "seed\n"


def test_symlinks_do_not_lead_out(shared: Unionctl, box: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("the host's")
    (tmp_path / "links").mkdir()
    (tmp_path / "links/away").symlink_to(secret)
    (tmp_path / "links/up").symlink_to("../../../../../../../../../.." + str(secret))
    (tmp_path / "links/proc").symlink_to(f"/proc/self/root{secret}")
    shared("cp", f"{tmp_path}/links/.", f"{box}:/root")
    for name in ("away", "up", "proc"):
        assert "no such" in shared.err("cp", f"{box}:/root/{name}/file", str(tmp_path / "got"), code=1)
        shared("cp", str(tmp_path / "secret/file"), f"{box}:/root/{name}/new", code=1)
        shared("cp", "-L", f"{box}:/root/{name}", str(tmp_path / "got"), code=1)
    assert os.listdir(secret) == ["file"]
    # A tar that brings its own way out.
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, target in (("x", tarfile.SYMTYPE, str(secret)), ("x/evil", tarfile.REGTYPE, "")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
        up = tarfile.TarInfo("../../../../../../../../evil")
        tar.addfile(up)
        hard = tarfile.TarInfo("hard")
        hard.type, hard.linkname = tarfile.LNKTYPE, str(secret / "file")
        tar.addfile(hard)
    shared("cp", "-", f"{box}:/tmp", stdin=out.getvalue(), code=1)
    assert os.listdir(secret) == ["file"]
    assert not Path("/evil").exists()


def test_a_mounted_file_is_written_in_place(shared: Unionctl, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("127.0.0.1 new\n")
    shared("cp", str(tmp_path / "hosts"), "up:/etc/hosts")
    assert shared.out("exec", "up", "cat", "/etc/hosts") == "127.0.0.1 new"
    shared("cp", str(tmp_path / "hosts"), "up:/mem")
    assert shared.out("exec", "up", "cat", "/mem/hosts") == "127.0.0.1 new"


def test_a_killed_copy_leaves_no_harm(shared: Unionctl) -> None:
    process = shared.popen("cp", "-", "down:/tmp", stdin=-1)
    assert eventually(lambda: len(shared.mounts()) > 1)
    process.kill()
    process.communicate()
    shared("start", "-a", "down")
    assert eventually(lambda: len(shared.mounts()) == 1)


def test_words_that_make_no_sense(shared: Unionctl, tmp_path: Path) -> None:
    assert "between containers" in shared.err("cp", "up:/etc/text", "down:/", code=1)
    assert "at least one container" in shared.err("cp", "/etc/hostname", str(tmp_path), code=1)
    assert "No such container" in shared.err("cp", "nosuch:/x", str(tmp_path), code=1)
