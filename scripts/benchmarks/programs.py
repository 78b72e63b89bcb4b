"""Workloads of programs that people run: git, pip, make."""

from __future__ import annotations

from benchmarks.material import PYTHON
from benchmarks.stage import Stage, workload


@workload("git", "empty", on_disk="empty", prepare=lambda material: material.repository)
def git(stage: Stage) -> None:
    """A repository is cloned, looked at, and set back by many commits."""
    commits = stage.material.sizes.commits
    with stage.clock("git clone"):
        stage.run("git", "clone", "-q", "--no-local", stage.material.repository, "clone")
    with stage.clock("git status"):
        stage.run("git", "status", under="clone")
    with stage.clock("git checkout"):
        stage.run("git", "checkout", "-q", f"HEAD~{commits - 1}", under="clone")


@workload("pip", "empty", on_disk="empty", prepare=lambda material: material.wheels)
def pip(stage: Stage) -> None:
    """pip installs wheels of a hundred modules each."""
    wheels = stage.material.wheels
    options = (
        "-q",
        "--disable-pip-version-check",
        "--no-index",
        "--no-deps",
        "--no-compile",
        "--root-user-action=ignore",
    )
    with stage.clock("pip install"):
        stage.run(PYTHON, "-m", "pip", "install", *options, "--target", "site", *wheels)


@workload("make", "program")
def make(stage: Stage) -> None:
    """A small C program is built in its lower tree."""
    with stage.clock("make of a C program"):
        stage.run("make", "-s", "-j2")
