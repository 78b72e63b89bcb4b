"""Commands that do the same with several things, as docker's do: one failure does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click

from runtime.errors import RuntimeFailure


def each(names: Iterable[str], verb: Callable[[str], object]) -> None:
    """Call `verb` with each name and print the name, or the result where it is not None.

    Failures are said on stderr; at the end they make the command's exit code 1.
    """
    failed = False
    for name in names:
        try:
            result = verb(name)
            click.echo(name if result is None else result)
        except (RuntimeFailure, OSError) as error:
            click.echo(f"unionctl: {error}", err=True)
            failed = True
    if failed:
        raise click.exceptions.Exit(1)
