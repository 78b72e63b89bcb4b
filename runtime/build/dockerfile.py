"""A Dockerfile's text becomes instructions: directives, continued lines, comments, flags, here-documents.

The rules are those of docker's Dockerfile reference ("Format", "Parser directives", "Here-documents"). What
the instructions mean is not known here; only which of them take flags, JSON or here-documents.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from runtime.errors import RuntimeFailure

#: Instruction → its flags. A flag that takes no value has one of true or false.
FLAGS: dict[str, tuple[str, ...]] = {
    "ADD": ("chown", "chmod", "link", "checksum", "keep-git-dir", "unpack", "exclude"),
    "ARG": (),
    "CMD": (),
    "COPY": ("from", "chown", "chmod", "link", "parents", "exclude"),
    "ENTRYPOINT": (),
    "ENV": (),
    "EXPOSE": (),
    "FROM": ("platform",),
    "HEALTHCHECK": ("interval", "timeout", "start-period", "start-interval", "retries"),
    "LABEL": (),
    "MAINTAINER": (),
    "ONBUILD": (),
    "RUN": ("mount", "network", "security"),
    "SHELL": (),
    "STOPSIGNAL": (),
    "USER": (),
    "VOLUME": (),
    "WORKDIR": (),
}
_SWITCHES = {"link", "parents", "keep-git-dir", "unpack"}
_REPEATED = {"mount", "exclude"}
_JSON = {"ADD", "CMD", "COPY", "ENTRYPOINT", "RUN", "SHELL", "VOLUME"}
_HEREDOCS = {"ADD", "COPY", "RUN"}
_DIRECTIVES = ("syntax", "escape", "check")
_DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*")
_HEREDOC = re.compile(r"(\d*)<<(-?)(['\"]?)([A-Za-z_.][A-Za-z0-9_.-]*)(\3)")


class DockerfileError(RuntimeFailure):
    """A fault at a place of a Dockerfile."""


@dataclass(frozen=True)
class Source:
    """The lines of a Dockerfile, and what it is called in messages."""

    name: str
    lines: tuple[str, ...]

    def error(self, message: str, line: int, part: str = "", last: int = 0) -> DockerfileError:
        """The failure `message` at `line` (from 1), a caret under `part` in it or in one up to `last`."""
        column, width = 0, 0
        for number in range(line, max(line, last) + 1):
            text = self.lines[number - 1] if number <= len(self.lines) else ""
            if part and part in text:
                line, column, width = number, text.index(part), len(part)
                break
        text = self.lines[line - 1] if line <= len(self.lines) else ""
        if not width:
            column = len(text) - len(text.lstrip())
            width = len(text[column:].partition(" ")[0])
        margin = " " * len(str(line))
        pad = "".join("\t" if char == "\t" else " " for char in text[:column])
        return DockerfileError(
            f"{self.name}:{line}: {message}\n {line} | {text}\n {margin} | {pad}{'^' * max(width, 1)}"
        )


@dataclass(frozen=True)
class Heredoc:
    """One here-document. `expand`: its name was not quoted. `text` has lost leading tabs if it was `<<-`."""

    name: str
    text: str
    expand: bool
    word: str  # as it stands in the line: 0<<-"EOF"


@dataclass(frozen=True)
class Instruction:
    """One instruction. `text` follows the flags, on one line; `json` are its words if it is a JSON array."""

    source: Source
    line: int
    last: int
    name: str
    flags: tuple[tuple[str, str], ...]
    text: str
    json: tuple[str, ...] | None
    heredocs: tuple[Heredoc, ...]
    original: str
    escape: str

    def error(self, message: str, part: str = "") -> DockerfileError:
        """The failure `message`, with a caret under `part` where the instruction has it."""
        return self.source.error(f"{self.name}: {message}", self.line, part, self.last)

    def flag(self, name: str, default: str = "") -> str:
        """The value of a flag that is there once at most."""
        return dict(self.flags).get(name, default)

    def switch(self, name: str) -> bool:
        """Whether a flag is on."""
        return self.flag(name, "false") == "true"

    def all(self, name: str) -> list[str]:
        """The values of a flag."""
        return [value for flag, value in self.flags if flag == name]


@dataclass(frozen=True)
class Dockerfile:
    """A Dockerfile: its instructions, and its directives by lower-case name."""

    source: Source
    instructions: tuple[Instruction, ...]
    directives: dict[str, str]
    escape: str


def parse(data: bytes, name: str) -> Dockerfile:
    """Read a Dockerfile, which messages call `name`.

    Raises DockerfileError at what no Dockerfile can have.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RuntimeFailure(f"{name}:{line}: not UTF-8") from None
    source = Source(name, tuple(text.replace("\r\n", "\n").split("\n")))
    directives, begin = _directives(source)
    escape = directives.get("escape", "\\")
    instructions = tuple(_Reader(source, escape, begin).instructions())
    if not instructions:
        raise RuntimeFailure(f"{name}: the Dockerfile has no instructions")
    return Dockerfile(source, instructions, directives, escape)


def parse_one(text: str, name: str, escape: str = "\\") -> Instruction:
    """One instruction that stands by itself: a trigger of an image, a --change."""
    source = Source(name, tuple(text.split("\n")))
    found = list(_Reader(source, escape, 0).instructions())
    if len(found) != 1:
        raise RuntimeFailure(f"{name}: {text!r} is not one instruction")
    return found[0]


