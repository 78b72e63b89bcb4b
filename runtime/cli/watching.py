"""unionctl top, stats, port, events: looking at what runs."""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime
from typing import Any

import click

from runtime import events as journal
from runtime.cli import pass_root
from runtime.cli.output import formatted, listing, table
from runtime.containers import lifecycle, logs, present
from runtime.containers import stats as counting
from runtime.containers import top as processes
from runtime.containers.container import Container
from runtime.containers.names import short
from runtime.containers.settle import settle_all
from runtime.errors import RuntimeFailure
from runtime.events import Event
from runtime.root import Root

_PAUSE = 1.0  # seconds between two samples


@click.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
@click.argument("name", metavar="CONTAINER")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[PS OPTIONS]")
@pass_root
def top(root: Root, name: str, options: tuple[str, ...]) -> None:
    """Show the processes of a container, as the host's ps does."""
    found = processes.top(root, name, options)
    width = len(found.titles)
    table(found.titles, [[*row, *([""] * (width - len(row)))] for row in found.rows])


@click.command()
@click.argument("names", nargs=-1, metavar="[CONTAINER...]")
@click.option("-a", "--all", "everything", is_flag=True, help="Those that do not run, too.")
@click.option("--no-stream", is_flag=True, help="Once, and not again and again.")
@click.option("--no-trunc", is_flag=True, help="Whole IDs.")
@click.option("--format", "template", metavar="FORMAT", help="json, or a template: {{.Name}} {{.CPUPerc}}.")
@pass_root
def stats(
    root: Root,
    names: tuple[str, ...],
    everything: bool,
    no_stream: bool,
    no_trunc: bool,
    template: str | None,
) -> None:
    """Show what containers use: of all that run, or of those named."""
    columns = {
        "CONTAINER ID": "ID",
        "NAME": "Name",
        "CPU %": "CPUPerc",
        "MEM USAGE / LIMIT": "MemUsage",
        "MEM %": "MemPerc",
        "NET I/O": "NetIO",
        "BLOCK I/O": "BlockIO",
        "PIDS": "PIDs",
    }
    before: dict[str, counting.Sample] = {}
    while True:
        containers = _observed(root, names, everything)
        if not before:
            before = {container.id: counting.sample(container) for container in containers}
            time.sleep(_PAUSE)
        samples = {container.id: counting.sample(container) for container in containers}
        rows = [
            _stats_row(one, before.get(one.id, samples[one.id]), samples[one.id], no_trunc)
            for one in containers
        ]
        if not no_stream and sys.stdout.isatty():
            click.clear()
        listing(rows, columns, template, None)
        sys.stdout.flush()
        if no_stream:
            return
        before = samples
        time.sleep(_PAUSE)


def _observed(root: Root, names: tuple[str, ...], everything: bool) -> list[Container]:
    if names:
        return [lifecycle.inspect(root, name) for name in names]
    found = settle_all(root)
    return [container for container in found if everything or container.state.status in ("running", "paused")]


def _stats_row(
    subject: Container, before: counting.Sample, after: counting.Sample, whole: bool
) -> dict[str, Any]:
    used = max(after.memory - after.memory_cache, 0)
    share = used / after.memory_limit * 100 if after.memory_limit else 0.0
    received = sum(interface.rx_bytes for interface in after.interfaces)
    sent = sum(interface.tx_bytes for interface in after.interfaces)
    return {
        "ID": subject.id if whole else short(subject.id),
        "Container": subject.id if whole else short(subject.id),
        "Name": subject.name,
        "CPUPerc": f"{counting.cpu_percent(before, after):.2f}%",
        "MemUsage": f"{_binary(used)} / {_binary(after.memory_limit)}",
        "MemPerc": f"{share:.2f}%",
        "NetIO": f"{_decimal(received)} / {_decimal(sent)}",
        "BlockIO": f"{_decimal(after.read)} / {_decimal(after.written)}",
        "PIDs": str(after.processes),
    }


def _binary(count: float) -> str:
    """docker's way for memory: 1.5MiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.4g}{unit}"


def _decimal(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g}{unit}"


@click.command()
@click.argument("name", metavar="CONTAINER")
@click.argument("wanted", required=False, metavar="[PORT[/PROTOCOL]]")
@pass_root
def port(root: Root, name: str, wanted: str | None) -> None:
    """Show where the ports of a container are published."""
    found = present.container(root, lifecycle.inspect(root, name))["NetworkSettings"]["Ports"]
    if wanted is not None:
        key = wanted if "/" in wanted else f"{wanted}/tcp"
        if not found.get(key):
            raise RuntimeFailure(f"no public port '{key}' published for {name}")
        found = {key: found[key]}
    for key, bindings in sorted(found.items()):
        for binding in bindings or ():
            where = f"{_host(binding['HostIp'])}:{binding['HostPort']}"
            click.echo(where if wanted is not None else f"{key} -> {where}")


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address or "0.0.0.0"


@click.command()
@click.option("--since", metavar="TIME", help="From then on: 2024-01-02T13:23:37Z, 42m, …")
@click.option("--until", metavar="TIME", help="Up to then; without it, for ever.")
@click.option(
    "-f",
    "--filter",
    "conditions",
    multiple=True,
    metavar="KEY=VALUE",
    help="container=, event=, image=, label=, network=, type=, volume=.",
)
@click.option("--format", "template", metavar="FORMAT", help="json, or a template: {{.Type}} {{.Action}}.")
@pass_root
def events(
    root: Root, since: str | None, until: str | None, conditions: tuple[str, ...], template: str | None
) -> None:
    """Show what happens to containers, volumes and networks."""
    filters: dict[str, list[str]] = {}
    for text in conditions:
        key, equals, value = text.partition("=")
        if key not in journal.FILTERS or not equals:
            raise RuntimeFailure(f"invalid filter '{text}': there are {', '.join(journal.FILTERS)}")
        filters.setdefault(key, []).append(value)
    begin = logs.nanoseconds(since, "since") if since else None
    end = logs.nanoseconds(until, "until") if until else None
    for event in journal.follow(root.prepare(), begin if begin is not None or end is None else 0, end):
        if not event.passes(filters):
            continue
        if template is None:
            click.echo(_event_line(event))
        elif template == "json":
            click.echo(json.dumps(event.to_json()))
        else:
            click.echo(formatted(template, event.to_json()))
        sys.stdout.flush()


def _event_line(event: Event) -> str:
    seconds, rest = divmod(event.nanoseconds, 10**9)
    when = datetime.fromtimestamp(seconds).astimezone()
    attributes = ", ".join(f"{key}={value}" for key, value in sorted(event.attributes.items()))
    stamp = f"{when:%Y-%m-%dT%H:%M:%S}.{rest:09d}{when:%z}"
    return f"{stamp[:-2]}:{stamp[-2:]} {event.kind} {event.action} {event.subject} ({attributes})"
