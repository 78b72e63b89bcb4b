"""Tools that nobody here wrote, run on a disk and on the union: what they say must be the same.

Each tool has a part that prepares files, which on the union are then in a lower layer, and a part that is
run. Its result is a line of text that does not depend on where it ran.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from support import union as unions

from conformance import databases, packages, trees

#: How long one tool may take.
PATIENCE = 900

#: The interpreter whose own tests are run: the one that the environment was made from.
BASE_PYTHON = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")

CPYTHON_TESTS = (
    "test_os",
    "test_posix",
    "test_shutil",
    "test_tarfile",
    "test_mmap",
    "test_fcntl",
    "test_largefile",
    "test_zipfile",
    "test_sqlite3",
    "test_dbm",
)


class Failed(Exception):
    """A tool found something wrong, or could not be run to its end."""


@dataclasses.dataclass(frozen=True)
class Tool:
    """`prepare` and `run` are given a directory; `run` returns the result in a line."""

    name: str
    run: Callable[[Path], str]
    prepare: Callable[[Path], None] = lambda place: None
    #: What must be installed: command and Debian package.
    needs: tuple[tuple[str, str], ...] = ()

    def missing(self) -> list[str]:
        """The packages of commands that are not there."""
        return [package for command, package in self.needs if not shutil.which(command)]


def command(*arguments: str | os.PathLike[str], cwd: Path, check: bool = True, **environment: str) -> str:
    """What a command says; Failed with its last words when its exit status is not 0."""
    done = subprocess.run(
        list(map(os.fspath, arguments)),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
        timeout=PATIENCE,
        check=False,
        env=os.environ | {"LC_ALL": "C", "TMPDIR": os.fspath(cwd)} | environment,
    )
    if check and done.returncode:
        words = " | ".join(done.stdout.strip().splitlines()[-6:])
        raise Failed(f"{os.path.basename(os.fspath(arguments[0]))} ended with {done.returncode}: {words}")
    return done.stdout


# CPython's own tests ---------------------------------------------------------------------------------


def cpython(test: str) -> Tool:
    """One file of CPython's tests, with its temporary files in the place."""

    def run(place: Path) -> str:
        words = command(
            BASE_PYTHON,
            "-m",
            "test",
            "-v",
            "-u",
            "largefile",
            "--tempdir",
            place,
            test,
            cwd=place,
            check=False,
        )
        wrong = sorted(set(re.findall(r"^(?:FAIL|ERROR): (\w+) \(", words, re.M)))
        count = re.search(r"^Ran (\d+) tests? in", words, re.M)
        if count is None:
            raise Failed(f"no verdict: {words.strip()[-300:]}")
        skipped = sum(map(int, re.findall(r"^(?:OK|FAILED) \(.*?skipped=(\d+)", words, re.M)))
        return f"{count[1]} run, {skipped} skipped, " + (
            f"failed: {' '.join(wrong)}" if wrong else "none failed"
        )

    return Tool(f"CPython {test}", run)


def has_cpython_tests() -> bool:
    """Whether the interpreter's test package is installed."""
    if not BASE_PYTHON.exists():
        return False
    return not subprocess.run(
        [BASE_PYTHON, "-c", "import test.test_os"], capture_output=True, check=False
    ).returncode


# fio, stress-ng -----------------------------------------------------------------------------------------

#: Stressors that are not about the place (binderfs), or ask for what the kernel passes to no FUSE filesystem.
_STRESS_LEFT_OUT = ("binderfs", "fiemap", "verity")

_FIO = """
[global]
size=16m
bs=4k-64k
verify=crc32c
verify_fatal=1
do_verify=1
randseed=7
[psync]
rw=randwrite
ioengine=psync
filename=before
[aio]
stonewall
rw=randrw
ioengine=libaio
iodepth=8
direct=1
bs=4k
filename=before
[mmap]
stonewall
rw=randwrite
ioengine=mmap
bs=4k
filename=fresh
[append]
stonewall
rw=write
ioengine=pvsync2
fsync=64
filename=fresh
"""


def _prepare_fio(place: Path) -> None:
    (place / "before").write_bytes(os.urandom(16 << 20))


def _run_fio(place: Path) -> str:
    (place / "job").write_text(_FIO)
    words = command("fio", "--minimal", "job", cwd=place)
    if "verify:" in words or "err=" in words:
        raise Failed(words[-300:])
    return "4 jobs verified"


def _run_stress(place: Path) -> str:
    words = command(
        "stress-ng",
        "--class",
        "filesystem",
        "--exclude",
        ",".join(_STRESS_LEFT_OUT),
        "--sequential",
        "1",
        "--timeout",
        "1s",
        "--verify",
        "--temp-path",
        place,
        cwd=place,
        check=False,
    )
    wrong = sorted(set(re.findall(r"fail:\s*\[\d+\] ([\w-]+):", words)))
    summary = re.search(r"(successful|unsuccessful) run completed", words)
    if summary is None or (summary[1] != "successful" and not wrong):
        raise Failed(words[-300:])
    return f"failed: {' '.join(wrong)}" if wrong else "none failed"


