"""What the runtime says when it cannot do what was asked."""

from __future__ import annotations

import os


class RuntimeFailure(Exception):
    """A failure with one clear line for the user; the command prints it and ends.

    `exit_code` None lets the command decide: docker's `run` and `create` end with 125, all others with 1.
    """

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


class NotFound(RuntimeFailure):
    """There is no container or image of that name."""


class Unauthorized(RuntimeFailure):
    """A registry does not let this user do that."""


def one_line(error: Exception) -> str:
    """`error` for the user; one of the operating system is FILE: REASON, without its number."""
    if isinstance(error, OSError) and error.strerror:
        names = [name for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        return ": ".join([*map(os.fsdecode, names), error.strerror])
    return str(error)
