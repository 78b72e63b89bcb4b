"""-it: a real terminal, on a real terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from unionctl_runner import Unionctl

pytestmark = pytest.mark.root


class Terminal:
    """A terminal with unionctl in it."""

    def __init__(self, controller: int, process: subprocess.Popen[bytes]) -> None:
        self.controller = controller
        self.process = process
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.controller, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.controller, keys)

    def expect(self, text: bytes, seconds: float = 20) -> None:
        """Read on until `text` comes; what was read up to there is forgotten."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.controller], [], [], max(0, deadline - time.monotonic()))
            assert ready, (text, self.seen)
            try:
                data = os.read(self.controller, 65536)
            except OSError:
                data = b""
            assert data, (text, self.seen)
            self.seen += data
        self.seen = self.seen.partition(text)[2]


@contextmanager
def terminal(unionctl: Unionctl, *words: str, rows: int = 24, columns: int = 80) -> Iterator[Terminal]:
    controller, own = pty.openpty()
    fcntl.ioctl(controller, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    before = termios.tcgetattr(own)
    process = unionctl.popen(*words, stdin=own, stdout=own, stderr=own, preexec_fn=take_terminal)
    try:
        yield Terminal(controller, process)
        process.wait(20)
        assert termios.tcgetattr(own) == before  # left as it was found
    finally:
        process.kill()
        process.wait()
        os.close(own)
        os.close(controller)


def test_run_in_a_terminal_that_resizes(unionctl: Unionctl) -> None:
    with terminal(unionctl, "run", "--rm", "-it", "busybox", "sh", rows=33, columns=101) as screen:
        screen.expect(b"# ")
        screen.type(b"stty size; tty; echo $TERM\n")
        screen.expect(b"33 101\r\n")
        screen.expect(b"/dev/pts/0\r\n")
        screen.expect(b"xterm\r\n")
        screen.resize(50, 120)
        time.sleep(0.3)
        screen.type(b"stty size\n")
        screen.expect(b"50 120\r\n")
        screen.type(b"sleep 100\n")
        time.sleep(0.3)
        screen.type(b"\x03")
        screen.type(b"echo status $?\n")
        screen.expect(b"status 130")
        screen.type(b"exit 5\n")
    assert screen.process.returncode == 5


def test_exec_in_a_terminal_that_resizes(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "busybox", "sleep", "1000")
    with terminal(unionctl, "exec", "-it", "one", "sh", rows=20, columns=70) as screen:
        screen.expect(b"# ")
        screen.type(b"stty size\n")
        screen.expect(b"20 70\r\n")
        screen.resize(44, 99)
        time.sleep(0.3)
        screen.type(b"stty size; exit 4\n")
        screen.expect(b"44 99\r\n")
    assert screen.process.returncode == 4


def test_detach_and_attach_again(unionctl: Unionctl) -> None:
    with terminal(unionctl, "run", "-it", "--name", "one", "busybox", "sh") as screen:
        screen.expect(b"# ")
        screen.type(b"A=kept; echo ready\n")
        screen.expect(b"ready\r\n")
        screen.type(b"\x10\x11")
    assert screen.process.returncode == 0
    assert unionctl.out("inspect", "-f", "{{.State.Status}}", "one") == "running"
    with terminal(unionctl, "attach", "one") as screen:
        time.sleep(0.5)
        screen.type(b"echo $A again\n")
        screen.expect(b"kept again\r\n")
        screen.type(b"exit 2\n")
    assert screen.process.returncode == 2


def test_a_terminal_is_asked_for_where_there_is_none(unionctl: Unionctl) -> None:
    assert "not a TTY" in unionctl.err("run", "--rm", "-it", "busybox", "true", code=None)
    unionctl("run", "-d", "-t", "--name", "one", "busybox", "tty")
    unionctl("wait", "one")
    assert unionctl.out("logs", "one").strip() == "/dev/pts/0"
