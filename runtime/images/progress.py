"""How long work reports on itself, without knowing of terminals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Who is told."""

    def task(self, label: str, total: int | None) -> AbstractContextManager[Callable[[int], None]]:
        """Work of `total` bytes (None: unknown); the block calls what it gets for each part done."""
        ...

    def note(self, text: str) -> None:
        """Something the user should know that is no failure."""
        ...


class Silent:
    """Nobody."""

    @contextmanager
    def task(self, label: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Tell no one."""
        yield lambda count: None

    def note(self, text: str) -> None:
        """Tell no one."""
