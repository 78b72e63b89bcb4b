"""unionctl commit, save, history, export, import: layers as files, and files as layers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from runtime.build.settings import changer
from runtime.cli import pass_root
from runtime.cli.images import open_store
from runtime.cli.output import ago, listing, progress, size
from runtime.containers import commit as committing
from runtime.errors import RuntimeFailure, one_line
from runtime.images import history as histories
from runtime.images import save as saving
from runtime.images.importing import import_tar
from runtime.images.reference import parse
from runtime.root import Root


@click.command()
@click.argument("container")
@click.argument("name", required=False, metavar="[REPOSITORY[:TAG]]")
@click.option("-a", "--author", default="", metavar="NAME", help="Who made it.")
@click.option("-m", "--message", default="", metavar="TEXT", help="What was changed, for the history.")
@click.option("-c", "--change", "changes", multiple=True, metavar="INSTRUCTION", help="CMD, ENV, …")
@click.option("-p", "--pause/--no-pause", default=True, help="Freeze the container meanwhile.")
@pass_root
def commit(
    root: Root,
    container: str,
    name: str | None,
    author: str,
    message: str,
    changes: tuple[str, ...],
    pause: bool,
) -> None:
    """Make an image of what CONTAINER changed, and print its ID."""
    reference = parse(name).tagged() if name else None
    wanted = committing.Commit(reference, author, message, pause, changer(changes))
    click.echo(committing.commit(root, open_store(root), container, wanted).id)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...")
@click.option("-o", "--output", metavar="FILE", help="Write to FILE, and not to standard output.")
@click.option(
    "--format", "form", type=click.Choice(saving.FORMATS), default=saving.FORMATS[0], help="Of what kind."
)
@pass_root
def save(root: Root, names: tuple[str, ...], output: str | None, form: str) -> None:
    """Write images, with all their layers, to an archive.

    It is a docker archive and an OCI layout in one; oci-dir makes a directory.
    """
    store = open_store(root)
    if form == "oci-dir":
        if not output:
            raise click.UsageError("oci-dir needs --output")
        return saving.save_layout(store, names, Path(output))
    for name in names:  # a wrong name makes no file
        store.resolve(name)
    with _output(output) as file:
        saving.save(store, names, file, form)


@contextmanager
def _output(name: str | None) -> Iterator[BinaryIO]:
    """The file `name`, which appears whole at the end of the block or not at all; else standard output."""
    if not name:
        if sys.stdout.isatty():
            raise click.UsageError("cowardly refusing to write to a terminal: give --output, or redirect")
        yield sys.stdout.buffer
        return
    target = Path(name)
    if target.exists() and not target.is_file():  # a device or a pipe
        with target.open("wb") as file:
            yield file
        return
    making = target.with_name(f".{target.name}.part")
    try:
        file = making.open("wb")
    except OSError as error:
        raise RuntimeFailure(f"cannot write {target}: {error.strerror}") from error
    try:
        with file:
            yield file
        making.rename(target)
    except BaseException:
        making.unlink(missing_ok=True)
        raise


@click.command()
@click.argument("name", metavar="IMAGE")
@click.option("-q", "--quiet", is_flag=True, help="Only image IDs.")
@click.option("--no-trunc", is_flag=True, help="Whole IDs and commands.")
@click.option("-H", "--human/--no-human", default=True, help="Sizes and times for people.")
@click.option("--format", "template", metavar="FORMAT", help="json, or a template: {{.ID}} {{.Size}}.")
@pass_root
def history(root: Root, name: str, quiet: bool, no_trunc: bool, human: bool, template: str | None) -> None:
    """Show the steps an image was made by, the last first."""
    image = open_store(root).resolve(name)
    rows = []
    for entry in histories.history(image):
        shown = entry.created_by if no_trunc else _shortened(entry.created_by)
        identifier = entry.id if no_trunc or entry.id == histories.MISSING else image.short_id
        stamp = entry.created.isoformat() if entry.created else "N/A"
        rows.append(
            {
                "ID": identifier,
                "CreatedAt": stamp,
                "CreatedSince": ago(entry.created) if human else stamp,
                "CreatedBy": shown,
                "Size": size(entry.size) if human else str(entry.size),
                "Comment": entry.comment,
            }
        )
    columns = {"IMAGE": "ID", "CREATED" if human else "CREATED AT": "CreatedSince"}
    columns |= {"CREATED BY": "CreatedBy", "SIZE": "Size", "COMMENT": "Comment"}
    listing(rows, columns, template, "ID" if quiet else None)


def _shortened(text: str, width: int = 45) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


@click.command()
@click.argument("container")
@click.option("-o", "--output", metavar="FILE", help="Write to FILE, and not to standard output.")
@pass_root
def export(root: Root, container: str, output: str | None) -> None:
    """Write all that CONTAINER sees, apart from volumes and mounts, as a tar."""
    with _output(output) as file:
        committing.export(root, open_store(root), container, file)


@click.command("import")
@click.argument("source", metavar="FILE|-")
@click.argument("name", required=False, metavar="[REPOSITORY[:TAG]]")
@click.option("-m", "--message", default="", metavar="TEXT", help="For the history.")
@click.option("-c", "--change", "changes", multiple=True, metavar="INSTRUCTION", help="CMD, ENV, …")
@pass_root
def import_(root: Root, source: str, name: str | None, message: str, changes: tuple[str, ...]) -> None:
    """Make an image of the root filesystem in a tar, and print its ID."""
    reference = parse(name).tagged() if name else None
    change = changer(changes)
    store = open_store(root)
    with progress() as shown:
        if source == "-":
            image = import_tar(store, sys.stdin.buffer, "-", reference, message, change, shown)
        else:
            try:
                file = open(source, "rb")  # noqa: SIM115 - closed below
            except OSError as error:
                raise RuntimeFailure(f"cannot read {one_line(error)}") from error
            with file:
                image = import_tar(store, file, source, reference, message, change, shown)
    click.echo(image.id)
