"""Who the user is to a registry, as docker keeps it: config.json, and the credential helpers it names.

config.json (docker's configuration reference): `auths` has HOST → {"auth": base64 of NAME:PASSWORD} or
{"identitytoken"}; `credHelpers` has HOST → HELPER and `credsStore` is the helper of all others. A helper is
the command docker-credential-HELPER with the word get, store or erase, and JSON on its standard streams.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import RuntimeFailure
from runtime.images.documents import Document, parse_json
from runtime.images.reference import DEFAULT_DOMAIN
from runtime.images.workspace import sync_directory

#: The name that docker keeps its default registry's credentials by.
DEFAULT_KEY = "https://index.docker.io/v1/"

_HELPER_SECONDS = 60
#: What a helper says as the user name when the secret is a token.
_TOKEN_USER = "<token>"


@dataclass(frozen=True)
class Credentials:
    """A name and a password, or a token in their place: to be traded for others, or to be shown as it is."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""

    def __bool__(self) -> bool:
        return any((self.username, self.password, self.identity_token, self.registry_token))

    @property
    def basic(self) -> str:
        """The value of an Authorization header of the Basic scheme (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


ANONYMOUS = Credentials()


def config_file() -> Path:
    """docker's config.json: in $DOCKER_CONFIG, else ~/.docker."""
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"


class CredentialStore:
    """What is kept in config.json and by its helpers. Registries are named as in image references."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or config_file()

    def get(self, domain: str) -> Credentials:
        """The credentials for a registry; ANONYMOUS when there are none.

        Raises RuntimeFailure when the file is not what it has to be, or a helper fails.
        """
        config = self._read()
        if helper := self._helper(config, domain):
            return self._ask(helper, domain)
        entries = config.object("auths")
        for key in entries.value:
            if _domain_of(key) == domain:
                return _entry(entries.object(key))
        return ANONYMOUS

    def store(self, domain: str, credentials: Credentials) -> str | None:
        """Keep the credentials for a registry; gives the file when they are in it, not in a helper."""
        config = self._read()
        entry: dict[str, Any] = {}
        helper = self._helper(config, domain)
        if helper:
            secret = credentials.identity_token or credentials.password
            name = _TOKEN_USER if credentials.identity_token else credentials.username
            said = {"ServerURL": _key_of(domain), "Username": name, "Secret": secret}
            _run(helper, "store", json.dumps(said))
        else:
            pair = f"{credentials.username}:{credentials.password}"
            entry = {"auth": base64.b64encode(pair.encode()).decode()}
            if credentials.identity_token:
                entry = {"auth": base64.b64encode(f"{credentials.username}:".encode()).decode()}
                entry["identitytoken"] = credentials.identity_token
        self._write({**config.value, "auths": {**_others(config, domain), _key_of(domain): entry}})
        return None if helper else str(self._path)

    def erase(self, domain: str) -> bool:
        """Forget the credentials for a registry; gives whether there were some."""
        config = self._read()
        others = _others(config, domain)
        known = len(others) < len(config.object("auths").value)
        if helper := self._helper(config, domain):
            known = known or bool(self._ask(helper, domain))
            _run(helper, "erase", _key_of(domain))
        if len(others) < len(config.object("auths").value):
            self._write({**config.value, "auths": others})
        return known

    def _read(self) -> Document:
        try:
            data = self._path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            data = b"{}"
        except OSError as error:
            raise RuntimeFailure(f"cannot read {self._path}: {error.strerror}") from error
        return Document(parse_json(data.strip() or b"{}", str(self._path)), str(self._path))

    def _write(self, config: dict[str, Any]) -> None:
        path = Path(os.path.realpath(self._path))  # a link stays one
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd, new = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)  # 0600, and remains so
            try:
                with open(fd, "w") as file:
                    json.dump(config, file, indent="\t")
                    file.flush()
                    os.fsync(fd)
                os.rename(new, path)
            except BaseException:
                os.unlink(new)
                raise
            sync_directory(path.parent)
        except OSError as error:
            raise RuntimeFailure(f"cannot write {self._path}: {error.strerror}") from error

    @staticmethod
    def _helper(config: Document, domain: str) -> str:
        for key, helper in config.mapping("credHelpers").items():
            if _domain_of(key) == domain:
                return helper
        return config.string("credsStore", "")

    @staticmethod
    def _ask(helper: str, domain: str) -> Credentials:
        said = _run(helper, "get", _key_of(domain), absent_is_fine=True)
        if said is None:
            return ANONYMOUS
        where = f"what docker-credential-{helper} says"
        document = Document(parse_json(said, where), where)
        username, secret = document.string("Username", ""), document.string("Secret", "")
        if username == _TOKEN_USER:
            return Credentials(identity_token=secret)
        return Credentials(username, secret)


def _key_of(domain: str) -> str:
    return DEFAULT_KEY if domain == DEFAULT_DOMAIN else domain


def _domain_of(key: str) -> str:
    """The registry that a key of config.json means; old ones are URLs."""
    if key == DEFAULT_KEY:
        return DEFAULT_DOMAIN
    host = key.partition("://")[2] or key
    host = host.partition("/")[0]
    return DEFAULT_DOMAIN if host == f"index.{DEFAULT_DOMAIN}" else host


def _others(config: Document, domain: str) -> dict[str, Any]:
    return {key: entry for key, entry in config.object("auths").value.items() if _domain_of(key) != domain}


def _entry(entry: Document) -> Credentials:
    username, password = entry.string("username", ""), entry.string("password", "")
    if pair := entry.string("auth", ""):
        try:
            username, _, password = base64.b64decode(pair, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise entry.wrong("auth", "base64 of NAME:PASSWORD") from None
        password = password.rstrip("\0")
    token = entry.string("identitytoken", "")
    return Credentials(username, password, token, entry.string("registrytoken", ""))


def _run(helper: str, word: str, stdin: str, absent_is_fine: bool = False) -> bytes | None:
    command = f"docker-credential-{helper}"
    if "/" in helper:
        raise RuntimeFailure(f"invalid credential helper {helper!r}: it is a name, not a path")
    try:
        result = subprocess.run(
            [command, word], input=stdin.encode(), capture_output=True, timeout=_HELPER_SECONDS
        )
    except OSError as error:
        raise RuntimeFailure(f"cannot run the credential helper {command}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise RuntimeFailure(f"the credential helper {command} {word} does not answer") from error
    if result.returncode == 0:
        return result.stdout
    said = (result.stdout or result.stderr).decode(errors="replace").strip()
    if absent_is_fine and "credentials not found" in said:
        return None
    lines = said.splitlines() or [f"exit code {result.returncode}"]
    raise RuntimeFailure(f"the credential helper {command} {word} failed: {lines[0]}")
