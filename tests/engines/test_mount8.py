"""mount(8), fstab(5), findmnt(8) and systemd's mount units."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import BIN, PATIENCE, needs
from support.layers import build
from support.union import detach

pytestmark = pytest.mark.root
needs("mount.fuse3", "findmnt", "unshare")


class Bench:
    """Layers, a place for their mount, and a machine where unionfs is installed."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.root = place / "mnt"
        self.options = f"lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work"
        build(place / "lower", {"file": "lower"})
        for name in ("upper", "work", "mnt", "bin", "sbin"):
            (place / name).mkdir()
        (place / "bin" / "unionfs").symlink_to(BIN / "unionfs")
        (place / "sbin" / "mount.unionfs").symlink_to(BIN / "mount.unionfs")

    def sh(self, script: str, code: int = 0) -> str:
        """Run a script where our commands are installed; what it says on stdout, then on stderr.

        mount(8) looks for helpers in a PATH of its own. Its mounts end with the script's namespace.
        """
        install = [
            f"mount -t overlay overlay -o lowerdir={self.place}/{name}:/usr/{name} /usr/{name}"
            for name in ("bin", "sbin")
        ]
        done = subprocess.run(
            ["unshare", "-m", "--propagation", "private", "sh", "-ec", "\n".join([*install, script])],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            cwd=self.place,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def bench(place: Path) -> Iterator[Bench]:
    if not all(Path(link).samefile(f"/usr{link}") for link in ("/bin", "/sbin")):
        pytest.skip("/bin and /sbin are not /usr's")
    yield Bench(place)
    assert not detach(place), "something was left mounted"


USE = (
    "cat mnt/file; echo; echo new >mnt/new; umount mnt; cat upper/new; rm upper/new; findmnt mnt || echo gone"
)
USED = "lower\nnew\ngone\n"


@pytest.mark.parametrize("kind", ["unionfs", "fuse.unionfs"])
def test_mount(bench, kind):
    said = bench.sh(f"""
        mount -t {kind} source mnt -o {bench.options},noatime
        findmnt -n -o SOURCE,TARGET,FSTYPE mnt
        findmnt -n -o OPTIONS mnt | grep -o noatime
        {USE}
    """)
    assert said.split("\n", 1)[0].split() == ["source", str(bench.root), "fuse.unionfs"]
    assert said.split("\n", 1)[1] == f"noatime\n{USED}"


def test_remount(bench):
    said = bench.sh(f"""
        mount -t fuse.unionfs source mnt -o {bench.options}
        mount -i -o remount,ro mnt
        touch mnt/x 2>/dev/null || echo refused
        mount -i -o remount,rw mnt
        {USE}
    """)
    assert said == f"refused\n{USED}"


@pytest.mark.parametrize("kind", ["unionfs", "fuse.unionfs"])
def test_fstab(bench, kind):
    line = f"unionfs {bench.root} {kind} {bench.options},nofail,x-systemd.requires-mounts-for=/ 0 0\n"
    (bench.place / "fstab").write_text(line)
    said = bench.sh(f"mount -T fstab -a; findmnt -n -o FSTYPE mnt; {USE}; mount -T fstab mnt; {USE}")
    assert said == f"fuse.unionfs\n{USED}{USED}"


@pytest.mark.parametrize("kind", ["unionfs", "fuse.unionfs"])
def test_what_is_wrong_is_said(bench, kind):
    said = bench.sh(f"mount -t {kind} source mnt -o lowerdir=/no/such || echo $?; findmnt mnt || echo none")
    name = "mount.unionfs" if kind == "unionfs" else "unionfs"
    assert said == f"1\nnone\n{name}: lowerdir '/no/such': No such file or directory\n"


def _verified(unit: Path) -> None:
    """systemd-analyze has nothing to say about a unit."""
    needs("systemd-analyze")
    verify = ["systemd-analyze", "verify", "--man=no", "--generators=no", unit]
    done = subprocess.run(verify, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0 and unit.name not in done.stderr, done.stderr


def test_a_mount_unit(place):
    needs("systemd-escape")
    escape = ["systemd-escape", "--path", "--suffix=mount", place / "mnt"]
    unit = place / subprocess.run(escape, capture_output=True, text=True, check=True).stdout.strip()
    unit.write_text(f"""
[Unit]
Description=A union
[Mount]
What=unionfs
Where={place}/mnt
Type=fuse.unionfs
Options=lowerdir=/image,upperdir=/data/upper,workdir=/data/work
[Install]
WantedBy=local-fs.target
""")
    _verified(unit)


def test_the_snapshotters_unit(place):
    unit = Path(__file__).parents[2] / "scripts" / "systemd" / "unionfs-snapshotter.service"
    program = "/usr/local/bin/unionfs-snapshotter"
    text = unit.read_text()
    assert f"ExecStart={program}\n" in text
    (place / unit.name).write_text(text.replace(program, str(BIN / "unionfs-snapshotter")))
    _verified(place / unit.name)
