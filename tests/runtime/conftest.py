"""Fixtures of the runtime's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_server import Proxy, Registry
from unionctl_runner import Unionctl, dead_cgroups


@pytest.fixture
def unionctl(tmp_path: Path) -> Iterator[Unionctl]:
    """unionctl with a state root of its own and a busybox image; fails when something is left behind."""
    cgroups = dead_cgroups()
    runner = Unionctl(tmp_path / "state")
    runner.load()
    yield runner
    runner.end(cgroups)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A docker-registry of the module's own."""
    server = Registry(tmp_path_factory.mktemp("registry") / "registry")
    yield server
    server.close()


@pytest.fixture
def proxy(registry: Registry) -> Iterator[Proxy]:
    """A proxy before the registry; its faults are the test's to set."""
    server = Proxy(registry)
    yield server
    server.close()
