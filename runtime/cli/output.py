"""How commands show things: tables, templates, sizes and ages as docker writes them; progress bars."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from runtime.cli.templates import Template, fields
from runtime.errors import RuntimeFailure
from runtime.images.progress import Progress, Silent

if TYPE_CHECKING:
    from rich.progress import Progress as Bars


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as their content, three spaces apart.

    Labels and commands come from images: what is not printable is escaped, so that it steers no terminal.
    """
    lines = [header, *([_printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        click.echo("   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def formatted(template: str, values: Mapping[str, Any]) -> str:
    r"""One line of a list after `template`: `json`, or text of Go's templates (see templates).

    Raises RuntimeFailure for a field that `values` do not have, or what is no template.
    """
    if template == "json":
        return json.dumps(values)
    return Template(template).render(values)


def listing(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], template: str | None, quiet: str | None
) -> None:
    """Print a list as docker's list commands do.

    `columns` are the table's, as heading → field. `quiet` names the only field of -q; `template` is that of
    --format, where `table TEMPLATE` has headings.
    """
    if quiet:
        for row in rows:
            click.echo(row[quiet])
    elif template is None or template == "table":
        table(list(columns), [[str(row[field]) for field in columns.values()] for row in rows])
    elif template.startswith("table "):
        body = template.removeprefix("table ")
        headings = {field: heading for heading, field in columns.items()}
        shown = Template(body)
        first = [headings.get(field, field.rpartition(".")[2].upper()) for field in fields(body)]
        lines = [shown.render(row).split("\t") for row in rows]
        if any(len(line) != len(first) for line in lines):
            raise RuntimeFailure(r"template: the columns of a table are separated by \t")
        table(first, lines)
    elif template == "json":
        for row in rows:
            click.echo(json.dumps(row))
    else:
        shown = Template(template)
        for row in rows:
            click.echo(shown.render(row))


def size(count: float) -> str:
    """Bytes as docker shows them: 1.24MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g}{unit}" if count < 1000 else f"{count:.0f}{unit}"


def ago(moment: datetime | None, now: datetime | None = None) -> str:
    """How long `moment` is past, as docker shows it: 3 weeks ago; N/A when there is none."""
    if moment is None:
        return "N/A"
    return f"{duration(((now or datetime.now(UTC)) - moment).total_seconds())} ago"


def duration(seconds: float) -> str:
    """A length of time as docker shows it, in its largest fitting unit (go-units, HumanDuration)."""
    seconds = int(seconds)
    minutes, hours = seconds // 60, (seconds + 1800) // 3600
    if seconds < 1:
        return "Less than a second"
    if seconds < 60:
        return f"{seconds} second{'s' if seconds > 1 else ''}"
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    if hours == 1:
        return "About an hour"
    for limit, length, unit in (
        (48, 1, "hours"),
        (24 * 14, 24, "days"),
        (24 * 60, 24 * 7, "weeks"),
        (24 * 730, 24 * 30, "months"),
    ):
        if hours < limit:
            return f"{hours // length} {unit}"
    return f"{hours // (24 * 365)} years"


class Terminal:
    """Progress bars on stderr."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars

    @contextmanager
    def task(self, label: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """A bar, gone when the block ends."""
        task = self._bars.add_task(label, total=total)
        try:
            yield lambda count: self._bars.advance(task, count)
        finally:
            self._bars.remove_task(task)

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._bars.console.print(f"note: {text}", markup=False, highlight=False)


class Plain(Silent):
    """No bars where there is no terminal; notes all the same."""

    def note(self, text: str) -> None:
        """A line on stderr."""
        click.echo(f"note: {text}", err=True)


def progress(quiet: bool = False) -> AbstractContextManager[Progress]:
    """Progress bars when stderr is a terminal, else only notes; neither when `quiet`."""
    return _progress(quiet)


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    if quiet:
        yield Silent()
    elif not sys.stderr.isatty():
        yield Plain()
    else:
        from rich.console import Console  # slow to import
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
            yield Terminal(bars)
