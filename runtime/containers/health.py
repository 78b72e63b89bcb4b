"""Health checks: a command that is executed in the container again and again; docker's rules.

`python -m runtime.containers.health ROOT ID START` does it for one start of a container, and ends with it.
What it finds is in `health.json` in the bundle of that start, replaced by rename; it alone writes it.

A container is `starting` until a probe succeeds (`healthy`), or as many fail one after the other as `retries`
says (`unhealthy`); within the start period a failure does not count, unless one has succeeded before.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from runtime.containers import companions
from runtime.containers.attach import Attachment, Streams
from runtime.containers.container import Container, Healthcheck, load, now, write_atomically
from runtime.containers.telling import tell
from runtime.containers.times import SECOND, duration_text
from runtime.errors import RuntimeFailure
from runtime.root import Root

_KEPT = 5  # probes in the log
_OUTPUT = 4096  # bytes of each
_DEFAULTS = Healthcheck(None, 30 * SECOND, 30 * SECOND, 0, 5 * SECOND, 3)


@dataclass(frozen=True)
class Probe:
    """One probe: when, and what came of it; -1 is a probe that took too long or could not be executed."""

    start: str
    end: str
    exit_code: int
    output: str


@dataclass(frozen=True)
class Health:
    """How a container is, by its probes."""

    status: str = "starting"
    failing_streak: int = 0
    log: tuple[Probe, ...] = ()


def merge(image: dict[str, Any], wanted: Healthcheck | None) -> Healthcheck | None:
    """The health check that the image's config (docker's Healthcheck) and the request come to, or None.

    Raises RuntimeFailure when its test is of a kind that is not known.
    """
    own = Healthcheck() if wanted is None else wanted

    def number(mine: int | None, key: str) -> int | None:
        theirs = image.get(key)
        return mine or (theirs if isinstance(theirs, int) else None)

    test = own.test or tuple(map(str, image.get("Test") or ()))
    if not test or test[0] == "NONE":
        return Healthcheck(("NONE",)) if test else None
    if test[0] not in ("CMD", "CMD-SHELL") or len(test) < 2:
        raise RuntimeFailure(f"Unknown healthcheck type '{test[0]}' (expected 'CMD' or 'CMD-SHELL')", 125)
    return Healthcheck(
        test,
        number(own.interval, "Interval"),
        number(own.timeout, "Timeout"),
        number(own.start_period, "StartPeriod"),
        number(own.start_interval, "StartInterval"),
        number(own.retries, "Retries"),
    )


def is_checked(container: Container) -> bool:
    """Whether the container has a health check."""
    check = container.healthcheck
    return check is not None and check.test is not None and check.test[0] != "NONE"


def read(container: Container) -> Health | None:
    """How the container is, or was when it ended; None without a health check or before the first start."""
    if not is_checked(container) or not container.state.starts:
        return None
    try:
        record = json.loads((container.bundle / "health.json").read_text())
        log = tuple(Probe(**one) for one in record["log"])
        return Health(record["status"], record["failing_streak"], log)
    except (OSError, ValueError, KeyError, TypeError):
        return Health()


def watch_over(root: Root, container: Container) -> None:
    """Have the container probed, from now on until it ends."""
    if is_checked(container):
        companions.spawn(
            "health", _lock(container.bundle), str(root.path), container.id, str(container.state.starts)
        )


def is_watched(container: Container) -> bool:
    """Whether nobody has to be sent to probe it."""
    return not is_checked(container) or companions.is_at_work(_lock(container.bundle))


def await_end(container: Container) -> None:
    """Wait until nobody probes the container, whose process has ended, any more."""
    companions.await_end(_lock(container.bundle))


def _lock(bundle: Path) -> Path:
    return bundle / "health-lock"


def judge(check: Healthcheck, health: Health, probe: Probe, since_start: float) -> Health:
    """What `health` becomes by `probe`, which began `since_start` seconds after the container."""
    log = (*health.log, probe)[-_KEPT:]
    if probe.exit_code == 0:
        return Health("healthy", 0, log)
    if health.status == "starting" and since_start * SECOND < _of(check, "start_period"):
        return replace(health, log=log)
    streak = health.failing_streak + 1
    status = "unhealthy" if streak >= _of(check, "retries") else health.status
    return Health(status, streak, log)


def _of(check: Healthcheck, key: str) -> int:
    return int(getattr(check, key) or getattr(_DEFAULTS, key))


class _Watch:
    """Probes one start of a container."""

    def __init__(self, root: Root, directory: Path, starts: int) -> None:
        self._root = root
        self._directory = directory
        self._starts = starts
        self._began = time.monotonic()

    def run(self) -> None:
        container = load(self._directory)
        if container.healthcheck is None or container.state.starts != self._starts:
            return
        check = container.healthcheck
        try:
            process = os.pidfd_open(container.state.pid)
        except OSError:  # it has ended
            return
        health = read(container) or Health()
        while not self._ended(process, self._pause(check, health)):
            container = load(self._directory)
            if container.state.starts != self._starts or not container.state.live:
                return
            if container.state.status != "running":  # a frozen process answers nobody
                continue
            since_start = time.monotonic() - self._began
            probe = self._probe(container, check)
            if self._ended(process, 0):
                return
            before, health = health, judge(check, health, probe, since_start)
            if health.status != before.status:
                tell(self._root, container, f"health_status: {health.status}")
            write_atomically(container.bundle / "health.json", json.dumps(asdict(health), indent=1))

    def _pause(self, check: Healthcheck, health: Health) -> float:
        since_start = (time.monotonic() - self._began) * SECOND
        early = health.status == "starting" and since_start < _of(check, "start_period")
        return _of(check, "start_interval" if early and check.start_period else "interval") / SECOND

    @staticmethod
    def _ended(process: int, seconds: float) -> bool:
        """Wait that long for the end of the container's first process."""
        poll = select.poll()
        poll.register(process, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def _probe(self, container: Container, check: Healthcheck) -> Probe:
        from runtime.containers import execs  # which needs lifecycle, and that one this module

        assert check.test is not None
        words = check.test[1:]
        args = ("/bin/sh", "-c", *words) if check.test[0] == "CMD-SHELL" else words
        limit = _of(check, "timeout")
        attachments: list[Attachment] = []
        started = now()
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        output = _Collector(read_end)
        try:
            process = execs.start(
                self._root,
                container.id,
                execs.ExecRequest(args),
                lambda directory: attachments.append(Attachment(directory)),
            )
        except RuntimeFailure as error:
            os.close(write_end)
            output.end()
            code = error.exit_code if error.exit_code in (126, 127) else -1
            return Probe(started, now(), code, error.message[:_OUTPUT])
        late = threading.Event()
        timer = threading.Timer(limit / SECOND, _give_up, (process.pid, attachments[0], late))
        timer.start()
        try:
            attachments[0].join(Streams(None, write_end, write_end))
        finally:
            timer.cancel()
            os.close(write_end)
        text = output.end()
        if late.is_set():
            process.forget()
            return Probe(started, now(), -1, f"Health check exceeded timeout ({duration_text(limit)})")
        return Probe(started, now(), process.wait(), text)


class _Collector:
    """Keeps the first of what comes through a pipe, and reads the rest away."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._data = b""
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with open(self._fd, "rb", buffering=0) as file:
            while data := file.read(64 << 10):
                self._data = (self._data + data)[:_OUTPUT]

    def end(self) -> str:
        self._thread.join()
        return self._data.decode("utf-8", "replace")


def _give_up(pid: int, attachment: Attachment, late: threading.Event) -> None:
    """Kill a probe, and do not wait for processes that it leaves behind."""
    late.set()
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
        attachment.take().shutdown(socket.SHUT_RDWR)


def main(root: Root, container_id: str, starts: int) -> None:
    """Probe the container until the start number `starts` has ended."""
    directory = root.containers / container_id
    companions.become(_lock(directory / f"run-{starts}"))
    with contextlib.suppress(FileNotFoundError):  # the container was removed
        _Watch(root, directory, starts).run()


if __name__ == "__main__":
    main(Root(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3]))
