"""Fixtures of the tests with container engines."""

from __future__ import annotations

from pathlib import Path

import pytest
from machine import let_pass


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that other users can pass through."""
    return let_pass(tmp_path)
