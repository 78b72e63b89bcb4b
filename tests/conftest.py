"""Options and guards shared by every test."""

from __future__ import annotations

import os
import signal

import pytest
from support import union


def pytest_configure(config: pytest.Config) -> None:
    """A run that is told to end unmounts what it mounted, as after Ctrl-C."""
    if config.getoption("--nofastpath"):
        union.EVERY_MOUNT.append("nofastpath")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # No process is to outlive a test; test_starter.py has starters of its own.
    os.environ["UNIONFS_STARTER"] = "0"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the long soaks as well")
    parser.addoption("--nofastpath", action="store_true", help="mount with -o nofastpath")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="long: give --slow"))
        if item.get_closest_marker("fastpath") and config.getoption("--nofastpath"):
            item.add_marker(pytest.mark.skip(reason="what only the fast path does"))
        if item.get_closest_marker("root") and (os.geteuid() != 0 or not os.path.exists("/dev/fuse")):
            item.add_marker(pytest.mark.skip(reason="needs root and /dev/fuse"))
