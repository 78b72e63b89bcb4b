"""What the runtime says when it cannot do what was asked."""

from __future__ import annotations


class RuntimeFailure(Exception):
    """A failure with one clear line for the user; the command prints it and ends.

    `exit_code` None lets the command decide: docker's `run` and `create` end with 125, all others with 1.
    """

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
