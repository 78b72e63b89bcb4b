"""What the fault and crash tests share: a gate for system calls, and a union of many alike cases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import intercept
from support.fixtures import make_union, place

__all__ = ["gate", "make_union", "place"]


@pytest.fixture
def gate() -> Iterator[intercept.Gate]:
    """Where a server's system calls on layers are counted, refused, or its last ones."""
    if not intercept.AVAILABLE:
        pytest.skip("the numbers of system calls are known for x86-64")
    made = intercept.Gate()
    yield made
    made.close()
