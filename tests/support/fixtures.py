"""Fixtures of tests that mount."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from support.union import Union, detach

MakeUnion = Callable[..., Union]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that other users can pass through."""
    for directory in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        directory.chmod(0o755)
    return tmp_path


@pytest.fixture
def make_union(place: Path) -> Iterator[MakeUnion]:
    """Make a union and mount it; at the end all is unmounted, and the servers must have been well."""
    made: list[Union] = []

    def make(
        *lowers: Mapping[str | bytes, Any],
        upper: Mapping[str | bytes, Any] | None = None,
        options: tuple[str, ...] = (),
        mount: bool = True,
        writable: bool = True,
        name: str = "union",
        under: Path | None = None,
    ) -> Union:
        directory = (under or place) / f"{name}{len(made)}"
        directory.mkdir()
        union = Union(directory, *lowers, upper=upper)
        made.append(union)
        union.writable = writable
        if mount:
            union.mount(*options)
        return union

    yield make
    errors = []
    for union in reversed(made):
        try:
            union.close()
        except AssertionError as error:
            errors.append(str(error))
        if detach(union.place):
            errors.append(f"something was left mounted below {union.place}")
    assert not errors, "\n".join(errors)
