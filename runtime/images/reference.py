"""Image references: what a user types, and the full name it stands for.

The grammar is that of the distribution project (`reference/regexp.go`); the normalisation of short
names is docker's: `busybox` is `docker.io/library/busybox:latest`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from runtime.errors import RuntimeFailure

DEFAULT_DOMAIN = "docker.io"
LEGACY_DOMAIN = "index.docker.io"
OFFICIAL_PREFIX = "library/"
DEFAULT_TAG = "latest"
NAME_MAX = 255

_DOMAIN_PART = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_DOMAIN_PART}(?:\.{_DOMAIN_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_PATH_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PATH_PART}(?:/{_PATH_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HEX_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Reference:
    """A normalised image name; at least one of `tag` and `digest` is set."""

    domain: str
    path: str
    tag: str | None
    digest: str | None = None

    def __str__(self) -> str:
        """The full name, as it is kept in an index: docker.io/library/busybox:latest."""
        return f"{self.domain}/{self.path}{self._suffix}"

    @property
    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def repository(self) -> str:
        """The name without tag and digest, as docker shows it: defaults are left out."""
        if self.domain != DEFAULT_DOMAIN:
            return f"{self.domain}/{self.path}"
        short = self.path.removeprefix(OFFICIAL_PREFIX)
        # library/a/b is not official: its prefix is part of the name.
        return self.path if "/" in short else short

    @property
    def familiar(self) -> str:
        """The name as docker shows it: busybox:latest."""
        return self.repository + self._suffix

    def tagged(self) -> Reference:
        """This reference by its tag alone.

        Raises RuntimeFailure when it has a digest, which no tag can be given to.
        """
        if self.digest:
            raise RuntimeFailure(f"invalid reference format: {self.familiar!r}: a digest takes no tag")
        return replace(self, tag=self.tag or DEFAULT_TAG)


def is_digest(text: str) -> bool:
    """Whether `text` is a sha256 digest as OCI descriptors have it."""
    return _DIGEST.fullmatch(text) is not None


def parse(text: str) -> Reference:
    """Read an image reference as docker does: `[DOMAIN/]PATH[:TAG][@DIGEST]`.

    Raises RuntimeFailure naming the input and what is wrong with it.
    """

    def wrong(reason: str) -> RuntimeFailure:
        return RuntimeFailure(f"invalid reference format: {text!r}: {reason}")

    rest, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise wrong("the digest is not sha256: and 64 lower-case hexadecimal digits")
    name, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:  # the colon of a port
        name, colon, tag = rest, "", ""
    if colon and not _TAG.fullmatch(tag):
        raise wrong(f"the tag {tag!r} is not 1 to 128 letters, digits, '_', '.' and '-'")
    if not name:
        raise wrong("the name is missing")
    if _HEX_ID.fullmatch(name):
        raise wrong("64 hexadecimal digits are an image ID, not a name")
    domain, path = _split_domain(name)
    if not _DOMAIN.fullmatch(domain):
        raise wrong(f"{domain!r} is not a host name")
    if not _PATH.fullmatch(path):
        if _PATH.fullmatch(path.lower()):
            raise wrong("the repository name must be lower-case")
        raise wrong(f"{path!r} is not a repository name")
    if len(domain) + 1 + len(path) > NAME_MAX:
        raise wrong(f"the name is longer than {NAME_MAX} characters")
    return Reference(domain, path, tag or (None if digest else DEFAULT_TAG), digest or None)


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    names_host = "." in first or ":" in first or first == "localhost" or first != first.lower()
    domain, path = (first, rest) if slash and names_host else (DEFAULT_DOMAIN, name)
    if domain == LEGACY_DOMAIN:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = OFFICIAL_PREFIX + path
    return domain, path
