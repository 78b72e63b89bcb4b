"""Fixtures of the unit tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from support.union import get_securebits, set_securebits


@pytest.fixture(autouse=True)
def unchanged_process() -> Iterator[None]:
    """An upper layer sets the securebits that a server wants: they are not for the tests that follow."""
    before = get_securebits()
    yield
    if os.geteuid() == 0 and get_securebits() != before:
        set_securebits(before)
