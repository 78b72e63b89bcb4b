"""Instructions that change an image's config and nothing of its files; `commit --change` and `import
--change` too.

The fields are those of the OCI image-spec (config.md) and of docker's: Healthcheck, OnBuild, Shell.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from runtime.build.dockerfile import Instruction, looks_like_broken_json, parse_one, shell_words
from runtime.build.words import expand, expand_words
from runtime.containers.create import signal_number
from runtime.errors import RuntimeFailure

Json = dict[str, Any]

DEFAULT_SHELL = ("/bin/sh", "-c")
#: What `--change` takes (docker-commit(1)).
CHANGES = (
    "CMD",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "HEALTHCHECK",
    "LABEL",
    "ONBUILD",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
)
_NO_TRIGGERS = ("FROM", "MAINTAINER", "ONBUILD")
_UNITS = {"h": 3600 * 10**9, "m": 60 * 10**9, "s": 10**9, "ms": 10**6, "us": 10**3, "µs": 10**3, "ns": 1}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(h|ms|m|s|us|µs|ns)")
_PORT = re.compile(r"(?:.*:)?(\d+)(?:-(\d+))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)


@dataclass
class Settings:
    """An image's config document while it is edited.

    `arguments` are the build's own variables, which the config's Env goes before.
    """

    document: Json
    arguments: dict[str, str] = field(default_factory=dict)
    has_command: bool = False  # CMD was given since the image that this began with

    @property
    def config(self) -> Json:
        """The part that says how the image is run."""
        config: Json = self.document.setdefault("config", {})
        return config

    @property
    def environment(self) -> dict[str, str]:
        """The image's variables."""
        return dict(pair.split("=", 1) for pair in self.config.get("Env") or [] if "=" in pair)

    @property
    def variables(self) -> dict[str, str]:
        """What instructions may refer to."""
        return {**self.arguments, **self.environment}

    @property
    def shell(self) -> tuple[str, ...]:
        """What runs commands in shell form."""
        return tuple(self.config.get("Shell") or DEFAULT_SHELL)

    @property
    def working_dir(self) -> str:
        """The directory that relative paths begin in."""
        return "/" + str(self.config.get("WorkingDir") or "").lstrip("/")

    def expand(self, instruction: Instruction, text: str) -> str:
        """One word of an instruction; raises DockerfileError where it is not well formed."""
        try:
            return expand(text, self.variables, instruction.escape)
        except RuntimeFailure as error:
            raise instruction.error(error.message, text) from error

    def apply(self, instruction: Instruction) -> str:
        """Do what the instruction says; give its words for the history.

        Raises DockerfileError when it makes no sense.
        """
        return _APPLY[instruction.name](self, instruction)


def changer(texts: Iterable[str], escape: str = "\\") -> Callable[[Json], None]:
    """A function that applies `--change` instructions to a config document.

    Raises RuntimeFailure, at once, for one that cannot be a change; the function does for one that makes no
    sense.
    """
    instructions = [parse_one(text, "--change", escape) for text in texts]
    for instruction in instructions:
        if instruction.name not in CHANGES:
            raise RuntimeFailure(
                f"{instruction.name} is not a valid change command: {', '.join(CHANGES)} are"
            )

    def change(document: Json) -> None:
        settings = Settings(document)
        for instruction in instructions:
            settings.apply(instruction)

    return change


def name_values(instruction: Instruction) -> list[tuple[str, str]]:
    """The pairs of ENV and LABEL, quotes left in: NAME=VALUE…, or the old form NAME VALUE.

    Raises DockerfileError when they are neither.
    """
    words = shell_words(instruction.text)
    if "=" not in words[0]:
        name, *rest = instruction.text.split(None, 1)
        if not rest:
            raise instruction.error("must have two arguments, or be NAME=VALUE", name)
        return [(name, rest[0])]
    pairs = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise instruction.error(f"cannot find = in {word!r}: must be of the form NAME=VALUE", word)
        if not name:
            raise instruction.error(f"the name is blank in {word!r}", word)
        pairs.append((name, value))
    return pairs


