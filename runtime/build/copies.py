"""COPY and ADD: from words to what is copied where."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runtime.build.copying import Look, Source, Target
from runtime.build.dockerfile import Heredoc, Instruction
from runtime.build.fetching import (
    archive_stream,
    fetch,
    is_git,
    is_url,
    refuse_git,
    unpack_archive,
    url_name,
)
from runtime.build.ignore import Patterns
from runtime.build.settings import Settings, listed_words
from runtime.build.trees import NOTHING, Tree
from runtime.build.words import expand_unquoted
from runtime.errors import RuntimeFailure

_PIVOT = "/./"
_NO_DIRECTORY = "with more than one source the destination must be a directory and end with a /"


@dataclass(frozen=True)
class Words:
    """What a COPY or ADD says; the `destination` ends with a slash if it is to be a directory."""

    instruction: Instruction
    sources: tuple[str, ...]
    destination: str
    chown: str
    chmod: int | None
    exclude: tuple[str, ...]
    parents: bool

    @property
    def patterns(self) -> Patterns:
        """What of the sources is left out."""
        return Patterns(self.exclude, "--exclude") if self.exclude else NOTHING


@dataclass(frozen=True)
class Copies:
    """The files of a COPY or ADD, all of them there."""

    words: Words
    sources: tuple[Source, ...]
    archives: frozenset[str]  # paths of sources that are unpacked

    def digests(self) -> list[tuple[str, str, str]]:
        """The sums of all that is copied."""
        return [
            (source.path if source.below else posixpath.basename(source.path), source.below, digest)
            for source in self.sources
            for digest in [source.tree.digest(source.path, self.words.patterns)]
        ]

    def copy(self, root: Path, look: Look, place: Path) -> None:
        """Copy into the root filesystem at `root`; `place` is a directory for what is unpacked on the way.

        Raises DockerfileError when something is in the way.
        """
        target = Target(root)
        try:
            for number, source in enumerate(self.sources):
                if source.path in self.archives:
                    self._unpack(target, source, look, place / str(number))
                else:
                    target.copy([source], self.words.destination, look, self.words.patterns)
        except RuntimeFailure as error:
            raise self.words.instruction.error(error.message) from error
        except OSError as error:
            raise self.words.instruction.error(f"{error.strerror}: {error.filename}") from error
        finally:
            target.close()

    def _unpack(self, target: Target, source: Source, look: Look, place: Path) -> None:
        with source.tree.real_path(source.path).open("rb") as file:
            stream = archive_stream(file, source.path)
            assert stream is not None  # it was looked at when the copy was planned
            unpack_archive(stream, place, source.path)
        # Owners and modes are the archive's unless others are asked for.
        owner = look.owner if self.words.chown else None
        destination = self.words.destination.rstrip("/") + "/"
        target.copy([Source(Tree(place), "")], destination, Look(owner, look.mode), self.words.patterns)


def read_words(instruction: Instruction, settings: Settings) -> Words:
    """Read what an instruction says; raises DockerfileError when it makes no sense."""
    words = [settings.expand(instruction, word) for word in listed_words(instruction)]
    if len(words) < 2:
        raise instruction.error("requires at least two arguments: SOURCE… DESTINATION", instruction.text)
    destination = _destination(settings, words[-1])
    if len(words) > 2 and not destination.endswith("/"):
        raise instruction.error(_NO_DIRECTORY, words[-1])
    return Words(
        instruction,
        tuple(words[:-1]),
        destination,
        settings.expand(instruction, instruction.flag("chown")),
        _mode(instruction, settings.expand(instruction, instruction.flag("chmod"))),
        tuple(settings.expand(instruction, text) for text in instruction.all("exclude")),
        instruction.switch("parents"),
    )


def find_files(
    words: Words, settings: Settings, make_tree: Callable[[], Tree], from_context: bool, place: Path
) -> Copies:
    """Find what is copied. `place` is a directory for here-documents and downloads.

    Raises DockerfileError when something is missing.
    """
    instruction = words.instruction
    heredocs = {heredoc.word: heredoc for heredoc in instruction.heredocs}
    unpacks = instruction.name == "ADD" and instruction.flag("unpack", "true") == "true"
    sources: list[Source] = []
    archives: set[str] = set()
    tree: Tree | None = None
    for number, (word, written) in enumerate(zip(words.sources, listed_words(instruction), strict=False)):
        if written in heredocs:
            sources.append(_written(heredocs[written], settings, instruction, place / str(number)))
        elif instruction.name == "ADD" and is_git(word):
            raise instruction.error(str(refuse_git(word)), word)
        elif instruction.name == "ADD" and is_url(word):
            source = _download(instruction, word, words.destination, place / str(number))
            sources.append(source)
            if instruction.flag("unpack") == "true" and _is_archive(source):
                archives.add(source.path)
        else:
            tree = tree or make_tree()
            for source in _matches(instruction, tree, word):
                sources.append(source)
                if unpacks and from_context and _is_archive(source):
                    archives.add(source.path)
    if len(sources) > 1 and not words.destination.endswith("/"):
        raise instruction.error(_NO_DIRECTORY, words.sources[0])
    return Copies(words, tuple(sources), frozenset(archives))


def _written(heredoc: Heredoc, settings: Settings, instruction: Instruction, place: Path) -> Source:
    """A here-document as a file of its name."""
    text = heredoc.text
    if heredoc.expand:
        try:
            text = expand_unquoted(text, settings.variables, instruction.escape)
        except RuntimeFailure as error:
            raise instruction.error(error.message, heredoc.word) from error
    place.mkdir()
    file = place / heredoc.name
    file.write_text(text, "utf-8", "surrogateescape")
    file.chmod(0o644)
    return Source(Tree(place), heredoc.name)


def _destination(settings: Settings, word: str) -> str:
    """The absolute destination; a slash at its end says that it is a directory."""
    path = posixpath.normpath(posixpath.join(settings.working_dir, word))
    path = "/" + path.lstrip("/")
    is_directory = word.endswith("/") or posixpath.basename(word) in (".", "..") or path == "/"
    return path.rstrip("/") + "/" if is_directory else path


def _matches(instruction: Instruction, tree: Tree, word: str) -> list[Source]:
    parents = instruction.switch("parents")
    pivot = 0
    if parents and _PIVOT in word:
        before = posixpath.normpath("/" + word.partition(_PIVOT)[0]).strip("/")
        pivot = len(before.split("/")) if before else 0
    try:
        paths = tree.match(word)
    except RuntimeFailure as error:
        raise instruction.error(error.message, word) from error
    if not paths:
        origin = instruction.flag("from")
        where = f"in {origin}" if origin else "in the build context or excluded by .dockerignore"
        raise instruction.error(f"file not found {where}: {word}", word)
    return [Source(tree, path, _below(tree, path, pivot) if parents else "") for path in paths]


def _below(tree: Tree, path: str, pivot: int) -> str:
    kept = "/".join(path.split("/")[pivot:])
    return kept if tree.real_path(path).is_dir() else posixpath.dirname(kept)


def _is_archive(source: Source) -> bool:
    path = source.tree.real_path(source.path)
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return False
    with path.open("rb") as file:
        try:
            return archive_stream(file, source.path) is not None
        except RuntimeFailure:
            return False


def _download(instruction: Instruction, url: str, destination: str, place: Path) -> Source:
    name = url_name(url)
    if not name and destination.endswith("/"):
        raise instruction.error("cannot determine a file name from the URL: give the destination one", url)
    place.mkdir()
    try:
        fetch(url, place / (name or "download"), instruction.flag("checksum"))
    except RuntimeFailure as error:
        raise instruction.error(error.message, url) from error
    return Source(Tree(place), name or "download")


def _mode(instruction: Instruction, text: str) -> int | None:
    if not text:
        return None
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o7777:
        raise instruction.error(f"--chmod: invalid mode {text!r}: it is an octal number like 755", text)
    return mode
