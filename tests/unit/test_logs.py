"""How much a server says, and in which form."""

from __future__ import annotations

import logging
import re

import pytest

from unionfs import logs


@pytest.fixture
def log(monkeypatch):
    """A logger by itself; what `logs` does to the root it does to it."""
    logger = logging.Logger("test")
    monkeypatch.setattr(logging, "getLogger", lambda name=None: logger)
    yield logger
    for handler in logger.handlers:
        handler.close()


def test_one_kind_of_message_is_bounded(log, tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    logs.to_file(str(tmp_path / "log"), "/mnt")
    for number in range(500):
        log.error("cannot look at %r", number)
    log.error("another kind")
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == logs.BURST + 1
    assert "another kind" in lines[-1]
    now[0] += logs.PERIOD + 1
    log.error("cannot look at %r", 500)
    assert f"and {500 - logs.BURST} like it" in (tmp_path / "log").read_text().splitlines()[-1]


def test_fields(log, tmp_path):
    logs.to_file(str(tmp_path / "log"), "/a mount\n")
    log.warning("words")
    line = (tmp_path / "log").read_text()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,\d{3}Z|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    assert re.fullmatch(rf"({stamp}) level=WARNING part=test pid=\d+ mount='/a mount\\n' words\n", line)


def test_a_symlink_is_not_followed(tmp_path):
    (tmp_path / "log").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError):
        logs.to_file(str(tmp_path / "log"), "/mnt")
    assert not (tmp_path / "victim").exists()
