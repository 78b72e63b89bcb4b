"""unionctl cp."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

import click

from runtime.cli import pass_root
from runtime.cli.output import size
from runtime.containers import copying
from runtime.errors import NotFound, RuntimeFailure
from runtime.root import Root


@dataclass(frozen=True)
class _Place:
    """One side of a copy: a path in the tree `fd`."""

    fd: int
    path: str
    words: str  # as the user wrote it

    @property
    def status(self) -> copying.PathStat | None:
        """What is there; None when nothing is."""
        with contextlib.suppress(NotFound):
            return copying.look(self.fd, self.path)
        return None

    def followed(self) -> _Place:
        """What a symlink leads to, itself when it is none."""
        found = self.status
        for _ in range(40):
            if found is None or not found.link_target:
                break
            self = _Place(self.fd, found.link_target, self.words)
            found = self.status
        return self


@click.command()
@click.argument("source", metavar="[CONTAINER:]SOURCE")
@click.argument("target", metavar="[CONTAINER:]TARGET")
@click.option("-a", "--archive", is_flag=True, help="Keep owners; without it all is root's, or yours.")
@click.option("-L", "--follow-link", is_flag=True, help="Copy what SOURCE leads to if it is a symlink.")
@click.option("-q", "--quiet", is_flag=True, help="Do not say how much was copied.")
@pass_root
def cp(root: Root, source: str, target: str, archive: bool, follow_link: bool, quiet: bool) -> None:
    """Copy files between a container and here.

    A directory as TARGET gets SOURCE into it; one that does not exist becomes what SOURCE is. SOURCE/. is
    what is in the directory SOURCE. For SOURCE or TARGET - is a tar on standard input or output.

    \b
    unionctl cp web:/etc/nginx/nginx.conf .
    unionctl cp site/. web:/srv
    unionctl cp web:/var/log - | tar t
    """
    (source_container, source_path), (target_container, target_path) = map(_split, (source, target))
    if source_container and target_container:
        raise RuntimeFailure("copying between containers is not supported")
    if not (source_container or target_container):
        raise RuntimeFailure("must specify at least one container source")
    reference = source_container or target_container
    with contextlib.ExitStack() as stack:
        inside = stack.enter_context(copying.tree(root, reference))
        outside = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, outside)
        if target_path == "-" and source_container:
            if sys.stdout.isatty():
                raise click.UsageError("refusing to write a tar to a terminal: redirect it")
            place = _Place(inside, source_path, source)
            copying.archive(inside, (place.followed() if follow_link else place).path, sys.stdout.buffer)
            return
        if source_path == "-" and target_container:
            count = copying.extract(inside, target_path, cast(BinaryIO, sys.stdin.buffer), _owner(archive, 0))
        else:
            here = target_path if source_container else source_path
            local = os.path.abspath(here) + ("/." if here.endswith(("/", "/.")) else "")
            if source_container:
                from_, to = _Place(inside, source_path, source), _Place(outside, local, target)
            else:
                from_, to = _Place(outside, local, source), _Place(inside, target_path, target)
            owner = _owner(archive, os.geteuid() if source_container else 0)
            count = _copy(from_.followed() if follow_link else from_, to, owner)
    if not quiet and sys.stderr.isatty():
        click.echo(f"Successfully copied {size(count)} to {target}", err=True)


def _split(text: str) -> tuple[str, str]:
    """CONTAINER:PATH as its parts; the container is empty for a path of ours, which may have a colon."""
    if text.startswith(("/", ".")) or ":" not in text:
        return "", text
    container, _, path = text.partition(":")
    return container, path


def _owner(archive: bool, uid: int) -> copying.Owner:
    if archive:
        return lambda uid, gid: (uid, gid)
    group = os.getegid() if uid else 0
    return lambda _uid, _gid: (uid, group)


def _copy(source: _Place, target: _Place, owner: copying.Owner) -> int:
    """Copy by docker's rules for what is there already; the number of bytes in files."""
    found = source.status
    if found is None:
        raise NotFound(f"no such file or directory: {source.words}")
    only_content = copying.clean(source.path).endswith("/.")
    if only_content and not found.is_directory:
        raise RuntimeFailure(f"not a directory: {source.words}")
    there = target.followed().status
    slash = copying.clean(target.path).endswith("/.")
    if there is not None and there.is_directory:
        directory = target.followed().path
        top = "." if only_content else found.name
    elif there is not None and (found.is_directory or slash):
        raise RuntimeFailure(f"cannot copy directory to file: {target.words}")
    elif slash and not found.is_directory:
        raise RuntimeFailure(f"no such directory: {target.words}")
    else:
        path = copying.clean((target.followed() if there else target).path).removesuffix("/.")
        directory, _, top = path.rpartition("/")
        directory = directory or "/"
    parent = _Place(target.fd, directory, target.words).followed()
    if parent.status is None or not parent.status.is_directory:
        raise NotFound(f"no such directory: {os.path.dirname(target.words.rstrip('/')) or target.words}")
    with _archived(source, top) as stream:
        return copying.extract(target.fd, parent.path, stream, owner, keep_kinds=True)


@contextlib.contextmanager
def _archived(source: _Place, top: str) -> Iterator[BinaryIO]:
    """A tar of `source`, written by a thread while it is read; what stops that one is raised at the end."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    failures: list[Exception] = []

    def write() -> None:
        try:
            with open(write_end, "wb") as file:
                copying.archive(source.fd, source.path, file, top)
        except BrokenPipeError:
            pass
        except Exception as error:
            failures.append(error)

    thread = _start(write)
    try:
        with open(read_end, "rb") as file:
            try:
                yield file
            except RuntimeFailure:
                if failures:  # why the tar ended early
                    raise failures[0] from None
                raise
            while file.read(1 << 16):  # what is behind the end of the tar
                pass
    finally:
        thread.join()
    if failures:
        raise failures[0]


def _start(function: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread
