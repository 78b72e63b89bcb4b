"""unionctl diff: what docker would show."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from unionctl_runner import Unionctl

from runtime.containers.diff import changes
from runtime.containers.layers import Layers, make_init_layer

pytestmark = pytest.mark.root


def test_a_container_that_did_nothing_changed_nothing(unionctl: Unionctl) -> None:
    unionctl("run", "--name", "one", "busybox", "cat", "/etc/text")
    assert unionctl.out("diff", "one") == ""


def test_added_changed_deleted(unionctl: Unionctl) -> None:
    script = """
        echo new > /opt/new; echo more >> /opt/one; rm /opt/two; chmod 600 /etc/text
        mkdir -p /made/deep; touch /made/deep/file; rm -r /data/inner; mv /opt/three /tmp/three; ln -s x /link
    """
    unionctl("run", "--name", "one", "busybox", "sh", "-ec", script)
    assert unionctl.out("diff", "one").splitlines() == [
        "C /data",
        "D /data/inner",
        "C /etc",
        "C /etc/text",
        "A /link",
        "A /made",
        "A /made/deep",
        "A /made/deep/file",
        "C /opt",
        "A /opt/new",
        "C /opt/one",
        "D /opt/three",
        "D /opt/two",
        "C /tmp",
        "A /tmp/three",
    ]


def test_a_directory_made_anew_shows_what_is_gone(unionctl: Unionctl) -> None:
    script = "rm -r /opt; mkdir /opt; echo 1 > /opt/new; echo 2 > /opt/one"
    unionctl("run", "--name", "one", "busybox", "sh", "-ec", script)
    shown = ["C /opt", "A /opt/new", "C /opt/one", "D /opt/three", "D /opt/two"]
    assert unionctl.out("diff", "one").splitlines() == shown


def test_a_file_in_the_place_of_a_directory_and_the_other_way(unionctl: Unionctl) -> None:
    script = "rm -r /data; echo file > /data; rm /opt/one; mkdir /opt/one; touch /opt/one/in"
    unionctl("run", "--name", "one", "busybox", "sh", "-ec", script)
    shown = ["C /data", "C /opt", "C /opt/one", "A /opt/one/in"]
    assert unionctl.out("diff", "one").splitlines() == shown


def test_mount_points_show_only_where_the_image_has_none(unionctl: Unionctl, tmp_path: Path) -> None:
    options = ["-v", "vol1:/data", "-v", "vol2:/volume", "-v", f"{tmp_path}:/etc/new", "--tmpfs", "/opt"]
    unionctl("run", "--name", "one", *options, "busybox", "touch", "/volume/x", "/data/x", "/opt/x")
    assert unionctl.out("diff", "one").splitlines() == ["C /etc", "A /etc/new", "A /volume"]


def test_deleted_again_or_put_back_does_not_count(unionctl: Unionctl) -> None:
    script = """
        touch /x; rm /x; : >> /opt/one; chmod 600 /opt/two; chmod 644 /opt/two
    """
    unionctl("run", "--name", "one", "busybox", "sh", "-ec", script)
    assert unionctl.out("diff", "one") == ""


def test_running_containers_have_a_diff_too(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "busybox", "sleep", "1000")
    unionctl("exec", "one", "touch", "/here")
    assert unionctl.out("diff", "one") == "A /here"
    unionctl("create", "--name", "two", "busybox")
    assert unionctl.out("diff", "two") == ""


def test_both_conventions_are_read(tmp_path: Path) -> None:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    for name in ("device", "marker", "kept", "opaque/one", "opaque/two", "xattr/one"):
        (lower / name).parent.mkdir(parents=True, exist_ok=True)
        (lower / name).touch()
    upper.mkdir()
    os.mknod(upper / "device", 0o20000, os.makedev(0, 0))
    (upper / ".wh.marker").touch()
    (upper / ".wh.never-was").touch()
    (upper / "opaque").mkdir()
    (upper / "opaque" / ".wh..wh..opq").touch()
    (upper / "opaque" / "two").touch()
    os.utime(upper / "opaque" / "two", ns=(0, (lower / "opaque" / "two").stat().st_mtime_ns))
    (upper / "xattr").mkdir()
    os.setxattr(upper / "xattr", "trusted.overlay.opaque", b"y")
    shown = [str(change) for change in changes(upper, Layers([lower]))]
    assert shown == ["D /device", "D /marker", "C /opaque", "D /opaque/one", "C /xattr", "D /xattr/one"]


def test_init_layer_holds_only_what_the_image_lacks(tmp_path: Path) -> None:
    lower, init, outside = tmp_path / "lower", tmp_path / "init", tmp_path / "outside"
    for directory in (lower / "etc", lower / "proc", init, outside):
        directory.mkdir(parents=True)
    (lower / "etc").chmod(0o711)
    os.chown(lower / "etc", 12, 34)
    (lower / "etc" / "hosts").touch()
    os.utime(lower / "etc", (1, 1))
    (lower / "dev").symlink_to(outside)
    make_init_layer(init, Layers([lower]))
    found = sorted(str(path.relative_to(init)) for path in init.rglob("*"))
    assert found == ["etc", "etc/hostname", "etc/resolv.conf", "sys"]
    status = (init / "etc").stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_mtime) == (0o711, 12, 34, 1)
    assert list(outside.iterdir()) == []
