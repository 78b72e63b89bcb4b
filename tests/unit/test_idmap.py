"""Id maps: what is stored, what is shown, and that one undoes the other."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.idmap import OVERFLOW_ID, UNMAPPED, IdMap, parse_ranges

MAP = IdMap(((1000, 0, 1), (100_000, 1, 65_535)))


@pytest.mark.parametrize(("stored", "shown"), [(1000, 0), (100_000, 1), (165_534, 65_535)])
def test_both_ways(stored, shown):
    assert MAP.shown(stored) == shown
    assert MAP.stored(shown) == stored


@pytest.mark.parametrize("stored", [0, 999, 1001, 99_999, 165_535])
def test_what_no_range_has_is_shown_as_the_overflow_id(stored):
    assert MAP.shown(stored) == OVERFLOW_ID


@pytest.mark.parametrize("shown", [65_536, 4_000_000_000])
def test_what_no_range_has_cannot_be_stored(shown):
    with pytest.raises(OSError, match=str(shown)) as refusal:
        MAP.stored(shown)
    assert refusal.value.errno == errno.EOVERFLOW


def test_squash_shows_one_owner():
    assert IdMap((), 7).shown(5) == 7
    assert IdMap(((5, 0, 1),), 7).shown(5) == 7
    assert IdMap((), 7).stored(5) == 5


@given(st.integers(0, 2**32 - 2))
def test_unmapped_is_itself(number):
    assert UNMAPPED.uid.shown(number) == UNMAPPED.gid.stored(number) == number


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=5), st.data())
def test_stored_undoes_shown(counts, data):
    """Ranges that do not overlap on either side."""
    shown, stored, ranges = 0, 50_000, []
    for count in counts:
        ranges.append((stored, shown, count))
        shown, stored = (
            shown + count + data.draw(st.integers(0, 5)),
            stored + count + data.draw(st.integers(0, 5)),
        )
    idmap = IdMap(tuple(ranges))
    low, first, count = data.draw(st.sampled_from(ranges))
    offset = data.draw(st.integers(0, count - 1))
    assert idmap.stored(first + offset) == low + offset
    assert idmap.shown(idmap.stored(first + offset)) == first + offset


def test_ranges_are_read():
    assert parse_ranges("0:1000:1:1:100000:65536") == ((0, 1000, 1), (1, 100_000, 65_536))
    assert parse_ranges(":0:0:1") == ((0, 0, 1),)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "0",
        "0:1",
        "0:1:2:3",
        "a:b:c",
        "0:0:0",
        "0:0:-1",
        "0:0:4294967297",
        "1:1:4294967296",
        "0:٣:1",
        "0::1:1",
    ],
)
def test_ranges_are_refused(text):
    with pytest.raises(ValueError, match=r"list of numbers|triples|range"):
        parse_ranges(text)