def command_words(instruction: Instruction, shell: tuple[str, ...]) -> list[str]:
    """What CMD, ENTRYPOINT or RUN executes: its JSON words, or the shell with its text."""
    if instruction.json is not None:
        return list(instruction.json)
    return [*shell, instruction.text]


def listed_words(instruction: Instruction) -> list[str]:
    """The words of VOLUME, COPY and ADD: JSON, or separated by spaces."""
    if instruction.json is not None:
        return list(instruction.json)
    words = shell_words(instruction.text)
    if looks_like_broken_json(words):
        raise instruction.error("not a JSON array of strings", instruction.text)
    return words


def duration(instruction: Instruction, flag: str) -> int:
    """A flag's Go duration (1m30s) in nanoseconds; raises DockerfileError when it is none."""
    text = instruction.flag(flag)
    parts = _PART.findall(text)
    if "".join(number + unit for number, unit in parts) != text:
        if text == "0":
            return 0
        raise instruction.error(f"--{flag}: invalid duration {text!r}", text)
    nanoseconds = round(sum(float(number) * _UNITS[unit] for number, unit in parts))
    if 0 < nanoseconds < 10**6:
        raise instruction.error(f"--{flag}: {text} is less than a millisecond", text)
    return nanoseconds


def _env(settings: Settings, instruction: Instruction) -> str:
    pairs = [(name, settings.expand(instruction, value)) for name, value in name_values(instruction)]
    environment = settings.environment | dict(pairs)
    settings.config["Env"] = [f"{name}={value}" for name, value in environment.items()]
    return "ENV " + " ".join(f"{name}={value}" for name, value in pairs)


def _label(settings: Settings, instruction: Instruction) -> str:
    pairs = [
        (settings.expand(instruction, name), settings.expand(instruction, value))
        for name, value in name_values(instruction)
    ]
    settings.config["Labels"] = {**(settings.config.get("Labels") or {}), **dict(pairs)}
    return "LABEL " + " ".join(f"{name}={value}" for name, value in pairs)


def _cmd(settings: Settings, instruction: Instruction) -> str:
    words = command_words(instruction, settings.shell)
    _set(settings.config, "Cmd", words)
    settings.has_command = True
    return f"CMD {_quoted(words)}"


def _entrypoint(settings: Settings, instruction: Instruction) -> str:
    words = command_words(instruction, settings.shell)
    _set(settings.config, "Entrypoint", words)
    if not settings.has_command:  # it was for the entrypoint of the image below
        settings.config.pop("Cmd", None)
    return f"ENTRYPOINT {_quoted(words)}"


