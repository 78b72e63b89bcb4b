"""`fuse-overlayfs` and `unionfs` as container engines call them: captured command lines, in full."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.layers import build
from support.union import detach, mounts_at, wait_until

pytestmark = pytest.mark.root


class Store:
    """A graph root as engines lay it out: layers, symlinks to them in `l`, and a container's directories."""

    def __init__(self, place: Path) -> None:
        self.root = place / "overlay"
        self.program = place / "bin" / "fuse-overlayfs"
        self.program.parent.mkdir()
        self.program.symlink_to(Path(sys.executable).with_name("unionfs"))
        build(self.root / "top" / "diff", {"a": "top", ".wh.gone": ""})
        build(self.root / "base" / "diff", {"a": "base", "gone": "x", "d": {"f": "1"}})
        (self.root / "l").mkdir()
        for name in ("top", "base"):
            (self.root / "l" / name.upper()).symlink_to(f"../{name}/diff")
        for name in ("diff", "work", "merged"):
            (self.root / "c" / name).mkdir(parents=True)
        self.merged = self.root / "c" / "merged"
        self.work = self.root / "c" / "work"
        self.lowers = f"lowerdir={self.root}/l/TOP:{self.root}/l/BASE"
        self.upper = f"upperdir={self.root}/c/diff,workdir={self.root}/c/work"

    def call(self, *arguments: str | Path, code: int = 0, **environment: str) -> str:
        """Call it as Podman does: waiting for its end and for stderr to be closed. Returns what it says."""
        done = subprocess.run(
            [self.program, *arguments],
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, **environment},
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        return done.stdout + done.stderr

    def unmount(self) -> None:
        """As engines unmount: not lazily, and not waiting for the server."""
        subprocess.run(["fusermount3", "-u", self.merged], check=True, timeout=60)


@pytest.fixture
def store(place: Path) -> Iterator[Store]:
    made = Store(place)
    yield made
    assert not detach(place), "something was left mounted"


@pytest.mark.parametrize(
    "more",
    [
        ",,volatile",
        ",",
        ",fsync=0,volatile",
        ',context="system_u:object_r:container_file_t:s0:c1,c2",',
        ",uidmapping=:0:0:65536,gidmapping=:0:0:65536",
        ",redirect_dir=off,xino=auto,static_nlink,noacl,plugins=x,threaded=0,fast_ino=1,writeback=0,timeout=7,ino32_t",
        ",index=on,uperdir=x,no-such=1",
    ],
)
def test_calls_of_podman(store, more):
    said = store.call("-o", f"{store.lowers},{store.upper}{more}", store.merged)
    assert ("unknown option ignored: uperdir=x" in said) == ("uperdir" in more)
    assert sorted(os.listdir(store.merged)) == ["a", "d"]
    assert (store.merged / "a").read_text() == "top"
    (store.merged / "new").write_text("new")
    store.unmount()
    assert (store.root / "c" / "diff" / "new").read_text() == "new"


def test_a_volatile_call_and_one_that_is_not_follow_each_other_at_once(store):
    """A build mounts one upper volatile and, when that is just unmounted, not so, to commit it."""
    for number in range(6):
        store.call("-o", f"{store.lowers},{store.upper},{'volatile' if number % 2 else ''}", store.merged)
        (store.merged / f"n{number}").write_text("x")
        store.unmount()
    assert len(list((store.root / "c" / "diff").glob("n*"))) == 6


def test_an_upper_left_volatile_by_another_boot_is_refused(store):
    store.call("-o", f"{store.lowers},{store.upper},volatile", store.merged)
    store.unmount()
    mark = store.work / "work" / "incompat" / "volatile"
    (made,) = mark.iterdir()
    made.rename(made.with_name("another-boot"))
    said = store.call("-o", f"{store.lowers},{store.upper}", store.merged, code=1)
    assert "volatile" in said and "remove work/incompat/volatile" in said and said.count("\n") == 1
    assert not mounts_at(store.merged)
    store.call("-o", f"{store.lowers},{store.upper},ro", store.merged, code=1)
    shutil.rmtree(mark)
    store.call("-o", f"{store.lowers},{store.upper}", store.merged)
    store.unmount()


