"""name_to_handle_at(2) and open_by_handle_at(2)."""

from __future__ import annotations

import os
from pathlib import Path

from support.union import errno_of

from conformance.system import name_to_handle, open_by_handle, opened


def test_leads_to_the_file(here: Path) -> None:
    handle, _ = name_to_handle(here / "file")
    with opened(here, os.O_RDONLY) as mount:
        fd = open_by_handle(mount, handle, os.O_RDONLY)
        try:
            assert os.fstat(fd).st_ino == os.stat(here / "file").st_ino
            assert os.read(fd, 7) == b"content"
        finally:
            os.close(fd)


def test_leads_to_the_file_after_changes(here: Path) -> None:
    handle, _ = name_to_handle(here / "file")
    (here / "file").write_text("changed")
    os.rename(here / "file", here / "new")
    with opened(here, os.O_RDONLY) as mount:
        fd = open_by_handle(mount, handle, os.O_RDWR)
        try:
            assert os.read(fd, 7) == b"changed"
        finally:
            os.close(fd)


def test_is_stale_when_the_file_is_gone(here: Path) -> None:
    handle, _ = name_to_handle(here / "file")
    os.unlink(here / "file")
    with opened(here, os.O_RDONLY) as mount:
        assert errno_of(open_by_handle, mount, handle, os.O_RDONLY) == "ESTALE"
