"""The -o language: what is read, what is refused, and in which words."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs import syscalls
from unionfs.options import OptionError, escape, parse, split_escaped, split_options, unescape


def test_a_whole_mount():
    options = parse(["lowerdir=/a:/b:/c,upperdir=/u,workdir=/w"])
    assert options.lowerdirs == ("/a", "/b", "/c")
    assert (options.upperdir, options.workdir) == ("/u", "/w")
    assert not options.read_only


@pytest.mark.parametrize(
    "texts", [["lowerdir=/a"], ["lowerdir=/a,workdir=/w"], ["lowerdir=/a,upperdir=/u,workdir=/w,ro"]]
)
def test_read_only(texts):
    options = parse(texts)
    assert options.read_only
    assert options.flags & syscalls.MS_RDONLY


def test_several_texts_add_up_and_later_ones_win():
    options = parse(["lowerdir=/a,noatime", "lowerdir=/b,,atime,nosuid", "upperdir=/u", "workdir=/w,ro,rw"])
    assert options.lowerdirs == ("/b",)
    assert options.flags == syscalls.MS_NOSUID


def test_lowerdir_plus_appends():
    assert parse(["lowerdir+=/a,lowerdir+=/b:c"]).lowerdirs == ("/a", "/b:c")


def test_escapes():
    assert parse([r"lowerdir=/a\:b:/c\,d:/e\\f"]).lowerdirs == ("/a:b", "/c,d", "/e\\f")


def test_quotes_hold_commas():
    options = parse(['context="system_u:object_r:a,b",lowerdir=/a,fscontext="x,y"'])
    assert options.lowerdirs == ("/a",)
    assert options.ignored == ()


paths = st.text(st.characters(exclude_characters="\0"), min_size=1)


@given(st.lists(paths, min_size=1, max_size=4), paths, paths)
def test_escaped_paths_are_read_back(lowers, upper, work):
    text = f"lowerdir={':'.join(map(escape, lowers))},upperdir={escape(upper)},workdir={escape(work)}"
    if '="' in text:
        return  # a path that begins with a quote is read as quoted
    options = parse([text])
    assert (options.lowerdirs, options.upperdir, options.workdir) == (tuple(lowers), upper, work)


@given(paths)
def test_unescape_undoes_escape(path):
    assert unescape(escape(path)) == path


@given(st.lists(paths, min_size=1))
def test_split_undoes_join(parts):
    joined = ":".join(escape(part) for part in parts)
    assert [unescape(part) for part in split_escaped(joined, ":")] == parts


@given(st.text())
def test_anything_is_read_or_refused(text):
    """No other exception."""
    with contextlib.suppress(OptionError):
        parse([text])


def test_empty_parts_go():
    assert split_options(",,a,,b,") == ["a", "b"]


FLAGS = {
    "noexec": syscalls.MS_NOEXEC,
    "nodev": syscalls.MS_NODEV,
    "noatime": syscalls.MS_NOATIME,
    "sync": syscalls.MS_SYNCHRONOUS,
    "dirsync": syscalls.MS_DIRSYNC,
    "relatime": syscalls.MS_RELATIME,
    "strictatime": syscalls.MS_STRICTATIME,
    "lazytime": syscalls.MS_LAZYTIME,
    "nodiratime": syscalls.MS_NODIRATIME,
}


@pytest.mark.parametrize("word", FLAGS)
def test_flags_of_mount(word):
    assert parse([f"lowerdir=/a,upperdir=/u,workdir=/w,{word}"]).flags == FLAGS[word]


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("volatile", "sync", False),
        ("fsync=0", "sync", False),
        ("fsync=1", "sync", True),
        ("noacl", "acl", False),
        ("noxattrs", "xattrs", False),
        ("noxattrs=1", "xattrs", False),
        ("noxattrs=0", "xattrs", True),
        ("static_nlink", "static_nlink", True),
        ("timeout=1.5", "timeout", 1.5),
        ("timeout=0", "timeout", 0.0),
        ("", "timeout", None),
        ("", "sync", True),
        ("frobnicate=1,gibberish", "ignored", ("frobnicate", "gibberish")),
        ("x-systemd.automount,defaults,_netdev,allow_other,fsname=a", "ignored", ()),
    ],
)
def test_features(text, name, value):
    assert getattr(parse([f"lowerdir=/a,{text}"]), name) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "lowerdir="),
        ("upperdir=/u,workdir=/w", "lowerdir="),
        ("lowerdir", "option 'lowerdir'"),
        ("lowerdir=", "option 'lowerdir='"),
        ("lowerdir=/a::/b", "empty"),
        ("lowerdir=/a:", "empty"),
        ("lowerdir=/a,upperdir=", "upperdir="),
        ("lowerdir=/a,upperdir=/u", "workdir="),
        ("lowerdir=/a,fsync=2", "option 'fsync=2'"),
        ("lowerdir=/a,fsync", "option 'fsync'"),
        ("lowerdir=/a,timeout=-1", "option 'timeout=-1'"),
        ("lowerdir=/a,timeout=nan", "option 'timeout=nan'"),
        ("lowerdir=/a,timeout=inf", "option 'timeout=inf'"),
        ("lowerdir=/a,uidmapping=0:1", "option 'uidmapping=0:1'"),
        ("lowerdir=/a,gidmapping=0:x:1", "option 'gidmapping=0:x:1'"),
        ("lowerdir=/a,squash_to_uid=root", "option 'squash_to_uid=root'"),
        ("lowerdir=/a,squash_to_gid=4294967296", "option 'squash_to_gid=4294967296'"),
        ("lowerdir=/a,squash_to_uid", "option 'squash_to_uid'"),
        ("lowerdir=/a,nfs_export=on", "option 'nfs_export=on'"),
        ('lowerdir=/a,context="x', "quotes"),
    ],
)
def test_refused(text, words):
    with pytest.raises(OptionError) as refusal:
        parse([text])
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_id_maps():
    options = parse(["lowerdir=/a,uidmapping=1000:0:1:100000:1:65536,gidmapping=5:0:1,squash_to_gid=7"])
    assert options.idmaps.uid.shown(100_001) == 2
    assert options.idmaps.gid.shown(5) == 7


@pytest.mark.parametrize(
    ("slip", "meant"), [("uperdir", "upperdir"), ("lowerdirs", "lowerdir"), ("volatil", "volatile")]
)
def test_a_slip_of_the_finger_is_refused(slip, meant):
    with pytest.raises(OptionError, match=f"is {meant} meant"):
        parse([f"lowerdir=/a,{slip}=/b"])
