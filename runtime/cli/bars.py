"""Transfers on a terminal: a row for each part, with a bar while its bytes move."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.progress import BarColumn, DownloadColumn, Progress, Task, TaskID, TextColumn


class _Bar(BarColumn):
    def render(self, task: Task) -> Any:
        return super().render(task) if task.fields["moving"] else ""


class _Bytes(DownloadColumn):
    def render(self, task: Task) -> Any:
        return super().render(task) if task.fields["moving"] else ""


class _Rows(Progress):
    def get_renderables(self) -> Iterator[RenderableType]:
        """The rows, in the order of the parts."""
        yield self.make_tasks_table(sorted(self.tasks, key=lambda task: task.id))


class Bars:
    """A Report on a terminal."""

    def __init__(self, rows: Progress) -> None:
        self.after: list[str] = []
        self.rows = rows
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def say(self, text: str, part: str = "") -> None:
        """What becomes of a part stands in its row; of the whole, in a line above the rows, or after them."""
        if part:
            self._update(part, text, moving=False)
        elif self._tasks:
            self.after.append(text)
        else:
            self.rows.console.print(text, markup=False, highlight=False)

    def advance(self, text: str, part: str, current: int, total: int) -> None:
        """The bar of a part."""
        self._update(part, text, moving=True, completed=current, total=total)

    def _update(self, part: str, text: str, **changes: Any) -> None:
        description = f"{part}: {text}"
        with self._lock:
            if part not in self._tasks:
                self._tasks[part] = self.rows.add_task(description, total=None, moving=False)
            self.rows.update(self._tasks[part], description=description, **changes)


@contextmanager
def bars(err: bool) -> Iterator[Bars]:
    """Rows on standard output, or with `err` on standard error; they stay at the end, as docker's do."""
    columns = (TextColumn("{task.description}", markup=False), _Bar(bar_width=30), _Bytes())
    shown = Bars(_Rows(*columns, console=Console(stderr=err)))
    try:
        with shown.rows:
            yield shown
    finally:
        for text in shown.after:
            click.echo(text, err=err)
