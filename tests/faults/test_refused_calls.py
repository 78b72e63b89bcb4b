"""Each system call of each operation fails once, with each errno: the caller hears it, nothing is half done.

What is counted as a failure here: an operation that failed and changed something, one that said it was done
and was not, a server that ended or became confused, and anything left in the work directory after a remount.
"""

from __future__ import annotations

import dataclasses
import errno
import os

import pytest
from operations import CHANGES, READS, layers, state
from support.snapshot import differences
from support.union import errno_of

pytestmark = pytest.mark.root

#: All of them by turns; each time with --slow.
ERRNOS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOMEM)

CASES = 130


class Cases:
    """A union of cases that nobody has looked at yet."""

    def __init__(self, make_union, gate, operation, *, thorough):
        self.thorough = thorough
        names = [f"c{number}" for number in range(CASES)]
        upper, *lowers = layers(operation, names)
        self.union = make_union(*lowers, upper=upper, mount=False)
        self.union.gate = gate
        self.union.mount("volatile")
        self._fresh = iter(names)

    def fresh(self):
        return self.union.root / next(self._fresh)


def go_through(cases, gate, operate, *, warm):
    """Yields (case, the errno that was injected, the one that came, calls so far) for each call and errno.

    `warm`: the server has merged the case's directories before.
    """
    number = 0
    while True:
        for code in ERRNOS if cases.thorough else (ERRNOS[number % 5], ERRNOS[(number + 2) % 5]):
            case = cases.fresh()
            if warm:
                state(case)
            with gate.at(number, code) as calls:
                failure = errno_of(operate, case)
            if len(calls) <= number:
                return
            yield case, errno.errorcode[code], failure, calls
            if not calls[-1].changes:
                break  # one errno is like another
        number += 1


def is_truncated_alone(name, failure, now, after):
    """Whether the content is gone that was to go, and all else as it was.

    A file is copied up without it, so a failure after that leaves it so; open(2) with O_TRUNC may, too.
    """
    if not (name.startswith("truncate") and failure):
        return False
    return all(seen.content == after[path].content for path, seen in now.items())


def with_times_of_directories(pictures, like):
    return {
        path: dataclasses.replace(seen, mtime_ns=like[path].mtime_ns) if seen.kind == "d" else seen
        for path, seen in pictures.items()
    }


@pytest.mark.parametrize("name", CHANGES)
def test_changes(request, make_union, gate, name):
    operate = CHANGES[name].act
    cases = Cases(make_union, gate, CHANGES[name], thorough=request.config.getoption("--slow"))
    union = cases.union
    # The first case pays for what is done once in a mount.
    before = state(cases.fresh())
    for case in (cases.fresh(), cases.fresh()):
        operate(case)
        after = state(case)
    assert before != after
    seen = {}
    wrong = []
    for case, injected, failure, calls in go_through(cases, gate, operate, warm=True):
        where = f"{injected} at {len(calls)}: {calls[-1]}"
        if failure not in ("", injected):
            wrong.append(f"{where}: became {failure}")
        now = state(case)
        if calls[-1].name == "utimensat" and not failure:
            # Only of a directory that a copy-up made a name in: its times cannot be as they were.
            now = with_times_of_directories(now, after)
        # Done it may be if what failed was to look at it afterwards.
        wanted = after if not failure or (now == after and not calls[-1].changes) else before
        if now != wanted and not is_truncated_alone(name, failure, now, after):
            wrong.append(f"{where}: said {failure or 'done'} but " + "; ".join(differences(wanted, now)))
        elif wanted is before:
            again = errno_of(operate, case)
            now = state(case)
            if again or now != after:
                wrong.append(f"{where}: and again {again} " + "; ".join(differences(after, now)))
        seen[case] = state(case)
    assert seen
    assert not wrong, "\n".join(wrong)
    union.remount("volatile")
    for case, now in seen.items():
        assert differences(now, state(case)) == [], case
    assert os.listdir(union.work / "work") == ["incompat"]  # the mark of a volatile mount
    assert os.listdir(union.work / "hardlinks") == []


@pytest.mark.parametrize("name", READS)
def test_reads(make_union, gate, name):
    operate = READS[name].act
    cases = Cases(make_union, gate, READS[name], thorough=False)
    cases.union.expected_complaint = "readdir: cannot look at"
    before = state(cases.fresh())
    operate(cases.fresh())
    for case, injected, failure, calls in go_through(cases, gate, operate, warm=False):
        assert failure in ("", injected), f"{injected} at {calls[-1]}"
        assert differences(before, state(case)) == [], f"{injected} at {calls[-1]}"
        assert errno_of(operate, case) == ""
