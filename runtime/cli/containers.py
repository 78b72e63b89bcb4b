"""unionctl run, create, start, stop, exec, ps, logs, inspect and others that are about one container."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from runtime.cli import pass_root
from runtime.cli.each import each
from runtime.cli.images import open_store
from runtime.cli.output import formatted, listing
from runtime.cli.pulling import have_image
from runtime.cli.rows import container_row
from runtime.cli.run_options import CONTEXT, Command, env_variables, file_variables, run_options, to_request
from runtime.containers import attach as attaching
from runtime.containers import create as creating
from runtime.containers import diff as differing
from runtime.containers import execs, filters, lifecycle, present, volumes
from runtime.containers import logs as logging
from runtime.containers.attach import Attachment, Streams
from runtime.containers.container import Container, Request
from runtime.containers.layers import Layers
from runtime.containers.settle import settle_all
from runtime.errors import RuntimeFailure
from runtime.root import Root


def _warn(message: str) -> None:
    click.echo(f"WARNING: {message}", err=True)


def _make(root: Root, request: Request, options: dict[str, Any]) -> Container:
    """Create the container, and write its ID where --cidfile says."""
    store = open_store(root)
    have_image(
        store,
        request.image,
        options["pull"],
        options["platform"],
        options["quiet"],
        options["tls_verify"],
    )
    with _cidfile(options["cidfile"]) as write_id, store.reading():
        container = creating.create(root, store.resolve(request.image), request, options["name"])
        write_id(container.id)
    return container


@contextmanager
def _cidfile(name: str | None) -> Iterator[Callable[[str], object]]:
    """A function that writes the file `name`, which is open already and gone again if the block fails."""
    if not name:
        yield lambda identifier: None
        return
    try:
        file = open(name, "x")  # noqa: SIM115 - closed below, after these two errors
    except FileExistsError as error:
        raise RuntimeFailure(
            f"container ID file found, make sure the other container isn't running or delete {name}", 125
        ) from error
    except OSError as error:
        raise RuntimeFailure(
            f"failed to create the container ID file: {name}: {error.strerror}", 125
        ) from error
    with file:
        try:
            yield file.write
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _streams(stdin: bool, terminal: bool) -> Streams:
    """Our stdio, flushed: what Python still holds comes first.

    Raises RuntimeFailure when a terminal is asked for and stdin is none.
    """
    if terminal and stdin and not sys.stdin.isatty():
        raise RuntimeFailure("the input device is not a TTY", 1)
    sys.stdout.flush()
    sys.stderr.flush()
    return Streams(stdin=0 if stdin else None, stdout=1, stderr=2, terminal=terminal)


def _start_attached(root: Root, container: Container, streams: Streams, proxy: bool = True) -> int | None:
    """Start a container with our stdio joined to it; its exit code, or None when the user detached."""
    watch = lifecycle.Watch(root, container)
    attachments: list[Attachment] = []
    started = lifecycle.start(
        root,
        container.id,
        _warn,
        on_created=lambda directory: attachments.append(Attachment(directory)),
        window=attaching.window_size(),
    )
    if not attachments:
        raise RuntimeFailure(f"container {container.name} is running already: attach to it")
    return _joined(attachments[0], started, streams, watch, proxy)


def _joined(
    attachment: Attachment, container: Container, streams: Streams, watch: lifecycle.Watch, proxy: bool
) -> int | None:
    # With a terminal, keys make the signals; one sent to us is for us then.
    forward = (
        (lambda number: lifecycle.send_signal(container, number)) if proxy and not streams.terminal else None
    )
    return watch.wait() if attachment.join(streams, forward) else None


@click.command(context_settings=CONTEXT)
@run_options
@click.option("-d", "--detach", is_flag=True, help="Print the ID and leave the container running.")
@click.option("--sig-proxy/--no-sig-proxy", default=True, help="Pass signals on to the container.")
@click.pass_context
def run(context: click.Context, /, detach: bool, sig_proxy: bool, **options: Any) -> None:
    """Create and start a container of IMAGE."""
    root = _root(context)
    request = to_request(options, attached=not detach)
    streams = None if detach else _streams(request.stdin, request.tty)
    container = _make(root, request, options)
    try:
        if streams is None:
            lifecycle.start(root, container.id, _warn)
            click.echo(container.id)
            return
        code = _start_attached(root, container, streams, sig_proxy)
    except RuntimeFailure:
        if request.remove:
            lifecycle.remove(root, container.id, force=True, with_volumes=True)
        raise
    context.exit(code or 0)


@click.command(context_settings=CONTEXT)
@run_options
@click.pass_context
def create(context: click.Context, /, **options: Any) -> None:
    """Create a container of IMAGE, and print its ID."""
    click.echo(_make(_root(context), to_request(options, attached=options["interactive"]), options).id)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
@click.option("-a", "--attach", is_flag=True, help="Show what it writes, and end with its exit code.")
@click.option("-i", "--interactive", is_flag=True, help="Pass our standard input on.")
@click.pass_context
def start(context: click.Context, names: tuple[str, ...], attach: bool, interactive: bool) -> None:
    """Start containers that do not run."""
    root = _root(context)
    if not (attach or interactive):
        each(names, lambda name: lifecycle.start(root, name, _warn) and None)
        return
    if len(names) > 1:
        raise RuntimeFailure("you cannot start and attach multiple containers at once")
    container = lifecycle.inspect(root, names[0])
    streams = _streams(interactive and container.request.stdin, container.request.tty)
    context.exit(_start_attached(root, container, streams) or 0)


@click.command()
@click.argument("name", metavar="CONTAINER")
@click.option("--no-stdin", is_flag=True, help="Do not pass our standard input on.")
@click.option("--sig-proxy/--no-sig-proxy", default=True, help="Pass signals on to the container.")
@click.pass_context
def attach(context: click.Context, name: str, no_stdin: bool, sig_proxy: bool) -> None:
    """Join our standard streams to a running container's."""
    root = _root(context)
    container = lifecycle.inspect(root, name)
    if container.state.status != "running":
        raise RuntimeFailure("You cannot attach to a stopped container, start it first")
    streams = _streams(container.request.stdin and not no_stdin, container.request.tty)
    watch = lifecycle.Watch(root, container)
    code = _joined(Attachment(container.bundle), container, streams, watch, sig_proxy)
    context.exit(code or 0)


