"""Joining our stdio to a container's, by way of conmon's attach socket.

The socket keeps messages apart (SOCK_SEQPACKET). What comes out of the container is one byte, 2 for stdout
and 3 for stderr, and then data; what goes in is data alone. Shutting our writing side down is the end of
the container's stdin; the end of the socket is the end of the container.

conmon writes to the socket blocking, and reads it into a buffer for the container's stdin. So one who stops
reading while writing can lock all three up; the loop below therefore never blocks on the socket.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import struct
import termios
import tty
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path
from types import FrameType

from runtime.errors import RuntimeFailure

STDOUT, STDERR = 2, 3
PACKET = 8192  # conmon reads up to 32 KiB at once, and cuts off what is longer
FROM_CONTAINER = 64 << 10
_RESIZE = 1  # conmon's ctl FIFO: "1 ROWS COLUMNS"

DETACH_KEYS = b"\x10\x11"  # ctrl-p ctrl-q

#: Not passed on: they are about our own process.
_OWN_SIGNALS = {
    getattr(signal, f"SIG{name}")
    for name in (
        *("CHLD", "PIPE", "URG", "WINCH", "TSTP", "TTIN", "TTOU", "KILL", "STOP"),
        *("SEGV", "BUS", "FPE", "ILL", "TRAP", "ABRT", "SYS"),
    )
}


@dataclass(frozen=True)
class Streams:
    """Our side: file descriptors; None is not joined."""

    stdin: int | None
    stdout: int
    stderr: int
    terminal: bool = False  # the container has one, and so has stdin if that is one


class Attachment:
    """A connection to conmon's attach socket in `directory`."""

    def __init__(self, directory: Path) -> None:
        """Connect. Raises RuntimeFailure when nobody listens there."""
        self._directory = directory
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        try:
            self._socket.connect(f"/proc/self/fd/{fd}/attach")
        except OSError as error:
            self._socket.close()
            raise RuntimeFailure(f"cannot attach to the container: {error.strerror}") from error
        finally:
            os.close(fd)
        self._socket.setblocking(False)

    def close(self) -> None:
        """Leave; the container goes on."""
        self._socket.close()

    def take(self) -> socket.socket:
        """The connection itself, non-blocking, for one who passes the data on by other means than `join`."""
        return self._socket

    def resize(self, rows: int, columns: int) -> None:
        """Tell the container's terminal its size; nothing happens when it has ended."""
        resize(self._directory, rows, columns)

    def join(self, streams: Streams, send_signal: Callable[[int], None] | None = None) -> bool:
        """Pass data both ways until the container ends (True) or the detach keys are typed (False).

        With a terminal on stdin that one is made raw for as long, and its size is followed.
        `send_signal` is called for each signal that we get and that is meant for the container.
        """
        raw = streams.terminal and streams.stdin is not None and os.isatty(streams.stdin)
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            if raw and streams.stdin is not None:
                stack.enter_context(_raw(streams.stdin))
            wakeup = stack.enter_context(_caught_signals(streams.terminal, send_signal is not None))
            return _Pump(self._socket, streams, raw, wakeup, self._on_signal(streams, send_signal)).run()

    def _on_signal(
        self, streams: Streams, send_signal: Callable[[int], None] | None
    ) -> Callable[[int], None]:
        def handle(number: int) -> None:
            if number == signal.SIGWINCH:
                size = window_size(streams)
                if size:
                    self.resize(*size)
            elif send_signal is not None:
                send_signal(number)

        if streams.terminal:
            handle(signal.SIGWINCH)
        return handle


