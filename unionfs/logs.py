"""Where a server's words go, and how many: the journal, the system's log, a file, or stderr.

In the background stderr is gone; then lines go to systemd's journal with fields to select by (`journalctl
UNIONFS_MOUNT=/mnt`), to syslog(3)'s socket where there is no journal, or to the file that `-o log=` names.
One kind of message is written a few times a minute at most: whatever makes a server complain, a container
that fills a disk or an image that is damaged, must not fill the log.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import time

_JOURNAL = "/run/systemd/journal/socket"
_SYSLOG = "/dev/log"

#: Messages of one kind that are written in a row, and the seconds after which as many more are.
BURST = 20
PERIOD = 60.0

#: syslog(3)'s numbers.
_PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


class Bounded(logging.Filter):
    """Lets BURST messages of a kind through in each PERIOD; the next one says how many were left out."""

    def __init__(self) -> None:
        super().__init__()
        #: By level and text before its arguments: when the period began, what came in it.
        self._periods: dict[tuple[int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write a record."""
        kind = (record.levelno, str(record.msg))
        now = time.monotonic()
        since, count = self._periods.get(kind, (now, 0))
        if now - since > PERIOD:
            if count > BURST:
                record.msg = f"{record.msg} (and {count - BURST} like it before, not written)"
            since, count = now, 0
        self._periods[kind] = since, count + 1
        if len(self._periods) > 1000:  # texts are constants; if ever they were not, memory is bounded too
            self._periods.clear()
        return count < BURST


class _Journal(logging.Handler):
    """systemd's native protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL)."""

    def __init__(self, mountpoint: str) -> None:
        super().__init__()
        self._mountpoint = mountpoint
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        self._socket.connect(_JOURNAL)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one message; a journal that is gone or full loses it, and nobody waits."""
        fields = {
            "MESSAGE": self.format(record),
            "PRIORITY": str(_PRIORITIES.get(record.levelno, 6)),
            "SYSLOG_IDENTIFIER": "unionfs",
            "UNIONFS_MOUNT": self._mountpoint,
            "UNIONFS_PART": record.name,
        }
        try:
            self._socket.send(b"".join(_field(name, value) for name, value in fields.items()))
        except OSError:
            pass

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()
        super().close()


def _field(name: str, value: str) -> bytes:
    raw = value.encode("utf-8", "backslashreplace")
    return name.encode() + b"\n" + struct.pack("<Q", len(raw)) + raw + b"\n"


def to_stderr(program: str, *, debug: bool) -> None:
    """Until the mount answers, and in the foreground."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{program}: %(levelname)s: %(message)s"))
    _use(handler, logging.DEBUG if debug else logging.INFO)


def to_system(mountpoint: str) -> None:
    """In the background: the journal, else syslog, else nowhere."""
    try:
        handler: logging.Handler = _Journal(mountpoint)
    except OSError:
        handler = _syslog(mountpoint)
    _use(handler)


def to_file(path: str, mountpoint: str) -> None:
    """Append to a file of mode 0600. Raises OSError when it cannot be opened."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    handler = logging.StreamHandler(os.fdopen(fd, "a", encoding="utf-8", errors="backslashreplace"))
    form = logging.Formatter(
        "%(asctime)sZ level=%(levelname)s part=%(name)s pid=%(process)d mount=%(mount)s %(message)s",
        "%Y-%m-%dT%H:%M:%S",
        defaults={"mount": ascii(mountpoint)},
    )
    form.converter = time.gmtime
    handler.setFormatter(form)
    _use(handler)


def _syslog(mountpoint: str) -> logging.Handler:
    if not os.path.exists(_SYSLOG):
        return logging.NullHandler()
    # Imported here, because it imports much, and many machines have no such socket.
    from logging.handlers import SysLogHandler

    handler = SysLogHandler(_SYSLOG, SysLogHandler.LOG_DAEMON)
    form = logging.Formatter(
        "unionfs[%(process)d]: %(mount)s: %(message)s", defaults={"mount": ascii(mountpoint)}
    )
    handler.setFormatter(form)
    return handler


def _use(handler: logging.Handler, level: int | None = None) -> None:
    """Make a handler the one that writes; what only counts stays."""
    handler.addFilter(Bounded())
    root = logging.getLogger()
    for earlier in list(root.handlers):
        if earlier.filters:  # put here by us
            root.removeHandler(earlier)
    root.addHandler(handler)
    if level is not None:
        root.setLevel(level)
