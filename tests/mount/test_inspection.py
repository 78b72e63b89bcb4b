"""`unionfs stats` and `unionfs explain`: what a server tells, and whom."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import subprocess
import sys

import pytest
from support.layers import File
from support.union import run_as

pytestmark = pytest.mark.root

CLONE_NEWNS = 0x20000


def unionfs(*words):
    return subprocess.run(
        [sys.executable, "-m", "unionfs", *map(os.fspath, words)], capture_output=True, text=True, check=False
    )


def stats(root):
    result = unionfs("stats", "--json", root)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def explain(path):
    result = unionfs("explain", "--json", path)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def holds(piece, union):
    """What the layers hold at a piece, by their short names."""
    return [(os.path.basename(layer["layer"]), layer["holds"], layer["hidden"]) for layer in piece["layers"]]


def asked(told, name):
    return next((one["asked"] for one in told["requests"] if one["name"] == name), 0)


def test_requests_are_counted(make_union):
    union = make_union({"d": {str(number): "" for number in range(10)}})
    before = stats(union.root)
    for number in range(10):
        assert not os.path.exists(union.root / "d" / f"absent{number}")
    after = stats(union.root)
    assert asked(after, "LOOKUP") >= asked(before, "LOOKUP") + 10
    for one in after["requests"]:
        assert 0 <= one["native"] <= one["asked"]
        assert one["mean_us"] <= one["longest_us"]
    assert after["pid"] == union.pid
    assert after["lowers"] == [os.fspath(path) for path in union.lowers]
    assert after["errors"] == after["warnings"] == 0


def test_what_waits_is_counted_once(make_union):
    """A copy-up in a worker thread, and what pyfuse3's handlers answer."""
    union = make_union({"large": File(content="x" * 1_000_000)})
    with open(union.root / "large", "r+b") as file:
        file.write(b"y")
        os.fsync(file.fileno())
    told = stats(union.root)
    assert told["copied_up"]["files"] == 1
    assert told["copied_up"]["bytes"] == 1_000_000
    for name in ("OPEN", "FSYNC"):
        one = next(one for one in told["requests"] if one["name"] == name)
        assert one["mean_us"] > 0


@pytest.mark.fastpath
def test_the_fast_path_tells_its_share(make_union):
    union = make_union({"d": {"f": "x"}})
    os.listdir(union.root / "d")
    (union.root / "d" / "f").read_text()
    by_name = {one["name"]: one for one in stats(union.root)["requests"]}
    assert by_name["READDIRPLUS"]["native"] == by_name["READDIRPLUS"]["asked"]
    assert stats(union.root)["negotiated"]["fastpath"]


def test_without_the_fast_path(make_union):
    union = make_union({"d": {"f": "x"}}, options=("nofastpath",))
    os.listdir(union.root / "d")
    told = stats(union.root)
    assert not told["negotiated"]["fastpath"]
    assert all(one["native"] == 0 for one in told["requests"] if one["name"] != "LSEEK")


def test_a_table_for_people(make_union):
    union = make_union({"f": "x"})
    (union.root / "f").read_text()
    result = unionfs("stats", union.root)
    assert result.returncode == 0
    assert "GETXATTR" in result.stdout
    assert os.fspath(union.upper) in result.stdout


def test_watching_goes_on(make_union):
    union = make_union({"f": "x"})
    with subprocess.Popen(
        [sys.executable, "-m", "unionfs", "stats", "--json", "--watch", "0.1", os.fspath(union.root)],
        stdout=subprocess.PIPE,
        text=True,
    ) as watching:
        seen = [json.loads(watching.stdout.readline()) for _ in range(3)]
        watching.terminate()
    assert seen[2]["uptime_seconds"] > seen[0]["uptime_seconds"]


def test_where_a_path_comes_from(make_union):
    union = make_union({"etc": {"both": "top"}}, {"etc": {"both": "bottom", "low": "x"}})
    with open(union.root / "etc" / "low", "a") as file:
        file.write("y")
    root, etc, both = explain(union.root / "etc" / "both")
    assert [name for name, _, _ in holds(root, union)] == ["upper", "lower0", "lower1"]
    assert holds(etc, union) == [(name, "directory", False) for name in ("upper", "lower0", "lower1")]
    assert holds(both, union) == [("lower0", "file", False), ("lower1", "file", True)]
    assert both["kind"] == "file"
    low = explain(union.root / "etc" / "low")[-1]
    assert holds(low, union) == [("upper", "file", False), ("lower1", "file", True)]


