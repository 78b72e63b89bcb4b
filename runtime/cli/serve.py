"""unionctl serve."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import click

from runtime import rootless
from runtime.cli import pass_root
from runtime.root import Root

DEFAULT_ADDRESS = "unix:///run/unionctl.sock"

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option(
    "-H",
    "--host",
    "addresses",
    multiple=True,
    metavar="ADDRESS",
    help="unix://PATH, tcp://127.0.0.1:PORT, or fd:// for systemd's sockets. "
    f"[{DEFAULT_ADDRESS}; without root unix://$XDG_RUNTIME_DIR/unionctl/unionctl.sock]",
)
@click.option(
    "-G", "--group", default="docker", metavar="GROUP", help="Who may use the unix socket. [docker]"
)
@click.option("--tlsverify", is_flag=True, help="On tcp, TLS, and only clients with a certificate.")
@click.option("--tlscacert", type=_FILE, metavar="FILE", help="The authority of the clients' certificates.")
@click.option("--tlscert", type=_FILE, metavar="FILE", help="Our certificate.")
@click.option("--tlskey", type=_FILE, metavar="FILE", help="Its key.")
@pass_root
def serve(
    root: Root,
    addresses: tuple[str, ...],
    group: str,
    tlsverify: bool,
    tlscacert: Path | None,
    tlscert: Path | None,
    tlskey: Path | None,
) -> None:
    """Speak the Docker Engine API, so that docker, Compose and docker-py use this runtime.

    \b
    unionctl serve &
    docker -H unix:///run/unionctl.sock run -it --rm busybox
    """
    # What only the server needs: no other command should wait for it.
    from runtime.api.server import Tls, serve

    files = (tlscacert, tlscert, tlskey)
    if any(files) and not tlsverify:
        raise click.UsageError("certificates are used with --tlsverify")
    tls = None
    if tlsverify:
        if tlscacert is None or tlscert is None or tlskey is None:
            raise click.UsageError("--tlsverify needs --tlscacert, --tlscert and --tlskey")
        tls = Tls(tlscacert, tlscert, tlskey)
    logging.basicConfig(level=logging.INFO, format="unionctl: %(message)s")
    default = DEFAULT_ADDRESS
    if rootless.is_own_namespace():
        default = f"unix://{rootless.runtime_directory()}/unionctl.sock"
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        default = "fd://"
    serve(root, addresses or (default,), tls, group)