# git, make, tar, rsync ------------------------------------------------------------------------------------

_GIT = {
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_AUTHOR_DATE": "2020-01-01T00:00:00Z",
    "GIT_COMMITTER_DATE": "2020-01-01T00:00:00Z",
    "GIT_CONFIG_GLOBAL": "/dev/null",
}


def _git(place: Path, *arguments: str) -> str:
    return command("git", "-c", "safe.directory=*", *arguments, cwd=place, **_GIT)


def _commit_files(repository: Path, commits: range) -> None:
    for number in commits:
        for name in range(number % 5, 40, 5):
            directory = repository / f"d{name % 7}"
            directory.mkdir(exist_ok=True)
            (directory / f"f{name}").write_text(f"{name} of commit {number}\n" * (number + 1))
        _git(repository, "add", "-A")
        _git(repository, "commit", "-q", "-m", f"commit {number}")


def _prepare_git(place: Path) -> None:
    repository = place / "repository"
    repository.mkdir()
    _git(repository, "init", "-q", "-b", "main")
    _commit_files(repository, range(10))


def _run_git(place: Path) -> str:
    repository = place / "repository"
    _git(repository, "fsck", "--full", "--strict")
    _git(repository, "checkout", "-q", "-b", "side", "HEAD~5")
    _commit_files(repository, range(20, 30))
    _git(repository, "checkout", "-q", "main")
    _git(repository, "merge", "-q", "-X", "ours", "-m", "merge", "side")
    _git(repository, "mv", "d1/f1", "d2/moved")
    _git(repository, "commit", "-q", "-m", "moved")
    _git(repository, "gc", "-q", "--aggressive", "--prune=now")
    _git(place, "clone", "-q", "repository", "clone")
    _commit_files(place / "clone", range(30, 40))
    _git(place / "clone", "push", "-q", "origin", "HEAD:refs/heads/other")
    _git(repository, "repack", "-q", "-a", "-d")
    _git(repository, "worktree", "add", "-q", "../worktree", "other")
    words = _git(repository, "fsck", "--full", "--strict") + _git(repository, "status", "--porcelain")
    words += _git(place / "worktree", "status", "--porcelain")
    head = _git(place / "worktree", "rev-parse", "HEAD").strip()
    if words:
        raise Failed(words)
    return f"fsck clean, head {head[:12]}"


def _prepare_make(place: Path) -> None:
    lines = ["objects = " + " ".join(f"u{number}.o" for number in range(20)), "program: main.o $(objects)"]
    lines += ["\t$(CC) -o $@ $^", "%.o: %.c shared.h", "\t$(CC) -c -o $@ $<", "clean:", "\trm -f *.o program"]
    (place / "Makefile").write_text("\n".join(lines) + "\n")
    (place / "shared.h").write_text("#define SHARED 1\n")
    for number in range(20):
        (place / f"u{number}.c").write_text(
            f'#include "shared.h"\nint u{number}(void) {{ return SHARED * {number}; }}\n'
        )
    calls = " + ".join(f"u{number}()" for number in range(20))
    declarations = "".join(f"int u{number}(void);\n" for number in range(20))
    (place / "main.c").write_text(
        f'#include <stdio.h>\n#include "shared.h"\n{declarations}'
        f'int main(void) {{ printf("%d\\n", {calls}); return 0; }}\n'
    )


def _run_make(place: Path) -> str:
    built = command("make", "-j2", cwd=place).count(" -c ")
    results = [command(place / "program", cwd=place).strip()]
    if "up to date" not in command("make", cwd=place):
        raise Failed("made again though nothing had changed")
    (place / "u3.c").write_text("int u3(void) { return 1000; }\n")
    again = command("make", "-j2", cwd=place).count(" -c ")
    results.append(command(place / "program", cwd=place).strip())
    (place / "shared.h").write_text("#define SHARED 2\n")
    everything = command("make", "-j2", cwd=place).count(" -c ")
    results.append(command(place / "program", cwd=place).strip())
    command("make", "clean", cwd=place)
    return f"compiled {built}, {again}, {everything}; the program says {' '.join(results)}"


def _run_rsync(place: Path) -> str:
    flags = ("-aHAXS", "--checksum", "--numeric-ids")
    with tempfile.TemporaryDirectory() as outside:
        for source, target in (("tree", "copy"), ("tree", f"{outside}/there"), (f"{outside}/there", "back")):
            command("rsync", *flags, f"{source}/", f"{target}/", cwd=place)
            words = command("rsync", *flags, "-i", "-n", "--delete", f"{source}/", f"{target}/", cwd=place)
            if words:
                raise Failed(f"{source} and {target} differ: {words[:200]}")
        trees.change(place / "back")
        command("rsync", *flags, "--delete", "back/", f"{outside}/there/", cwd=place)
        command("rsync", *flags, "--delete", "--inplace", f"{outside}/there/", "tree/", cwd=place)
        words = command("rsync", *flags, "-i", "-n", "--delete", "back/", "tree/", cwd=place)
    if words:
        raise Failed(f"back and tree differ: {words[:200]}")
    return f"{trees.count(place / 'tree')} files the same, both ways"


