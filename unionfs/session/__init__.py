"""pyfuse3, with the session's input passing through our hooks (hooks.c).

Import pyfuse3 from here and from nowhere else: the hooks must be in the process before libfuse is.
Without them (a libfuse before 3.14) everything works but what pyfuse3 has no handlers for: SEEK_HOLE,
fallocate, copy_file_range and O_TMPFILE, for which the kernel then finds its own substitutes or none.
"""

from __future__ import annotations

import os
import sys

_flags = sys.getdlopenflags()
sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
try:
    from unionfs.session import _hooks
finally:
    sys.setdlopenflags(_flags)

import pyfuse3  # noqa: E402  isort: skip

_hooks.bind(os.fsencode(pyfuse3.__file__))

__all__ = ["NO_NAME", "answered", "hooked", "pyfuse3"]

#: The name in a CREATE request that stands for O_TMPFILE: a file without one.
NO_NAME = b"/"

hooked = _hooks.hooked
answered = _hooks.answered
