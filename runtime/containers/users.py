"""Who a container's process is: USER[:GROUP] looked up in the image's own passwd and group files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.containers.scoped import read_file
from runtime.errors import RuntimeFailure

_MAX_ID = 2**32 - 2


@dataclass(frozen=True)
class User:
    """The numbers of a process, and the home directory that goes with them."""

    uid: int
    gid: int
    additional_gids: tuple[int, ...]
    home: str


@dataclass(frozen=True)
class _Entry:
    name: str
    uid: int
    gid: int
    home: str


def _passwd(text: str) -> list[_Entry]:
    """The lines of passwd(5) that make sense; the others are skipped, as getpwent(3) does."""
    entries = []
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) >= 6 and fields[2].isdecimal() and fields[3].isdecimal():
            entries.append(_Entry(fields[0], int(fields[2]), int(fields[3]), fields[5]))
    return entries


def _groups(text: str) -> list[tuple[str, int, list[str]]]:
    """The lines of group(5) that make sense, as (name, gid, members)."""
    groups = []
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) >= 4 and fields[2].isdecimal():
            groups.append((fields[0], int(fields[2]), [name for name in fields[3].split(",") if name]))
    return groups


def _number(text: str) -> int | None:
    """`text` as an ID, or None when it is a name.

    Raises RuntimeFailure when it is a number that no ID can be.
    """
    if not text.isdecimal():
        return None
    if int(text) > _MAX_ID:
        raise RuntimeFailure(f"uids and gids must be in range 0-{_MAX_ID}")
    return int(text)


def resolve(rootfs: Path, wanted: str, additional: Sequence[str] = ()) -> User:
    """The user that `wanted` (USER, UID, USER:GROUP, …; "" is root) names in the tree `rootfs`.

    A number needs no entry; a name does. Without GROUP the supplementary groups are those that list the
    user; with it there are none. Those of `additional`, names or numbers, come on top.

    Raises RuntimeFailure when a name is in neither file.
    """
    name, _, group = wanted.partition(":")
    entries = _passwd(read_file(rootfs, "etc/passwd"))
    groups = _groups(read_file(rootfs, "etc/group"))

    uid = _number(name) if name else 0
    # A name that is all digits is first looked for as a name, as chown(1) does.
    entry = next((e for e in entries if e.name == name), None) if name else None
    if entry is None and uid is not None:
        entry = next((e for e in entries if e.uid == uid), None)
    if entry is None and uid is None:
        raise RuntimeFailure(f"unable to find user {name}: no matching entries in passwd file")
    found = entry or _Entry("", uid or 0, 0, "/")
    more = [_group(groups, name) for name in additional]

    if not group:
        members = [gid for _, gid, names in groups if found.name and found.name in names]
        return User(found.uid, found.gid, tuple(dict.fromkeys([*members, *more])), found.home or "/")
    return User(found.uid, _group(groups, group), tuple(dict.fromkeys(more)), found.home or "/")


def _group(groups: Sequence[tuple[str, int, list[str]]], wanted: str) -> int:
    """The number of the group `wanted`, a name or a number."""
    gid = next((number for title, number, _ in groups if title == wanted), None)
    if gid is None:
        gid = _number(wanted)
    if gid is None:
        raise RuntimeFailure(f"unable to find group {wanted}: no matching entries in group file")
    return gid
