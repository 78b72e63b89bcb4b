"""Extended attributes: flags, errnos, limits, and those that are the layers' own."""

from __future__ import annotations

import os

import pytest
from support.layers import Dir, File, Symlink
from support.snapshot import names_of
from support.union import errno_of, run_as, tick

pytestmark = pytest.mark.root

PRIVATE = (
    "trusted.overlay.opaque",
    "trusted.overlay.origin",
    "trusted.overlay.whiteout",
    "user.overlay.opaque",
    "user.fuseoverlayfs.opaque",
    "trusted.unionfs.origin",
    "user.unionfs.origin",
)


@pytest.fixture(params=["lower", "upper", "directory"])
def path(request, make_union):
    """Something that has user.a."""
    thing = File(content="x", xattrs={"user.a": b"1"})
    if request.param == "upper":
        return make_union({}, upper={"f": thing}).root / "f"
    if request.param == "directory":
        return make_union({"f": Dir(xattrs={"user.a": b"1"})}).root / "f"
    return make_union({"f": thing}).root / "f"


def test_flags(path):
    assert errno_of(os.setxattr, path, "user.a", b"2", os.XATTR_CREATE) == "EEXIST"
    assert errno_of(os.setxattr, path, "user.b", b"2", os.XATTR_REPLACE) == "ENODATA"
    assert os.getxattr(path, "user.a") == b"1"
    os.setxattr(path, "user.a", b"3", os.XATTR_REPLACE)
    os.setxattr(path, "user.b", b"4", os.XATTR_CREATE)
    os.setxattr(path, "user.a", b"5")
    assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == {"user.a": b"5", "user.b": b"4"}


def test_errors(path):
    assert errno_of(os.getxattr, path, "user.none") == "ENODATA"
    assert errno_of(os.removexattr, path, "user.none") == "ENODATA"
    assert errno_of(os.setxattr, path, "nonamespace", b"") == "ENOTSUP"
    assert errno_of(os.setxattr, path, "user." + "x" * 251, b"") == "ERANGE"
    assert errno_of(os.setxattr, path, "user.big", b"x" * 65537) == "E2BIG"
    os.removexattr(path, "user.a")
    assert os.listxattr(path) == []
    assert errno_of(os.getxattr, path, "user.a") == "ENODATA"


@pytest.mark.parametrize("value", [b"", b"\0", b"\xff" * 1000], ids=["empty", "nul", "long"])
@pytest.mark.parametrize("namespace", ["user", "trusted", "security"])
def test_values_in_every_namespace(path, namespace, value):
    os.setxattr(path, f"{namespace}.test", value)
    assert os.getxattr(path, f"{namespace}.test") == value
    assert f"{namespace}.test" in os.listxattr(path)


def test_user_attributes_are_for_files_and_directories(make_union):
    union = make_union({"s": Symlink(target="x", xattrs={"trusted.a": b"1"})})
    assert errno_of(os.setxattr, union.root / "s", "user.a", b"", follow_symlinks=False) == "EPERM"
    assert os.getxattr(union.root / "s", "trusted.a", follow_symlinks=False) == b"1"
    os.setxattr(union.root / "s", "trusted.b", b"2", follow_symlinks=False)
    assert sorted(os.listxattr(union.root / "s", follow_symlinks=False)) == ["trusted.a", "trusted.b"]


def test_trusted_attributes_are_not_for_everybody(path):
    os.chmod(path, 0o777)
    os.setxattr(path, "trusted.x", b"y")
    assert run_as(99, 99, lambda: errno_of(os.setxattr, path, "trusted.x", b"z")) == "EPERM"
    assert run_as(99, 99, lambda: errno_of(os.getxattr, path, "trusted.x")) == "ENODATA"
    assert run_as(99, 99, lambda: os.listxattr(path)) == ["user.a"]


@pytest.mark.parametrize("name", PRIVATE)
@pytest.mark.parametrize("layer", ["lower", "upper"])
def test_the_layers_own_attributes_are_hidden(make_union, name, layer):
    names = {"f": File(content="x", xattrs={name: b"n", "user.seen": b""})}
    union = make_union(names) if layer == "lower" else make_union({}, upper=names)
    path = union.root / "f"
    assert os.listxattr(path) == ["user.seen"]
    assert errno_of(os.getxattr, path, name) == "ENODATA"
    assert errno_of(os.removexattr, path, name) == "ENODATA"
    os.chmod(path, 0o600)
    assert os.listxattr(path) == ["user.seen"]
    if layer == "lower":
        assert not name.endswith("opaque") or errno_of(os.getxattr, union.upper / "f", name) == "ENODATA"


@pytest.mark.parametrize("name", PRIVATE)
def test_a_users_attribute_of_such_a_name_is_kept_apart(make_union, name):
    """As a union mounted on this one sets it: escaped in the layer, so that it means nothing there."""
    union = make_union({"d": {"f": ""}}, upper={"d": {}})
    path = union.root / "d"
    os.setxattr(path, name, b"y")
    for _ in range(2):
        assert os.getxattr(path, name) == b"y"
        assert name in os.listxattr(path)
        assert names_of(union.root) == {"d", "d/f"}
        union.remount()
    os.removexattr(path, name)
    assert errno_of(os.getxattr, path, name) == "ENODATA"


def test_noxattrs(make_union):
    union = make_union({"f": File(xattrs={"user.a": b"1"})}, options=("noxattrs",))
    assert os.listxattr(union.root / "f") == []
    assert errno_of(os.getxattr, union.root / "f", "user.a") == "ENOTSUP"
    assert errno_of(os.setxattr, union.root / "f", "user.a", b"") == "ENOTSUP"
    assert names_of(union.upper) == set()


def test_ctime_changes_with_an_attribute_and_mtime_does_not(path):
    os.setxattr(path, "user.first", b"")  # so it is in the upper layer
    before = os.stat(path)
    tick()
    os.setxattr(path, "user.c", b"")
    after = os.stat(path)
    assert after.st_mtime_ns == before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns
