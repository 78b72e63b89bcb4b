"""What went wrong between us and a registry, as one line for the user."""

from __future__ import annotations

import json
import os
import socket
import ssl
from collections.abc import Iterator

import httpx

from runtime.errors import RuntimeFailure

_WORDS_MAX = 300

#: OpenSSL's reasons for an answer that is no TLS at all.
_NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL")


class Broken(RuntimeFailure):
    """A connection that ended too soon, or an answer that says "later": worth another try."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after  # seconds, when the registry has said


def of_transport(error: Exception, host: str) -> RuntimeFailure:
    """What an error of httpx means; Broken when another try may help."""
    if isinstance(error, httpx.InvalidURL):
        return RuntimeFailure(f"{host} answers with a URL that is none: {error}")
    if isinstance(error, httpx.TooManyRedirects):
        return RuntimeFailure(f"{host} redirects in a circle")
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return RuntimeFailure(
                f"TLS: the certificate of {host} is not accepted: {cause.verify_message}"
                " (its authority belongs into registries.json; --tls-verify=false takes any certificate)"
            )
        if isinstance(cause, ssl.SSLError):
            if cause.reason in _NOT_TLS:
                return RuntimeFailure(
                    f"TLS: {host} does not speak it (--tls-verify=false also takes plain HTTP)"
                )
            if isinstance(error, httpx.ConnectError):
                return RuntimeFailure(f"TLS: no session with {host}: {cause.reason or cause}")
        if isinstance(cause, socket.gaierror):
            return RuntimeFailure(f"cannot find {host}: {cause.strerror}")
    if isinstance(error, httpx.TimeoutException):
        return Broken(f"{host} does not answer in time")
    if isinstance(error, httpx.ConnectError):
        numbers = [cause.errno for cause in _causes(error) if isinstance(cause, OSError) and cause.errno]
        return Broken(f"cannot connect to {host}: {os.strerror(numbers[-1]) if numbers else error}")
    if isinstance(error, httpx.UnsupportedProtocol | httpx.ProxyError | httpx.LocalProtocolError):
        return RuntimeFailure(f"cannot ask {host}: {error}")
    return Broken(f"the connection to {host} broke: {error or type(error).__name__}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    waiting = [error]
    while waiting:
        error = waiting.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        yield error
        waiting += [error.__context__, error.__cause__]
        if isinstance(error, BaseExceptionGroup):
            waiting += error.exceptions


def words(response: httpx.Response, body: bytes) -> str:
    """What a registry says of a failure (distribution-spec, "Error Codes"), else HTTP's own words."""
    status = f"{response.status_code} {response.reason_phrase}"
    try:
        first = json.loads(body)["errors"][0]
        code, message = str(first.get("code") or ""), str(first.get("message") or "")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return status
    said = message or code.lower().replace("_", " ") or status
    # It steers no terminal, and is one line.
    return "".join(char if char.isprintable() else " " for char in said[:_WORDS_MAX])
