"""What went wrong, as docker's status codes."""

from __future__ import annotations

import re

from runtime.errors import NotFound, RuntimeFailure


class ApiError(Exception):
    """An answer that is a failure: a status code and one line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class NotImplementedHere(ApiError):
    """What docker has and this server has not; it names itself."""

    def __init__(self, what: str) -> None:
        super().__init__(501, f"{what} is not implemented by unionctl serve")


#: The runtime's failures are one line for a user; these words of docker's tell which code they have.
_CODES = (
    (404, r"\bno such\b|not found|does not exist in"),
    (
        409,
        r"conflict|already (paused|in use|exists)|is (not )?(running|paused)|in use|cannot remove container"
        r"|must be forced|unpause the container|marked for removal|has active endpoints",
    ),
    (
        400,
        r"invalid|bad format|duplicate mount|bind source path does not exist|no command specified"
        r"|minimum memory|range of cpus|must be absolute|absolute path|ambiguous|multiple ids|is not an? "
        r"|cannot be used|unknown capability",
    ),
)


def status_of(error: Exception) -> int:
    """The status code that docker would answer with: 404, 409, 400, or 500 for all that is our fault."""
    if isinstance(error, ApiError):
        return error.status
    if isinstance(error, NotFound):
        return 404
    if isinstance(error, RuntimeFailure):
        for status, words in _CODES:
            if re.search(words, error.message, re.IGNORECASE):
                return status
        if error.exit_code in (126, 127):  # the command of a container cannot be executed
            return 400
    return 500
