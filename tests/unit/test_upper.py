"""The upper layer's steps, in each convention: what is on disk after them, and nothing is left staged."""

from __future__ import annotations

import os
import stat

import pytest
from support.layers import build
from support.snapshot import names_of
from support.union import errno_of

from unionfs import whiteout
from unionfs.options import parse
from unionfs.stack import open_stack
from unionfs.upper import Caller
from unionfs.whiteout import Convention

pytestmark = pytest.mark.root

CALLER = Caller(7, 8, 0o027)

TREE = {"f": "content", "d": {"sub": {"x": ""}}, "e": {}}


@pytest.fixture(params=Convention)
def upper(request, tmp_path):
    for name in ("lower", "work"):
        (tmp_path / name).mkdir()
    build(tmp_path / "upper", TREE)
    lowers, upper = open_stack(
        parse([f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"])
    )
    upper.convention = request.param
    yield upper
    upper.close()
    for layer in lowers:
        layer.close()
    assert names_of(tmp_path / "work") - {"hardlinks"} == {"work"}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "upper"


def hidden(root, upper, name):
    """Whether the name is whited out in the upper's convention."""
    if upper.convention is Convention.MARKER:
        return (root / name).with_name(f".wh.{os.path.basename(name)}").exists()
    if upper.convention is Convention.XATTR:
        path = root / name
        return path.is_file() and bool(set(os.listxattr(path)) & set(whiteout.WHITEOUT_XATTRS))
    return (root / name).is_char_device()


def make_file(fd, name):
    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666, dir_fd=fd))
    return "made"


def make_directory(fd, name):
    os.mkdir(name, 0o777, dir_fd=fd)


def test_what_is_made_is_the_callers(upper, root):
    assert upper.create(b"d", b"new", make_file, CALLER) == "made"
    status = (root / "d/new").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (7, 8, 0o640)
    assert os.umask(0o022) == 0o022
    (root / "mine").touch()
    assert (root / "mine").stat().st_uid == 0


def test_a_failed_make_leaves_nothing(upper, root):
    assert errno_of(upper.create, b"", b"f", make_file, CALLER) == "EEXIST"
    assert (root / "f").read_text() == "content"
    (root / "mine").touch()
    assert (root / "mine").stat().st_uid == 0


@pytest.mark.parametrize("make", [make_file, make_directory])
def test_made_over_a_whiteout(upper, root, make):
    upper.white_out(b"d/gone", present=None)
    assert hidden(root, upper, "d/gone")
    marked = upper.convention is Convention.MARKER
    upper.create_over_whiteout(b"d", b"gone", make, CALLER, marked=marked)
    assert not hidden(root, upper, "d/gone")
    status = (root / "d/gone").stat()
    assert (status.st_uid, status.st_gid) == (7, 8)
    if make is make_directory and marked:
        assert os.listdir(root / "d/gone") == [".wh..wh..opq"]
    elif make is make_directory:
        assert os.getxattr(root / "d/gone", "trusted.overlay.opaque") == b"y"


@pytest.mark.parametrize(("path", "kind"), [(b"f", stat.S_IFREG), (b"d", stat.S_IFDIR), (b"none", None)])
def test_white_out(upper, root, path, kind):
    upper.white_out(path, present=kind)
    assert hidden(root, upper, os.fsdecode(path))
    if upper.convention is Convention.MARKER:
        assert not (root / os.fsdecode(path)).exists()


def test_remove(upper, root):
    upper.remove(b"f", directory=False)
    upper.white_out(b"e/x", present=None)
    upper.remove(b"e", directory=True)
    assert names_of(root) == {"d", "d/sub", "d/sub/x"}


@pytest.mark.parametrize("hides", [True, False])
def test_rename(upper, root, hides):
    upper.rename(b"f", b"d/moved", hides_old=hides, over_whiteout=False)
    assert (root / "d/moved").read_text() == "content"
    assert hidden(root, upper, "f") is hides


def test_rename_of_a_directory_over_a_whiteout(upper, root):
    upper.white_out(b"gone", present=None)
    over = upper.convention is not Convention.MARKER
    upper.rename(b"d", b"gone", hides_old=False, over_whiteout=over)
    assert (root / "gone/sub/x").exists()
    assert not (root / "d").exists()
    upper.stat(b"gone/sub/x")
    assert errno_of(upper.stat, b"d/sub/x") == "ENOENT"


def test_exchange(upper, root):
    upper.stat(b"d/sub/x")
    upper.exchange(b"f", b"d")
    assert (root / "d").read_text() == "content"
    assert upper.stat(b"f/sub/x").st_size == 0
    assert errno_of(upper.stat, b"d/sub/x") == "ENOTDIR"


def test_empty(upper, root):
    for name in (b"e/one", b"e/two"):
        upper.white_out(name, present=None)
    upper.empty(b"e")
    assert os.listdir(root / "e") == []
    assert hidden(root, upper, "e") or os.getxattr(root / "e", "trusted.overlay.opaque") == b"y"


def test_adopting_keeps_the_parents_times(upper, root):
    staged = upper.staged_name()
    make_file(upper.staging_fd, staged)
    before = (root / "d").stat()
    upper.adopt(staged, b"d/copy")
    after = (root / "d").stat()
    assert (after.st_mtime_ns, after.st_atime_ns) == (before.st_mtime_ns, before.st_atime_ns)
    staged = upper.staged_name()
    make_file(upper.staging_fd, staged)
    assert errno_of(upper.adopt, staged, b"d/copy") == "EEXIST"
    upper.discard(staged)