def _stop_options(command: Command) -> Command:
    command = click.option(
        "-s", "--signal", "signal_name", default="", metavar="SIGNAL", help="Not its own."
    )(command)
    return click.option(
        *("-t", "--time", "--timeout", "timeout"), type=int, metavar="SECONDS", help="Before it is killed."
    )(command)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
@_stop_options
@pass_root
def stop(root: Root, names: tuple[str, ...], timeout: int | None, signal_name: str) -> None:
    """Ask containers to end, and kill those that do not."""
    each(names, lambda name: lifecycle.stop(root, name, timeout, signal_name))


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
@_stop_options
@pass_root
def restart(root: Root, names: tuple[str, ...], timeout: int | None, signal_name: str) -> None:
    """Stop containers that run, and start them."""
    each(names, lambda name: lifecycle.restart(root, name, timeout, signal_name, _warn) and None)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
@click.option(
    "-s", "--signal", "signal_name", default="SIGKILL", metavar="SIGNAL", help="Which signal to send."
)
@pass_root
def kill(root: Root, names: tuple[str, ...], signal_name: str) -> None:
    """Send a signal to containers."""
    each(names, lambda name: lifecycle.kill(root, name, signal_name))


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
@click.option("-f", "--force", is_flag=True, help="Kill it first if it runs.")
@click.option("-v", "--volumes", "with_volumes", is_flag=True, help="Its anonymous volumes, too.")
@pass_root
def rm(root: Root, names: tuple[str, ...], force: bool, with_volumes: bool) -> None:
    """Remove containers."""
    each(names, lambda name: lifecycle.remove(root, name, force, with_volumes), force)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
@pass_root
def wait(root: Root, names: tuple[str, ...]) -> None:
    """Wait until containers have ended, and print their exit codes."""
    each(names, lambda name: lifecycle.wait(root, name))


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
@pass_root
def pause(root: Root, names: tuple[str, ...]) -> None:
    """Freeze all processes of containers."""
    each(names, lambda name: lifecycle.pause(root, name))


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
@pass_root
def unpause(root: Root, names: tuple[str, ...]) -> None:
    """Let the processes of frozen containers go on."""
    each(names, lambda name: lifecycle.unpause(root, name))


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Those that do not run, too.")
@click.option("-q", "--quiet", is_flag=True, help="Only IDs.")
@click.option("-n", "--last", type=int, metavar="NUMBER", help="The last N that were created.")
@click.option("-l", "--latest", is_flag=True, help="The last one that was created.")
@click.option(
    "-f", "--filter", "conditions", multiple=True, metavar="KEY=VALUE", help="name=, status=, label=, …"
)
@click.option("--format", "template", metavar="FORMAT", help="json, or a template: {{.ID}} {{.Names}}.")
@click.option("--no-trunc", is_flag=True, help="Whole IDs and commands.")
@pass_root
def ps(
    root: Root,
    everything: bool,
    quiet: bool,
    last: int | None,
    latest: bool,
    conditions: tuple[str, ...],
    template: str | None,
    no_trunc: bool,
) -> None:
    """List containers."""
    count = 1 if latest else last
    wanted = filters.parse(conditions)
    by_status = not wanted.keys().isdisjoint(("status", "exited"))
    found = [container for container in settle_all(root) if filters.matches(container, wanted)]
    if count is not None:
        found = found[:count]
    elif not everything and not by_status:
        found = [container for container in found if container.state.active]
    rows = [container_row(container, no_trunc) for container in found]
    columns = {
        "CONTAINER ID": "ID",
        "IMAGE": "Image",
        "COMMAND": "Command",
        "CREATED": "RunningFor",
        "STATUS": "Status",
        "PORTS": "Ports",
        "NAMES": "Names",
    }
    listing(rows, columns, template, "ID" if quiet else None)