def _expose(settings: Settings, instruction: Instruction) -> str:
    try:
        words = expand_words(instruction.text, settings.variables, instruction.escape)
    except RuntimeFailure as error:
        raise instruction.error(error.message) from error
    ports = dict(settings.config.get("ExposedPorts") or {})
    for word in words:
        match = _PORT.fullmatch(word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not match or not 0 < first <= last < 1 << 16:
            raise instruction.error(f"invalid containerPort: {word}", word)
        for port in range(first, last + 1):
            ports[f"{port}/{(match[3] or 'tcp').lower()}"] = {}
    settings.config["ExposedPorts"] = ports
    return f"EXPOSE {' '.join(words)}"


def _volume(settings: Settings, instruction: Instruction) -> str:
    words = [settings.expand(instruction, word) for word in listed_words(instruction)]
    if not all(words):
        raise instruction.error("a volume's path cannot be an empty string")
    settings.config["Volumes"] = {**(settings.config.get("Volumes") or {}), **{word: {} for word in words}}
    return f"VOLUME {_quoted(words)}"


def _user(settings: Settings, instruction: Instruction) -> str:
    user = settings.expand(instruction, instruction.text)
    if not user:
        raise instruction.error("the user is empty", instruction.text)
    settings.config["User"] = user
    return f"USER {user}"


def _workdir(settings: Settings, instruction: Instruction) -> str:
    path = settings.expand(instruction, instruction.text)
    if not path:
        raise instruction.error("the path is empty", instruction.text)
    settings.config["WorkingDir"] = "/" + posixpath.normpath(
        posixpath.join(settings.working_dir, path)
    ).lstrip("/")
    return f"WORKDIR {path}"


def _stopsignal(settings: Settings, instruction: Instruction) -> str:
    name = settings.expand(instruction, instruction.text)
    try:
        signal_number(name)
    except RuntimeFailure as error:
        raise instruction.error(error.message, instruction.text) from error
    settings.config["StopSignal"] = name
    return f"STOPSIGNAL {name}"


def _shell(settings: Settings, instruction: Instruction) -> str:
    if not instruction.json:
        raise instruction.error('requires the JSON form: ["PROGRAM", "ARGUMENT"]', instruction.text)
    settings.config["Shell"] = list(instruction.json)
    return f"SHELL {_quoted(instruction.json)}"


def _maintainer(settings: Settings, instruction: Instruction) -> str:
    settings.document["author"] = instruction.text
    return f"MAINTAINER {instruction.text}"


def _onbuild(settings: Settings, instruction: Instruction) -> str:
    trigger = parse_one(instruction.text, f"{instruction.source.name}:{instruction.line}", instruction.escape)
    if trigger.name in _NO_TRIGGERS:
        raise instruction.error(f"{trigger.name} isn't allowed as an ONBUILD trigger", trigger.text)
    settings.config["OnBuild"] = [*(settings.config.get("OnBuild") or []), instruction.text]
    return f"ONBUILD {instruction.text}"


def _healthcheck(settings: Settings, instruction: Instruction) -> str:
    kind, _, rest = instruction.text.partition(" ")
    rest = rest.strip()
    if kind.upper() == "NONE":
        if rest or instruction.flags:
            raise instruction.error("NONE takes no arguments", rest or kind)
        settings.config["Healthcheck"] = {"Test": ["NONE"]}
        return "HEALTHCHECK NONE"
    if kind.upper() != "CMD":
        raise instruction.error(f"unknown type {kind!r}: there are CMD and NONE", kind)
    if not rest:
        raise instruction.error("missing command after HEALTHCHECK CMD", kind)
    words = parse_one(f"CMD {rest}", instruction.source.name, instruction.escape).json
    check: Json = {"Test": ["CMD", *words] if words is not None else ["CMD-SHELL", rest]}
    for flag, name in (
        ("interval", "Interval"),
        ("timeout", "Timeout"),
        ("start-period", "StartPeriod"),
        ("start-interval", "StartInterval"),
    ):
        if instruction.flag(flag) and (nanoseconds := duration(instruction, flag)):
            check[name] = nanoseconds
    retries = instruction.flag("retries")
    if retries:
        if not retries.isdecimal():
            raise instruction.error(f"--retries: {retries!r} is not a number", retries)
        if int(retries):
            check["Retries"] = int(retries)
    settings.config["Healthcheck"] = check
    return f"HEALTHCHECK {instruction.text}"


def _set(config: Json, key: str, words: list[str]) -> None:
    """An empty list is how an image has none."""
    if words:
        config[key] = words
    else:
        config.pop(key, None)


def _quoted(words: Iterable[str]) -> str:
    """Words as docker shows them in a history."""
    return "[" + " ".join('"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"' for word in words) + "]"


_APPLY: dict[str, Callable[[Settings, Instruction], str]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "MAINTAINER": _maintainer,
    "ONBUILD": _onbuild,
    "SHELL": _shell,
    "STOPSIGNAL": _stopsignal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
