"""unionfs-snapshotter: the process that containerd's proxy plugin talks to."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import click

DEFAULT_ROOT = Path("/var/lib/unionfs-snapshotter")
DEFAULT_ADDRESS = Path("/run/unionfs-snapshotter/snapshotter.sock")

_GRACE = 10.0  # seconds that requests have to come to their end

log = logging.getLogger(__name__)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--root", default=DEFAULT_ROOT, type=click.Path(path_type=Path), show_default=True, metavar="DIR"
)
@click.option(
    "--address", default=DEFAULT_ADDRESS, type=click.Path(path_type=Path), show_default=True, metavar="SOCKET"
)
@click.option(
    "--program",
    default=None,
    metavar="PROGRAM",
    help="What containerd mounts by: a path, or a name in its PATH. [the unionfs installed beside this]",
)
@click.version_option(package_name="unionfs", message="unionfs-snapshotter version %(version)s")
def main(root: Path, address: Path, program: str | None) -> None:
    """Keep containerd's snapshots, as union mounts. /etc/containerd/config.toml names it:

    \b
    [proxy_plugins.unionfs]
      type = "snapshot"
      address = "/run/unionfs-snapshotter/snapshotter.sock"
    """
    # grpc takes a while to import: --help should not wait for it.
    from runtime.snapshotter.service import server
    from runtime.snapshotter.snapshotter import Snapshotter

    logging.basicConfig(level=logging.INFO, format="unionfs-snapshotter: %(message)s")
    ending = (signal.SIGTERM, signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)  # in the threads too, which are not started yet
    try:
        snapshotter = Snapshotter(root.absolute(), program or _program_beside_us())
        with contextlib.closing(snapshotter):
            _make_way(address)
            os.umask(0o177)  # the socket is root's alone, from its first instant
            serving = server(snapshotter, f"unix:{address.absolute()}")
            os.umask(0o022)
            serving.start()
            _tell_systemd("READY=1")
            log.info("serving %s at %s", root, address)
            signal.sigwait(ending)
            serving.stop(_GRACE).wait()
    except OSError as error:
        from runtime.errors import one_line

        click.echo(f"unionfs-snapshotter: {one_line(error)}", err=True)
        sys.exit(1)


def _program_beside_us() -> str:
    beside = Path(sys.argv[0]).resolve().with_name("unionfs")
    return str(beside) if beside.exists() else "unionfs"


def _make_way(address: Path) -> None:
    """Let the socket be made: its directory exists, and what a dead server left is gone.

    It is nobody's: who serves holds the root's lock, and the socket is that root's.
    """
    address.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if address.is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(address)) == 0:
                raise OSError(f"{address}: another server answers there")
        address.unlink()


def _tell_systemd(state: str) -> None:
    """sd_notify(3), where systemd has started us."""
    place = os.environ.get("NOTIFY_SOCKET")
    if place:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.connect("\0" + place[1:] if place.startswith("@") else place)
            notify.send(state.encode())