@click.command()
@click.argument("name", metavar="CONTAINER")
@click.option("-f", "--follow", is_flag=True, help="Go on until the container ends.")
@click.option("-n", "--tail", default="all", metavar="NUMBER", help="Only that many lines from the end.")
@click.option("-t", "--timestamps", is_flag=True, help="Begin each line with its time.")
@click.option("--since", default="", metavar="TIME", help="Not what is older: 2024-01-02T13:23:37Z, 42m, …")
@click.option("--until", default="", metavar="TIME", help="Not what is younger.")
@click.option("--details", is_flag=True, hidden=True)
@pass_root
def logs(
    root: Root, name: str, follow: bool, tail: str, timestamps: bool, since: str, until: str, details: bool
) -> None:
    """Show what a container wrote, to stdout and stderr as it did."""
    container = lifecycle.inspect(root, name)
    count = int(tail) if tail.isdecimal() else None
    watch = lifecycle.Watch(root, container)
    going = (lambda: watch.wait(0) is None) if follow else None
    begins = {"stdout": True, "stderr": True}
    for entry in logging.read(container.log, going, count, since, until):
        target = sys.stdout.buffer if entry.stream == "stdout" else sys.stderr.buffer
        if timestamps and begins[entry.stream]:
            target.write(f"{entry.time} ".encode())
        begins[entry.stream] = entry.data.endswith(b"\n")
        target.write(entry.data)
        target.flush()


@click.command("exec", context_settings=CONTEXT)
@click.argument("name", metavar="CONTAINER")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-i", "--interactive", is_flag=True, help="Pass our standard input on.")
@click.option("-t", "--tty", is_flag=True, help="Give the process a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Leave it running.")
@click.option("-e", "--env", multiple=True, metavar="K=V", help="Set a variable.")
@click.option("-w", "--workdir", default="", metavar="DIR", help="The directory to begin in.")
@click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="Names of the image's, or numbers.")
@click.option("--env-file", "env_files", multiple=True, metavar="FILE", help="Set the variables in FILE.")
@click.option("--privileged", is_flag=True, help="With all capabilities.")
@click.pass_context
def exec_(
    context: click.Context,
    name: str,
    command: tuple[str, ...],
    interactive: bool,
    tty: bool,
    detach: bool,
    env: tuple[str, ...],
    workdir: str,
    user: str,
    env_files: tuple[str, ...],
    privileged: bool,
) -> None:
    """Execute COMMAND in a running container."""
    root = _root(context)
    variables = tuple(pair for pair in (*file_variables(env_files), *env_variables(env)) if "=" in pair)
    stdin = interactive and not detach
    request = execs.ExecRequest(command, variables, workdir, user, tty, stdin, privileged)
    if detach:
        execs.start(root, name, request).answers.close()
        return
    streams = _streams(interactive, tty)
    attachments: list[Attachment] = []
    process = execs.start(
        root,
        name,
        request,
        lambda directory: attachments.append(Attachment(directory)),
        attaching.window_size(),
    )
    attachments[0].join(streams)
    context.exit(process.wait())


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("-f", "--format", "template", metavar="FORMAT", help="json, or a template: {{.State.Status}}.")
@click.option("--type", "kind", type=click.Choice(["container", "image", "volume"]), help="Only that kind.")
@click.option("-s", "--size", is_flag=True, hidden=True)
@click.pass_context
def inspect(
    context: click.Context, names: tuple[str, ...], template: str | None, kind: str | None, size: bool
) -> None:
    """Show all about containers, images and volumes."""
    root = _root(context)
    found, failed = [], False
    for name in names:
        try:
            found.append(_inspect_one(root, name, kind))
        except RuntimeFailure as error:
            click.echo(f"unionctl: {error}", err=True)
            failed = True
    if template:
        for values in found:
            click.echo(formatted(template, values))
    else:
        click.echo(json.dumps(found, indent=4))
    context.exit(1 if failed else 0)


def _inspect_one(root: Root, name: str, kind: str | None) -> dict[str, Any]:
    kinds: dict[str, Callable[[], dict[str, Any]]] = {
        "container": lambda: present.container(root, lifecycle.inspect(root, name)),
        "image": lambda: present.image(open_store(root).resolve(name)),
        "volume": lambda: present.volume(volumes.find(root, name)),
    }
    if kind:
        return kinds[kind]()
    for look in kinds.values():
        try:
            return look()
        except RuntimeFailure:
            continue
    raise RuntimeFailure(f"No such object: {name}")


@click.command()
@click.argument("name", metavar="CONTAINER")
@pass_root
def diff(root: Root, name: str) -> None:
    """Show what a container changed in its files.

    A is added, C changed, D deleted.
    """
    container = lifecycle.inspect(root, name)
    creating.prepare_init_layer(container)
    layers = Layers(creating.lower_layers(container))
    for change in differing.changes(container.upper, layers):
        click.echo(str(change).encode("utf-8", "surrogateescape"))


def _root(context: click.Context) -> Root:
    root = context.find_object(Root)
    assert root is not None  # the group made it
    return root.prepare()
