"""Fixtures of the tests with container engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import public_place


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that other users can pass through."""
    with public_place() as made:
        yield made
