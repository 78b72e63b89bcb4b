"""RUN: a command in a container of its own, on what the stage has become so far."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.build.dockerfile import Instruction
from runtime.build.request import BuildRequest, Report
from runtime.build.run_mounts import Prepared
from runtime.build.settings import Settings, command_words
from runtime.containers import create as creating
from runtime.containers import lifecycle, netavark
from runtime.containers.attach import FROM_CONTAINER, STDERR, Attachment
from runtime.containers.container import Container, Healthcheck, Request, load_all
from runtime.containers.mounts import Mount
from runtime.containers.networks import default_network
from runtime.errors import RuntimeFailure
from runtime.images.store import Image
from runtime.images.workspace import is_alive
from runtime.root import Root

#: On a build's containers: the workspace of the build. When that is dead, so is the container.
LABEL = "unionfs.build"
_SCRIPTS = "/dev/pipes"
_NETWORKS = ("default", "none", "host")

_CHECK_MS = 1000


@dataclass(frozen=True)
class Command:
    """What RUN executes. `scripts` are here-documents that are programs of their own, by their path."""

    args: tuple[str, ...]
    scripts: tuple[tuple[str, str], ...] = ()


def command_of(instruction: Instruction, settings: Settings) -> Command:
    """The words of RUN: JSON, a line for the shell, or a here-document that is a script."""
    if instruction.json is not None:
        if not instruction.json:
            raise instruction.error("requires at least one argument", instruction.text)
        return Command(instruction.json)
    if not instruction.heredocs:
        return Command(tuple(command_words(instruction, settings.shell)))
    first = instruction.heredocs[0]
    if instruction.text == first.word and len(instruction.heredocs) == 1:
        if not first.text.startswith("#!"):
            return Command((*settings.shell, first.text))
        path = f"{_SCRIPTS}/{first.name}"
        return Command((*settings.shell, path), ((path, first.text),))
    lines = [instruction.text]
    lines += [f"{heredoc.text}{heredoc.name}" for heredoc in instruction.heredocs]
    return Command((*settings.shell, "\n".join(lines)))


def network_of(instruction: Instruction, wanted: str) -> str:
    """The network of a RUN: its own --network, else the build's; the default is what `run` has.

    Raises DockerfileError for a word that --network does not know.
    """
    name = instruction.flag("network", "default")
    if name not in _NETWORKS:
        raise instruction.error(
            f"--network: unknown network {name!r}: there are {', '.join(_NETWORKS)}", name
        )
    if name == "default":
        name = wanted or "default"
    if name != "default":
        return name
    # A build mostly needs a network: where bridges cannot be made, it gets the host's.
    if netavark.program() is None and "UNIONCTL_NETWORK" not in os.environ:
        return "host"
    return default_network()


def remove_dead(root: Root) -> None:
    """Remove the containers of builds that were killed."""
    for container in load_all(root):
        workspace = container.labels.get(LABEL)
        if workspace and not is_alive(root.tmp / workspace):
            lifecycle.remove(root, container.id, force=True, with_volumes=True)


@dataclass(frozen=True)
class Place:
    """Where commands of one build run."""

    root: Root
    workspace: Path
    request: BuildRequest
    report: Report

    def run(
        self,
        image: Image,
        command: Command,
        env: Sequence[str],
        network: str,
        prepared: Prepared,
        take: Callable[[Path], None],
    ) -> int:
        """Run a command to its end; if it ends well, `take` gets the directory of its changes.

        Gives the exit code. Raises RuntimeFailure, with docker's exit codes, when it cannot be executed. The
        container is gone in any case.
        """
        request = Request(
            image="",
            command=command.args,
            entrypoint=(),
            env=(*env, *prepared.env),
            hostname="" if network == "host" else "build",
            labels={LABEL: self.workspace.name},
            mounts=(*prepared.mounts, *self._scripts(command)),
            healthcheck=Healthcheck(("NONE",)),  # the image's is not of its making
            network=network,
            extra_hosts=self.request.extra_hosts,
            memory=self.request.memory,
            shm_size=self.request.shm_size,
            ulimits=self.request.ulimits,
        )
        container = creating.create(self.root, image, request)
        try:
            creating.prepare_init_layer(container, prepared.points)
            code = self._to_the_end(container)
            if code == 0:
                take(container.upper)
            return code
        finally:
            lifecycle.remove(self.root, container.id, force=True, with_volumes=True)

    def _scripts(self, command: Command) -> list[Mount]:
        mounts = []
        for path, text in command.scripts:
            file = self.workspace / f"script-{len(list(self.workspace.iterdir()))}"
            file.write_text(text)
            file.chmod(0o755)
            mounts.append(Mount("bind", str(file), path, True, ("rbind", "rprivate")))
        return mounts

    def _to_the_end(self, container: Container) -> int:
        watch = lifecycle.Watch(self.root, container)
        attachments: list[Attachment] = []
        lifecycle.start(
            self.root,
            container.id,
            on_created=lambda directory: attachments.append(Attachment(directory)),
        )
        try:
            self._listen(attachments[0].take())
        finally:
            attachments[0].close()
        code = watch.wait()
        if code is None:
            raise RuntimeFailure("the command's end was not seen")
        return code

    def _listen(self, connection: socket.socket) -> None:
        """Pass on what the command writes, until it ends."""
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        while True:
            if not poll.poll(_CHECK_MS):
                self.report.check()
                continue
            try:
                message = connection.recv(FROM_CONTAINER)
            except ConnectionResetError:
                return
            if not message:
                return
            self.report.output(2 if message[0] == STDERR else 1, message[1:])
