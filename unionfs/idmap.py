"""Id maps: the owners that layers store, and those that users of the union see.

uidmapping and gidmapping are lists of `stored:shown:count` ranges, as fuse-overlayfs takes them: an engine
gives what a container's ids are outside of it. squash_to_* shows one owner for all.
An id outside every range is shown as the overflow id, as user namespaces do (user_namespaces(7)).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

OVERFLOW_ID = 65534


@dataclass(frozen=True, slots=True)
class IdMap:
    """One direction and back, for users or for groups. Without ranges, every id is itself."""

    ranges: tuple[tuple[int, int, int], ...] = ()
    squash: int | None = None

    def shown(self, stored: int) -> int:
        """The id that users see for one that a layer stores."""
        if self.squash is not None:
            return self.squash
        if not self.ranges:
            return stored
        for first, shown, count in self.ranges:
            if first <= stored < first + count:
                return shown + stored - first
        return OVERFLOW_ID

    def stored(self, shown: int) -> int:
        """The id that the upper layer stores for one that a user has.

        Raises OSError (EOVERFLOW) when no range has it.
        """
        if not self.ranges:
            return shown
        for stored, first, count in self.ranges:
            if first <= shown < first + count:
                return stored + shown - first
        raise OSError(errno.EOVERFLOW, f"id {shown} is not mapped")


@dataclass(frozen=True, slots=True)
class IdMaps:
    """The maps of users and of groups."""

    uid: IdMap
    gid: IdMap

    def caller_stored(self, uid: int, gid: int) -> tuple[int, int]:
        """The owners that are stored for what this caller makes.

        Whoever is in no range is nobody in here, but may make a file: an engine's root makes an /etc/mtab in
        a container that is mapped to other ids.
        """
        return _or_overflow(self.uid, uid), _or_overflow(self.gid, gid)


def _or_overflow(ids: IdMap, shown: int) -> int:
    try:
        return ids.stored(shown)
    except OSError:
        return OVERFLOW_ID


#: Everybody is who they are.
UNMAPPED = IdMaps(IdMap(), IdMap())


def parse_ranges(text: str) -> tuple[tuple[int, int, int], ...]:
    """Read `stored:shown:count[:stored:shown:count…]`; a leading colon is allowed.

    Raises ValueError saying what is wrong.
    """
    numbers = text.strip(":").split(":")
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise ValueError(f"'{text}' is not a list of numbers")
    if len(numbers) % 3:
        raise ValueError(f"'{text}' is not in triples of stored:shown:count")
    values = [int(number) for number in numbers]
    triples = list(zip(values[0::3], values[1::3], values[2::3], strict=True))
    if any(count == 0 or max(first, second) + count > 1 << 32 for first, second, count in triples):
        raise ValueError(f"'{text}' has an empty range, or one beyond 32 bits")
    return tuple(triples)
