"""A layer tar and the directory that becomes of it."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_builder import (
    Entry,
    device,
    directory,
    entry,
    file,
    hard_link,
    opaque,
    symlink,
    tar,
    whiteout,
)

from runtime.errors import RuntimeFailure
from runtime.images.streams import Limits
from runtime.images.unpack import Unpacked, unpack
from unionfs.whiteout import Opaque, is_device_whiteout, opaque_state


def put(path: Path, *entries: Entry, limits: Limits | None = None) -> Unpacked:
    return unpack(io.BytesIO(tar(*entries)), path, "layer", limits)


def is_whiteout(path: Path) -> bool:
    state = os.lstat(path)
    return is_device_whiteout(state.st_mode, state.st_rdev)


def is_opaque(path: Path) -> bool:
    return opaque_state(os.fsencode(path)) is Opaque.YES


def test_attributes_are_kept(tmp_path: Path) -> None:
    put(
        tmp_path,
        directory("d/", mode=0o1777, mtime=1_500_000_000),
        file("d/f", b"data", mode=0o4755, pax_headers={"mtime": "1500000000.123456789"}),
        symlink("d/s", "/etc/passwd"),
        hard_link("d/h", "d/f"),
        entry("d/p", tarfile.FIFOTYPE, mode=0o600),
    )
    state = os.stat(tmp_path / "d/f")
    assert stat.S_IMODE(state.st_mode) == 0o4755
    assert state.st_mtime_ns == 1_500_000_000_123_456_789
    assert state.st_nlink == 2
    assert os.path.samefile(tmp_path / "d/f", tmp_path / "d/h")
    assert os.readlink(tmp_path / "d/s") == "/etc/passwd"
    assert stat.S_ISFIFO(os.stat(tmp_path / "d/p").st_mode)
    parent = os.stat(tmp_path / "d")
    assert stat.S_IMODE(parent.st_mode) == 0o1777
    assert parent.st_mtime == 1_500_000_000
    assert stat.S_IMODE(os.stat(tmp_path).st_mode) == 0o755


@pytest.mark.root
def test_owners_devices_and_capabilities(tmp_path: Path) -> None:
    capability = bytes.fromhex("0100000200200000000000000000000000000000").decode()
    put(
        tmp_path,
        file(
            "f",
            b"x",
            uid=1234,
            gid=70000,
            mode=0o6755,
            pax_headers={"SCHILY.xattr.security.capability": capability},
        ),
        device("null", 1, 3),
        device("loop", 7, 1, tarfile.BLKTYPE),
        entry("s", tarfile.SYMTYPE, linkname="x", uid=5, gid=6),
    )
    state = os.stat(tmp_path / "f")
    assert (state.st_uid, state.st_gid, stat.S_IMODE(state.st_mode)) == (1234, 70000, 0o6755)
    assert os.getxattr(tmp_path / "f", "security.capability") == capability.encode()
    assert os.stat(tmp_path / "null").st_rdev == os.makedev(1, 3)
    assert stat.S_ISBLK(os.stat(tmp_path / "loop").st_mode)
    link = os.lstat(tmp_path / "s")
    assert (link.st_uid, link.st_gid) == (5, 6)


def test_only_xattrs_that_instruct_nobody_are_kept(tmp_path: Path) -> None:
    kept = {"user.mine": "binary \udcff"}
    refused = (
        "trusted.overlay.opaque",
        "user.overlay.opaque",
        "user.fuseoverlayfs.opaque",
        "user.unionfs.origin",
        "user.containers.override_stat",
        "trusted.x",
        "security.selinux",
    )
    headers = {f"SCHILY.xattr.{name}": value for name, value in (kept | dict.fromkeys(refused, "y")).items()}
    put(tmp_path, directory("d", pax_headers=headers))
    assert set(os.listxattr(tmp_path / "d")) == {"user.mine"}
    assert os.getxattr(tmp_path / "d", "user.mine") == b"binary \xff"


def test_a_name_of_any_bytes(tmp_path: Path) -> None:
    put(tmp_path, file("\udcff\n", b"x"), file("n" * 255, b"y"), symlink("l", "\udcfe"))
    assert (tmp_path / os.fsdecode(b"\xff\n")).read_bytes() == b"x"
    assert (tmp_path / ("n" * 255)).read_bytes() == b"y"
    assert os.readlink(os.fsencode(tmp_path / "l")) == b"\xfe"


def test_whiteouts_become_the_drivers(tmp_path: Path) -> None:
    put(tmp_path, directory("d"), whiteout("d/gone"), opaque("d/new"), file("d/new/f"))
    assert is_whiteout(tmp_path / "d/gone")
    assert is_opaque(tmp_path / "d/new")
    assert sorted(os.listdir(tmp_path / "d")) == ["gone", "new"]
    assert os.listdir(tmp_path / "d/new") == ["f"]


@pytest.mark.parametrize("order", [1, -1])
def test_a_whiteout_acts_on_lower_layers_only(tmp_path: Path, order: int) -> None:
    entries = [whiteout("f"), whiteout("d"), file("f", b"new"), directory("d"), file("d/x")][::order]
    put(tmp_path, *entries)
    assert (tmp_path / "f").read_bytes() == b"new"
    assert is_opaque(tmp_path / "d")
    assert os.listdir(tmp_path / "d") == ["x"]


def test_no_whiteout_beneath_an_opaque_directory(tmp_path: Path) -> None:
    put(tmp_path, directory("d"), whiteout("d/a"), directory("d/e"), whiteout("d/e/b"), opaque("d"))
    assert os.listdir(tmp_path / "d") == ["e"]
    assert os.listdir(tmp_path / "d/e") == []


def test_aufs_housekeeping_says_nothing(tmp_path: Path) -> None:
    put(tmp_path, directory(".wh..wh.plnk"), file(".wh..wh.plnk/1.2"), file(".wh..wh.aufs"), file("f"))
    assert os.listdir(tmp_path) == ["f"]


def test_missing_parents_are_made(tmp_path: Path) -> None:
    done = put(tmp_path, file("a/b/f"), directory("a/b", mode=0o700), whiteout("x/gone"))
    assert stat.S_IMODE(os.stat(tmp_path / "a").st_mode) == 0o755
    assert stat.S_IMODE(os.stat(tmp_path / "a/b").st_mode) == 0o700
    assert done.implicit == {(b"a",), (b"x",)}


def test_a_later_entry_replaces_an_earlier_one(tmp_path: Path) -> None:
    put(
        tmp_path,
        file("f", b"old"),
        hard_link("h", "f"),
        file("f", b"new"),
        directory("d", mode=0o700),
        file("d/kept"),
        directory("d", mode=0o711),
        directory("t/u"),
        file("t", b"a file"),
        symlink("s", "nowhere"),
        directory("s"),
    )
    assert (tmp_path / "f").read_bytes() == b"new"
    assert (tmp_path / "h").read_bytes() == b"old"
    assert stat.S_IMODE(os.stat(tmp_path / "d").st_mode) == 0o711
    assert os.listdir(tmp_path / "d") == ["kept"]
    assert (tmp_path / "t").read_bytes() == b"a file"
    assert not (tmp_path / "s").is_symlink()


@pytest.mark.parametrize(
    "form", ["gnu", "--sparse-version=0.0", "--sparse-version=0.1", "--sparse-version=1.0"]
)
def test_holes_are_kept(tmp_path: Path, form: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    with (source / "f").open("wb") as made:
        made.truncate(8 << 20)
        made.seek(1 << 20)
        made.write(b"middle" * 1000)
        made.seek(5 << 20)
        made.write(b"later")
    (source / "g").write_bytes(b"after")
    how = ["--format=gnu"] if form == "gnu" else ["--format=pax", form]
    data = subprocess.run(
        ["tar", "-C", source, "--sparse", *how, "-cf", "-", "f", "g"], check=True, stdout=subprocess.PIPE
    ).stdout
    unpack(io.BytesIO(data), target, "layer")
    assert (target / "f").read_bytes() == (source / "f").read_bytes()
    assert os.stat(target / "f").st_blocks <= os.stat(source / "f").st_blocks + 16
    assert (target / "g").read_bytes() == b"after"


HOSTILE: dict[str, list[Entry]] = {
    "dot dot": [file("../x")],
    "dot dot inside": [file("a/../../x")],
    "absolute": [file("/x")],
    "beneath a symlink": [symlink("a", "/etc"), file("a/passwd")],
    "beneath a relative symlink": [directory("b"), symlink("a", "b"), file("a/x")],
    "directory beneath a symlink": [symlink("a", "/"), directory("a/x")],
    "whiteout beneath a symlink": [symlink("a", "/etc"), whiteout("a/passwd")],
    "opaque symlink": [symlink("a", "/etc"), opaque("a")],
    "hard link out": [hard_link("a", "../../etc/passwd")],
    "absolute hard link": [hard_link("a", "/etc/passwd")],
    "hard link through a symlink": [symlink("a", "/etc"), hard_link("b", "a/passwd")],
    "hard link to a lower layer": [hard_link("a", "nowhere")],
    "hard link to a directory": [directory("d"), hard_link("a", "d")],
    "beneath a file": [file("a"), file("a/b")],
    "bare whiteout": [file(".wh.")],
    "whiteout of dot dot": [file(".wh...")],
    "whiteout as a directory's name": [file("a/.wh.b/c")],
    "whiteout with data": [file(".wh.a", b"data")],
    "whiteout device": [device("a", 0, 0)],
    "impossible device": [device("a", 1 << 20, 0)],
    "NUL in a name": [file("x", pax_headers={"path": "a\0b"})],
    "long name": [file("n" * 256)],
    "long path": [file("/".join(["n" * 200] * 21))],
    "deep path": [file("a/" * 300 + "f")],
    "unknown type": [entry("a", b"Z")],
    "negative owner": [file("a", uid=-5)],
    "huge owner": [file("a", pax_headers={"uid": str(1 << 40)})],
    "huge time": [file("a", pax_headers={"mtime": "1e999999"})],
    "no time": [file("a", pax_headers={"mtime": "nan"})],
    "empty symlink": [symlink("a", "")],
    "root is a file": [file(".")],
    "huge xattr": [file("a", pax_headers={"SCHILY.xattr.user.a": "x" * 70000})],
}


@pytest.mark.parametrize("entries", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_layer_is_refused(tmp_path: Path, entries: list[Entry]) -> None:
    outside = (sorted(os.listdir("/etc")), Path("/etc/passwd").read_bytes())
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(RuntimeFailure) as failure:
        put(inside, *entries)
    assert "\n" not in failure.value.message
    assert os.listdir(tmp_path) == ["inside"]
    assert (sorted(os.listdir("/etc")), Path("/etc/passwd").read_bytes()) == outside


@pytest.mark.parametrize(
    ("entries", "limits"),
    [
        ([file(f"f{number}") for number in range(20)], Limits(entries=10)),
        ([file(f"{number}/a/a/a/f") for number in range(5)], Limits(entries=10)),
        ([device(f"d{number}", 1, 3) for number in range(20)], Limits(devices=10)),
        ([file("f", bytes(1 << 20))], Limits(reserve=1 << 60)),
        ([file("f", pax_headers={"comment": "x" * 100_000})], Limits(header=50_000)),
    ],
    ids=["entries", "implicit directories", "devices", "disk", "header"],
)
def test_a_flood_is_stopped(tmp_path: Path, entries: list[Entry], limits: Limits) -> None:
    with pytest.raises(RuntimeFailure):
        put(tmp_path, *entries, limits=limits)


def test_both_ends_of_a_bad_hard_link_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeFailure, match="'bin/new' is a hard link to 'bin/old', which its layer does not hold"
    ):
        put(tmp_path, hard_link("bin/new", "bin/old"))


def test_a_tar_that_is_cut_anywhere_is_refused_or_whole(tmp_path: Path) -> None:
    data = tar(directory("d"), file("d/f", b"x" * 1000), file("g", b"y" * 600))
    for length in range(1, len(data), 97):
        target = tmp_path / str(length)
        target.mkdir()
        try:
            unpack(io.BytesIO(data[:length]), target, "layer")
        except RuntimeFailure:
            continue
        # A tar may end at any header: the digest tells that something is missing.
        for path, size in (("d/f", 1000), ("g", 600)):
            assert not (target / path).exists() or os.stat(target / path).st_size == size


BASE = tar(
    directory("d", pax_headers={"mtime": "1.5", "SCHILY.xattr.user.a": "b"}),
    file("d/" + "n" * 120, b"x" * 700),
    symlink("s", "d"),
    hard_link("h", "s"),
    whiteout("d/w"),
    opaque("o"),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 6000), st.binary(min_size=1, max_size=12)), max_size=4))
def test_a_damaged_tar_fails_in_one_way_only(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, bytes]]
) -> None:
    data = bytearray(BASE)
    for offset, change in damage:
        data[offset : offset + len(change)] = change
        block = offset - offset % 512
        # A right checksum lets the damage get further.
        header = data[block : block + 512]
        if header[257:262] == b"ustar":
            total = sum(header[:148]) + sum(header[156:]) + 8 * 32
            data[block + 148 : block + 156] = b"%06o\0 " % total
    try:
        unpack(io.BytesIO(bytes(data)), tmp_path_factory.mktemp("t"), "layer")
    except (RuntimeFailure, OSError):
        pass


def test_without_root_what_cannot_be_applied_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    real_mknod = os.mknod

    def mknod(path: bytes, mode: int, rdev: int, **options: int) -> None:
        if rdev:
            refuse()
        real_mknod(path, mode, rdev, **options)

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "mknod", mknod)
    monkeypatch.setattr(os, "fchown", refuse)
    monkeypatch.setattr(os, "chown", refuse)
    done = put(
        tmp_path,
        directory("closed", mode=0o555),
        file("closed/f", b"x", uid=7),
        device("null", 1, 3),
        device("zero", 1, 5),
        file("cap", pax_headers={"SCHILY.xattr.security.capability": "x"}),
        whiteout("closed/gone"),
    )
    assert done.notes == ("2 devices left out: only root can make them",)
    assert stat.S_IMODE(os.stat(tmp_path / "closed").st_mode) == 0o555
    assert sorted(os.listdir(tmp_path)) == ["cap", "closed"]
    assert is_whiteout(tmp_path / "closed/gone")
    assert os.listxattr(tmp_path / "cap") == []
