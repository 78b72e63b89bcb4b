"""What a registry wants to see in the Authorization header: a password, or a token that a password gets.

Docker Registry v2 authentication ("Token Authentication Specification", and its OAuth2 form): a request that
lacks it is answered 401 with WWW-Authenticate: Basic, or Bearer realm=…,service=…; that realm gives a token
for a scope.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.request import parse_http_list

import httpx

from runtime.errors import RuntimeFailure, Unauthorized
from runtime.images.documents import Document, parse_json
from runtime.registry.credentials import Credentials
from runtime.registry.failures import words

CLIENT = "unionctl"

#: What may be done: repository:NAME:pull and the like. Several are asked for in one token.
Scopes = tuple[str, ...]

#: Sends one request and gives the answer with its body.
Ask = Callable[[httpx.Request], Awaitable[tuple[httpx.Response, bytes]]]


@dataclass(frozen=True)
class _Challenge:
    scheme: str
    parameters: dict[str, str]


class Authorization:
    """The credentials of one user at one registry, and the tokens that they got.

    `find` is asked once, when credentials are needed. `plain` lets a realm be without TLS.
    """

    def __init__(self, host: str, find: Callable[[], Credentials], ask: Ask, plain: bool) -> None:
        self._host = host
        self._find = find
        self._ask = ask
        self._plain = plain
        self._challenge: _Challenge | None = None
        self._credentials: Credentials | None = None
        self._tokens: dict[Scopes, str] = {}

    @property
    def credentials(self) -> Credentials:
        """Who the user is."""
        if self._credentials is None:
            self._credentials = self._find()
        return self._credentials

    def challenged(self, response: httpx.Response, scopes: Scopes) -> None:
        """Learn from a 401: what is wanted, and that the token for `scopes`, if there is one, is spent."""
        self._tokens.pop(scopes, None)
        challenges = [_parse(text) for text in response.headers.get_list("www-authenticate")]
        for scheme in ("bearer", "basic"):
            for challenge in challenges:
                if challenge.scheme == scheme:
                    self._challenge = challenge
                    return

    async def header(self, scopes: Scopes) -> str | None:
        """The header's value for a request that needs `scopes`; None while nothing was asked for.

        Raises Unauthorized when the credentials are not taken, RuntimeFailure when the realm is none.
        """
        if self._challenge is None:
            return None
        if self._challenge.scheme == "basic":
            return self.credentials.basic if self.credentials else None
        if self.credentials.registry_token:
            return f"Bearer {self.credentials.registry_token}"
        if scopes not in self._tokens:
            self._tokens[scopes] = await self._token(self._challenge.parameters, scopes)
        return f"Bearer {self._tokens[scopes]}"

    async def _token(self, parameters: dict[str, str], scopes: Scopes) -> str:
        realm = self._realm(parameters)
        service = {"service": parameters["service"]} if "service" in parameters else {}
        credentials = self.credentials
        if credentials.identity_token:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": credentials.identity_token,
                "client_id": CLIENT,
                "scope": " ".join(scopes),
                **service,
            }
            request = httpx.Request("POST", realm, data=form)
        else:
            account = {"account": credentials.username} if credentials.username else {}
            headers = {"Authorization": credentials.basic} if credentials.username else {}
            # Merged, since a realm may have a query of its own.
            query = realm.params.merge({**service, **account, "scope": list(scopes)})
            request = httpx.Request("GET", realm.copy_with(params=query), headers=headers)
        response, body = await self._ask(request)
        if response.status_code in (400, 401, 403):
            raise refused(self._host, credentials, words(response, body))
        if response.status_code != 200:
            raise RuntimeFailure(f"{realm.host} gives no token for {self._host}: {words(response, body)}")
        where = f"the token that {realm.host} gives for {self._host}"
        answer = Document(parse_json(body, where), where)
        token = answer.string("token", "") or answer.string("access_token", "")
        if not token or not token.isascii() or not token.isprintable():
            raise RuntimeFailure(f"{where} is none")
        return token

    def _realm(self, parameters: dict[str, str]) -> httpx.URL:
        text = parameters.get("realm", "")
        try:
            realm = httpx.URL(text)
        except httpx.InvalidURL:
            realm = httpx.URL()
        if not realm.host or realm.scheme not in ("https", "http"):
            raise RuntimeFailure(f"{self._host} gives tokens at {text!r}, which is no URL")
        if realm.scheme == "http" and not self._plain:
            raise RuntimeFailure(f"{self._host} gives tokens at {realm}, where passwords would not be secret")
        return realm


def refused(host: str, credentials: Credentials, said: str) -> Unauthorized:
    """The failure for a request that needs other credentials, or some."""
    if not credentials:
        return Unauthorized(f"unauthorized: {said} (not logged in: unionctl login {host})")
    who = credentials.username or "the token"
    return Unauthorized(f"unauthorized: {said} (logged in to {host} as {who})")


def _parse(text: str) -> _Challenge:
    """One WWW-Authenticate header (RFC 9110, 11.6.1) with one challenge in it."""
    scheme, _, rest = text.strip().partition(" ")
    parameters = {}
    for item in parse_http_list(rest):
        name, _, value = item.partition("=")
        parameters[name.strip().lower()] = value.strip().removeprefix('"').removesuffix('"')
    return _Challenge(scheme.lower(), parameters)
