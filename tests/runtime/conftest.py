"""Fixtures of the runtime's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from unionctl_runner import Unionctl, dead_cgroups


@pytest.fixture
def unionctl(tmp_path: Path) -> Iterator[Unionctl]:
    """unionctl with a state root of its own and a busybox image; fails when something is left behind."""
    cgroups = dead_cgroups()
    runner = Unionctl(tmp_path / "state")
    runner.load()
    yield runner
    runner.end(cgroups)
