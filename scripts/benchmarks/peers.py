"""The union filesystems that are compared, and how each is mounted."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

OURS = "unionfs"
DISK = "disk"


class PeerError(Exception):
    """A peer could not be mounted, or failed at a workload; the message is one line."""


@dataclass(frozen=True)
class Place:
    """What is to be mounted where. `lowers` are names in the directory `base`, topmost first."""

    base: Path
    lowers: tuple[str, ...]
    upper: Path
    work: Path
    merged: Path


@dataclass(frozen=True)
class Peer:
    """One filesystem. `command` gives the program that mounts a place, and returns when it is mounted."""

    name: str
    command: Callable[[Place], Sequence[str]]
    #: What says its version, for the report.
    version: tuple[str, ...] = ()
    #: Whether a process serves it, whose memory can be measured.
    served: bool = True


def _options(place: Place) -> str:
    return f"lowerdir={':'.join(place.lowers)},upperdir={place.upper},workdir={place.work}"


def _like_fuse_overlayfs(*program: str) -> Callable[[Place], Sequence[str]]:
    return lambda place: [*program, "-o", _options(place), str(place.merged)]


def _overlayfs(place: Place) -> Sequence[str]:
    return ["mount", "-t", "overlay", "overlay", "-o", _options(place), str(place.merged)]


def _unionfs_fuse(place: Place) -> Sequence[str]:
    branches = ":".join([f"{place.upper}=RW", *(f"{place.base / name}=RO" for name in place.lowers)])
    options = "cow,allow_other,default_permissions,suid,dev"
    return ["unionfs-fuse", "-o", options, branches, str(place.merged)]


def _disk(place: Place) -> Sequence[str]:
    """No union at all: the one lower layer itself, or, without any, an empty directory."""
    if not place.lowers:
        return ["mount", "--bind", str(place.upper), str(place.merged)]
    lower = str(place.base / place.lowers[0])
    return ["mount", "--bind", "-o", "ro,noatime", lower, str(place.merged)]


def ours() -> Peer:
    """This project's own, from the environment that runs the benchmark."""
    program = str(Path(sys.executable).parent / "unionfs")
    return Peer(OURS, _like_fuse_overlayfs(program), (program, "--version"))


def given(text: str) -> Peer:
    """A peer of `--peer NAME=COMMAND`, that takes the arguments of fuse-overlayfs. Raises ValueError."""
    name, equals, command = text.partition("=")
    words = shlex.split(command)
    if not (name and equals and words):
        raise ValueError(f"'{text}': NAME='COMMAND' is wanted")
    if shutil.which(words[0]) is None:
        raise ValueError(f"'{words[0]}': no such command")
    return Peer(name, _like_fuse_overlayfs(*words), (words[0], "--version"))


def found() -> list[Peer]:
    """Every peer this machine has, ours first, the disk itself last."""
    peers = [ours()]
    with open("/proc/filesystems", encoding="ascii") as lines:
        known = {line.split()[-1] for line in lines}
    if "overlay" in known or subprocess.run(["modprobe", "-q", "overlay"], check=False).returncode == 0:
        peers.append(Peer("overlayfs", _overlayfs, ("uname", "-sr"), served=False))
    if shutil.which("fuse-overlayfs"):
        peers.append(
            Peer(
                "fuse-overlayfs",
                _like_fuse_overlayfs("fuse-overlayfs"),
                ("fuse-overlayfs", "--version"),
            )
        )
    if shutil.which("unionfs-fuse"):
        peers.append(Peer("unionfs-fuse", _unionfs_fuse, ("unionfs-fuse", "--version")))
    peers.append(Peer(DISK, _disk, served=False))
    return peers


def version(peer: Peer) -> str:
    """One line that names the peer's version; empty when it says none."""
    if not peer.version:
        return ""
    done = subprocess.run(peer.version, capture_output=True, text=True, check=False)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines()]
    named = [line for line in lines if line.startswith((peer.name, "Linux", Path(peer.version[0]).name))]
    return next(iter(named or lines), "")


def mounted() -> list[str]:
    """Every place where something is mounted, the oldest first."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        return [line.split(" ")[4] for line in lines]


def is_mounted(path: Path) -> bool:
    """Also for a bind mount, which has the device of what it lies on."""
    return str(path) in mounted()


def mount(peer: Peer, place: Place) -> float:
    """Mount; returns the seconds from the call to the first answer. Raises PeerError."""
    command = peer.command(place)
    begun = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            cwd=place.base,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PeerError(f"{peer.name}: not mounted after a minute") from None
    os.statvfs(place.merged)
    seconds = time.perf_counter() - begun
    if done.returncode or not is_mounted(place.merged):
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise PeerError(f"{peer.name}: not mounted: {words[-1] if words else 'it does not say why'}")
    return seconds


def servers(merged: Path) -> list[int]:
    """The processes that serve the mount at a path: those that were called with it."""
    wanted = os.fsencode(merged)
    pids = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                arguments = Path("/proc", name, "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if wanted in arguments:
                pids.append(int(name))
    return pids


def unmount(merged: Path, *, patience: float = 20.0) -> None:
    """Unmount, by force if need be, and wait for the server's end."""
    pids = servers(merged)
    deadline = time.monotonic() + patience
    while is_mounted(merged):
        done = subprocess.run(["umount", str(merged)], capture_output=True, check=False)
        if done.returncode == 0:
            continue
        if time.monotonic() > deadline:
            # -f ends the connection, so that whoever waits for an answer of a hung server is let go.
            subprocess.run(["umount", "-f", str(merged)], capture_output=True, check=False)
            subprocess.run(["umount", "-l", str(merged)], capture_output=True, check=False)
            break
        time.sleep(0.05)
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        if time.monotonic() > deadline + patience:
            for pid in set(pids) & set(servers(merged)):
                os.kill(pid, 9)
            break
        time.sleep(0.01)


def unmount_all(below: Path) -> None:
    """Unmount whatever is mounted below a directory."""
    for point in reversed(mounted()):
        if point.startswith(f"{below}/"):
            unmount(Path(point), patience=5.0)
