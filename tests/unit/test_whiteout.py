"""The whiteout and opaque conventions, read and written in real directories."""

from __future__ import annotations

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs import whiteout
from unionfs.whiteout import Convention, Opaque


@pytest.fixture
def directory(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_marker_names():
    assert whiteout.marked_name(b".wh.x") == b"x"
    assert whiteout.marked_name(b".wh.") is None
    assert whiteout.marked_name(b".wh..wh..opq") is None
    assert whiteout.marked_name(b".wh..wh.plnk") is None
    assert whiteout.marked_name(b"x.wh.y") is None
    assert whiteout.marked_name(b".wh") is None


@given(st.binary())
def test_every_marker_is_reserved(name):
    if whiteout.marked_name(name) is not None:
        assert whiteout.is_reserved(name)
        assert whiteout.MARKER_PREFIX + whiteout.marked_name(name) == name


def test_a_marker(directory, tmp_path):
    whiteout.write_whiteout(directory, b"gone", Convention.MARKER)
    status = os.lstat(tmp_path / ".wh.gone")
    assert (stat.S_ISREG(status.st_mode), status.st_size) == (True, 0)
    with pytest.raises(FileExistsError):
        whiteout.write_whiteout(directory, b"gone", Convention.MARKER)


@pytest.mark.root
def test_a_device(directory, tmp_path):
    whiteout.write_whiteout(directory, b"gone", Convention.DEVICE)
    status = os.lstat(tmp_path / "gone")
    assert whiteout.is_device_whiteout(status.st_mode, status.st_rdev)
    with pytest.raises(FileExistsError):
        whiteout.write_whiteout(directory, b"gone", Convention.DEVICE)


@pytest.mark.parametrize(
    ("mode", "device", "is_one"),
    [
        (stat.S_IFCHR, (0, 0), True),
        (stat.S_IFCHR | 0o777, (0, 0), True),
        (stat.S_IFCHR, (1, 3), False),
        (stat.S_IFBLK, (0, 0), False),
        (stat.S_IFREG, (0, 0), False),
    ],
)
def test_what_device_is_a_whiteout(mode, device, is_one):
    assert whiteout.is_device_whiteout(mode, os.makedev(*device)) is is_one


@pytest.mark.root
def test_the_convention_of_a_disk_that_has_devices(directory, tmp_path):
    assert whiteout.convention_for(directory) is Convention.DEVICE
    assert os.listdir(tmp_path) == []


@pytest.mark.root
@pytest.mark.parametrize(
    ("name", "value", "state"),
    [
        ("trusted.overlay.opaque", b"y", Opaque.YES),
        ("user.overlay.opaque", b"y", Opaque.YES),
        ("user.fuseoverlayfs.opaque", b"y", Opaque.YES),
        ("trusted.overlay.opaque", b"x", Opaque.HOLDS_XATTR_WHITEOUTS),
        ("trusted.overlay.opaque", b"n", Opaque.NO),
        ("user.other", b"y", Opaque.NO),
    ],
)
def test_opaque_is_read(tmp_path, name, value, state):
    os.setxattr(tmp_path, name, value)
    assert whiteout.opaque_state(os.fsencode(tmp_path)) is state


@pytest.mark.root
def test_opaque_is_written(directory, tmp_path):
    whiteout.write_opaque(directory, Convention.DEVICE)
    assert whiteout.opaque_state(os.fsencode(tmp_path)) is Opaque.YES
    whiteout.write_opaque(directory, Convention.MARKER)
    whiteout.write_opaque(directory, Convention.MARKER)
    assert os.listdir(tmp_path) == [".wh..wh..opq"]