def test_calls_of_containerd(store):
    """Two places, several -o, relative layers."""
    options = f"lowerdir=l/TOP:l/BASE,{store.upper}"
    store.call("overlay", store.merged, "-o", options, "-o", "dev,suid")
    assert (store.merged / "d" / "f").read_text() == "1"
    lines = Path("/proc/self/mounts").read_text().splitlines()
    (line,) = [line for line in lines if str(store.merged) in line]
    assert line.startswith("overlay ") and "nosuid" not in line and "nodev" not in line
    store.unmount()


def test_a_parent_image_is_read_only(store):
    store.call("-o", store.lowers, store.merged)
    with pytest.raises(OSError, match="Read-only"):
        (store.merged / "x").write_text("")
    store.unmount()


def test_several_mounts_share_lowers_and_stand_on_each_other(store, place):
    store.call("-o", f"{store.lowers},{store.upper}", store.merged)
    for name in ("upper", "work", "volume"):
        (place / name).mkdir()
    options = f"lowerdir={store.merged},upperdir={place}/upper,workdir={place}/work,private"
    store.call("-o", options, place / "volume")
    (place / "volume" / "a").unlink()
    assert os.listdir(place / "volume") == ["d"] and (store.merged / "a").exists()
    subprocess.run(["fusermount3", "-u", place / "volume"], check=True)
    store.unmount()


def test_a_running_container_is_looked_at_read_only(store, place):
    """containerd's diff mounts the upper of a running container once more, with `ro`."""
    options = f"{store.lowers},{store.upper}"
    store.call("-o", options, store.merged)
    (store.merged / "a").unlink()
    (store.merged / "d" / "f").write_text("changed")
    (place / "look").mkdir()
    store.call("overlay", place / "look", "-o", options, "-o", "ro")
    assert os.listdir(place / "look") == ["d"]
    assert (place / "look" / "d" / "f").read_text() == "changed"
    with pytest.raises(OSError, match="Read-only"):
        (place / "look" / "x").write_text("")
    (store.merged / "new").write_text("new")
    subprocess.run(["fusermount3", "-u", place / "look"], check=True)
    store.unmount()


def test_whiteouts_are_markers_where_the_environment_says_so(store):
    store.call("-o", f"{store.lowers},{store.upper}", store.merged, FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT="1")
    (store.merged / "a").unlink()
    assert os.listdir(store.merged) == ["d"]
    store.unmount()
    assert os.listdir(store.root / "c" / "diff") == [".wh.a"]
    store.call("-o", f"{store.lowers},{store.upper}", store.merged)
    (store.merged / "d" / "f").unlink()
    assert sorted(os.listdir(store.merged)) == ["d"]
    store.unmount()
    status = (store.root / "c" / "diff" / "d" / "f").lstat()
    assert stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def test_one_line_and_exit_code_1_when_it_cannot_be(store):
    said = store.call("-o", "lowerdir=/no/such,upperdir=/x,workdir=/y", store.merged, code=1)
    assert said == "fuse-overlayfs: lowerdir '/no/such': No such file or directory\n"
    assert not mounts_at(store.merged)


def test_the_version_is_told(store):
    assert store.call("--version").startswith("fuse-overlayfs: unionfs version ")


def test_a_killed_server_leaves_what_can_be_unmounted_and_mounted_again(store):
    store.call("-o", f"{store.lowers},{store.upper},volatile", store.merged)
    (store.merged / "kept").write_text("kept")
    (pid,) = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdecimal() and os.fsencode(store.merged) in _command_line(entry).split(b"\0")
    ]
    os.kill(pid, 9)
    wait_until(lambda: not _command_line(Path(f"/proc/{pid}")), "it is dead")
    store.unmount()
    store.call("-o", f"{store.lowers},{store.upper}", store.merged)
    assert (store.merged / "kept").read_text() == "kept"
    store.unmount()


def _command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""