def resize(directory: Path, rows: int, columns: int) -> None:
    """Tell the terminal of the process in `directory` its size; nothing happens when it has ended."""
    with contextlib.suppress(OSError):
        fd = os.open(directory / "ctl", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(fd, b"%d %d %d\n" % (_RESIZE, rows, columns))
        finally:
            os.close(fd)


class _Pump:
    """The loop that passes data, one buffer in each direction."""

    def __init__(
        self,
        connection: socket.socket,
        streams: Streams,
        raw: bool,
        wakeup: int,
        on_signal: Callable[[int], None],
    ) -> None:
        self._socket = connection
        self._streams = streams
        self._keys = DetachKeys() if raw else None
        self._wakeup = wakeup
        self._on_signal = on_signal
        self._pending = b""  # read from stdin, not yet taken by conmon
        self._stdin = streams.stdin
        # poll and not epoll, which refuses regular files: stdin may be one.
        self._selector = selectors.PollSelector()

    def run(self) -> bool:
        self._selector.register(self._socket, selectors.EVENT_READ)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        if self._stdin is not None:
            self._selector.register(self._stdin, selectors.EVENT_READ)
        while True:
            for key, events in self._selector.select():
                if key.fd == self._wakeup:
                    for number in os.read(self._wakeup, 64):
                        self._on_signal(number)
                elif key.fd == self._stdin:
                    if not self._read_stdin():
                        return False
                else:
                    if events & selectors.EVENT_WRITE:
                        self._send()
                    if events & selectors.EVENT_READ and not self._receive():
                        return True

    def _receive(self) -> bool:
        """Take one message from the container; False at the end."""
        try:
            message = self._socket.recv(FROM_CONTAINER)
        except BlockingIOError:
            return True
        except ConnectionResetError:  # it ended with some of our stdin unread
            return False
        if not message:
            return False
        target = self._streams.stderr if message[0] == STDERR else self._streams.stdout
        data = memoryview(message)[1:]
        while data:
            data = data[os.write(target, data) :]
        return True

    def _read_stdin(self) -> bool:
        """Read once from stdin and hand it on; False when the detach keys were typed."""
        assert self._stdin is not None
        try:
            data = os.read(self._stdin, PACKET)
        except OSError:  # the terminal went away
            data = b""
        if not data:
            self._selector.unregister(self._stdin)
            self._stdin = None
            self._pending += self._keys.rest() if self._keys else b""
            if self._pending:
                self._send()
            else:
                self._end_of_stdin()
            return True
        if self._keys:
            data, detached = self._keys.filter(data)
            if detached:
                return False
        self._pending = data
        self._send()
        return True

    def _send(self) -> None:
        """Hand what is pending to conmon; while it cannot take it, stdin is not read."""
        if self._pending:
            try:
                self._socket.send(self._pending)
            except BlockingIOError:
                self._selector.modify(self._socket, selectors.EVENT_READ | selectors.EVENT_WRITE)
                if self._stdin is not None and self._stdin in self._selector.get_map():
                    self._selector.unregister(self._stdin)
                return
            except OSError:  # it has ended: what it left to be read still comes
                pass
            self._pending = b""
        self._selector.modify(self._socket, selectors.EVENT_READ)
        if self._stdin is None:
            self._end_of_stdin()
        elif self._stdin not in self._selector.get_map():
            self._selector.register(self._stdin, selectors.EVENT_READ)

    def _end_of_stdin(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)


class DetachKeys:
    """Finds the detach keys in what is typed; their beginning, while nothing follows it, is held back."""

    def __init__(self, keys: bytes = DETACH_KEYS) -> None:
        self._keys = keys
        self._held = b""

    def filter(self, typed: bytes) -> tuple[bytes, bool]:
        """What is to be passed on of `typed`, and whether the keys were there."""
        data = self._held + typed
        if self._keys in data:
            return b"", True
        begun = (length for length in range(len(self._keys) - 1, 0, -1) if data.endswith(self._keys[:length]))
        self._held = self._keys[: next(begun, 0)]
        return data[: len(data) - len(self._held)], False

    def rest(self) -> bytes:
        """What is held back at the end of input."""
        return self._held


def window_size(streams: Streams | None = None) -> tuple[int, int] | None:
    """The (rows, columns) of the terminal on our stdin or stdout; None when there is none."""
    for fd in (0, 1, 2) if streams is None else (streams.stdin, streams.stdout, streams.stderr):
        with contextlib.suppress(OSError):
            if fd is not None:
                rows, columns, _, _ = struct.unpack("HHHH", ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
                return (rows, columns) if rows and columns else None
    return None


@contextlib.contextmanager
def _raw(fd: int) -> Iterator[None]:
    """The terminal passes every key on, until this ends."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _caught_signals(resize: bool, forward: bool) -> Iterator[int]:
    """Give an fd from which each signal can be read as a byte, and put all back at the end."""
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    wanted = {signal.SIGWINCH} if resize else set()
    if forward:
        wanted |= {number for number in signal.valid_signals() if number not in _OWN_SIGNALS}
    old_handlers = {}
    old_wakeup = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        for number in wanted:
            with contextlib.suppress(OSError, ValueError):
                old_handlers[number] = signal.signal(number, _only_wake_up)
        yield read_end
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        signal.set_wakeup_fd(old_wakeup)
        os.close(read_end)
        os.close(write_end)


def _only_wake_up(number: int, frame: FrameType | None) -> None:
    """A signal's number arrives by the wake-up fd; nothing is done in the handler."""
