"""The directory that a test works in.

Without options every test runs on the disk that temporary files are on, and on our mount in each situation
of layout.py. `--dir DIR` runs it once, in DIR, whatever that is on; `--overlayfs` takes kernel overlayfs for
our mount.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance import known_differences
from conformance.layout import COMMON, SITUATIONS, Names, Subject, subject


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--dir", help="run the POSIX suite in this directory alone")
    parser.addoption("--overlayfs", action="store_true", help="run it on kernel overlayfs instead of unionfs")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "tree(names): the files that a test begins with")


def _option(config: pytest.Config, name: str) -> str | bool | None:
    value: str | bool | None = config.getoption(name, None)
    return value


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "situation" in metafunc.fixturenames:
        situations = ("disk",) if _option(metafunc.config, "--dir") else SITUATIONS
        metafunc.parametrize("situation", situations, scope="module")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if not item.path.is_relative_to(Path(__file__).parent):
            continue
        item.add_marker(pytest.mark.root)
        situation = _situation(item)
        if situation in (None, "disk") or _option(config, "--overlayfs"):
            continue
        for difference in known_differences.ALL:
            if difference.concerns(item.name.partition("[")[0], item.path.stem, situation):
                item.add_marker(pytest.mark.xfail(reason=difference.reason, strict=True))


def _situation(item: pytest.Item) -> str | None:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("situation") if callspec else None


def _tree(item: pytest.Item) -> Names:
    marker = item.get_closest_marker("tree")
    return marker.args[0] if marker else COMMON


def _name(item: pytest.Item) -> str:
    """The name of a test's directory, the same in each situation."""
    return re.sub(r"[^\w-]", "~", item.name)[:100]


@pytest.fixture(scope="module")
def module_subject(request: pytest.FixtureRequest, situation: str) -> Iterator[Subject]:
    """The mount that all tests of a module share, with their files laid out before it is made."""
    trees = {
        _name(item): _tree(item)
        for item in request.session.items
        if item.path == request.path and _situation(item) == situation
    }
    given = _option(request.config, "--dir")
    where = Path(str(given)) if given else None
    with subject(situation, trees, where=where, kernel=bool(_option(request.config, "--overlayfs"))) as made:
        yield made


@pytest.fixture
def here(request: pytest.FixtureRequest, module_subject: Subject) -> Iterator[Path]:
    """The directory of one test, with the files that it declared, and an ordinary umask."""
    directory = module_subject.directory(_name(request.node), _tree(request.node))
    umask = os.umask(0o022)
    yield directory
    os.umask(umask)
