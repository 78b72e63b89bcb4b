"""The build context: a directory, a tar that is unpacked first, a URL of one, or a Dockerfile alone."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from runtime.build.fetching import archive_stream, fetch, is_git, is_url, refuse_git, unpack_archive
from runtime.build.ignore import Patterns, read
from runtime.build.trees import NOTHING, Tree
from runtime.errors import RuntimeFailure
from runtime.images.streams import CHUNK

_DOCKERFILE = "Dockerfile"
_IGNORE = ".dockerignore"


@dataclass(frozen=True)
class Context:
    """What a build reads: the Dockerfile with the name that messages give it, and the files to copy from."""

    dockerfile: bytes
    name: str
    tree: Tree


def open_context(source: str, file: str, stdin: BinaryIO | None, work: Path) -> Context:
    """The context at `source` (a directory, a URL, or `-` for a tar or a Dockerfile on `stdin`).

    `file` is the Dockerfile if it is not the usual one; `-` reads it from `stdin`. Raises RuntimeFailure when
    something is missing or is not what it has to be.
    """
    if is_git(source):
        raise refuse_git(source)
    if is_url(source):
        downloaded = work / "context"
        fetch(source, downloaded)
        with downloaded.open("rb") as stream:
            return _from_file(stream, source, file, work)
    if source == "-":
        assert stdin is not None
        if file == "-":
            raise RuntimeFailure("invalid argument: can't use stdin for both build context and Dockerfile")
        with _spooled(stdin, work / "stdin") as stream:
            return _from_file(stream, "standard input", file, work)
    root = Path(source)
    if not root.is_dir():
        what = "is not a directory" if root.exists() else "not found"
        raise RuntimeFailure(f"unable to prepare context: path {source!r} {what}")
    root = root.resolve()
    if file == "-":
        assert stdin is not None
        return Context(stdin.read(), "Dockerfile", Tree(root, _ignored(root, None), own=False))
    path = Path(file) if file else root / _DOCKERFILE
    if file and not path.exists() and (root / file).exists():
        path = root / file
    return _in_directory(root, path, file or _DOCKERFILE)


def unpacked_context(stream: BinaryIO, file: str, work: Path) -> Context:
    """The context in the tar `stream`, as a client of the API sends it."""
    with _spooled(stream, work / "stdin") as spooled:
        return _from_file(spooled, "the build context", file, work)


def _from_file(stream: BinaryIO, where: str, file: str, work: Path) -> Context:
    plain = archive_stream(stream, where)
    root = work / "files"
    if plain is None:
        stream.seek(0)
        root.mkdir()
        return Context(stream.read(), "Dockerfile", Tree(root, own=False))
    unpack_archive(plain, root, where)
    name = os.path.normpath("/" + (file or _DOCKERFILE)).lstrip("/")
    tree = Tree(root)
    try:
        path = tree.real_path(name)
    except OSError:
        raise RuntimeFailure(f"cannot locate specified Dockerfile: {name}") from None
    return _in_directory(root, path, name)


def _spooled(stream: BinaryIO, path: Path) -> BinaryIO:
    """The stream as a file that can be read twice."""
    with path.open("xb") as file:
        while data := stream.read(CHUNK):
            file.write(data)
    return path.open("rb")


def _in_directory(root: Path, path: Path, name: str) -> Context:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RuntimeFailure(f"failed to read dockerfile: {path}: {error.strerror}") from error
    return Context(data, name, Tree(root, _ignored(root, path), own=False))


def _ignored(root: Path, dockerfile: Path | None) -> Patterns:
    """The patterns of DOCKERFILE.dockerignore, else those of the context's own .dockerignore."""
    candidates = [dockerfile.with_name(dockerfile.name + _IGNORE)] if dockerfile else []
    with contextlib.suppress(OSError):
        candidates.append(Tree(root).real_path(_IGNORE))
    for candidate in candidates:
        try:
            return read(candidate.read_bytes(), candidate.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise RuntimeFailure(f"cannot read {candidate}: {error.strerror}") from error
    return NOTHING