def _run_tar(place: Path) -> str:
    flags = ("--xattrs", "--xattrs-include=*", "--acls", "--sparse", "--numeric-owner")
    command("tar", *flags, "-cf", "archive", "tree", cwd=place)
    command("tar", "--compare", *flags, "-f", "archive", cwd=place)
    (place / "unpacked").mkdir()
    command("tar", *flags, "-xpf", "archive", "-C", "unpacked", cwd=place)
    command("tar", "--compare", *flags, "-f", "archive", "-C", "unpacked", cwd=place)
    command("tar", *flags, "-xpf", "archive", cwd=place)
    command("tar", "--compare", *flags, "-f", "archive", cwd=place)
    return f"{trees.count(place / 'unpacked')} files the same"


def tools() -> list[Tool]:
    """All of them, in the order of the table."""
    return [
        *map(cpython, CPYTHON_TESTS),
        Tool("fio --verify", _run_fio, _prepare_fio, (("fio", "fio"),)),
        Tool("stress-ng filesystem class", _run_stress, needs=(("stress-ng", "stress-ng"),)),
        Tool("git", _run_git, _prepare_git, (("git", "git"),)),
        Tool("make", _run_make, _prepare_make, (("make", "make"), ("cc", "gcc"))),
        Tool(
            "rsync -aHAX --checksum",
            _run_rsync,
            lambda place: trees.make(place / "tree"),
            (("rsync", "rsync"),),
        ),
        Tool("tar --xattrs --acls --compare", _run_tar, lambda place: trees.make(place / "tree")),
        Tool("SQLite, rollback", lambda place: databases.run(place, "delete"), databases.prepare),
        Tool("SQLite, WAL", lambda place: databases.run(place, "wal"), databases.prepare),
        Tool("dpkg", packages.run, packages.prepare, (("dpkg-deb", "dpkg"),)),
    ]


# Where they run -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def on_disk(tool: Tool, where: Path | None) -> Iterator[Path]:
    """A directory of a disk."""
    with tempfile.TemporaryDirectory(dir=where, ignore_cleanup_errors=True) as place:
        os.chmod(place, 0o755)
        tool.prepare(Path(place))
        yield Path(place)


@contextlib.contextmanager
def on_union(tool: Tool) -> Iterator[Path]:
    """A mount whose lower layer was prepared."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        os.chmod(place, 0o755)
        unions.PATIENCE = PATIENCE
        union = unions.Union(Path(place), {})
        tool.prepare(union.lowers[0])
        union.remember_lowers()
        try:
            yield union.mount()
        finally:
            union.close()


def attempt(tool: Tool, place: contextlib.AbstractContextManager[Path]) -> str:
    """The result, or what went wrong."""
    try:
        with place as here:
            return tool.run(here)
    except Failed as error:
        return f"FAILED: {error}"
    except subprocess.TimeoutExpired:
        return "FAILED: did not end"
    except (AssertionError, OSError) as error:
        return f"FAILED: {type(error).__name__}: {error}"


def run_suite(directory: Path | None) -> bool:
    """The POSIX suite; whether it passed."""
    arguments = [sys.executable, "-m", "pytest", "-q", os.fspath(Path(__file__).parent)]
    if directory is not None:
        arguments += ["--dir", os.fspath(directory)]
    return subprocess.run(arguments, check=False).returncode == 0


def table(rows: list[tuple[str, str, str]], subject: str) -> str:
    """The results as a Markdown table."""
    lines = [f"| tool | on the disk | {subject} |", "|---|---|---|"]
    for name, disk, union in rows:
        lines.append(f"| {name} | {disk} | {'the same' if disk == union else union} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status is 1 when something differs or failed."""
    parser = argparse.ArgumentParser(prog="scripts/conformance", description=__doc__)
    parser.add_argument(
        "directory", nargs="?", type=Path, help="compare this with the disk, instead of a mount"
    )
    parser.add_argument(
        "--only", metavar="WORD", help="the tools whose name contains this, without the suite"
    )
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        print("conformance: needs root, to mount and to be other users", file=sys.stderr)
        return 2
    well = options.only is not None or run_suite(options.directory)
    rows = []
    for tool in tools():
        if options.only is not None and options.only.lower() not in tool.name.lower():
            continue
        missing = tool.missing()
        if tool.name.startswith("CPython") and not has_cpython_tests():
            missing = [f"the test package of {BASE_PYTHON}"]
        if missing:
            print(f"{tool.name}: left out; install {' '.join(missing)}", flush=True)
            continue
        disk = attempt(tool, on_disk(tool, None))
        union = attempt(tool, on_disk(tool, options.directory) if options.directory else on_union(tool))
        same = disk == union and not disk.startswith("FAILED")
        well = well and same
        print(
            f"{'ok  ' if same else 'DIFF'} {tool.name}: {union}" + ("" if same else f"  (disk: {disk})"),
            flush=True,
        )
        rows.append((tool.name, disk, union))
    print()
    print(table(rows, f"in {options.directory}" if options.directory else "on the union"))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
