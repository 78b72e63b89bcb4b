"""unionctl rename, update."""

from __future__ import annotations

from typing import Any

import click

from runtime.cli import pass_root
from runtime.cli.each import each
from runtime.cli.run_options import swap_size
from runtime.containers import amend, mounts
from runtime.root import Root


@click.command()
@click.argument("name", metavar="CONTAINER")
@click.argument("new", metavar="NAME")
@pass_root
def rename(root: Root, name: str, new: str) -> None:
    """Give a container another name."""
    amend.rename(root.prepare(), name, new)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
@click.option("--restart", metavar="POLICY", help="no, on-failure[:MAX], always, unless-stopped.")
@click.option("-m", "--memory", metavar="SIZE", help="No more memory than SIZE.")
@click.option("--memory-reservation", metavar="SIZE", help="A soft limit.")
@click.option("--memory-swap", metavar="SIZE", help="Memory and swap together; -1 is any.")
@click.option("--cpus", type=float, metavar="NUMBER", help="No more time than NUMBER CPUs give.")
@click.option("-c", "--cpu-shares", type=int, metavar="NUMBER", help="Its weight when CPUs are short.")
@click.option("--cpuset-cpus", metavar="LIST", help="Only these CPUs: 0-2,5.")
@click.option("--cpuset-mems", metavar="LIST", help="Only memory of these nodes.")
@click.option("--pids-limit", type=int, metavar="NUMBER", help="No more processes than NUMBER.")
@pass_root
def update(root: Root, /, names: tuple[str, ...], **options: Any) -> None:
    """Change the limits and the restart policy of containers, of running ones at once.

    \b
    unionctl update -m 512m --cpus 1.5 web
    unionctl update --restart always web db
    """
    changes = {key: value for key, value in options.items() if value is not None and key != "cpus"}
    if not changes and options["cpus"] is None:
        raise click.UsageError("you must provide one or more flags when using this command")
    for key in ("memory", "memory_reservation"):
        if key in changes:
            changes[key] = mounts.size_in_bytes(changes[key])
    if "memory_swap" in changes:
        changes["memory_swap"] = swap_size(changes["memory_swap"])
    if options["cpus"] is not None:
        changes["nano_cpus"] = round(options["cpus"] * 10**9)

    def warn(message: str) -> None:
        click.echo(f"WARNING: {message}", err=True)

    each(names, lambda name: amend.update(root.prepare(), name, changes, warn) and None)
