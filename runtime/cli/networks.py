"""unionctl network."""

from __future__ import annotations

import json
from collections.abc import Callable

import click

from runtime import prune as pruning
from runtime.cli import pass_root
from runtime.cli.each import each
from runtime.cli.output import formatted, listing
from runtime.cli.pruning import confirm, prune_filters, prune_options, tell_pruned
from runtime.cli.run_options import pairs
from runtime.containers import networks, present
from runtime.containers.container import Endpoint
from runtime.containers.names import short
from runtime.errors import RuntimeFailure
from runtime.root import Root


@click.group()
def network() -> None:
    """Manage networks."""


@network.command()
@click.argument("name")
@click.option("-d", "--driver", type=click.Choice(["bridge"]), default="bridge", help="There is only bridge.")
@click.option("--subnet", default="", metavar="CIDR", help="Its addresses, like 10.1.2.0/24.")
@click.option("--gateway", default="", metavar="IP", help="The host's address in it.")
@click.option("--internal", is_flag=True, help="Only its own containers can be reached.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Set metadata.")
@click.option(
    "-o", "--opt", "options", multiple=True, metavar="KEY=VALUE", help="com.docker.network.driver.mtu=…"
)
@click.option("--attachable", is_flag=True, hidden=True)
@pass_root
def create(
    root: Root,
    name: str,
    driver: str,
    subnet: str,
    gateway: str,
    internal: bool,
    labels: tuple[str, ...],
    options: tuple[str, ...],
    attachable: bool,
) -> None:
    """Create a network, and print its ID. Containers in it find each other by name."""
    made = networks.create(root.prepare(), name, subnet, gateway, internal, pairs(labels), pairs(options))
    click.echo(made.id)


@network.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Only IDs.")
@click.option("--no-trunc", is_flag=True, help="Whole IDs.")
@click.option(
    "-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="name=, id=, driver=, label=."
)
@click.option("--format", "template", metavar="FORMAT", help="json, or a template: {{.Name}}.")
@pass_root
def list_(root: Root, quiet: bool, no_trunc: bool, filters: tuple[str, ...], template: str | None) -> None:
    """List networks."""
    conditions = [_condition(root.prepare(), text) for text in filters]
    rows = [
        {
            "ID": one.id if no_trunc else short(one.id),
            "Name": one.name,
            "Driver": one.driver,
            "Scope": "local",
            "Internal": str(one.internal).lower(),
            "IPv6": "false",
            "Labels": ",".join(f"{key}={value}" for key, value in one.labels.items()),
            "CreatedAt": one.created,
        }
        for one in networks.list_all(root.prepare())
        if all(condition(one) for condition in conditions)
    ]
    columns = {"NETWORK ID": "ID", "NAME": "Name", "DRIVER": "Driver", "SCOPE": "Scope"}
    listing(rows, columns, template, "ID" if quiet else None)


def _condition(root: Root, text: str) -> Callable[[networks.Network], bool]:
    key, _, value = text.partition("=")
    if key == "name":
        return lambda one: value in one.name
    if key == "id":
        return lambda one: one.id.startswith(value)
    if key == "driver":
        return lambda one: one.driver == value
    if key == "label":
        name, equals, wanted = value.partition("=")
        return lambda one: name in one.labels and (not equals or one.labels[name] == wanted)
    if key == "type" and value in ("custom", "builtin"):
        return lambda one: (one.name in networks.BUILT_IN) is (value == "builtin")
    if key == "dangling" and value in ("true", "false"):
        return lambda one: bool(networks.users(root, one)) is (value == "false")
    raise RuntimeFailure(f"invalid filter '{text}'")


@network.command()
@click.argument("names", nargs=-1, required=True, metavar="NETWORK...")
@click.option("-f", "--format", "template", metavar="FORMAT", help="json, or a template: {{.IPAM}}.")
@pass_root
def inspect(root: Root, names: tuple[str, ...], template: str | None) -> None:
    """Show all about networks."""
    root = root.prepare()
    found = [present.network(root, networks.find(root, name)) for name in names]
    if template:
        for values in found:
            click.echo(formatted(template, values))
    else:
        click.echo(json.dumps(found, indent=4))


@network.command()
@click.argument("names", nargs=-1, required=True, metavar="NETWORK...")
@click.option("-f", "--force", is_flag=True, help="One that is not there is no error.")
@pass_root
def rm(root: Root, names: tuple[str, ...], force: bool) -> None:
    """Remove networks that no running container is in."""
    each(names, lambda name: networks.remove(root.prepare(), name) and None, force)


@network.command()
@click.argument("name", metavar="NETWORK")
@click.argument("container")
@click.option("--alias", "aliases", multiple=True, metavar="NAME", help="One more name of it there.")
@click.option("--ip", "address", default="", metavar="IP", help="Its address there.")
@pass_root
def connect(root: Root, name: str, container: str, aliases: tuple[str, ...], address: str) -> None:
    """Put a container into one more network, at once if it runs."""
    networks.connect(root.prepare(), name, container, Endpoint("", aliases, address))


@network.command()
@click.argument("name", metavar="NETWORK")
@click.argument("container")
@click.option("-f", "--force", is_flag=True, hidden=True)
@pass_root
def disconnect(root: Root, name: str, container: str, force: bool) -> None:
    """Take a container out of a network, at once if it runs."""
    networks.disconnect(root.prepare(), name, container)


@network.command()
@prune_options
@pass_root
def prune(root: Root, conditions: tuple[str, ...], force: bool) -> None:
    """Remove the networks that no container is in."""
    confirm(force, "This will remove all custom networks not used by at least one container.")
    tell_pruned("Networks", pruning.networks_(root.prepare(), prune_filters(conditions)), total=False)
