"""Commands that do the same with several things, as docker's do: one failure does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click

from runtime.errors import NotFound, RuntimeFailure, one_line


def each(names: Iterable[str], verb: Callable[[str], object], absent_is_fine: bool = False) -> None:
    """Call `verb` with each name and print the name, or the result where it is not None.

    Failures are said on stderr; at the end they make the command's exit code 1. With `absent_is_fine` a thing
    that is not there is said, and no more.
    """
    failed = False
    for name in names:
        try:
            result = verb(name)
            click.echo(name if result is None else result)
        except (RuntimeFailure, OSError) as error:
            click.echo(f"unionctl: {one_line(error)}", err=True)
            failed = failed or not (absent_is_fine and isinstance(error, NotFound))
    if failed:
        raise click.exceptions.Exit(1)