def test_what_was_removed(make_union):
    union = make_union({"f": "x", "d": {"in": "x"}})
    os.remove(union.root / "f")
    os.remove(union.root / "d" / "in")
    os.rmdir(union.root / "d")
    os.mkdir(union.root / "d")
    removed = explain(union.root / "f")[-1]
    assert removed["kind"] is None
    assert holds(removed, union) == [("upper", "whiteout", False), ("lower0", "file", True)]
    made_again = explain(union.root / "d")[-1]
    assert holds(made_again, union) == [("upper", "opaque directory", False), ("lower0", "directory", True)]
    assert holds(explain(union.root / "d" / "in")[-1], union) == []


def test_all_conventions_of_whiteouts(make_union):
    union = make_union({".wh.f": ""}, {"f": "x"})
    assert holds(explain(union.root / "f")[-1], union) == [
        ("lower0", "whiteout", False),
        ("lower1", "file", True),
    ]
    assert unionfs("explain", union.root / "f").stdout.count("whiteout") == 1


def test_a_kind_that_hides_another(make_union):
    union = make_union({"a": {}, "b": "x"}, {"a": "x", "b": {}})
    assert [hidden for _, _, hidden in holds(explain(union.root / "a")[-1], union)] == [False, True]
    assert [hidden for _, _, hidden in holds(explain(union.root / "b")[-1], union)] == [False, True]


def test_what_never_was(make_union):
    union = make_union({"d": {}})
    pieces = explain(union.root / "d" / "no" / "such")
    assert [piece["name"] for piece in pieces] == ["", "d", "no"]
    assert "in no layer" in unionfs("explain", union.root / "d" / "no").stdout


def test_odd_names(make_union):
    name = b"\xff\n\x1b[31m"
    union = make_union({name: "x"})
    path = os.fsencode(union.root) + b"/" + name
    result = unionfs("explain", os.fsdecode(path))
    assert result.returncode == 0
    assert "\x1b" not in result.stdout
    assert explain(os.fsdecode(path))[-1]["name"] == os.fsdecode(name)


@pytest.mark.parametrize(
    "words", [("stats", "/proc"), ("explain", "/proc/self"), ("stats", "/no/such/place")]
)
def test_what_is_no_mount_of_ours(words):
    result = unionfs(*words)
    assert result.returncode == 1
    assert words[1] in result.stderr
    assert len(result.stderr.splitlines()) == 1


def refusal(path, question):
    try:
        os.getxattr(path, question)
    except OSError as error:
        return error.errno
    return 0


def test_other_users_are_told_nothing(make_union):
    union = make_union({"f": "x"})
    assert run_as(1234, 1234, lambda: refusal(union.root, "unionfs.stats")) == errno.ENODATA
    assert run_as(1234, 1234, lambda: refusal(union.root / "f", "unionfs.explain")) == errno.ENODATA


def test_another_mount_namespace_is_told_nothing(make_union):
    """As root in a container on the mount would be."""
    union = make_union({"f": "x"})

    def inside():
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        return refusal(union.root, "unionfs.stats")

    assert run_as(0, 0, inside) == errno.ENODATA


def test_it_is_not_listed(make_union):
    union = make_union({"f": "x"})
    assert not [name for name in os.listxattr(union.root) if name.startswith("unionfs")]


def test_a_log_of_its_own(make_union, tmp_path):
    union = make_union({"f": "x"}, mount=False)
    log = tmp_path / "server.log"
    result = unionfs("-o", f"{union.options()},log={log}", union.root)
    assert result.returncode == 0, result.stderr
    try:
        assert log.stat().st_mode & 0o7777 == 0o600
    finally:
        subprocess.run(["umount", union.root], check=True)


def test_a_log_that_cannot_be(make_union, tmp_path):
    union = make_union({"f": "x"}, mount=False)
    result = unionfs("-o", f"{union.options()},log={tmp_path}/no/log", union.root)
    assert result.returncode == 1
    assert f"log '{tmp_path}/no/log'" in result.stderr
    assert not os.path.ismount(union.root)