def _directives(source: Source) -> tuple[dict[str, str], int]:
    """The directives, and the index of the first line after them."""
    found: dict[str, str] = {}
    for index, line in enumerate(source.lines):
        match = _DIRECTIVE.fullmatch(line.strip())
        if not match or match[1].lower() not in _DIRECTIVES:
            if index == 0 and line.startswith("#!"):
                continue
            return found, index
        key = match[1].lower()
        if key in found:
            raise source.error(f"only one {key} parser directive can be used", index + 1)
        if key == "escape" and match[2] not in ("\\", "`"):
            raise source.error(f"invalid escape {match[2]!r}: it is \\ or `", index + 1, match[2])
        found[key] = match[2]
    return found, len(source.lines)


class _Reader:
    def __init__(self, source: Source, escape: str, begin: int) -> None:
        self._source = source
        self._escape = escape
        self._next = begin  # index of the next physical line
        token = re.escape(escape)
        self._continued = re.compile(rf"(?:(?<!{token}){token})[ \t]*$")

    def instructions(self) -> Iterator[Instruction]:
        lines = self._source.lines
        while self._next < len(lines):
            if not lines[self._next].strip() or lines[self._next].lstrip().startswith("#"):
                self._next += 1
                continue
            yield self._instruction()

    def _instruction(self) -> Instruction:
        first = self._next + 1
        logical = self._logical_line()
        name, rest = _first_word(logical.strip())
        upper = name.upper()
        if upper not in FLAGS:
            close = difflib.get_close_matches(upper, FLAGS, 1, 0.6)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise self._source.error(f"unknown instruction: {name}{hint}", first, name)
        flags, rest = self._flags(upper, rest, first)
        heredocs = self._heredocs(rest, first) if upper in _HEREDOCS else ()
        words = _json_words(rest) if upper in _JSON else None
        original = "\n".join(self._source.lines[first - 1 : self._next])
        if not rest and upper != "MAINTAINER":
            raise self._source.error(f"{upper} requires at least one argument", first, name)
        return Instruction(
            self._source,
            first,
            self._next,
            upper,
            flags,
            rest,
            words,
            heredocs,
            original,
            self._escape,
        )

    def _logical_line(self) -> str:
        """Join continued lines; comments and empty lines in between do not count."""
        lines = self._source.lines
        parts: list[str] = []
        while self._next < len(lines):
            line = lines[self._next]
            self._next += 1
            if parts and (not line.strip() or line.lstrip().startswith("#")):
                continue
            match = self._continued.search(line)
            parts.append(line[: match.start()] if match else line)
            if not match:
                break
        return "".join(parts)

    def _flags(self, name: str, rest: str, line: int) -> tuple[tuple[tuple[str, str], ...], str]:
        flags: list[tuple[str, str]] = []
        while rest.startswith("--"):
            word, after = _first_word(rest)
            if word == "--":
                return tuple(flags), after
            key, equals, value = word[2:].partition("=")
            if key not in FLAGS[name]:
                close = difflib.get_close_matches(key, FLAGS[name], 1, 0.6)
                hint = f" (did you mean --{close[0]}?)" if close else ""
                raise self._source.error(f"{name}: unknown flag: --{key}{hint}", line, f"--{key}", self._next)
            if not equals and key not in _SWITCHES:
                raise self._source.error(f"{name}: missing a value on flag: --{key}", line, word, self._next)
            if key in _SWITCHES:
                value = value.lower() if equals else "true"
                if value not in ("true", "false"):
                    raise self._source.error(f"{name}: --{key} is true or false", line, word, self._next)
            if key not in _REPEATED and key in dict(flags):
                raise self._source.error(f"{name}: duplicate flag: --{key}", line, word, self._next)
            flags.append((key, value))
            rest = after
        return tuple(flags), rest

    def _heredocs(self, rest: str, line: int) -> tuple[Heredoc, ...]:
        found = []
        for word in shell_words(rest):
            match = _HEREDOC.fullmatch(word)
            if match:
                found.append(self._heredoc(word, match, line))
        return tuple(found)

    def _heredoc(self, word: str, match: re.Match[str], line: int) -> Heredoc:
        chomp, name = bool(match[2]), match[4]
        lines: list[str] = []
        while self._next < len(self._source.lines):
            text = self._source.lines[self._next]
            self._next += 1
            if (text.lstrip("\t") if chomp else text) == name:
                content = "".join(f"{one.lstrip(chr(9)) if chomp else one}\n" for one in lines)
                return Heredoc(name, content, not match[3], word)
            lines.append(text)
        raise self._source.error(f"unterminated heredoc: no line {name!r} ends it", line, word)


def _first_word(text: str) -> tuple[str, str]:
    """The first word of `text`, in which quotes may hold spaces, and what follows it."""
    quote = ""
    for place, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"" and text.startswith("--"):
            quote = char
        elif char.isspace():
            return text[:place], text[place:].lstrip()
    return text, ""


def shell_words(text: str) -> list[str]:
    """The words of a shell command line, quotes and escapes left in them."""
    words, word, quote = [], "", ""
    escaped = False
    for char in text:
        if escaped:
            escaped = False
        elif char == "\\" and quote != "'":
            escaped = True
        elif quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char.isspace():
            if word:
                words.append(word)
            word = ""
            continue
        word += char
    return [*words, word] if word else words


def _json_words(text: str) -> tuple[str, ...] | None:
    if not text.startswith("["):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        return None
    return tuple(value)


def looks_like_broken_json(words: Sequence[str]) -> bool:
    """Whether what was not read as JSON was meant to be."""
    return bool(words) and words[0].startswith("[") and words[-1].endswith("]")
