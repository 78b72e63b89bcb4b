"""A whole Debian in a container: real programs, thousands of files, an image of 200 MB."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from unionctl_runner import Unionctl, dead_cgroups

pytestmark = pytest.mark.root

#: Seconds after which something hangs; a busy machine takes one or two minutes.
PATIENCE = 900

COUNT = "find / -xdev | wc -l"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A docker archive of one layer, made by debootstrap, umoci and skopeo."""
    for program in ("debootstrap", "umoci", "skopeo"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    place = tmp_path_factory.mktemp("debian")
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", "bookworm", place / "root"], capture_output=True, text=True
    )
    if made.returncode != 0:
        pytest.skip("debootstrap: " + made.stdout.strip().splitlines()[-1])
    for command in (
        "umoci init --layout oci",
        "umoci new --image oci:deb",
        "umoci insert --image oci:deb root /",
        "umoci config --image oci:deb --config.cmd /bin/sh",
        "skopeo copy -q oci:oci:deb docker-archive:deb.tar:debian:bookworm",
    ):
        subprocess.run(command.split(), cwd=place, check=True, capture_output=True)
    return place / "deb.tar"


@pytest.fixture
def debian(archive: Path, tmp_path: Path) -> Iterator[Unionctl]:
    cgroups = dead_cgroups()
    runner = Unionctl(tmp_path / "state")
    runner("load", "-q", "-i", str(archive), timeout=PATIENCE)
    yield runner
    runner.end(cgroups)


def test_works_in_a_container(debian: Unionctl) -> None:
    before = int(debian.out("run", "--rm", "debian:bookworm", "sh", "-c", COUNT, timeout=PATIENCE))
    said = debian.out(
        *("run", "--name", "one", "debian:bookworm", "bash", "-euc"),
        """
        perl -e 'print "perl ", 6 * 7, "\\n"'
        cp -a /usr /tmp/copy
        diff -r --no-dereference /usr /tmp/copy && echo copied
        tar -C / -cf - usr | tar -xf - -C /tmp && diff -r --no-dereference /usr /tmp/usr && echo unpacked
        dpkg --verify && echo verified
        rm -rf /usr/share
        test ! -e /usr/share && echo removed
        mkdir /usr/share && ls -A /usr/share
        find / -xdev -name 'doc*' -path '/usr/share/*'
        """,
        timeout=PATIENCE,
    )
    assert said.splitlines() == ["perl 42", "copied", "unpacked", "verified", "removed"]
    diff = debian.out("diff", "one").splitlines()
    assert "C /usr" in diff and "D /usr/share/doc" in diff
    after = int(debian.out("run", "--rm", "debian:bookworm", "sh", "-c", COUNT, timeout=PATIENCE))
    assert after == before > 5000
    debian("rm", "one")
