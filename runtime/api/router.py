"""Which handler a method and a path have."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable

from runtime.about import API_VERSION, MIN_API_VERSION
from runtime.api.daemon import Daemon
from runtime.api.errors import ApiError, NotImplementedHere
from runtime.api.http import Call, Reply

#: Answers a call, or gives what is to be answered.
Handler = Callable[[Daemon, Call], Awaitable[Reply | None]]

_PREFIX = re.compile(r"/v(\d+)\.(\d+)(?=/)")


class Router:
    """A table of (method, path, handler); in a path `{name}` is one segment, `{name...}` one or more.

    `foreign` are the first segments of paths that docker has and this server has not.
    """

    def __init__(self, table: Iterable[tuple[str, str, Handler]], foreign: Iterable[str]) -> None:
        self._routes = [(method, _pattern(path), handler) for method, path, handler in table]
        self._foreign = frozenset(foreign)

    async def __call__(self, daemon: Daemon, call: Call) -> Reply | None:
        """Call the handler of `call`.

        Raises ApiError: 400 for a version that is not spoken, 404 and 405 where there is no handler, 501
        where docker has one.
        """
        path = self._without_version(call)
        methods = set()
        for method, pattern, handler in self._routes:
            match = pattern.fullmatch(path)
            if match and method == call.method:
                call.arguments = match.groupdict()
                return await handler(daemon, call)
            if match:
                methods.add(method)
        if path.split("/")[1] in self._foreign:
            raise NotImplementedHere(f"{call.method} {path}")
        if methods:
            raise ApiError(
                405, f"{call.method} is not allowed for {path}: there is {', '.join(sorted(methods))}"
            )
        raise ApiError(404, "page not found")

    @staticmethod
    def _without_version(call: Call) -> str:
        match = _PREFIX.match(call.path)
        if match is None:
            call.version = _number(API_VERSION)
            return call.path
        call.version = int(match[1]), int(match[2])
        version = f"{match[1]}.{match[2]}"
        if call.version > _number(API_VERSION):
            raise ApiError(
                400, f"client version {version} is too new. Maximum supported API version is {API_VERSION}"
            )
        if call.version < _number(MIN_API_VERSION):
            raise ApiError(
                400,
                f"client version {version} is too old. Minimum supported API version is {MIN_API_VERSION}, "
                "please upgrade your client to a newer version",
            )
        return call.path[match.end() :]


def _number(version: str) -> tuple[int, int]:
    major, _, minor = version.partition(".")
    return int(major), int(minor)


def _pattern(path: str) -> re.Pattern[str]:
    expression = re.sub(
        r"\{(\w+)(\.\.\.)?\}", lambda match: f"(?P<{match[1]}>{'.+' if match[2] else '[^/]+'})", path
    )
    return re.compile(expression)
