"""A network of a test's own, so that nothing it does is seen by the machine."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from unionctl_runner import Unionctl

from runtime.containers import netavark


@contextlib.contextmanager
def own_network(directory: Path) -> Iterator[list[str]]:
    """Words that, before a command, let it run in a network namespace that has nothing but a loopback.

    Skips the test where netavark is not there, or the kernel has no bridges.
    """
    if netavark.program() is None:
        pytest.skip("needs netavark")
    file = directory / "network-namespace"
    file.touch()
    subprocess.run(["unshare", f"--net={file}", "true"], check=True)
    enter = ["nsenter", f"--net={file}", "--"]
    try:
        subprocess.run([*enter, "ip", "link", "set", "lo", "up"], check=True)
        probe = subprocess.run([*enter, "ip", "link", "add", "probe", "type", "bridge"], capture_output=True)
        if probe.returncode != 0:
            pytest.skip(f"needs bridges: {probe.stderr.decode().strip()}")
        subprocess.run([*enter, "ip", "link", "del", "probe"], check=True)
        yield enter
    finally:
        subprocess.run(["umount", str(file)], check=True)


def in_network(unionctl: Unionctl, enter: list[str]) -> None:
    """Let every command of `unionctl` run there, with bridge as the default network."""
    unionctl.command = [*enter, *unionctl.command]
    del unionctl.environment["UNIONCTL_NETWORK"]
