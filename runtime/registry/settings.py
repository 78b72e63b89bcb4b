"""What is configured of registries: registries.json, and the certificates that docker keeps for them.

registries.json is an object of HOST[:PORT] → {"insecure": bool, "mirrors": [HOST[:PORT]…], "ca": FILE,
"cert": FILE, "key": FILE}. It is $UNIONCTL_REGISTRIES, else the user's, else the system's. As in docker, a
registry on loopback is insecure unless the file says otherwise, and certificates are looked for in
/etc/docker/certs.d/HOST[:PORT] too: *.crt, *.cert, *.key.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from runtime.errors import RuntimeFailure
from runtime.images.documents import Document, parse_json

SYSTEM_FILE = Path("/etc/unionctl/registries.json")
DOCKER_CERTIFICATES = Path("/etc/docker/certs.d")

_KEYS = {"insecure", "mirrors", "ca", "cert", "key"}


@dataclass(frozen=True)
class Host:
    """How one registry is reached. An insecure one may have any certificate, or none and speak plain HTTP."""

    name: str
    insecure: bool = False
    mirrors: tuple[str, ...] = ()
    authorities: tuple[Path, ...] = ()
    certificate: Path | None = None
    key: Path | None = None

    def tls(self) -> ssl.SSLContext:
        """What certificates are taken, and which one is shown.

        Raises RuntimeFailure for a file that is not a certificate.
        """
        context = ssl.create_default_context()
        for authority in self.authorities:
            try:
                context.load_verify_locations(authority)
            except OSError as error:
                raise _unusable(authority, error) from error
        if self.certificate:
            try:
                context.load_cert_chain(self.certificate, self.key)
            except OSError as error:
                raise _unusable(self.certificate, error) from error
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def _unusable(file: Path, error: OSError) -> RuntimeFailure:
    return RuntimeFailure(f"cannot use the certificate in {file}: {error.strerror or error}")


class Settings:
    """The configuration of all registries."""

    def __init__(self, hosts: Mapping[str, Host], tls_verify: bool | None = None) -> None:
        self._hosts = hosts
        self._tls_verify = tls_verify

    @classmethod
    def read(cls, tls_verify: bool | None = None) -> Settings:
        """The configuration on disk; `tls_verify` overrules it for the registry that a command names.

        Raises RuntimeFailure naming the file and what is wrong in it.
        """
        path = _file()
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return cls({}, tls_verify)
        except OSError as error:
            raise RuntimeFailure(f"cannot read {path}: {error.strerror}") from error
        document = Document(parse_json(data, str(path)), str(path))
        hosts = {name: _host(name, document.object(name)) for name in document.value}
        return cls(hosts, tls_verify)

    def host(self, name: str) -> Host:
        """How the registry `name` is reached, by the file and by what the command says."""
        known = self._known(name)
        return known if self._tls_verify is None else replace(known, insecure=not self._tls_verify)

    def mirrors(self, name: str) -> list[Host]:
        """Where to look before the registry `name` itself is asked."""
        return [self._known(mirror) for mirror in self._known(name).mirrors]

    def _known(self, name: str) -> Host:
        known = self._hosts.get(name)
        if known is None:
            known = Host(name, insecure=is_loopback(name))
        if known.authorities or known.certificate:
            return known
        return _with_dockers(known)


def is_loopback(host: str) -> bool:
    """Whether HOST[:PORT] is this machine by a loopback address or the name localhost."""
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    name = name.strip("[]")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _file() -> Path:
    if chosen := os.environ.get("UNIONCTL_REGISTRIES"):
        return Path(chosen)
    config_home = os.environ.get("XDG_CONFIG_HOME", "")
    base = Path(config_home) if os.path.isabs(config_home) else Path.home() / ".config"
    own = base / "unionctl" / "registries.json"
    return own if own.exists() else SYSTEM_FILE


def _host(name: str, entry: Document) -> Host:
    for key in entry.value:
        if key not in _KEYS:
            raise RuntimeFailure(f"{entry.where}: {key} is unknown; there are {', '.join(sorted(_KEYS))}")
    insecure = entry.value.get("insecure", is_loopback(name) and "ca" not in entry.value)
    if not isinstance(insecure, bool):
        raise entry.wrong("insecure", "true or false")
    authority, certificate, key = (entry.string(word, "") for word in ("ca", "cert", "key"))
    if bool(certificate) != bool(key):
        raise RuntimeFailure(f"{entry.where}: cert and key go together")
    return Host(
        name,
        insecure,
        entry.strings("mirrors") or (),
        (Path(authority),) if authority else (),
        Path(certificate) if certificate else None,
        Path(key) if key else None,
    )


def _with_dockers(host: Host) -> Host:
    directory = DOCKER_CERTIFICATES / host.name
    certificate = next(iter(sorted(directory.glob("*.cert"))), None)
    return replace(
        host,
        authorities=tuple(sorted(directory.glob("*.crt"))),
        certificate=certificate,
        key=certificate.with_suffix(".key") if certificate else None,
    )
