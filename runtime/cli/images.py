"""unionctl load, images, rmi, tag."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from runtime.cli import pass_root
from runtime.cli.output import ago, listing, progress, size
from runtime.containers.container import images_in_use
from runtime.errors import NotFound, RuntimeFailure
from runtime.images.reference import Reference, parse
from runtime.images.store import Image, ImageStore
from runtime.root import Root

NONE = "<none>"


def open_store(root: Root) -> ImageStore:
    """The image store of `root`, which knows what its containers use."""
    return ImageStore(root, lambda: images_in_use(root))


@click.command()
@click.argument("source", required=False)
@click.option("-i", "--input", "file", metavar="FILE", help="Read the archive FILE; - is standard input.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@pass_root
def load(root: Root, source: str | None, file: str | None, quiet: bool) -> None:
    """Load images from SOURCE.

    That is a docker or OCI archive, an OCI layout directory, or - (standard input).
    """
    if source and file:
        raise click.UsageError("give SOURCE or --input, not both")
    source = source or file or "-"
    if source == "-" and sys.stdin.isatty():
        raise click.UsageError("requested load from stdin, but stdin is a terminal")
    store = open_store(root)
    with progress(quiet) as shown:
        loaded = store.load(source, shown, sys.stdin.buffer)
    for image in loaded:
        for name in image.names:
            click.echo(f"Loaded image: {name.familiar}")
        if not image.names:
            click.echo(f"Loaded image ID: {image.id}")


@click.command()
@click.argument("name", required=False)
@click.option("-q", "--quiet", is_flag=True, help="Only image IDs.")
@click.option("-a", "--all", "_all", is_flag=True, help="All images; there are no hidden ones.")
@click.option("--no-trunc", is_flag=True, help="Whole IDs.")
@click.option("--digests", is_flag=True, help="Show the digests of manifests.")
@click.option("--format", "template", metavar="FORMAT", help="json, or a template: {{.Repository}}:{{.Tag}}.")
@pass_root
def images(
    root: Root,
    name: str | None,
    quiet: bool,
    _all: bool,
    no_trunc: bool,
    digests: bool,
    template: str | None,
) -> None:
    """List images.

    Only those of NAME (REPOSITORY[:TAG]) when it is given.
    """
    rows = [
        _row(image, tag, no_trunc)
        for image in open_store(root).images()
        for tag in image.names or (None,)
        if name is None or (tag is not None and _is_of(tag, name))
    ]
    columns = {"REPOSITORY": "Repository", "TAG": "Tag", "IMAGE ID": "ID"}
    columns |= {"CREATED": "CreatedSince", "SIZE": "Size"}
    if digests:
        columns = {"REPOSITORY": "Repository", "TAG": "Tag", "DIGEST": "Digest"} | columns
    listing(_once(rows) if quiet else rows, columns, template, "ID" if quiet else None)


def _is_of(tag: Reference, name: str) -> bool:
    wanted = parse(name)
    has_tag = ":" in name.rpartition("/")[2]
    return tag.repository == wanted.repository and (not has_tag or tag.tag == wanted.tag)


def _once(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({row["ID"]: row for row in rows}.values())


def _row(image: Image, name: Reference | None, no_trunc: bool) -> dict[str, Any]:
    created = image.config.created
    return {
        "Containers": "N/A",
        "CreatedAt": created.strftime("%Y-%m-%d %H:%M:%S %z %Z") if created else "N/A",
        "CreatedSince": ago(created),
        "Digest": _digest(image, name),
        "ID": image.id if no_trunc else image.short_id,
        "Repository": name.repository if name else NONE,
        "SharedSize": "N/A",
        "Size": size(image.size),
        "Tag": (name.tag if name else None) or NONE,
        "UniqueSize": "N/A",
        "VirtualSize": size(image.size),
    }


def _digest(image: Image, name: Reference | None) -> str:
    of_repository = [digest for digest in image.digests if name and digest.repository == name.repository]
    return (of_repository[0].digest if of_repository else None) or image.manifests[0].digest


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...")
@click.option("-f", "--force", is_flag=True, help="Even if an ID has several names or a container uses it.")
@pass_root
def rmi(root: Root, names: tuple[str, ...], force: bool) -> None:
    """Remove images.

    A name is taken away, and with its last name the image itself.
    """
    store = open_store(root)
    failed = False
    for name in names:
        try:
            for line in store.remove(name, force):
                click.echo(line)
        except RuntimeFailure as error:
            click.echo(f"unionctl: {error}", err=True)
            failed = failed or not (force and isinstance(error, NotFound))
    if failed:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("source")
@click.argument("target")
@pass_root
def tag(root: Root, source: str, target: str) -> None:
    """Give the image SOURCE the name TARGET too."""
    open_store(root).tag(source, target)
