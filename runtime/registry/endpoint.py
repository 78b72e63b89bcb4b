"""One server that speaks the registry's protocol: found, asked, asked again when it breaks, never believed.

A request goes out with the authorization that the server wants, follows redirects (without it, when they lead
elsewhere), and is tried again with growing pauses while the failure is one that passes.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from types import TracebackType
from typing import Any

import httpx
import trio

from runtime.errors import RuntimeFailure
from runtime.images.reference import DEFAULT_DOMAIN
from runtime.registry.authorization import CLIENT, Authorization, Scopes, refused
from runtime.registry.credentials import Credentials
from runtime.registry.failures import Broken, of_transport, words
from runtime.registry.settings import Host, is_loopback

#: Where docker's default registry is; its name in references is that of a web site.
_DEFAULT_SERVER = f"registry-1.{DEFAULT_DOMAIN}"

_REDIRECTS_MAX = 5
_ERROR_MAX = 64 << 10
_AGAIN = (408, 425, 429, 500, 502, 503, 504)

#: Gives a request's body, from its start each time.
Content = Callable[[], AsyncIterable[bytes]]


@dataclass(frozen=True)
class Patience:
    """How often a request is tried, and the seconds between: `first`, then twice as long each time."""

    tries: int = 6
    first: float = 0.5
    longest: float = 30.0
    silence: float = 60.0

    async def pause(self, tried: int, failure: Broken) -> None:
        """Wait after try number `tried`; raises `failure` when it was the last one."""
        if tried >= self.tries:
            raise failure
        # Spread, so that many clients of a server that comes back do not all come at once.
        pause = min(self.first * 2 ** (tried - 1), self.longest) * random.uniform(0.75, 1.25)
        await trio.sleep(min(failure.after, self.longest) if failure.after is not None else pause)


class Endpoint:
    """A registry's server, or a mirror; an asynchronous context manager."""

    def __init__(
        self, host: Host, find_credentials: Callable[[], Credentials], patience: Patience | None = None
    ) -> None:
        self.name = host.name
        self.patience = patience or Patience()
        self._host = host
        self._base: httpx.URL | None = None
        self._finding = trio.Lock()
        self._client = _client(
            verify=host.tls(),
            timeout=httpx.Timeout(self.patience.silence, pool=None),
            limits=httpx.Limits(max_connections=None),
            # A proxy of the environment is not for this machine; Go's clients have it so.
            trust_env=not is_loopback(host.name),
            headers={"User-Agent": f"{CLIENT}/{version('unionfs')}", "Accept-Encoding": "identity"},
        )
        self._authorization = Authorization(host.name, find_credentials, self._ask, host.insecure)

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with trio.CancelScope(shield=True), trio.move_on_after(1):
            await self._client.aclose()

    async def request(
        self,
        method: str,
        path: str,
        scopes: Scopes = (),
        headers: Mapping[str, str] | None = None,
        content: Content | None = None,
        limit: int = _ERROR_MAX,
    ) -> tuple[httpx.Response, bytes]:
        """Ask, and give the answer with at most `limit` + 1 bytes of its body.

        Raises as `stream` does.
        """
        tried = 0
        while True:
            tried += 1
            try:
                async with self.stream(method, path, scopes, headers, content) as response:
                    return response, await read(response, limit)
            except Broken as failure:
                await self.patience.pause(tried, failure)

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        scopes: Scopes = (),
        headers: Mapping[str, str] | None = None,
        content: Content | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """Ask once; the block reads the body of the answer. `path` may be a URL that the server gave.

        Raises Broken for what may pass, also out of the block's reading; Unauthorized; RuntimeFailure when
        the server cannot be had, or is no registry.
        """
        try:
            url, ours = self._target(await self._find(), path)
            async with AsyncExitStack() as stack:
                for last in (False, True):
                    sent = dict(headers or {})
                    if ours and (authorization := await self._authorization.header(scopes)):
                        sent["Authorization"] = authorization
                    request = self._client.build_request(
                        method, url, headers=sent, content=content() if content else None
                    )
                    response = await self._send(request)
                    stack.push_async_callback(response.aclose)
                    if response.status_code != 401 or last:
                        break
                    self._authorization.challenged(response, scopes)
                    await read(response)
                if response.status_code in (401, 403):
                    said = words(response, await read(response))
                    raise refused(self.name, self._authorization.credentials, said)
                if response.status_code in _AGAIN:
                    raise await self._later(response)
                yield response
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise of_transport(error, self.name) from error

    async def check(self) -> None:
        """Ask whether the credentials are good; raises Unauthorized when they are not."""
        response, body = await self.request("GET", "/v2/")
        if response.status_code != 200:
            raise self._no_registry(response, body)

    def _target(self, base: httpx.URL, path: str) -> tuple[httpx.URL, bool]:
        """The URL that `path` means, and whether it is of this server, so that it may see who we are."""
        url = base.join(path)
        if url.host == base.host:
            # Behind a proxy that does TLS a server may not know that its own URLs begin with https.
            url = url.copy_with(scheme=base.scheme, port=base.port)
        elif url.scheme != "https" and not self._host.insecure:
            raise RuntimeFailure(f"{self.name} leads to {url.host} without TLS")
        return url, url.host == base.host

    async def _find(self) -> httpx.URL:
        """Where the server is: /v2/ answers there 200 or 401 (distribution-spec, "Determining Support")."""
        async with self._finding:
            if self._base is None:
                self._base = await self._probe()
            return self._base

    async def _probe(self) -> httpx.URL:
        server = _DEFAULT_SERVER if self.name == DEFAULT_DOMAIN else self.name
        base = httpx.URL(f"https://{server}/v2/")
        try:
            try:
                response, body = await self._ask(httpx.Request("GET", base))
            except httpx.ConnectError:
                if not self._host.insecure:
                    raise
                base = base.copy_with(scheme="http")
                response, body = await self._ask(httpx.Request("GET", base))
        except httpx.ConnectError as error:
            # Who has just typed a wrong name does not want to wait for more of the same.
            raise RuntimeFailure(of_transport(error, self.name).message) from error
        if response.status_code == 401:
            self._authorization.challenged(response, ())
        elif response.status_code != 200:
            raise self._no_registry(response, body)
        return base

    def _no_registry(self, response: httpx.Response, body: bytes) -> RuntimeFailure:
        return RuntimeFailure(f"{self.name} is not a registry: /v2/ answers {words(response, body)}")

    async def _ask(self, request: httpx.Request) -> tuple[httpx.Response, bytes]:
        """Send a request of the protocol's own, to the server or to where it gives tokens."""
        request.headers.update({**self._client.headers, **request.headers})
        request.extensions.setdefault("timeout", self._client.timeout.as_dict())
        response = await self._send(request)
        try:
            if response.status_code in _AGAIN:
                raise await self._later(response)
            return response, await read(response)
        finally:
            await response.aclose()

    async def _send(self, request: httpx.Request) -> httpx.Response:
        for _ in range(_REDIRECTS_MAX):
            response = await self._client.send(request, stream=True)
            following = response.next_request
            if following is None or request.method not in ("GET", "HEAD"):
                return response
            await response.aclose()
            if following.url.scheme != "https" and request.url.scheme == "https" and not self._host.insecure:
                raise RuntimeFailure(f"{self.name} redirects to {following.url.host} without TLS")
            request = following
        raise RuntimeFailure(f"{self.name} redirects in a circle")

    async def _later(self, response: httpx.Response) -> Broken:
        said = words(response, await read(response))
        after = response.headers.get("retry-after", "")
        return Broken(f"{self.name}: {said}", float(after) if after.isdecimal() and len(after) < 6 else None)


def _client(**settings: Any) -> httpx.AsyncClient:
    try:
        return httpx.AsyncClient(**settings)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise RuntimeFailure(f"cannot use the proxy that the environment names: {error}") from error


async def read(response: httpx.Response, limit: int = _ERROR_MAX) -> bytes:
    """The body of an answer, up to one byte more than `limit`."""
    body = b""
    async for data in response.aiter_raw():
        body += data
        if len(body) > limit:
            return body[: limit + 1]
    return body
