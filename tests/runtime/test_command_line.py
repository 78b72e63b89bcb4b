"""unionctl, called wrongly: one line that names what is wrong, docker's exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
from unionctl_runner import Unionctl

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    ("line", "code", "named"),
    [
        ("rnu busybox", 1, "'rnu'"),
        ("run", 1, "'IMAGE'"),
        ("run --foo busybox", 125, "'--foo'"),
        ("run --cpus x busybox", 125, "'x'"),
        ("run --pids-limit x busybox", 125, "'x'"),
        ("run --name", 125, "'--name'"),
        ("run --env-file /no/such/file busybox", 125, "/no/such/file: No such file"),
        ("run --security-opt seccomp=/no/such/file busybox", 125, "/no/such/file: No such file"),
        ("stop -t x busybox", 125, "'x'"),
        ("ps extra", 1, "(extra)"),
        ("volume no-such-verb", 1, "'no-such-verb'"),
        ("--root /etc/passwd ps", 1, "/etc/passwd"),
        ("inspect --format {{.Id busybox", 1, "'{{.Id'"),
    ],
)
def test_one_line_that_names_what_is_wrong(unionctl: Unionctl, line: str, code: int, named: str) -> None:
    said = unionctl.err(*line.split(), code=code)
    assert named in said
    assert said.startswith("unionctl: ") and said.count("\n") == 1
    assert "Errno" not in said


def test_without_words_the_help_is_shown(unionctl: Unionctl) -> None:
    result = unionctl(code=None)
    assert b"Commands:" in result.stdout + result.stderr


def test_exec_of_nobody_known_ends_with_126(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "box", "busybox", "sleep", "1000")
    assert "unable to find user nobody-here" in unionctl.err(
        "exec", "-u", "nobody-here", "box", "id", code=126
    )


def test_a_file_in_place_of_the_state_root(unionctl: Unionctl, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = unionctl.err("--root", str(tmp_path / "file"), "load", code=1)
    assert str(tmp_path / "file") in said and said.count("\n") == 1
