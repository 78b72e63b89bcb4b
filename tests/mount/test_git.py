"""git on a repository that begins in a lower layer."""

from __future__ import annotations

import os
import shutil

import pytest
from support.snapshot import names_of
from support.union import command

pytestmark = [pytest.mark.root, pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")]

_ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}


def git(directory, *arguments):
    safe = ("-c", "safe.directory=*", "-c", "gc.auto=0")
    done = command("git", *safe, *arguments, cwd=directory, env=_ENVIRONMENT)
    assert done.returncode == 0, f"git {' '.join(map(str, arguments))}: {done.stderr}"
    return done.stdout.strip()


def commit(directory, message):
    git(directory, "add", "-A")
    git(directory, "commit", "-q", "-m", message)


def check(directory):
    """Nothing is wrong in the store, and the work tree is as committed."""
    assert git(directory, "fsck", "--full", "--strict") == ""
    assert git(directory, "status", "--porcelain") == ""


@pytest.fixture
def repository(make_union):
    """A union whose lower layer holds a repository of one commit, without redirect_dir."""
    union = make_union({"repository": {"src": {"deep": {}}, "docs": {}}}, mount=False)
    lower = union.lowers[0] / "repository"
    git(lower, "init", "-q", "-b", "main")
    for number in range(30):
        (lower / "src" / f"file{number}").write_text(f"{number}\n" * 50)
        (lower / "src" / "deep" / f"file{number}").write_text(f"deep {number}\n")
    (lower / "docs" / "page").write_text("words\n")
    os.symlink("docs/page", lower / "link")
    commit(lower, "first")
    union.remember_lowers()
    return union


def test_clone_and_commits(repository):
    repository.mount()
    origin, clone = repository.root / "repository", repository.root / "clone"
    check(origin)
    git(repository.root, "clone", "-q", "repository", "clone")
    for number in range(5):
        (clone / "src" / f"file{number}").write_text("changed\n")
        (clone / "src" / f"new{number}").write_text("new\n")
        (clone / "src" / "deep" / f"file{number}").unlink()
        commit(clone, f"change {number}")
    git(origin, "fetch", "-q", "../clone", "main")
    git(origin, "merge", "-q", "--ff-only", "FETCH_HEAD")
    git(origin, "gc", "-q", "--aggressive", "--prune=now")
    for directory in (origin, clone):
        check(directory)
        assert git(directory, "rev-list", "--count", "HEAD") == "6"
    head = git(origin, "rev-parse", "HEAD")
    repository.remount()
    check(origin)
    check(clone)
    assert git(origin, "rev-parse", "HEAD") == head


def test_branches_come_and_go(repository):
    """Checkouts that take away directories of the lower layer and bring them back."""
    repository.mount()
    origin = repository.root / "repository"
    git(origin, "checkout", "-q", "-b", "empty")
    git(origin, "rm", "-q", "-r", "src")
    (origin / "src").write_text("a file where a directory was\n")
    commit(origin, "second")
    for _ in range(3):
        git(origin, "checkout", "-q", "main")
        assert len(os.listdir(origin / "src")) == 31
        check(origin)
        git(origin, "checkout", "-q", "empty")
        assert (origin / "src").is_file()
        check(origin)
    git(origin, "checkout", "-q", "main")
    repository.remount()
    check(origin)


def test_moving_a_directory_of_the_lower_layer(repository):
    repository.mount("redirect_dir=on")
    origin = repository.root / "repository"
    (origin / "src" / "file0").write_text("changed\n")
    commit(origin, "second")
    git(origin, "mv", "src", "library")
    git(origin, "mv", "library/deep", "deeper")
    commit(origin, "moved")
    check(origin)
    assert "src" not in os.listdir(origin)
    names = names_of(origin / "library") | names_of(origin / "deeper")
    assert names == {f"file{number}" for number in range(30)}
    followed = git(origin, "log", "--follow", "--format=%s", "library/file0").split()
    assert followed == ["moved", "second", "first"]
    # None of the files that only moved was copied.
    assert not (repository.upper / "repository" / "library" / "file1").exists()
    repository.remount("redirect_dir=on")
    check(origin)
    repository.remount()
    check(origin)
