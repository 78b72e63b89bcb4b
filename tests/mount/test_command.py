"""The commands: mount(8)'s ways, what is refused and how it is said, the background, and the end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.layers import build
from support.snapshot import names_of
from support.union import command, detach, errno_of, mounts, mounts_at, wait_until

pytestmark = pytest.mark.root

UNIONFS = [sys.executable, "-m", "unionfs"]


def unionfs(*arguments, **options):
    return command(*UNIONFS, *arguments, **options)


class Bench:
    """Directories to mount, and a mountpoint that is free again at the end."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.root = place / "merged"
        for name in ("lower", "upper", "work", "merged"):
            (place / name).mkdir()
        build(place / "lower", {"f": "x"})

    @property
    def options(self) -> str:
        return f"lowerdir={self.place}/lower,upperdir={self.place}/upper,workdir={self.place}/work"

    def servers(self) -> list[int]:
        """Processes that serve this mount."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                try:
                    words = Path(f"/proc/{entry}/cmdline").read_bytes()
                except OSError:
                    continue
                if os.fsencode(self.root) in words.split(b"\0"):
                    found.append(int(entry))
        return found

    def unmount(self) -> None:
        assert command("umount", self.root).returncode == 0
        wait_until(lambda: not self.servers(), "the server has ended")


@pytest.fixture
def bench(place: Path) -> Iterator[Bench]:
    made = Bench(place)
    yield made
    left = detach(place)
    for pid in made.servers():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not made.servers(), "the server has ended")
    assert not left, "something was left mounted"


@contextlib.contextmanager
def installed(path: str, function: str, place: Path) -> Iterator[None]:
    """A command where mount(8) looks for it, as an installation has it."""
    link = Path(path)
    if link.exists() or link.is_symlink():
        pytest.skip(f"{link} is installed")
    script = place / link.name
    script.write_text(
        f"#!{sys.executable}\nimport sys\nfrom unionfs.cli import {function}\nsys.exit({function}())\n"
    )
    script.chmod(0o755)
    link.symlink_to(script)
    try:
        yield
    finally:
        link.unlink()


# Ways to mount ------------------------------------------------------------------------------------


def test_background(bench):
    done = unionfs("-o", bench.options, bench.root)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert names_of(bench.root) == {"f"}
    assert mounts_at(bench.root) == ["fuse.unionfs"]
    bench.unmount()


def test_it_answers_as_soon_as_the_command_returns(bench):
    script = f"{sys.executable} -m unionfs -o {bench.options} {bench.root} && cat {bench.root}/f"
    for _ in range(5):
        assert command("sh", "-c", script).stdout == "x"
        bench.unmount()


def test_the_caller_is_not_kept_waiting_by_open_descriptors(bench):
    """Pipes for stdin, stdout and stderr, and one more, are closed when the command returns."""
    reader, writer = os.pipe()
    try:
        started = subprocess.Popen(
            [*UNIONFS, "-o", bench.options, bench.root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[writer],
        )
        os.close(writer)
        writer = -1
        assert started.communicate(timeout=30)[0] == b""
        os.set_blocking(reader, False)
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    (server,) = bench.servers()
    assert os.getsid(server) == server
    assert os.readlink(f"/proc/{server}/cwd") == "/"
    bench.unmount()


def test_stdio_closed_from_the_start(bench):
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m unionfs -o {bench.options} {bench.root} <&- >&- 2>&-', sys.executable],
        check=False,
        timeout=30,
    )
    assert done.returncode == 0
    assert names_of(bench.root) == {"f"}
    bench.unmount()


def test_foreground(bench):
    with subprocess.Popen([*UNIONFS, "-f", "-o", bench.options, bench.root]) as server:
        wait_until(lambda: mounts_at(bench.root) != [], "it is mounted")
        assert names_of(bench.root) == {"f"}
        assert command("umount", bench.root).returncode == 0
        assert server.wait(timeout=30) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_background(bench, number):
    assert unionfs("-o", bench.options, bench.root).returncode == 0
    (server,) = bench.servers()
    os.kill(server, number)
    wait_until(lambda: not bench.servers(), "the server has ended")
    assert mounts_at(bench.root) == []


def test_mount_fuse_unionfs(bench):
    with installed("/usr/local/bin/unionfs", "main", bench.place):
        done = command("mount", "-t", "fuse.unionfs", "unionfs", bench.root, "-o", bench.options)
        assert done.returncode == 0, done.stderr
        (bench.root / "new").touch()
        assert names_of(bench.root) == {"f", "new"}
        bench.unmount()


def test_mount_unionfs(bench):
    with installed("/sbin/mount.unionfs", "mount_helper", bench.place):
        options = f"rw,noatime,nodev,{bench.options}"
        done = command("mount", "-t", "unionfs", "-v", "a source", bench.root, "-o", options)
        assert done.returncode == 0, done.stderr
        shown = command("findmnt", "-n", "-o", "SOURCE,FSTYPE,OPTIONS", bench.root).stdout
        for word in ("a source", "noatime", "nodev"):
            assert word in shown
        bench.unmount()
        assert command("mount", "-t", "unionfs", "-f", "x", bench.root, "-o", options).returncode == 0
        assert mounts_at(bench.root) == []
        bad = command("mount", "-t", "unionfs", "x", bench.root, "-o", "lowerdir=/none/such")
        assert bad.returncode != 0
        assert "/none/such" in bad.stderr


def test_suid_and_dev_as_root(bench):
    assert unionfs("-o", bench.options, bench.root).returncode == 0
    flags = os.statvfs(bench.root).f_flag
    assert not flags & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_RDONLY)
    bench.unmount()


def test_flags_are_those_asked_for(bench):
    assert unionfs("-o", f"{bench.options},nosuid,nodev,noexec,noatime", bench.root).returncode == 0
    flags = os.statvfs(bench.root).f_flag
    wanted = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME
    assert flags & wanted == wanted
    bench.unmount()


def test_paths_with_every_odd_character(bench):
    odd = bench.place / "a:b,c\\d e=f\"g'ü"
    for name in ("lower", "upper", "work"):
        os.makedirs(odd / name)
    (odd / "lower" / "in odd").touch()
    escaped = "".join("\\" + c if c in ':,\\"' else c for c in os.fspath(odd))
    options = f"lowerdir={escaped}/lower:{bench.place}/lower,upperdir={escaped}/upper,workdir={escaped}/work"
    done = unionfs("-o", options, bench.root)
    assert done.returncode == 0, done.stderr
    assert names_of(bench.root) == {"f", "in odd"}
    (bench.root / "new").touch()
    bench.unmount()
    assert names_of(odd / "upper") == {"new"}


def test_relative_paths(bench):
    done = unionfs("-o", "lowerdir=lower,upperdir=upper,workdir=work", "merged", cwd=bench.place)
    assert done.returncode == 0, done.stderr
    (bench.root / "f").write_text("y")
    assert mounts_at(bench.root)
    assert (bench.place / "upper" / "f").read_text() == "y"
    assert command("umount", bench.root).returncode == 0


def test_symlinks_to_layers_are_followed(bench):
    (bench.place / "link").symlink_to("lower")
    assert unionfs("-o", f"lowerdir={bench.place}/link", bench.root).returncode == 0
    assert names_of(bench.root) == {"f"}
    bench.unmount()


def test_an_option_string_beyond_a_page(bench):
    for n in range(120):
        build(bench.place / f"layer-with-a-long-name-{n:04}", {f"f{n}": ""})
    lowers = ":".join(f"{bench.place}/layer-with-a-long-name-{n:04}" for n in range(120))
    assert len(lowers) > 4096
    done = unionfs("-o", f"lowerdir={lowers}", bench.root)
    assert done.returncode == 0, done.stderr
    assert len(os.listdir(bench.root)) == 120
    bench.unmount()


def test_options_of_other_programs_are_taken(bench):
    """What mount(8), fstab(5), podman, and users of fuse-overlayfs and overlayfs pass."""
    more = (
        "defaults,auto,_netdev,nofail,x-systemd.automount,allow_other,default_permissions,index=off,xino=off,"
        'redirect_dir=off,metacopy=off,volatile,fsync=0,noacl,squash_to_root,context="a:b,c",suid,dev,exec'
    )
    done = unionfs("-o", f"{bench.options},{more}", bench.root)
    assert (done.returncode, done.stderr) == (0, "")
    bench.unmount()


def test_an_unknown_option_is_told_of(bench):
    done = unionfs("-o", f"{bench.options},frobnicate=7", bench.root)
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "frobnicate" in done.stderr
    bench.unmount()


def test_version_and_help():
    assert unionfs("--version").stdout.startswith("unionfs version ")
    shown = unionfs("--help")
    assert shown.returncode == 0
    assert "lowerdir=" in shown.stdout


# Refusals -----------------------------------------------------------------------------------------

#: (options, mountpoint, words of the one line); @ is the bench's directory.
REFUSED = {
    "no options": ("", "@/merged", ["lowerdir"]),
    "no lowerdir": ("upperdir=@/upper,workdir=@/work", "@/merged", ["lowerdir"]),
    "empty lowerdir": ("lowerdir=", "@/merged", ["lowerdir="]),
    "empty layer": ("lowerdir=@/lower::@/work", "@/merged", ["lowerdir=", "empty"]),
    "no workdir": ("lowerdir=@/lower,upperdir=@/upper", "@/merged", ["workdir"]),
    "missing lowerdir": ("lowerdir=@/lower:@/none", "@/merged", ["lowerdir '@/none'", "No such"]),
    "missing upperdir": (
        "lowerdir=@/lower,upperdir=@/none,workdir=@/work",
        "@/merged",
        ["upperdir '@/none'"],
    ),
    "missing workdir": ("lowerdir=@/lower,upperdir=@/upper,workdir=@/none", "@/merged", ["workdir '@/none'"]),
    "lowerdir a file": ("lowerdir=@/lower/f", "@/merged", ["lowerdir '@/lower/f'", "Not a directory"]),
    "upperdir a file": ("lowerdir=@/lower,upperdir=@/lower/f,workdir=@/work", "@/merged", ["@/lower/f"]),
    "missing mountpoint": ("lowerdir=@/lower", "@/none", ["mountpoint '@/none'", "No such"]),
    "mountpoint a file": ("lowerdir=@/lower", "@/lower/f", ["mountpoint '@/lower/f'", "ot a directory"]),
    "workdir in upperdir": (
        "lowerdir=@/lower,upperdir=@/upper,workdir=@/upper/w",
        "@/merged",
        ["workdir", "@/upper/w"],
    ),
    "upperdir in workdir": ("lowerdir=@/lower,upperdir=@/work/u,workdir=@/work", "@/merged", ["@/work/u"]),
    "the same for both": ("lowerdir=@/lower,upperdir=@/upper,workdir=@/upper", "@/merged", ["@/upper"]),
    "workdir elsewhere": (
        "lowerdir=@/lower,upperdir=@/upper,workdir=/dev/shm",
        "@/merged",
        ["workdir '/dev/shm'"],
    ),
    "lowerdir is upperdir": (
        "lowerdir=@/upper,upperdir=@/upper,workdir=@/work",
        "@/merged",
        ["lowerdir '@/upper'"],
    ),
    "lowerdir in upperdir": (
        "lowerdir=@/upper/l,upperdir=@/upper,workdir=@/work",
        "@/merged",
        ["'@/upper/l'"],
    ),
    "a layer twice": ("lowerdir=@/lower:@/lower", "@/merged", ["lowerdir '@/lower'", "twice"]),
    "upper on proc": ("lowerdir=@/lower,upperdir=/proc/tty,workdir=/proc/fs", "@/merged", ["/proc/"]),
    "bad timeout": ("lowerdir=@/lower,timeout=soon", "@/merged", ["timeout=soon"]),
    "endless timeout": ("lowerdir=@/lower,timeout=inf", "@/merged", ["timeout=inf"]),
    "bad mapping": ("lowerdir=@/lower,uidmapping=1:2", "@/merged", ["uidmapping=1:2"]),
    "bad gid": ("lowerdir=@/lower,squash_to_gid=wheel", "@/merged", ["squash_to_gid=wheel"]),
    "bad fsync": ("lowerdir=@/lower,fsync=maybe", "@/merged", ["fsync=maybe"]),
    "features": ("lowerdir=@/lower,nfs_export=on", "@/merged", ["nfs_export=on"]),
    "open quotes": ('lowerdir=@/lower,context="a,b', "@/merged", ["context=", "quotes"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_one_clear_line(bench, case):
    options, mountpoint, words = REFUSED[case]
    for name in ("upper/w", "work/u", "upper/l"):
        (bench.place / name).mkdir()
    at = os.fspath(bench.place)
    for mode in ([], ["-f"]):
        arguments = ["-o", options.replace("@", at)] if options else []
        done = unionfs(*mode, *arguments, mountpoint.replace("@", at))
        assert done.returncode == 1, done.stderr
        assert done.stdout == ""
        assert done.stderr.startswith("unionfs: ")
        assert done.stderr.count("\n") == 1, done.stderr
        for word in words:
            assert word.replace("@", at) in done.stderr
    assert [point for point, _ in mounts() if point.startswith(at)] == []
    assert bench.servers() == []


def test_an_upper_on_a_read_only_disk_is_refused(bench):
    disk = bench.place / "disk"
    disk.mkdir()
    assert command("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk).returncode == 0
    try:
        for name in ("upper", "work"):
            (disk / name).mkdir()
        assert command("mount", "-o", "remount,ro", disk).returncode == 0
        done = unionfs(
            "-o", f"lowerdir={bench.place}/lower,upperdir={disk}/upper,workdir={disk}/work", bench.root
        )
        assert done.returncode == 1
        assert f"'{disk}/upper'" in done.stderr
        assert done.stderr.count("\n") == 1
    finally:
        detach(disk)


def test_an_upper_in_use_is_refused(bench):
    other = bench.place / "other"
    (bench.place / "work2").mkdir()
    other.mkdir()
    assert unionfs("-o", bench.options, bench.root).returncode == 0
    for options in (bench.options, bench.options.replace("/work", "/work2")):
        done = unionfs("-o", options, other)
        assert done.returncode == 1
        assert "in use" in done.stderr
        assert done.stderr.count("\n") == 1
    assert mounts_at(other) == []
    assert names_of(bench.root) == {"f"}
    bench.unmount()
    assert unionfs("-o", bench.options, other).returncode == 0
    assert command("umount", other).returncode == 0


def test_a_mountpoint_whose_server_died_says_how_to_end_it(bench):
    assert unionfs("-o", bench.options, bench.root).returncode == 0
    (server,) = bench.servers()
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: errno_of(os.stat, bench.root) == "ENOTCONN", "the mount is dead")
    done = unionfs("-o", bench.options, bench.root)
    assert done.returncode == 1
    assert f"umount {bench.root}" in done.stderr
    assert command("umount", bench.root).returncode == 0


@pytest.mark.parametrize("arguments", [[], ["-o"], ["--frobnicate", "/x"], ["a", "b", "c"]])
def test_wrong_arguments(arguments):
    done = unionfs(*arguments)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert done.stderr


def test_a_mount_over_its_own_lower_layer(bench):
    """The layer was opened before it was covered."""
    lower = bench.place / "lower"
    done = unionfs("-o", bench.options, lower)
    assert done.returncode == 0, done.stderr
    try:
        (lower / "new").touch()
        assert names_of(lower) == {"f", "new"}
    finally:
        assert command("umount", lower).returncode == 0
    assert names_of(lower) == {"f"}


def test_a_mount_inside_its_own_upper_layer(bench):
    """What is mounted there is not the layer's."""
    inside = bench.place / "upper" / "inside"
    inside.mkdir()
    assert unionfs("-o", bench.options, inside).returncode == 0
    try:
        assert names_of(inside) == {"f", "inside"}
        (inside / "inside" / "new").touch()
        assert names_of(inside) == {"f", "inside", "inside/new"}
    finally:
        assert command("umount", inside).returncode == 0
    assert names_of(inside) == {"new"}


def test_an_upper_inside_a_lower_layer(bench):
    """As kernel overlayfs has it (lowerdir=/ is in use): it works, but the way to it ends in ELOOP."""
    for name in ("u", "w"):
        (bench.place / "lower" / name).mkdir()
    lower = bench.place / "lower"
    assert unionfs("-o", f"lowerdir={lower},upperdir={lower}/u,workdir={lower}/w", bench.root).returncode == 0
    assert os.listdir(bench.root) == ["f"]
    for name in ("u", "w"):
        assert errno_of(os.stat, bench.root / name) == "ELOOP"
    (bench.root / "new").touch()
    assert sorted(os.listdir(bench.root)) == ["f", "new"]
    assert os.listdir(lower / "u") == ["new"]
    bench.unmount()
