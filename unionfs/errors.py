"""Errors, mapped once: an OSError of a request handler leaves as its errno.

Anything unexpected becomes EIO, is logged, and the mount lives on: an exception that escapes a handler
would end pyfuse3's main loop.
"""

from __future__ import annotations

import errno
import functools
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from unionfs.session import pyfuse3

log = logging.getLogger(__name__)

R = TypeVar("R")
C = TypeVar("C", bound=type)


def answers_errors(handlers: C) -> C:
    """Wrap every request handler of a class by `_answer_errors`."""
    for name, method in list(vars(handlers).items()):
        if inspect.iscoroutinefunction(method) and name != "forget":
            setattr(handlers, name, _answer_errors(method))
    return handlers


def _answer_errors(method: Callable[..., Awaitable[R]]) -> Callable[..., Awaitable[R]]:
    @functools.wraps(method)
    async def answering(*arguments: Any) -> R:
        try:
            return await method(*arguments)
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from None
        except KeyError:
            # A node id or a handle that is not in its table: the kernel speaks of what it gave back.
            log.exception("%s: unknown node or handle", method.__name__)
            raise pyfuse3.FUSEError(errno.ESTALE) from None
        except pyfuse3.FUSEError:
            raise
        except Exception:
            log.exception("%s failed", method.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return answering
