"""access(2), faccessat(2), and execution."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support.layers import Dir, File
from support.union import errno_of

from conformance.system import ALICE, BOB, STAFF, as_user

MODES = {
    "user": File(mode=0o700, owner=(ALICE, STAFF)),
    "group": File(mode=0o070, owner=(ALICE, STAFF)),
    "others": File(mode=0o007, owner=(ALICE, STAFF)),
    "none": File(mode=0, owner=(ALICE, STAFF)),
    "dir": Dir(mode=0o711, owner=(ALICE, STAFF), names={"file": "x"}),
    "locked": Dir(mode=0o600, owner=(ALICE, STAFF), names={"file": "x"}),
    "script": File(content="#!/bin/sh\necho ran\n", mode=0o755),
}


def allowed(path: Path) -> str:
    """The letters of what access(2) allows."""
    wanted = (("r", os.R_OK), ("w", os.W_OK), ("x", os.X_OK))
    return "".join(letter for letter, mode in wanted if os.access(path, mode))


@pytest.mark.tree(MODES)
def test_one_class_of_bits_decides(here: Path) -> None:
    names = ("user", "group", "others", "none")
    assert [as_user(ALICE, allowed, here / name) for name in names] == ["rwx", "", "", ""]
    assert [as_user(BOB, allowed, here / name, groups=(STAFF,)) for name in names] == ["", "rwx", "", ""]
    assert [as_user(BOB, allowed, here / name, gid=STAFF) for name in names] == ["", "rwx", "", ""]
    assert [as_user(BOB, allowed, here / name) for name in names] == ["", "", "rwx", ""]
    assert [allowed(here / name) for name in names] == ["rwx", "rwx", "rwx", "rw"]


@pytest.mark.tree(MODES)
def test_ways_through_directories(here: Path) -> None:
    assert as_user(BOB, allowed, here / "dir/file") == "r"
    assert as_user(BOB, allowed, here / "dir") == "x"
    assert as_user(ALICE, allowed, here / "locked") == "rw"
    assert as_user(ALICE, os.stat, here / "locked/file") == "EACCES"
    assert as_user(BOB, os.stat, here / "locked/nothing") == "EACCES"
    assert as_user(BOB, os.stat, here / "dir/nothing") == "ENOENT"


@pytest.mark.tree(MODES)
def test_execution(here: Path) -> None:
    assert subprocess.run([here / "script"], capture_output=True, check=True).stdout == b"ran\n"
    os.chmod(here / "script", 0o644)
    assert errno_of(subprocess.run, [here / "script"]) == "EACCES"
    os.chmod(here / "script", 0o655)
    assert subprocess.run([here / "script"], capture_output=True, check=True).stdout == b"ran\n"


@pytest.mark.tree(MODES)
def test_setuid_takes_effect(here: Path) -> None:
    program = here / "new"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    os.chown(program, ALICE, STAFF)
    os.chmod(program, 0o6755)

    def identity() -> str:
        return subprocess.run([program, "-u"], capture_output=True, text=True, check=True).stdout

    def group() -> str:
        return subprocess.run([program, "-g"], capture_output=True, text=True, check=True).stdout

    assert as_user(BOB, identity) == f"{ALICE}\n"
    assert as_user(BOB, group) == f"{STAFF}\n"


def test_errors(here: Path) -> None:
    def existence(path: Path) -> bool:
        return os.access(path, os.F_OK)

    assert existence(here / "file")
    assert not existence(here / "dangling")
    assert os.access(here / "dangling", os.F_OK, follow_symlinks=False)
    assert not existence(here / "nothing")
    assert not existence(here / "file/below")
