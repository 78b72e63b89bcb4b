"""login and logout: credentials are shown to a registry, and kept once it has taken them."""

from __future__ import annotations

from functools import partial

from runtime.errors import RuntimeFailure
from runtime.images.reference import DEFAULT_DOMAIN, LEGACY_DOMAIN, parse
from runtime.registry.client import Client, run
from runtime.registry.credentials import Credentials, CredentialStore


def login(domain: str, credentials: Credentials, client: Client) -> None:
    """Ask a registry whether it takes the credentials; raises Unauthorized when it does not."""
    run(partial(client.as_user(credentials).check, domain))


def keep(domain: str, credentials: Credentials, kept: CredentialStore) -> str | None:
    """Keep credentials; gives the file when they are in it as they are, not with a helper."""
    return kept.store(domain, credentials)


def server_name(text: str) -> str:
    """The registry that a user means by HOST[:PORT] or its URL; nothing is docker's default.

    Raises RuntimeFailure naming the input when it is no host.
    """
    host = (text.partition("://")[2] or text).partition("/")[0]
    if not host or host in (LEGACY_DOMAIN, DEFAULT_DOMAIN):
        if text and not host:
            raise RuntimeFailure(f"invalid registry {text!r}: it is HOST[:PORT]")
        return DEFAULT_DOMAIN
    try:
        if parse(f"{host}/x").domain in (host, host.lower()):
            return host
    except RuntimeFailure:
        pass
    # A host without a dot or port would be a user's name in a reference.
    raise RuntimeFailure(f"invalid registry {text!r}: it is HOST[:PORT], with a dot or a port, or localhost")
