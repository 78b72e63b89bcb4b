"""Volumes, bind mounts and tmpfs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from unionctl_runner import Unionctl

from runtime.containers import mounts
from runtime.containers.mounts import Mount
from runtime.errors import RuntimeFailure

root_only = pytest.mark.root


def names(unionctl: Unionctl) -> list[str]:
    return unionctl.out("volume", "ls", "-q").split()


@root_only
def test_a_new_volume_begins_with_what_the_image_has(unionctl: Unionctl) -> None:
    unionctl(
        "run", "--rm", "-v", "vol:/data", "busybox", "sh", "-c", "echo mine > /data/mine; rm /data/inner/deep"
    )
    data = Path(unionctl.out("volume", "inspect", "-f", "{{.Mountpoint}}", "vol"))
    assert sorted(path.name for path in data.iterdir()) == ["inner", "link", "mine", "seed"]
    status = data.stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o750, 1000, 1000)
    status = (data / "seed").stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o640, 1000, 29)
    assert os.readlink(data / "link") == "seed"
    assert (data / "inner").stat().st_mode & 0o777 == 0o711
    # It is kept, and filled once only; the image is as it was.
    assert unionctl.out("run", "--rm", "-v", "vol:/data", "busybox", "ls", "/data/inner", "/data/mine") == (
        "/data/mine\n\n/data/inner:"
    )
    assert unionctl.out("run", "--rm", "busybox", "ls", "/data") == "inner\nlink\nseed"


@root_only
def test_a_volume_that_is_not_empty_hides_the_image(unionctl: Unionctl) -> None:
    unionctl("run", "--rm", "-v", "vol:/other", "busybox", "touch", "/other/x")
    assert unionctl.out("run", "--rm", "-v", "vol:/data", "busybox", "ls", "/data") == "x"
    unionctl("run", "--rm", "-v", "new:/data:nocopy", "busybox", "sh", "-c", 'test -z "$(ls /data)"')


@root_only
def test_a_bind_mount_hides_the_image(unionctl: Unionctl, tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "file").write_text("of the host\n")
    script = "ls /data; cat /data/file; echo back > /data/out"
    said = unionctl.out("run", "--rm", "-v", f"{tmp_path}/host:/data", "busybox", "sh", "-c", script)
    assert said == "file\nof the host"
    assert (tmp_path / "host" / "out").read_text() == "back\n"
    assert "Read-only" in unionctl.err(
        "run", "--rm", "-v", f"{tmp_path}/host:/data:ro", "busybox", "touch", "/data/x", code=1
    )


@root_only
def test_files_can_be_mounted(unionctl: Unionctl, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mounted\n")
    for target in ("/etc/text", "/new/place/file"):
        assert unionctl.out("run", "--rm", "-v", f"{file}:{target}:ro", "busybox", "cat", target) == "mounted"


@root_only
def test_a_missing_bind_source(unionctl: Unionctl, tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "deep"
    said = unionctl.err("run", "--mount", f"type=bind,src={missing},dst=/x", "busybox", "true", code=125)
    assert "bind source path does not exist" in said and not missing.exists()
    unionctl("run", "--rm", "-v", f"{missing}:/x", "busybox", "true")
    assert missing.is_dir()


@root_only
def test_mount_points_in_symlinks_stay_inside(unionctl: Unionctl, tmp_path: Path) -> None:
    unionctl("create", "--name", "one", "-v", "vol:/escape/made", "busybox", "touch", "/escape/made/x")
    target = tmp_path / "target"
    target.mkdir()
    (unionctl.directory("one") / "upper" / "escape").symlink_to(target)
    unionctl("start", "-a", "one", code=None)
    assert list(target.iterdir()) == []


@root_only
def test_tmpfs(unionctl: Unionctl) -> None:
    script = "stat -c %a /t; df -k /t | tail -1; ls /t; touch /t/x; mount | grep ' /t '"
    said = unionctl.out(
        "run", "--name", "one", "--tmpfs", "/t:size=2m,mode=711", "busybox", "sh", "-c", script
    )
    mode, size, mounted = said.splitlines()
    assert mode == "711" and size.split()[1] == "2048"
    assert {"noexec", "nosuid", "nodev"} <= set(mounted.split("(")[1].rstrip(")").split(","))
    option = "type=tmpfs,dst=/data,tmpfs-size=1m,tmpfs-mode=1700"
    result = unionctl(
        "run", "--rm", "--mount", option, "busybox", "dd", "if=/dev/zero", "of=/data/x", "bs=2M", code=1
    )
    assert b"No space left" in result.stderr
    assert len(unionctl.out("start", "-a", "one").splitlines()) == 3  # new, and empty, at each start


@root_only
def test_shm_size(unionctl: Unionctl) -> None:
    said = unionctl.out("run", "--rm", "--shm-size", "3m", "busybox", "df", "-k", "/dev/shm")
    assert said.splitlines()[1].split()[1] == "3072"


@root_only
def test_anonymous_volumes_go_with_their_container(unionctl: Unionctl) -> None:
    unionctl.load("data", Volumes={"/data": {}})
    assert unionctl.out("run", "--rm", "-v", "/anon", "data", "ls", "/data") == "inner\nlink\nseed"
    assert names(unionctl) == []
    unionctl("run", "--name", "one", "-v", "/anon", "-v", "named:/n", "data", "touch", "/data/x")
    assert len(names(unionctl)) == 3
    unionctl("run", "--name", "two", "data", "true")
    unionctl("rm", "-v", "one")
    assert len(names(unionctl)) == 2 and "named" in names(unionctl)
    unionctl("rm", "two")
    assert len(names(unionctl)) == 2
    said = unionctl.out("volume", "prune", "-f")
    assert said.startswith("Deleted Volumes:\n") and "Total reclaimed space: " in said
    assert names(unionctl) == ["named"]


@root_only
def test_a_named_mount_takes_the_place_of_the_images_volume(unionctl: Unionctl) -> None:
    unionctl.load("data", Volumes={"/data": {}})
    unionctl("run", "--rm", "-v", "mine:/data/", "data", "touch", "/data/x")
    assert names(unionctl) == ["mine"]


@root_only
def test_two_containers_share_a_volume(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "-v", "shared:/s", "busybox", "sleep", "1000")
    unionctl("run", "--rm", "-v", "shared:/s", "busybox", "sh", "-c", "echo hi > /s/x")
    assert unionctl.out("exec", "one", "cat", "/s/x") == "hi"
    said = unionctl.err("volume", "rm", "shared", code=1)
    assert "volume is in use" in said and unionctl.directory("one").name in said


@root_only
def test_volume_commands(unionctl: Unionctl) -> None:
    assert unionctl.out("volume", "create", "-l", "a=b", "vol") == "vol"
    assert unionctl.out("volume", "create", "vol") == "vol"
    assert len(unionctl.out("volume", "create")) == 64
    (shown,) = json.loads(unionctl.out("volume", "inspect", "vol"))
    assert shown["Labels"] == {"a": "b"} and shown["Driver"] == "local"
    assert unionctl.out("volume", "ls").splitlines()[0].split() == ["DRIVER", "VOLUME", "NAME"]
    assert unionctl.out("volume", "ls", "-q", "-f", "label=a=b") == "vol"
    assert unionctl.out("volume", "rm", "vol") == "vol"
    assert "no such volume" in unionctl.err("volume", "rm", "vol", code=1)
    assert "no such volume" in unionctl.err("volume", "inspect", "../containers", code=1)
    unionctl("volume", "rm", "-f", "vol")
    unionctl("volume", "create", "../x", code=1)
    unionctl("volume", "prune", "-af")
    assert names(unionctl) == []
    for wrong in ("no-such=filter", "dangling=x"):
        assert wrong.partition("=")[0] in unionctl.err("volume", "ls", "-f", wrong, code=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vol:/x", Mount("volume", "vol", "/x")),
        ("vol:/x:ro", Mount("volume", "vol", "/x", True)),
        ("vol:/x:nocopy", Mount("volume", "vol", "/x", copy_up=False)),
        ("/x/../y/", Mount("volume", "", "/y", anonymous=True)),
        ("/h:/x:ro,rslave", Mount("bind", "/h", "/x", True, ("rslave",), create_source=True)),
        ("/h:/x:z", Mount("bind", "/h", "/x", create_source=True)),
    ],
)
def test_volume_syntax(text: str, expected: Mount) -> None:
    assert mounts.parse_volume(text) == expected


@pytest.mark.parametrize(
    "text", ["", ":", "a:b", "vol:x", "/h:/", "/h:/x:what", "a:/b:ro:rw", "b@d:/x", "/h::ro"]
)
def test_wrong_volume_syntax(text: str) -> None:
    with pytest.raises(RuntimeFailure):
        mounts.parse_volume(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("src=vol,dst=/x", Mount("volume", "vol", "/x")),
        ("type=volume,target=/x,ro", Mount("volume", "", "/x", True, anonymous=True)),
        (
            "type=bind,source=/h,destination=/x,readonly=false",
            Mount("bind", "/h", "/x", False, ("rbind", "rprivate")),
        ),
        (
            "type=bind,src=/h,dst=/x,bind-propagation=shared",
            Mount("bind", "/h", "/x", False, ("rbind", "shared")),
        ),
    ],
)
def test_mount_syntax(text: str, expected: Mount) -> None:
    assert mounts.parse_mount(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "type=nfs,dst=/x",
        "type=bind,dst=/x",
        "type=tmpfs",
        "type=tmpfs,src=/a,dst=/x",
        "dst=x",
        "dst=/x,huh=1",
    ],
)
def test_wrong_mount_syntax(text: str) -> None:
    with pytest.raises(RuntimeFailure):
        mounts.parse_mount(text)


def test_sizes() -> None:
    sizes = {"1": 1, "2k": 2048, "256m": 256 << 20, "1.5g": 3 << 29, "10kb": 10240, "4KiB": 4096, "7b": 7}
    assert {text: mounts.size_in_bytes(text) for text in sizes} == sizes
    for text in ("", "-1", "m", "1x", "1 2"):
        with pytest.raises(RuntimeFailure):
            mounts.size_in_bytes(text)


def test_one_target_cannot_be_mounted_twice() -> None:
    with pytest.raises(RuntimeFailure, match="Duplicate mount point: /x"):
        mounts.combine([mounts.parse_volume("aa:/x"), mounts.parse_tmpfs("/x")], [])
    combined = mounts.combine([mounts.parse_volume("aa:/x/y"), mounts.parse_volume("bb:/x")], ["/x/", "/z"])
    assert [mount.target for mount in combined] == ["/x", "/x/y", "/z"]
