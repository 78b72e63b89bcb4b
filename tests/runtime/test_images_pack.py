"""An upper directory as a layer tar, and the tar as a directory again."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
from support.layers import Dir, File, HardLink, Node, Symlink, build, opaque, whiteout
from support.snapshot import differences, snapshot

from runtime.errors import RuntimeFailure
from runtime.images.compress import compressed
from runtime.images.pack import pack, strip
from runtime.images.streams import Limits
from runtime.images.tarwriter import Clamp
from runtime.images.unpack import unpack

pytestmark = pytest.mark.root


def packed(directory: Path, clamp: Clamp | None = None) -> bytes:
    out = io.BytesIO()
    pack(directory, out, clamp or Clamp())
    return out.getvalue()


def names(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getnames()


def rich(directory: Path) -> Path:
    build(
        directory,
        {
            "etc": Dir(mode=0o2751, owner=(3, 4), names={"passwd": File(content="x", mode=0o4755)}),
            "link": Symlink(target="etc/passwd", owner=(1, 2)),
            "one": File(content=b"same", xattrs={"user.color": b"\x00\xff\n="}),
            "two": HardLink("one"),
            "pipe": Node(kind=stat.S_IFIFO),
            "null": Node(kind=stat.S_IFCHR, device=(1, 3), mode=0o666),
            "disk": Node(kind=stat.S_IFBLK, device=(8, 17)),
            "old": File(content="old", mtime_ns=-1_250_000_000),
            "n" * 255: "long name",
            b"\xff\xfe": "bytes that are no text",
            "gone": whiteout(),
            "opaque": opaque({"inside": "y"}),
            "capable": File(
                content="c", xattrs={"security.capability": bytes.fromhex("01000002" + "00" * 16)}
            ),
        },
    )
    return directory


def test_what_is_packed_is_unpacked_the_same(tmp_path: Path) -> None:
    upper = rich(tmp_path / "upper")
    back = tmp_path / "back"
    back.mkdir()
    unpack(io.BytesIO(packed(upper)), back, "the layer")
    os.utime(back, ns=(os.stat(upper).st_atime_ns, os.stat(upper).st_mtime_ns))
    one, other = snapshot(back), snapshot(upper)
    assert one.pop(b"gone").device == other.pop(b"gone").device == 0  # a whiteout has no time
    assert one == other


def test_one_tree_gives_one_tar(tmp_path: Path) -> None:
    first, second = rich(tmp_path / "a"), rich(tmp_path / "b")
    assert packed(first) == packed(second)
    assert names(packed(first))[:3] == ["capable", "disk", "etc"]


def test_the_drivers_own_xattrs_stay_here(tmp_path: Path) -> None:
    build(tmp_path / "u", {"f": File(content="x", xattrs={"trusted.unionfs.origin": b"1@2", "user.a": b"b"})})
    with tarfile.open(fileobj=io.BytesIO(packed(tmp_path / "u"))) as tar:
        (member,) = tar
    assert [key for key in member.pax_headers if key.startswith("SCHILY")] == ["SCHILY.xattr.user.a"]


@pytest.mark.parametrize("form", ["device", "marker", "xattr"])
def test_every_form_of_whiteout(tmp_path: Path, form: str) -> None:
    upper = tmp_path / "upper"
    forms = {
        "device": {"d": {"gone": whiteout()}, "o": opaque({})},
        "marker": {"d": {".wh.gone": ""}, "o": {".wh..wh..opq": ""}},
        "xattr": {
            "d": opaque({"gone": File(xattrs={"trusted.overlay.whiteout": b"y"}), "empty": ""}, value=b"x"),
            "o": opaque({}),
        },
    }
    build(upper, forms[form])
    found = set(names(packed(upper)))
    assert found == {"d", "d/.wh.gone", "o", "o/.wh..wh..opq"} | ({"d/empty"} if form == "xattr" else set())


def test_a_name_is_stronger_than_its_marker(tmp_path: Path) -> None:
    build(tmp_path / "upper", {"kept": {"f": ""}, ".wh.kept": ""})
    assert names(packed(tmp_path / "upper")) == ["kept", "kept/f"]


def test_holes_stay_holes(tmp_path: Path) -> None:
    upper, back = tmp_path / "upper", tmp_path / "back"
    build(upper, {"sparse": File(content=b"end", holes=64 << 20), "all": ""})
    os.truncate(upper / "all", 8 << 20)
    with (upper / "middle").open("wb") as file:
        file.write(b"begin")
        file.truncate(32 << 20)
    data = packed(upper)
    assert len(data) < 1 << 20
    back.mkdir()
    unpack(io.BytesIO(data), back, "the layer", Limits())
    for name in ("sparse", "all", "middle"):
        assert (back / name).read_bytes() == (upper / name).read_bytes()
        assert os.stat(back / name).st_blocks * 512 < 1 << 20
    gnu = tmp_path / "gnu"
    gnu.mkdir()
    subprocess.run(["tar", "-xf-", "-C", gnu], input=data, check=True)
    assert (gnu / "sparse").read_bytes() == (upper / "sparse").read_bytes()


def test_no_time_is_later_than_the_clamp(tmp_path: Path) -> None:
    build(
        tmp_path / "upper",
        {"new": File(mtime_ns=2_000_000_000_000_000_001), "old": File(mtime_ns=5_500_000_000)},
    )
    with tarfile.open(fileobj=io.BytesIO(packed(tmp_path / "upper", Clamp(1_000_000_000)))) as tar:
        assert {member.name: member.mtime for member in tar} == {"new": 1_000_000_000, "old": 5.5}


def test_sockets_are_left_out(tmp_path: Path) -> None:
    build(tmp_path / "upper", {"socket": Node(kind=stat.S_IFSOCK), "file": ""})
    assert names(packed(tmp_path / "upper")) == ["file"]


def test_what_stands_elsewhere_is_refused(tmp_path: Path) -> None:
    build(tmp_path / "upper", {"d": Dir(xattrs={"trusted.overlay.redirect": b"/x"})})
    with pytest.raises(
        RuntimeFailure, match=r"d cannot be put into a layer: it has trusted\.overlay\.redirect"
    ):
        packed(tmp_path / "upper")


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (5 << 20) + 7])
def test_parallel_gzip_is_gzip(size: int) -> None:
    data = hashlib.shake_128(b"seed").digest(max(size // 4, 1)) * 4
    data = data[:size]

    def squeezed(pieces: int) -> bytes:
        out = io.BytesIO()
        with compressed(out, "gzip") as stream:
            for start in range(0, len(data), pieces):
                stream.write(data[start : start + pieces])
        return out.getvalue()

    result = squeezed(1 << 20)
    assert gzip.decompress(result) == data
    assert subprocess.run(["gzip", "-dc"], input=result, capture_output=True, check=True).stdout == data
    assert squeezed(777_777) == result
    assert result[4:8] == bytes(4)  # no time


def test_a_stripped_directory_is_the_layer(tmp_path: Path) -> None:
    upper = rich(tmp_path / "upper")
    build(
        upper / "more",
        {"socket": Node(kind=stat.S_IFSOCK), "f": File(xattrs={"trusted.unionfs.origin": b"1@2"})},
    )
    clamp = Clamp(1_000_000_000)
    data = packed(upper, clamp)
    back = tmp_path / "back"
    back.mkdir()
    unpack(io.BytesIO(data), back, "the layer")
    strip(upper, clamp)
    one, other = snapshot(back, private=True), snapshot(upper, private=True)
    for path in (b".", b"gone"):  # the layer's root and a whiteout have no times
        del one[path], other[path]
    assert differences(one, other) == []
    assert packed(upper) == data
