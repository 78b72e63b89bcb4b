"""dpkg: packages installed, upgraded, checked and removed below a root of its own."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

_FILES = 60


def _build(where: Path, name: str, version: int) -> Path:
    """A package whose files partly change, come and go from version to version."""
    root = where / f"{name}-{version}"
    control = root / "DEBIAN"
    control.mkdir(parents=True)
    control.chmod(0o755)
    (control / "control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\n"
        f"Description: a package\n"
    )
    (control / "conffiles").write_text(f"/etc/{name}.conf\n")
    (root / "etc").mkdir()
    (root / f"etc/{name}.conf").write_text(f"version {version}\n")
    share = root / f"usr/share/{name}"
    share.mkdir(parents=True)
    for number in range(version * 10, version * 10 + _FILES):
        (share / f"file{number}").write_text(
            f"{name} {number} {'of ' + str(version) if number % 3 else ''}\n"
        )
    os.symlink(f"file{version * 10 + 1}", share / "current")
    os.link(share / f"file{version * 10 + 2}", share / "hard")
    # What was a directory in one version is a file in the next.
    if version % 2:
        (share / "turns").mkdir()
        (share / "turns/inner").write_text("x")
    else:
        (share / "turned").write_text("x")
    package = where / f"{name}-{version}.deb"
    _run(["dpkg-deb", "--root-owner-group", "-b", os.fspath(root), os.fspath(package)])
    return package


def _run(arguments: list[str]) -> str:
    done = subprocess.run(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-400:]
    return done.stdout


def _dpkg(place: Path, *arguments: str) -> str:
    root = os.fspath(place / "root")
    return _run(
        ["dpkg", f"--root={root}", f"--log={root}/log", "--force-not-root,script-chrootless", *arguments]
    )


def prepare(place: Path) -> None:
    """A root in which the first versions are installed."""
    (place / "root/var/lib/dpkg/updates").mkdir(parents=True)
    (place / "root/var/lib/dpkg/info").mkdir()
    (place / "root/var/lib/dpkg/status").touch()
    with tempfile.TemporaryDirectory() as where:
        packages = [_build(Path(where), name, 1) for name in ("alpha", "beta", "gamma")]
        _dpkg(place, "--install", *map(os.fspath, packages))


def run(place: Path) -> str:
    """Upgrade, verify, remove, install again, purge."""
    share = place / "root/usr/share"
    with tempfile.TemporaryDirectory() as where:
        packages = [_build(Path(where), name, 2) for name in ("alpha", "beta", "gamma")]
        _dpkg(place, "--install", *map(os.fspath, packages))
        assert _dpkg(place, "--verify") == "", "files are not as dpkg left them"
        names = set(os.listdir(share / "alpha"))
        assert "file10" not in names and "turned" in names and "turns" not in names, names
        _dpkg(place, "--remove", "beta")
        assert (place / "root/etc/beta.conf").exists() and not (share / "beta").exists()
        _dpkg(place, "--purge", "gamma")
        assert not (place / "root/etc/gamma.conf").exists()
        _dpkg(
            place,
            "--install",
            os.fspath(_build(Path(where), "beta", 3)),
            os.fspath(_build(Path(where), "gamma", 3)),
        )
        _dpkg(place, "--install", os.fspath(_build(Path(where), "alpha", 3)))
        assert _dpkg(place, "--verify") == "", "files are not as dpkg left them"
    listed = _dpkg(place, "--list").count("\nii ")
    files = sum(len(names) for _, _, names in os.walk(share))
    return f"{listed} packages, {files} files, verified"
