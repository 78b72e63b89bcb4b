"""The keeper: a server may die, and the mount goes on.

It is a process that does nothing but wait for its child, the server. Both have one table of descriptors
(CLONE_FILES), so what a server had open, the session with the kernel above all, is open after its death; and
they share the ledger (ledger.pyx), in which each server writes what the next one has to know. The keeper has
imported all and opened the layers before the first server begins, so the next begins within milliseconds.

Only a signal is a death; a server that ends by itself ends the mount. One that dies before it got anywhere is
no reason to try for ever: after a few of those in a row the mount is taken away.

When the keeper dies the server goes on without it, as one that never had one.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from collections.abc import Callable

from unionfs.ledger import Ledger
from unionfs.session import fork_sharing_descriptors

log = logging.getLogger(__name__)

#: Those that end a mount.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

#: Seconds to wait before each new server, while none gets anywhere. Then it is given up.
PAUSES = (0.0, 0.05, 0.2, 0.5)


class Lost(Exception):
    """No server can go on; the message says why."""


class Keeper:
    """Starts servers of one mount, one after another."""

    def __init__(self, ledger: Ledger, serve: Callable[[], int]) -> None:
        """`serve` is called in each server's process, with `SIGNALS` blocked; returns its exit status."""
        self._ledger = ledger
        self._serve = serve
        self._server = 0
        self._ends = False

    def run(self) -> int:
        """Keep a server until one ends; returns its exit status. Raises Lost, OSError when none can begin."""
        for number in SIGNALS:
            signal.signal(number, self._hand_down)
        gc.collect()
        gc.freeze()  # or each server's first collection would write to all that is shared
        in_vain = 0
        while True:
            fresh = self._ledger.fresh
            died_of = self._run_one()
            if died_of <= 0:
                return -died_of
            what = f"the server died of {signal.Signals(died_of).name}"
            if self._ends or not self._ledger.can_go_on:
                raise Lost(what)
            in_vain = in_vain + 1 if self._ledger.fresh == fresh else 0
            if in_vain > len(PAUSES):
                raise Lost(f"{what}, as did {len(PAUSES)} before it, and none got anywhere")
            if in_vain:
                time.sleep(PAUSES[in_vain - 1])
            log.warning("%s; the next one goes on", what)

    def _run_one(self) -> int:
        """One server's life. Returns the signal that it died of, or its exit status negated."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        child = fork_sharing_descriptors()
        if child == 0:
            status = 1
            try:
                for number in SIGNALS:
                    signal.signal(number, signal.SIG_DFL)
                status = self._serve()
            finally:
                os._exit(status)
        self._server = child
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        # It keeps its number until it is let go of, so a signal cannot meet another process.
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        self._server = 0
        _, status = os.waitpid(child, 0)
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)

    def _hand_down(self, number: int, _: object) -> None:
        self._ends = True
        if self._server:
            os.kill(self._server, number)
