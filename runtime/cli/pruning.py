"""What the prune commands have in common: the question, --filter, and what they say at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from runtime.cli.output import size
from runtime.errors import RuntimeFailure
from runtime.prune import Pruned

Command = TypeVar("Command", bound=Callable[..., Any])

_KEYS = ("label", "label!", "until")


def prune_options(command: Command) -> Command:
    """Give `command` --filter (`conditions`) and --force."""
    command = click.option("-f", "--force", is_flag=True, help="Do not ask.")(command)
    return click.option(
        "--filter",
        "conditions",
        multiple=True,
        metavar="KEY=VALUE",
        help="Only those with label=NAME[=VALUE] (label!= without it), or from before until=TIME.",
    )(command)


def prune_filters(conditions: tuple[str, ...]) -> dict[str, list[str]]:
    """--filter arguments as key → values. Raises RuntimeFailure for a key that is not known."""
    found: dict[str, list[str]] = {}
    for text in conditions:
        key, equals, value = text.partition("=")
        if key == "label!" or text.startswith("label!="):
            key, value = "label!", text.removeprefix("label!=")
        if key not in _KEYS or not equals:
            raise RuntimeFailure(f"invalid filter '{text}': there are {', '.join(_KEYS)}")
        found.setdefault(key, []).append(value)
    return found


def confirm(force: bool, warning: str) -> None:
    """Ask whether to go on, unless `force`; ends the command when the answer is no."""
    if not force:
        click.confirm(f"WARNING! {warning}\nAre you sure you want to continue?", abort=True)


def tell_pruned(kind: str, pruned: Pruned, total: bool = True) -> None:
    """Say what was removed, under the heading `Deleted KIND:`, and with `total` how much space it had."""
    if pruned.names:
        click.echo(f"Deleted {kind}:")
        for name in pruned.names:
            click.echo(name[0].lower() + name[1:] if kind == "Images" else name)
        click.echo()
    if total:
        click.echo(f"Total reclaimed space: {size(pruned.reclaimed)}")
