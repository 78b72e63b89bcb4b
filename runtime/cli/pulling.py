"""What `run`, `create` and `build` do about an image that is not here, or not the newest: --pull."""

from __future__ import annotations

import click

from runtime.errors import NotFound, RuntimeFailure
from runtime.images.platforms import parse_platform
from runtime.images.reference import parse
from runtime.images.store import ImageStore

WHEN = ("always", "missing", "never")


def have_image(
    store: ImageStore,
    image: str,
    when: str = "missing",
    platform: str | None = None,
    quiet: bool = False,
    tls_verify: bool | None = None,
) -> None:
    """Pull `image` where `when` says so; progress goes to standard error.

    Raises what a pull raises, and NotFound when there is no such image and it is not to be pulled.
    """
    wanted = parse_platform(platform) if platform else None
    if when != "always":
        try:
            store.resolve(image, wanted)
            return
        except NotFound:
            if when == "never":
                raise
    try:
        name = parse(image)
    except RuntimeFailure:
        if when == "always":
            raise
        raise NotFound(f"No such image: {image}") from None  # an ID
    if when == "missing" and not quiet:
        click.echo(f"Unable to find image '{name.familiar}' locally", err=True)
    # What only a pull needs: no other start should wait for it.
    from runtime.cli.registry import client
    from runtime.cli.transfers import transfer
    from runtime.registry.pull import pull

    with transfer(quiet, err=True) as report:
        pull(store, name, client(tls_verify), report, wanted)
