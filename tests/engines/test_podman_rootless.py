"""Podman for a user without rights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import image
import pytest
import steps
from machine import needs
from rootless import UID, User

pytestmark = pytest.mark.root
needs("podman", "runc", "conmon", "newuidmap", "unshare", "setpriv")


@pytest.fixture
def user(place: Path) -> Iterator[User]:
    made = User(place)
    try:
        yield made
    finally:
        made.close()


def test_rootless(user):
    image.write(user.place / "image.tar").chmod(0o644)
    context = steps.context(user.place / "context")
    user.sh(f"podman load -q -i {user.place}/image.tar")
    said = user.sh(
        f"podman run --rm {image.NAME} sh -ec \"grep -o ' / fuse.unionfs' /proc/mounts; cat /data/two\""
    )
    assert said == " / fuse.unionfs\none\n"
    user.sh(f"podman run --name one {image.NAME} sh -ec '{steps.SCRIPT.replace(chr(39), chr(34))}'")
    changed = set(user.sh("podman diff one").splitlines())
    assert {"A /new", "D /kept", "D /bin/vi", "C /data/one", "C /data/two", "A /opaque/again"} <= changed
    assert "C /data/fifo" not in changed
    user.sh("podman commit -q one localhost/made:1; podman rm one")
    look = "cat /data/two; stat -c '%h %u:%g %a' /new-link"
    assert (
        user.sh(f'podman run --rm localhost/made:1 sh -ec "{look}"') == f"{steps.APPENDED[1]}\n2 3:4 4751\n"
    )
    user.sh(f"podman build -q -t localhost/built:1 {context}")
    assert user.sh(f'podman run --rm localhost/built:1 sh -ec "{steps.LOOK}"') == f"{steps.SEEN}\n"
    said = user.sh(
        f"podman run --rm -v {context}:/src:O {image.NAME} sh -ec 'echo x >/src/local; cat /src/local'"
    )
    assert said == "x\n" and (context / "local").read_text() == "local\n"
    assert user.sh("podman unshare cat /proc/self/uid_map").split() == [
        "0",
        str(UID),
        "1",
        "1",
        "600000",
        "65536",
    ]
    user.sh("podman system migrate")
