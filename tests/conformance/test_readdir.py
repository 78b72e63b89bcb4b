"""readdir(3), telldir(3), seekdir(3), rewinddir(3)."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest
from support.layers import Dir, HardLink, Node, Symlink
from support.union import errno_of

from conformance.system import Directory, opened, times_changed

KINDS = {
    "file": "x",
    "twin": HardLink("file"),
    "dir": {"inner": {"deep": "x"}},
    "symlink": Symlink(target="nothing"),
    "fifo": Node(kind=stat.S_IFIFO),
    "socket": Node(kind=stat.S_IFSOCK),
    "device": Node(kind=stat.S_IFCHR, device=(1, 3)),
    "block": Node(kind=stat.S_IFBLK, device=(7, 0)),
}
MANY = {f"name{number:05}": "" for number in range(600)}
BYTES = {bytes([byte]): "" for byte in range(1, 256) if byte not in b"/."} | {
    b"caf\xe9": "",
    "café".encode(): "",
    "cafe\u0301".encode(): "",
    b"\xf0\x9f\x92\xa9": "",
    b"...": "",
    b".hidden": "",
    b"-": "",
    b"a\nb": "",
    b"\\x41": "",
    b"UPPER": "1",
    b"upper": "2",
}


def read_all(path: Path) -> list[bytes]:
    with Directory(path) as stream:
        return stream.names()


@pytest.mark.tree(KINDS)
def test_each_name_once_with_its_number_and_type(here: Path) -> None:
    with Directory(here) as stream:
        found = []
        while (entry := stream.read()) is not None:
            found.append(entry)
    assert sorted(name for name, _, _ in found) == sorted([b".", b"..", *map(os.fsencode, KINDS)])
    for name, ino, kind in found:
        if name != b"..":
            status = os.lstat(os.path.join(os.fsencode(here), name))
            assert (ino, kind) == (status.st_ino, stat.S_IFMT(status.st_mode) >> 12), name


@pytest.mark.tree(KINDS)
def test_numbers_are_the_same_after_a_change(here: Path) -> None:
    before = {entry.name: entry.inode() for entry in os.scandir(here)}
    os.chmod(here / "file", 0o600)
    os.chmod(here / "dir", 0o700)
    os.chown(here / "symlink", 1, 1, follow_symlinks=False)
    os.chmod(here / "fifo", 0o600)
    (here / "dir/inner/deep").write_text("longer")
    assert {entry.name: entry.inode() for entry in os.scandir(here)} == before


@pytest.mark.tree(KINDS)
def test_number_of_dot_dot_in_a_directory(here: Path) -> None:
    with Directory(here / "dir/inner") as stream:
        found = {}
        while (entry := stream.read()) is not None:
            found[entry[0]] = entry[1]
    assert found[b".."] == os.stat(here / "dir").st_ino
    assert found[b"."] == os.stat(here / "dir/inner").st_ino


@pytest.mark.tree(MANY)
def test_many_names(here: Path) -> None:
    names = read_all(here)
    assert len(names) == len(set(names)) == 602
    assert set(names) == {b".", b"..", *map(os.fsencode, MANY)}


@pytest.mark.tree(MANY)
def test_removing_all_while_reading(here: Path) -> None:
    removed = 0
    with Directory(here) as stream:
        while (entry := stream.read()) is not None:
            if entry[0] not in (b".", b".."):
                os.unlink(os.fsencode(here) + b"/" + entry[0])
                removed += 1
    assert removed == 600
    assert os.listdir(here) == []


@pytest.mark.tree(MANY)
def test_names_that_stay_are_read_once_whatever_others_do(here: Path) -> None:
    seen: list[bytes] = []
    with Directory(here) as stream:
        number = 0
        while (entry := stream.read()) is not None:
            seen.append(entry[0])
            number += 1
            if number % 2 and number < 300:
                os.unlink(here / f"name{599 - number // 2:05}")
                (here / f"added{number}").touch()
                os.rename(here / f"name{number // 2:05}", here / f"renamed{number}")
    stay = [name for name in seen if b"name00150" <= name <= b"name00449"]
    assert len(stay) == len(set(stay)) == 300
    assert len(seen) == len(set(seen))


@pytest.mark.tree(MANY)
def test_telldir_and_seekdir(here: Path) -> None:
    with Directory(here) as stream:
        places = []
        names = []
        while True:
            places.append(stream.tell())
            entry = stream.read()
            if entry is None:
                break
            names.append(entry[0])
        for position in (0, 1, 2, 3, 200, 599, 601, 1, 450):
            stream.seek(places[position])
            entry = stream.read()
            assert entry is not None and entry[0] == names[position]
        stream.seek(places[300])
        assert stream.names() == names[300:]
        stream.seek(places[-1])
        assert stream.read() is None


@pytest.mark.tree(MANY)
def test_seekdir_after_names_were_removed(here: Path) -> None:
    with Directory(here) as stream:
        names = []
        for _ in range(200):
            entry = stream.read()
            assert entry is not None
            names.append(entry[0])
        place = stream.tell()
        rest = stream.names()
        for name in names[100:200] + rest[100:200]:
            if name not in (b".", b".."):
                os.unlink(os.fsencode(here) + b"/" + name)
        stream.seek(place)
        again = stream.names()
    assert set(again) >= set(rest) - set(rest[100:200])
    assert len(again) == len(set(again))
    assert not set(again) & set(names)


def test_rewinding_shows_what_was_added(here: Path) -> None:
    with Directory(here) as stream:
        before = stream.names()
        (here / "new").touch()
        os.unlink(here / "file")
        stream.rewind()
        after = stream.names()
    assert sorted(after) == sorted([*(set(before) - {b"file"}), b"new"])


def test_two_streams_do_not_disturb_each_other(here: Path) -> None:
    with Directory(here) as one, Directory(here) as other:
        first = one.read()
        all_of_other = other.names()
        assert first is not None
        assert sorted([first[0], *one.names()]) == sorted(all_of_other)


@pytest.mark.tree(BYTES)
def test_names_of_any_bytes(here: Path) -> None:
    base = os.fsencode(here)
    assert set(os.listdir(base)) == set(BYTES)
    for name in BYTES:
        assert os.lstat(base + b"/" + name).st_nlink == 1
    assert (here / "UPPER").read_text() + (here / "upper").read_text() == "12"
    for name in BYTES:
        os.rename(base + b"/" + name, base + b"/" + name + b"\xff")
    assert set(os.listdir(base)) == {name + b"\xff" for name in BYTES}
    for name in BYTES:
        os.unlink(base + b"/" + name + b"\xff")
    os.rmdir(here)


def test_of_a_removed_directory(here: Path) -> None:
    with opened(here / "empty", os.O_RDONLY) as fd:
        os.rmdir(here / "empty")
        assert os.listdir(fd) == []


def test_times_of_reading(here: Path) -> None:
    os.utime(here / "dir", ns=(1, 10**18))
    assert times_changed(lambda: os.listdir(here / "dir"), here / "dir", here) == ["a", ""]


def test_a_name_made_again_is_listed_once(here: Path) -> None:
    for _ in range(3):
        os.unlink(here / "file")
        (here / "file").write_text("x")
        os.unlink(here / "dir/inner")
        os.rmdir(here / "dir")
        os.mkdir(here / "dir")
        assert sorted(os.listdir(here)) == ["dangling", "dir", "empty", "file", "link", "other"]
        assert os.listdir(here / "dir") == []
        (here / "dir/inner").touch()


def test_errors(here: Path) -> None:
    assert errno_of(os.listdir, here / "file") == "ENOTDIR"
    assert errno_of(os.listdir, here / "nothing") == "ENOENT"


@pytest.mark.tree({"a": Dir(names={"b": {"c": {"d": {"file": "x"}}}})})
def test_trees_removed_and_made_again(here: Path) -> None:
    shutil.rmtree(here / "a")
    os.makedirs(here / "a/b/c/d")
    assert [names for _, _, names in os.walk(here / "a")] == [[], [], [], []]
    assert not (here / "a/b/c/d/file").exists()
