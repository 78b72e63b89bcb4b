"""The way out for who is not root: a network namespace of the user's, in which bridges are made.

slirp4netns (Debian package slirp4netns) connects it to the machine's network without any right; it lasts as
long as the namespaces of the state root do. netavark is called in it, and finds there what root's finds in
the machine's own. A published port takes two steps: slirp4netns listens on the machine, by a request on its
socket (slirp4netns(1), "API socket"), and netavark leads on from there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime import rootless
from runtime.containers import rootfs
from runtime.containers.ports import Port
from runtime.errors import RuntimeFailure
from runtime.root import Root

#: slirp4netns's own address in the namespace, to which it sends what comes in from the machine.
_INSIDE = "10.0.2.100"


def program() -> str | None:
    """Where slirp4netns is, or None."""
    return shutil.which("slirp4netns", path=f"{os.environ.get('PATH', '')}:/usr/bin:/usr/local/bin")


@dataclass(frozen=True)
class Uplink:
    """The namespace of one state root."""

    directory: Path
    socket: Path

    @property
    def namespace(self) -> Path:
        """The file on which the network namespace is mounted."""
        return self.directory / "network"

    def words(self) -> list[str]:
        """What stands before a command that is to run in the namespace."""
        return ["nsenter", f"--net={self.namespace}", "--"]

    def publish(self, ports: Iterable[Port]) -> None:
        """Let the machine's ports lead in. Raises RuntimeFailure when one is taken."""
        for port in ports:
            arguments = {
                "proto": port.protocol,
                "host_addr": port.host_ip or "0.0.0.0",
                "host_port": port.host,
                "guest_addr": _INSIDE,
                "guest_port": port.host,
            }
            answer = self._ask("add_hostfwd", arguments)
            if "error" in answer:
                words = answer["error"].get("desc", answer["error"])
                raise RuntimeFailure(f"cannot publish {arguments['host_addr']}:{port.host}: {words}", 125)

    def withdraw(self, numbers: Iterable[int]) -> None:
        """Close ports of the machine; what is closed already is no error."""
        gone = set(numbers)
        with contextlib.suppress(RuntimeFailure):
            answer = self._ask("list_hostfwd", {})
            for entry in answer.get("return", answer).get("entries", ()):
                if entry.get("host_port") in gone:
                    self._ask("remove_hostfwd", {"id": entry["id"]})

    def _ask(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        request = json.dumps({"execute": verb, "arguments": arguments}).encode()
        try:
            with socket.socket(socket.AF_UNIX) as line:
                line.connect(str(self.socket))
                line.sendall(request)
                line.shutdown(socket.SHUT_WR)
                said = b"".join(iter(lambda: line.recv(65536), b""))
            answer: dict[str, Any] = json.loads(said or b"{}")
        except (OSError, ValueError) as error:
            raise RuntimeFailure(f"slirp4netns does not answer: {error}", 125) from error
        return answer


def existing(root: Path) -> Uplink | None:
    """The uplink of a state root, as it was made; None for root, who needs none."""
    if rootless.owns_network():
        return None
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    return Uplink(root / "uplink", rootless.runtime_directory() / f"{name}.slirp4netns")


def ensured(root: Root) -> Uplink | None:
    """The uplink of a state root, at work; None for root, who needs none.

    Raises RuntimeFailure when slirp4netns is not installed, or fails.
    """
    uplink = existing(root.path)
    if uplink is None:
        return None
    uplink.directory.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(uplink.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # Who makes it hands this lock down to slirp4netns: it is free when that is no more.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    else:
        _start(uplink, lock)
    finally:
        os.close(lock)
    return uplink


def _start(uplink: Uplink, lock: int) -> None:
    slirp = program()
    if slirp is None:
        raise RuntimeFailure(
            "slirp4netns is not installed, and without root bridge networks need it "
            "(Debian package slirp4netns): without it there are the networks host and none",
            125,
        )
    if not rootfs.is_mounted(uplink.namespace):
        uplink.namespace.touch(mode=0o600)
        made = ["unshare", f"--net={uplink.namespace}", "ip", "link", "set", "lo", "up"]
        done = subprocess.run(made, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeFailure(f"cannot make a network namespace: {done.stderr.strip()}", 125)
    uplink.socket.unlink(missing_ok=True)
    ready_read, ready_write = os.pipe()
    with (uplink.directory / "log").open("wb") as log:
        subprocess.Popen(
            [
                *(slirp, "--configure", "--mtu=65520", "--disable-host-loopback"),
                *(f"--ready-fd={ready_write}", f"--api-socket={uplink.socket}"),
                *("--netns-type=path", str(uplink.namespace), "tap0"),
            ],
            pass_fds=(ready_write, lock),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
    os.close(ready_write)
    with os.fdopen(ready_read, "rb") as ready:
        if not ready.read(1):
            words = "; ".join((uplink.directory / "log").read_text(errors="replace").splitlines())
            raise RuntimeFailure(f"slirp4netns fails: {words or 'it said nothing'}", 125)
