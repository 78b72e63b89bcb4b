"""unionctl info, version, and system df, events, info, prune."""

from __future__ import annotations

from importlib.metadata import version as installed_version
from typing import Any

import click

from runtime import about, usage
from runtime import prune as pruning
from runtime.cli import pass_root
from runtime.cli.images import open_store
from runtime.cli.output import formatted, listing, size
from runtime.cli.pruning import confirm, prune_filters, prune_options, tell_pruned
from runtime.cli.watching import events
from runtime.root import Root


@click.command()
@click.option("-f", "--format", "template", metavar="FORMAT", help="json, or a template: {{.Images}}.")
@pass_root
def info(root: Root, template: str | None) -> None:
    """Show what there is, and what this machine can do."""
    found = about.info(root.prepare(), open_store(root))
    if template:
        click.echo(formatted(template, found))
        return
    lines = {
        "Containers": found["Containers"],
        " Running": found["ContainersRunning"],
        " Paused": found["ContainersPaused"],
        " Stopped": found["ContainersStopped"],
        "Images": found["Images"],
        "Server Version": found["ServerVersion"],
        "Storage Driver": found["Driver"],
        "Root Dir": found["DockerRootDir"],
        "Logging Driver": "k8s-file",
        "Cgroup Version": found["CgroupVersion"],
        "Networks": " ".join(found["Plugins"]["Network"]),
        "Runtimes": " ".join(found["Runtimes"]),
        "Default Runtime": found["DefaultRuntime"],
        "Kernel Version": found["KernelVersion"],
        "Operating System": found["OperatingSystem"],
        "Architecture": found["Architecture"],
        "CPUs": found["NCPU"],
        "Total Memory": size(found["MemTotal"]),
        "Name": found["Name"],
    }
    for key, value in lines.items():
        click.echo(f"{key}: {value}")
    for warning in found["Warnings"] or ():
        click.echo(f"WARNING: {warning}", err=True)


@click.command()
@click.option("-f", "--format", "template", metavar="FORMAT", help="json, or {{.Server.Version}} …")
def version(template: str | None) -> None:
    """Show the version."""
    server = about.version()
    if template:
        click.echo(formatted(template, {"Client": server, "Server": server}))
        return
    click.echo(f"unionctl version {installed_version('unionfs')}")
    click.echo(f"API version: {about.API_VERSION} (minimum version {about.MIN_API_VERSION})")
    click.echo(f"OS/Arch: {server['Os']}/{server['Arch']}")
    click.echo(f"Kernel: {server['KernelVersion']}")


@click.group()
def system() -> None:
    """Look after all of it: df, events, info, prune."""


system.add_command(info)
system.add_command(events)


@system.command()
@click.option("-v", "--verbose", is_flag=True, hidden=True)
@click.option("--format", "template", metavar="FORMAT", help="json, or a template: {{.Type}} {{.Size}}.")
@pass_root
def df(root: Root, verbose: bool, template: str | None) -> None:
    """Show how much room is taken, and how much could be had back."""
    rows = [_usage_row(one) for one in usage.usage(root.prepare(), open_store(root))]
    columns = {"TYPE": "Type", "TOTAL": "TotalCount", "ACTIVE": "Active", "SIZE": "Size"}
    listing(rows, columns | {"RECLAIMABLE": "Reclaimable"}, template, None)


def _usage_row(one: usage.Usage) -> dict[str, Any]:
    share = f" ({one.reclaimable * 100 // one.size}%)" if one.size else ""
    return {
        "Type": one.kind,
        "TotalCount": str(one.total),
        "Active": str(one.active),
        "Size": size(one.size),
        "Reclaimable": f"{size(one.reclaimable)}{share}",
    }


@system.command()
@click.option("-a", "--all", "everything", is_flag=True, help="All images that no container is made of.")
@click.option("--volumes", "with_volumes", is_flag=True, help="Anonymous volumes, too.")
@prune_options
@pass_root
def prune(root: Root, everything: bool, with_volumes: bool, conditions: tuple[str, ...], force: bool) -> None:
    """Remove all that nobody uses: containers that do not run, networks, images without a name."""
    what = ["all stopped containers", "all networks not used by at least one container"]
    what += ["all anonymous volumes not used by at least one container"] if with_volumes else []
    what += ["all images that no container is made of" if everything else "all dangling images"]
    lines = "\n".join(f"  - {line}" for line in what)
    confirm(force, f"This will remove:\n{lines}\n")
    filters = prune_filters(conditions)
    root = root.prepare()
    parts = [("Containers", pruning.containers(root, filters))]
    parts.append(("Networks", pruning.networks_(root, filters)))
    if with_volumes:
        parts.append(("Volumes", pruning.volumes_(root, filters, everything=False)))
    parts.append(("Images", pruning.images(root, open_store(root), filters, everything)))
    for kind, pruned in parts:
        tell_pruned(kind, pruned, total=False)
    click.echo(f"Total reclaimed space: {size(sum(pruned.reclaimed for _, pruned in parts))}")
