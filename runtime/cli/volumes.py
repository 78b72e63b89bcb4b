"""unionctl volume."""

from __future__ import annotations

import json
from collections.abc import Callable

import click

from runtime import prune as pruning
from runtime.cli import pass_root
from runtime.cli.each import each
from runtime.cli.output import formatted, listing
from runtime.cli.pruning import confirm, prune_filters, prune_options, tell_pruned
from runtime.cli.rows import volume_row
from runtime.containers import present, volumes
from runtime.errors import RuntimeFailure
from runtime.root import Root


@click.group()
def volume() -> None:
    """Manage volumes."""


@volume.command()
@click.argument("name", required=False)
@click.option("--name", "named", metavar="NAME", hidden=True)
@click.option("-l", "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Set metadata.")
@click.option("-d", "--driver", type=click.Choice(["local"]), default="local", help="There is only local.")
@pass_root
def create(root: Root, name: str | None, named: str | None, labels: tuple[str, ...], driver: str) -> None:
    """Create a volume, and print its name."""
    metadata = dict(label.partition("=")[::2] for label in labels)
    click.echo(volumes.create(root.prepare(), name or named or "", metadata).name)


@volume.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Only names.")
@click.option(
    "-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="name=, label= or dangling=."
)
@click.option("--format", "template", metavar="FORMAT", help="json, or a template: {{.Name}}.")
@pass_root
def list_(root: Root, quiet: bool, filters: tuple[str, ...], template: str | None) -> None:
    """List volumes."""
    conditions = [_condition(root, text) for text in filters]
    rows = [
        volume_row(subject)
        for subject in volumes.list_all(root)
        if all(condition(subject) for condition in conditions)
    ]
    listing(rows, {"DRIVER": "Driver", "VOLUME NAME": "Name"}, template, "Name" if quiet else None)


def _condition(root: Root, text: str) -> Callable[[volumes.Volume], bool]:
    """One --filter; raises RuntimeFailure when there is none like it."""
    key, _, value = text.partition("=")
    if key == "name":
        return lambda subject: value in subject.name
    if key == "label":
        name, equals, wanted = value.partition("=")
        return lambda subject: name in subject.labels and (not equals or subject.labels[name] == wanted)
    if key == "dangling" and value.lower() in ("0", "1", "false", "true"):
        dangling = value.lower() in ("1", "true")
        return lambda subject: dangling is not bool(volumes.users(root, subject.name))
    raise RuntimeFailure(f"invalid filter '{text}'")


@volume.command()
@click.argument("names", nargs=-1, required=True, metavar="VOLUME...")
@click.option("-f", "--format", "template", metavar="FORMAT", help="json, or a template: {{.Mountpoint}}.")
@pass_root
def inspect(root: Root, names: tuple[str, ...], template: str | None) -> None:
    """Show all about volumes."""
    found = [present.volume(volumes.find(root, name)) for name in names]
    if template:
        for values in found:
            click.echo(formatted(template, values))
    else:
        click.echo(json.dumps(found, indent=4))


@volume.command()
@click.argument("names", nargs=-1, required=True, metavar="VOLUME...")
@click.option("-f", "--force", is_flag=True, help="A volume that is not there is no error.")
@pass_root
def rm(root: Root, names: tuple[str, ...], force: bool) -> None:
    """Remove volumes that no container has."""
    each(names, lambda name: volumes.remove(root.prepare(), name, force))


@volume.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Those with a name, too.")
@prune_options
@pass_root
def prune(root: Root, everything: bool, conditions: tuple[str, ...], force: bool) -> None:
    """Remove the anonymous volumes that no container has."""
    kind = "" if everything else "anonymous "
    confirm(force, f"This will remove all {kind}volumes not used by at least one container.")
    pruned = pruning.volumes_(root.prepare(), prune_filters(conditions), everything)
    tell_pruned("Volumes", pruned)
