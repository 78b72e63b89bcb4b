"""Where the user's words meet registries: the endpoints of a name, and the loop that their work runs in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from runtime.images.reference import Reference
from runtime.registry.credentials import ANONYMOUS, Credentials, CredentialStore
from runtime.registry.endpoint import Endpoint, Patience
from runtime.registry.repository import Repository
from runtime.registry.settings import Host, Settings

Result = TypeVar("Result")


@dataclass(frozen=True)
class Client:
    """How registries are reached: by whose settings, as whom, how patiently."""

    settings: Settings = field(default_factory=Settings.read)
    credentials: Callable[[str], Credentials] = field(default_factory=lambda: CredentialStore().get)
    patience: Patience = field(default_factory=Patience)

    async def repository(self, stack: AsyncExitStack, name: Reference, push: bool = False) -> Repository:
        """The repository of `name` at its registry, until `stack` ends."""
        return await self._at(stack, self.settings.host(name.domain), name, push)

    async def sources(self, stack: AsyncExitStack, name: Reference) -> list[Repository]:
        """The same, behind the mirrors of it that are configured."""
        mirrors = [await self._at(stack, host, name, False) for host in self.settings.mirrors(name.domain)]
        return [*mirrors, await self.repository(stack, name)]

    async def check(self, domain: str) -> None:
        """Show the credentials to a registry; raises Unauthorized when it does not take them."""
        async with self._endpoint(self.settings.host(domain)) as endpoint:
            await endpoint.check()

    def as_user(self, credentials: Credentials) -> Client:
        """The same for one who is not to be looked up."""
        return Client(self.settings, lambda domain: credentials, self.patience)

    async def _at(self, stack: AsyncExitStack, host: Host, name: Reference, push: bool) -> Repository:
        endpoint = await stack.enter_async_context(self._endpoint(host))
        return Repository(endpoint, name.path, name.repository, push)

    def _endpoint(self, host: Host) -> Endpoint:
        return Endpoint(host, lambda: self.credentials(host.name), self.patience)


def anonymous(domain: str) -> Credentials:
    """Nobody, to every registry."""
    return ANONYMOUS


def run(main: Callable[[], Awaitable[Result]]) -> Result:
    """Run asynchronous work to its end, in this thread.

    Raises the first failure in it as it is, without the groups that nurseries make.
    """
    results: list[Result] = []

    async def child() -> None:
        results.append(await main())

    async def parent() -> None:
        # ^C reaches the main task, which must not be in a thread then: that cannot be left.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)

    try:
        trio.run(parent)
        return results[0]
    except BaseExceptionGroup as group:
        raise _first(group) from group


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        # A ^C is what the user wants to see the end of.
        stopped = error.subgroup(KeyboardInterrupt)
        error = (stopped or error).exceptions[0]
    return error
