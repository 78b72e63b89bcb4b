"""unionctl pull, push, login, logout; and what `run` and `create` pull."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from runtime.cli import pass_root
from runtime.cli.images import open_store
from runtime.cli.transfers import transfer
from runtime.errors import NotFound, RuntimeFailure, Unauthorized
from runtime.images.platforms import parse_platform
from runtime.images.reference import Reference, parse
from runtime.registry.client import Client
from runtime.registry.credentials import Credentials, CredentialStore
from runtime.registry.describe import tags
from runtime.registry.login import login as log_in
from runtime.registry.login import server_name
from runtime.registry.pull import pull as pull_image
from runtime.registry.push import push as push_image
from runtime.registry.settings import Settings
from runtime.root import Root

Command = TypeVar("Command", bound=Callable[..., Any])

_tls_verify = click.option(
    "--tls-verify",
    type=bool,
    metavar="true|false",
    help="Whether the registry must have a certificate that we trust; false also takes plain HTTP.",
)


def client(tls_verify: bool | None) -> Client:
    """How this user reaches registries."""
    return Client(Settings.read(tls_verify))


@click.command()
@click.argument("image")
@click.option("-q", "--quiet", is_flag=True, help="Only the image's full name, at the end.")
@click.option("-a", "--all-tags", is_flag=True, help="Every tag that the repository has.")
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="Of an image for several platforms this one.")
@_tls_verify
@pass_root
def pull(
    root: Root, image: str, quiet: bool, all_tags: bool, platform: str | None, tls_verify: bool | None
) -> None:
    """Pull IMAGE from its registry.

    \b
    unionctl pull busybox
    unionctl pull registry.example:5000/app:1.2
    unionctl pull --platform linux/arm64 app@sha256:…
    """
    wanted = parse_platform(platform) if platform else None
    registries = client(tls_verify)
    if all_tags:
        names = tags(_without_tag(image), registries)
    else:
        names = [_with_tag(image, quiet)]
    for name in names:
        with transfer(quiet) as report:
            pull_image(open_store(root), name, registries, report, wanted)
        click.echo(str(name))


@click.command()
@click.argument("image")
@click.option("-q", "--quiet", is_flag=True, help="Only the image's full name, at the end.")
@click.option("-a", "--all-tags", is_flag=True, help="Every tag that the store has of the repository.")
@_tls_verify
@pass_root
def push(root: Root, image: str, quiet: bool, all_tags: bool, tls_verify: bool | None) -> None:
    """Push IMAGE to the registry that its name begins with.

    \b
    unionctl tag app registry.example:5000/app:1.2
    unionctl push registry.example:5000/app:1.2
    """
    store = open_store(root)
    if all_tags:
        repository = _without_tag(image).repository
        known = {name for known in store.images() for name in known.names if name.tag}
        names = sorted((name for name in known if name.repository == repository), key=str)
        if not names:
            raise NotFound(f"An image does not exist locally with the name: {repository}")
    else:
        names = [_with_tag(image, quiet)]
    for name in names:
        with transfer(quiet) as report:
            push_image(store, name, client(tls_verify), report)
        if quiet:
            click.echo(str(name))


def _with_tag(image: str, quiet: bool) -> Reference:
    """The name that a user typed; says which tag it has when it was typed without."""
    name = parse(image)
    if not quiet and not name.digest and not _has_tag(image):
        click.echo(f"Using default tag: {name.tag}")
    return name


def _without_tag(image: str) -> Reference:
    """The name of a repository; raises UsageError when it has a tag or digest."""
    name = parse(image)
    if name.digest or _has_tag(image):
        raise click.UsageError("a tag can't be used with --all-tags")
    return name


def _has_tag(image: str) -> bool:
    return ":" in image.rpartition("/")[2]


@click.command()
@click.argument("server", default="")
@click.option("-u", "--username", metavar="NAME", help="Who you are there; asked for without.")
@click.option("-p", "--password", metavar="PASSWORD", help="Others can see it: better --password-stdin.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@_tls_verify
def login(
    server: str, username: str | None, password: str | None, password_stdin: bool, tls_verify: bool | None
) -> None:
    """Log in to the registry SERVER, and remember it.

    \b
    unionctl login registry.example:5000
    echo "$PASSWORD" | unionctl login -u me --password-stdin registry.example:5000
    """
    domain = server_name(server)
    kept = CredentialStore()
    if password is not None:
        if password_stdin:
            raise click.UsageError("--password and --password-stdin are mutually exclusive")
        click.echo("WARNING! Using --password via the CLI is insecure. Use --password-stdin.", err=True)
    if password_stdin:
        if not username:
            raise click.UsageError("must provide --username with --password-stdin")
        password = sys.stdin.read().rstrip("\r\n")
    if not username and password is None and _still_good(domain, kept.get(domain), tls_verify):
        click.echo("Login Succeeded")
        return
    credentials = _asked(username, password)
    log_in(domain, credentials, client(tls_verify))
    if file := kept.store(domain, credentials):
        click.echo(f"WARNING! Your credentials are stored unencrypted in '{file}'.", err=True)
    click.echo("Login Succeeded")


def _still_good(domain: str, credentials: Credentials, tls_verify: bool | None) -> bool:
    if not credentials:
        return False
    click.echo("Authenticating with existing credentials...")
    try:
        log_in(domain, credentials, client(tls_verify))
    except Unauthorized as failure:
        click.echo(f"unionctl: {failure}", err=True)
        return False
    return True


def _asked(username: str | None, password: str | None) -> Credentials:
    if (not username or password is None) and not sys.stdin.isatty():
        raise RuntimeFailure("cannot ask for a name and password: standard input is not a terminal")
    username = username or click.prompt("Username", type=str)
    password = click.prompt("Password", hide_input=True, type=str) if password is None else password
    if not password:
        raise RuntimeFailure("the password is empty")
    return Credentials(username, password)


@click.command()
@click.argument("server", default="")
def logout(server: str) -> None:
    """Forget the credentials for the registry SERVER."""
    domain = server_name(server)
    if CredentialStore().erase(domain):
        click.echo(f"Removing login credentials for {domain}")
    else:
        click.echo(f"Not logged in to {domain}")
