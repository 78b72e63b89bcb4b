"""How pull and push are shown: bars on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext

import click

from runtime.registry.report import Quiet, Report


def transfer(quiet: bool, err: bool = False) -> AbstractContextManager[Report]:
    """Who a transfer reports to: standard output, or with `err` standard error; nobody when `quiet`."""
    if quiet:
        return nullcontext(Quiet())
    if not (sys.stderr if err else sys.stdout).isatty():
        return nullcontext(_Lines(err))
    from runtime.cli.bars import bars  # slow to import

    return bars(err)


class _Lines:
    """docker's output where it is no terminal: no bytes counted."""

    def __init__(self, err: bool) -> None:
        self._err = err

    def say(self, text: str, part: str = "") -> None:
        click.echo(f"{part}: {text}" if part else text, err=self._err)

    def advance(self, text: str, part: str, current: int, total: int) -> None:
        pass
