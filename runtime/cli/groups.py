"""unionctl container and image: docker's longer words for the same commands, and prune."""

from __future__ import annotations

import click

from runtime import prune as pruning
from runtime.cli import COMMANDS, Lazy, pass_root
from runtime.cli.images import open_store
from runtime.cli.pruning import confirm, prune_filters, prune_options, tell_pruned
from runtime.root import Root

_OF_CONTAINERS = """
attach commit cp create diff exec export inspect kill logs pause port rename restart rm run start stats stop
top unpause update wait
"""
_OF_IMAGES = "build history import load pull push save tag"


def _named(words: str) -> dict[str, str]:
    return {word: COMMANDS[word] for word in words.split() if word in COMMANDS}


class _Containers(Lazy):
    commands_by_name = _named(_OF_CONTAINERS) | dict.fromkeys(("ls", "ps", "list"), COMMANDS["ps"])


class _Images(Lazy):
    commands_by_name = (
        _named(_OF_IMAGES)
        | dict.fromkeys(("ls", "list"), COMMANDS["images"])
        | {"rm": COMMANDS["rmi"], "inspect": COMMANDS["inspect"]}
    )


@click.group(cls=_Containers)
def container() -> None:
    """Manage containers: run, ls, rm, prune and the others."""


@click.group(cls=_Images)
def image() -> None:
    """Manage images: ls, rm, prune and the others."""


@container.command("prune")
@prune_options
@pass_root
def prune_containers(root: Root, conditions: tuple[str, ...], force: bool) -> None:
    """Remove the containers that do not run."""
    confirm(force, "This will remove all stopped containers.")
    tell_pruned("Containers", pruning.containers(root.prepare(), prune_filters(conditions)))


@image.command("prune")
@click.option("-a", "--all", "everything", is_flag=True, help="Those with a name, too.")
@prune_options
@pass_root
def prune_images(root: Root, everything: bool, conditions: tuple[str, ...], force: bool) -> None:
    """Remove the images without a name that no container is made of."""
    kind = "images without at least one container associated to them" if everything else "dangling images"
    confirm(force, f"This will remove all {kind}.")
    root = root.prepare()
    tell_pruned("Images", pruning.images(root, open_store(root), prune_filters(conditions), everything))
