"""unionctl for a user without rights: in namespaces of his own."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import image
import pytest
import steps
from machine import PATIENCE, needs
from rootless import UID, User
from support.union import wait_until

pytestmark = pytest.mark.root
needs("runc", "conmon", "newuidmap", "unshare", "setpriv")
pytest.importorskip("click")


@pytest.fixture
def user(place: Path) -> Iterator[User]:
    made = User(place)
    try:
        made.install("unionctl", "runtime")
        yield made
    finally:
        made.close()


def test_run_exec_diff_commit_build(user):
    image.write(user.place / "image.tar").chmod(0o644)
    user.sh(f"unionctl load -q -i {user.place}/image.tar")
    look = "cat /proc/self/uid_map; grep -c ' / fuse.unionfs' /proc/mounts; stat -c %u:%g:%a /data/one"
    said = user.sh(f'unionctl run --rm --network none {image.NAME} sh -ec "{look}"').split()
    assert said == ["0", str(UID), "1", "1", "600000", "65536", "1", "1000:1000:644"]

    user.sh(f"unionctl run -d --name one --network none -v kept:/volume {image.NAME} sleep 1000")
    # Whoever held the namespaces is gone: they are found again in the container.
    holder = json.loads((user.home / ".local/share/unionfs/namespace").read_text())["pid"]
    os.kill(holder, signal.SIGKILL)
    wait_until(lambda: not _lives(holder), "the holder is gone", PATIENCE)
    script = steps.SCRIPT.replace(chr(39), chr(34))
    user.sh(f"unionctl exec one sh -ec '{script}'; unionctl exec one touch /volume/file")
    changed = set(user.sh("unionctl diff one").splitlines())
    assert {"A /new", "D /kept", "D /bin/vi", "C /data/one", "C /data/two", "A /opaque/again"} <= changed
    user.sh("unionctl commit one localhost/made:1; unionctl rm -f one")
    wait_until(lambda: not user.sh("unionctl ps -aq"), "it is removed", PATIENCE)
    look = "cat /data/two; stat -c '%h %u:%g %a' /new-link; ls /volume"
    said = user.sh(f'unionctl run --rm --network none -v kept:/volume localhost/made:1 sh -ec "{look}"')
    assert said == f"{steps.APPENDED[1]}\n2 3:4 4751\nfile\n"

    context = steps.context(user.place / "context")
    user.sh(f"unionctl build -q --network none -t localhost/built:1 {context}")
    assert user.sh(f'unionctl run --rm --network none localhost/built:1 sh -ec "{steps.LOOK}"') == (
        f"{steps.SEEN}\n"
    )
    said = user.sh(
        "unionctl system prune -af --volumes; unionctl images -q; unionctl ps -aq; unionctl volume ls -q"
    )
    assert "localhost" not in said.splitlines()[-1]


def test_a_bridge_and_a_published_port(user):
    needs("slirp4netns", "ip", "nsenter")
    from runtime.containers import netavark

    if netavark.program() is None or not Path("/dev/net/tun").exists():
        pytest.skip("needs netavark and /dev/net/tun")
    image.write(user.place / "image.tar").chmod(0o644)
    user.sh(f"unionctl load -q -i {user.place}/image.tar")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve = "while :; do echo hello | nc -l -p 80; done"
    user.sh(f"unionctl run -d --name web -p 127.0.0.1:{port}:80 {image.NAME} sh -c '{serve}'")
    wait_until(lambda: _said(port) == b"hello\n", "the port leads into the container", PATIENCE)
    address = user.sh("unionctl inspect -f '{{.NetworkSettings.IPAddress}}' web").strip()
    reach = f"until nc -w 2 {address} 80 </dev/null | grep hello; do sleep 0.05; done"
    assert user.sh(f"unionctl run --rm {image.NAME} sh -c '{reach}'") == "hello\n"
    user.sh("unionctl rm -f web")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_without_subordinate_ids_it_is_said(user):
    image.write(user.place / "image.tar").chmod(0o644)
    for file in ("subuid", "subgid"):
        (user.place / "etc" / file).write_text("")
    said = user.sh(
        f"unionctl load -q -i {user.place}/image.tar; unionctl run --rm {image.NAME} true 2>&1 || echo $?"
    )
    assert "subordinate ids: /etc/subuid has no line for user union" in said
    assert said.splitlines()[-1] == "125"


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _said(port: int) -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
            return line.makefile("rb").readline()
    except OSError:
        return b""
