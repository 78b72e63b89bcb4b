"""A Dockerfile's stages: what each begins with, what it takes from others, which of them a target needs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from runtime.build.dockerfile import Dockerfile, Instruction, shell_words
from runtime.build.words import expand
from runtime.errors import RuntimeFailure
from runtime.images.platforms import host_platform

SCRATCH = "scratch"
_NAME = re.compile(r"[a-z][a-z0-9._-]*")


@dataclass(frozen=True)
class Stage:
    """FROM and what follows it. `base` is an image's name, `scratch`, or an earlier stage."""

    number: int
    name: str
    base: str | Stage
    begin: Instruction
    instructions: tuple[Instruction, ...]

    @property
    def title(self) -> str:
        """What messages call it."""
        return self.name or str(self.number)


@dataclass(frozen=True)
class Plan:
    """All stages, and the variables that stand before the first FROM."""

    stages: tuple[Stage, ...]
    arguments: dict[str, str]

    def find(self, name: str, before: int) -> Stage | None:
        """The stage of a name, or of a number, that comes before the stage `before`."""
        for stage in reversed(self.stages[:before]):
            if stage.name == name.lower():
                return stage
        if name.isdecimal() and int(name) < before:
            return self.stages[int(name)]
        return None

    def target(self, name: str) -> Stage:
        """The stage to be built: the last, or that of `--target`.

        Raises RuntimeFailure when there is none of that name.
        """
        if not name:
            return self.stages[-1]
        stage = self.find(name, len(self.stages))
        if stage is None:
            known = ", ".join(stage.title for stage in self.stages)
            raise RuntimeFailure(f"target stage {name!r} could not be found: there are {known}")
        return stage

    def needed(self, target: Stage) -> list[Stage]:
        """The stages that `target` cannot be made without, itself the last, in the order of the file."""
        needed: dict[int, Stage] = {}
        pending = [target]
        while pending:
            stage = pending.pop()
            if stage.number in needed:
                continue
            needed[stage.number] = stage
            if isinstance(stage.base, Stage):
                pending.append(stage.base)
            for instruction in stage.instructions:
                pending += [
                    found for name in sources(instruction) if (found := self.find(name, stage.number))
                ]
        return [needed[number] for number in sorted(needed)]


def sources(instruction: Instruction) -> list[str]:
    """The stages or images that an instruction takes files from."""
    names = [instruction.flag("from")] if instruction.flag("from") else []
    for mount in instruction.all("mount"):
        names += [part[5:] for part in mount.split(",") if part.startswith("from=")]
    return names


def platform_arguments() -> dict[str, str]:
    """The variables of the platform, which is the host's; a stage sees them when it declares them."""
    host = host_platform()
    words = {"PLATFORM": str(host), "OS": host.os, "ARCH": host.architecture, "VARIANT": host.variant}
    return {f"{side}{word}": value for side in ("TARGET", "BUILD") for word, value in words.items()}


def plan(dockerfile: Dockerfile, given: Mapping[str, str]) -> Plan:
    """Divide a Dockerfile into stages; `given` are the build's arguments.

    Raises DockerfileError when it does not begin with FROM, or a FROM makes no sense.
    """
    arguments = platform_arguments()
    stages: list[Stage] = []
    instructions = list(dockerfile.instructions)
    while instructions and instructions[0].name == "ARG":
        declare(instructions.pop(0), arguments, given, {})
    if not instructions or instructions[0].name != "FROM":
        first = instructions[0] if instructions else dockerfile.instructions[-1]
        raise first.error("no build stage in current context: a Dockerfile begins with FROM")
    starts = [place for place, instruction in enumerate(instructions) if instruction.name == "FROM"]
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(instructions)], strict=True)):
        begin, body = instructions[start], tuple(instructions[start + 1 : end])
        stages.append(_stage(number, begin, body, Plan(tuple(stages), arguments)))
    return Plan(tuple(stages), arguments)


def _stage(number: int, begin: Instruction, body: Sequence[Instruction], known: Plan) -> Stage:
    words = shell_words(begin.text)
    if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
        raise begin.error("requires IMAGE or IMAGE AS NAME", begin.text)
    name = words[2].lower() if len(words) == 3 else ""
    if name and (not _NAME.fullmatch(name) or name == SCRATCH):
        raise begin.error(f"invalid name for build stage: {name!r}", words[2])
    if name and any(stage.name == name for stage in known.stages):
        raise begin.error(f"duplicate name {name!r}: an earlier stage has it", words[2])
    try:
        base = expand(words[0], known.arguments, begin.escape)
        platform = expand(begin.flag("platform"), known.arguments, begin.escape)
    except RuntimeFailure as error:
        raise begin.error(error.message, words[0]) from error
    if not base:
        raise begin.error(f"base name ({words[0]}) should not be blank", words[0])
    if platform and platform.split("/")[:2] != [host_platform().os, host_platform().architecture]:
        raise begin.error(f"{platform} cannot be built here, only {host_platform()}", begin.flag("platform"))
    earlier = next((stage for stage in reversed(known.stages) if stage.name == base.lower()), None)
    return Stage(number, name, earlier or base, begin, tuple(body))


def declare(
    instruction: Instruction,
    into: dict[str, str],
    given: Mapping[str, str],
    outer: Mapping[str, str],
    environment: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """ARG: put each variable `into` the known ones: as `given`, else its default, else as `outer` has it.

    A default may refer to what is known already, and to `environment`. Gives the names. Raises
    DockerfileError when a name is blank or a default is not well formed.
    """
    names = []
    for word in shell_words(instruction.text):
        name, equals, default = word.partition("=")
        if not name:
            raise instruction.error(f"the name is blank in {word!r}", word)
        names.append(name)
        if name in given:
            into[name] = given[name]
        elif equals:
            try:
                into[name] = expand(default, {**into, **environment}, instruction.escape)
            except RuntimeFailure as error:
                raise instruction.error(error.message, word) from error
        elif name in outer:
            into[name] = outer[name]
    return names
