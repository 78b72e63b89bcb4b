"""Who may do what, who owns what is made, and what umask, setgid directories and default ACLs do to modes."""

from __future__ import annotations

import os
import stat

import pytest
from support.layers import Dir, File, build, whiteout
from support.snapshot import snapshot
from support.union import command, errno_of, run_as, tick

pytestmark = pytest.mark.root

USER, GROUP, OTHER_GROUP = 1234, 1235, 1236


def made(path):
    status = os.lstat(path)
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


def make_all(directory):
    """One new name of each kind; returns nothing, so that a child can run it."""
    os.close(os.open(directory / "file", os.O_CREAT | os.O_WRONLY, 0o777))
    os.mkdir(directory / "dir", 0o777)
    os.mkfifo(directory / "fifo", 0o777)
    os.symlink("target", directory / "symlink")
    os.mknod(directory / "socket", stat.S_IFSOCK | 0o777)


ALL = ("file", "dir", "fifo", "symlink", "socket")

#: Where the directory to make things in comes from: whiteouts lie at the names in the last.
PLACES = ("upper", "lower", "over whiteouts")


def directory_in(make_union, where, thing):
    if where == "lower":
        return make_union({"d": thing}).root / "d"
    if where == "upper":
        return make_union({}, upper={"d": thing}).root / "d"
    low = Dir(names=dict.fromkeys(ALL, "old"))
    top = Dir(mode=thing.mode, owner=thing.owner, names=dict.fromkeys(ALL, whiteout()))
    return make_union({"d": low}, upper={"d": top}).root / "d"


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_owner_and_umask_of_what_is_made(make_union, where, umask):
    directory = directory_in(make_union, where, Dir(mode=0o777))
    run_as(USER, GROUP, lambda: make_all(directory), umask=umask)
    for name in ALL:
        mode = 0o777 if name == "symlink" else 0o777 & ~umask
        assert made(directory / name) == (mode, USER, GROUP), name


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("member", [True, False])
def test_setgid_directories_hand_down_their_group(make_union, place, where, member):
    groups = (OTHER_GROUP,) if member else ()
    directory = directory_in(make_union, where, Dir(mode=0o2777, owner=(0, OTHER_GROUP)))
    plain = place / "plain"
    plain.mkdir()
    os.chown(plain, 0, OTHER_GROUP)
    plain.chmod(0o2777)

    def make(in_directory):
        make_all(in_directory)
        os.close(os.open(in_directory / "setgid", os.O_CREAT | os.O_WRONLY, 0o2775))

    for place_to_make in (plain, directory):
        run_as(USER, GROUP, lambda here=place_to_make: make(here), groups=groups)
    for name in (*ALL, "setgid"):
        assert made(directory / name) == made(plain / name), name
    assert made(directory / "dir")[0] & stat.S_ISGID
    assert made(directory / "file")[2] == OTHER_GROUP


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("umask", [0, 0o077])
def test_default_acls_override_the_umask(make_union, place, where, umask):
    directory = directory_in(make_union, where, Dir(mode=0o777))
    plain = place / "plain"
    plain.mkdir()
    for here in (plain, directory):
        os.chmod(here, 0o777)
        set_ = command("setfacl", "-d", "-m", "u::rwx,g::r-x,o::r--,u:77:rw-,m::rwx", here)
        assert set_.returncode == 0, set_.stderr
        run_as(USER, GROUP, lambda here=here: make_all(here), umask=umask)
    for name in ALL:
        assert made(directory / name) == made(plain / name), name
        if name != "symlink":
            for kind in ("access", "default"):
                assert acl(directory / name, kind) == acl(plain / name, kind)
    assert acl(directory / "file", "access")


def acl(path, kind):
    try:
        return os.getxattr(path, f"system.posix_acl_{kind}")
    except OSError:
        return None


@pytest.mark.parametrize("layer", ["upper", "lower"])
def test_acls_decide_access(make_union, layer):
    names = {"f": File(content="x", mode=0o600)}
    union = make_union(names, mount=False) if layer == "lower" else make_union({}, upper=names, mount=False)
    command("setfacl", "-m", f"u:{USER}:r", (union.lowers[0] if layer == "lower" else union.upper) / "f")
    union.remember_lowers()
    union.mount()
    path = union.root / "f"
    assert run_as(USER, GROUP, path.read_text) == "x"
    assert errno_of(run_as, USER, GROUP, lambda: path.write_text("y")) == "EACCES"
    assert errno_of(run_as, USER + 1, GROUP, path.read_text) == "EACCES"
    assert command("setfacl", "-m", f"u:{USER}:rw", path).returncode == 0
    run_as(USER, GROUP, lambda: path.write_text("y"))
    assert path.read_text() == "y"
    assert command("setfacl", "-b", path).returncode == 0
    assert errno_of(run_as, USER, GROUP, path.read_text) == "EACCES"
    os.chmod(path, 0o640)
    assert made(path)[0] == 0o640


def test_chmod_changes_the_mask_of_an_acl(make_union, place):
    union = make_union({"f": File(mode=0o644)})
    (place / "plain").touch(0o644)
    for path in (place / "plain", union.root / "f"):
        command("setfacl", "-m", "u:9:rwx", path)
        os.chmod(path, 0o604)
    assert acl(union.root / "f", "access") == acl(place / "plain", "access")
    assert made(union.root / "f")[0] == made(place / "plain")[0]
    union.remount()
    assert acl(union.root / "f", "access") == acl(place / "plain", "access")


FILES = {
    "own.txt": File(content="x", mode=0o600, owner=(USER, GROUP)),
    "group.txt": File(content="x", mode=0o660, owner=(0, OTHER_GROUP)),
    "other.txt": File(content="x", mode=0o604),
    "closed.txt": File(content="x", mode=0o600),
    "closed": Dir(mode=0o700, names={"f": "x"}),
    "no search": Dir(mode=0o744, names={"f": "x"}),
    "no write": Dir(mode=0o755, names={"f": "x", "d": {}}),
    "sticky": Dir(
        mode=0o1777,
        names={"own": File(owner=(USER, GROUP)), "other": "", "dir": Dir(mode=0o777, names={"f": ""})},
    ),
}

#: What a user with OTHER_GROUP among the supplementary groups tries: (name, what, errno).
TRIES = [
    ("read own", lambda r: (r / "own.txt").read_bytes(), ""),
    ("write own", lambda r: (r / "own.txt").write_bytes(b"y"), ""),
    ("chmod own", lambda r: os.chmod(r / "own.txt", 0o640), ""),
    ("give away own", lambda r: os.chown(r / "own.txt", 0, -1), "EPERM"),
    ("own to my group", lambda r: os.chown(r / "own.txt", -1, OTHER_GROUP), ""),
    ("own to a strange group", lambda r: os.chown(r / "own.txt", -1, 7777), "EPERM"),
    ("write by group", lambda r: (r / "group.txt").write_bytes(b"y"), ""),
    ("chmod by group", lambda r: os.chmod(r / "group.txt", 0o666), "EPERM"),
    ("utime now by group", lambda r: os.utime(r / "group.txt"), ""),
    ("utime by group", lambda r: os.utime(r / "group.txt", ns=(1, 1)), "EPERM"),
    ("read other", lambda r: (r / "other.txt").read_bytes(), ""),
    ("write other", lambda r: (r / "other.txt").write_bytes(b"y"), "EACCES"),
    ("truncate other", lambda r: os.truncate(r / "other.txt", 0), "EACCES"),
    ("read closed", lambda r: (r / "closed.txt").read_bytes(), "EACCES"),
    ("stat closed", lambda r: os.stat(r / "closed.txt") and None, ""),
    ("stat in closed", lambda r: os.stat(r / "closed" / "f") and None, "EACCES"),
    ("list closed", lambda r: os.listdir(r / "closed"), "EACCES"),
    ("list without search", lambda r: os.listdir(r / "no search"), ""),
    ("stat without search", lambda r: os.stat(r / "no search" / "f") and None, "EACCES"),
    ("create without write", lambda r: (r / "no write" / "new").touch(), "EACCES"),
    ("unlink without write", lambda r: (r / "no write" / "f").unlink(), "EACCES"),
    ("rmdir without write", lambda r: (r / "no write" / "d").rmdir(), "EACCES"),
    ("mkdir without write", lambda r: (r / "no write" / "n").mkdir(), "EACCES"),
    ("rename without write", lambda r: os.rename(r / "no write/f", r / "no write/g"), "EACCES"),
    ("unlink other's in sticky", lambda r: (r / "sticky" / "other").unlink(), "EPERM"),
    ("rename other's in sticky", lambda r: os.rename(r / "sticky/other", r / "sticky/x"), "EPERM"),
    ("unlink own in sticky", lambda r: (r / "sticky" / "own").unlink(), ""),
    ("create in sticky", lambda r: (r / "sticky" / "new").touch(), ""),
    ("unlink in open directory", lambda r: (r / "sticky" / "dir" / "f").unlink(), ""),
    ("rmdir other's in sticky", lambda r: (r / "sticky" / "dir").rmdir(), "EPERM"),
    ("access", lambda r: [os.access(r / "closed.txt", os.R_OK), os.access(r / "group.txt", os.W_OK)], ""),
    ("device node", lambda r: os.mknod(r / "sticky" / "n", stat.S_IFCHR | 0o600, os.makedev(1, 3)), "EPERM"),
    ("setxattr other", lambda r: os.setxattr(r / "other.txt", "user.x", b""), "EACCES"),
    ("setxattr own", lambda r: os.setxattr(r / "own.txt", "user.x", b""), ""),
]


@pytest.mark.parametrize("layer", ["lower", "upper"])
def test_another_user_with_supplementary_groups(make_union, place, layer):
    union = make_union(FILES) if layer == "lower" else make_union({}, upper=FILES)
    plain = place / "plain"
    build(plain, FILES)

    for name, act, expected in TRIES:
        given = run_as(USER, GROUP, lambda act=act: errno_of(act, union.root), groups=(OTHER_GROUP,))
        assert given == expected, name
        assert run_as(USER, GROUP, lambda act=act: errno_of(act, plain), groups=(OTHER_GROUP,)) == expected, (
            name
        )

    def attributes(root):
        return {path: (p.mode, p.uid, p.gid, p.content, p.xattrs) for path, p in snapshot(root).items()}

    ours, theirs = attributes(union.root), attributes(plain)
    del ours[b"."], theirs[b"."]
    assert ours == theirs


@pytest.mark.parametrize("layer", ["lower", "upper"])
def test_setuid_and_setgid_are_cleared(make_union, layer):
    names = {
        name: File(content="xyz", mode=0o6777, owner=(USER, GROUP)) for name in ("w", "t", "c", "r", "k")
    }
    root = (make_union(names) if layer == "lower" else make_union({}, upper=names)).root

    def act():
        with open(root / "w", "r+b") as file:
            file.write(b"1")
        os.truncate(root / "t", 1)
        os.chown(root / "c", USER, OTHER_GROUP)
        (root / "r").read_bytes()
        os.utime(root / "k")

    run_as(USER, GROUP, act, groups=(OTHER_GROUP,))
    modes = {name: stat.S_IMODE(os.stat(root / name).st_mode) for name in names}
    assert modes == {"w": 0o777, "t": 0o777, "c": 0o777, "r": 0o6777, "k": 0o6777}


def test_setgid_is_cleared_by_chmod_of_one_who_is_not_in_the_group(make_union):
    root = make_union({"f": File(mode=0o755, owner=(USER, OTHER_GROUP))}).root
    run_as(USER, GROUP, lambda: os.chmod(root / "f", 0o2755))
    assert made(root / "f")[0] == 0o755
    run_as(USER, GROUP, lambda: os.chmod(root / "f", 0o2755), groups=(OTHER_GROUP,))
    assert made(root / "f")[0] == 0o2755


def test_a_setuid_program_runs_as_its_owner(make_union):
    with open("/usr/bin/id", "rb") as program:
        union = make_union({"id": File(content=program.read(), mode=0o4755, owner=(USER, GROUP))})
    shown = run_as(4321, 4321, lambda: command(union.root / "id", "-u").stdout)
    assert shown.strip() == str(USER)


def test_root_owns_what_root_makes(make_union):
    union = make_union({"d": Dir(mode=0o555, owner=(USER, GROUP))})
    make_all(union.root / "d")
    assert {made(union.root / "d" / name)[1:] for name in ALL} == {(0, 0)}


def test_ctime_of_chmod_and_chown(make_union):
    root = make_union({}, upper={"f": ""}).root
    for act in (lambda: os.chmod(root / "f", 0o600), lambda: os.chown(root / "f", 1, 1)):
        before = os.stat(root / "f")
        tick()
        act()
        after = os.stat(root / "f")
        assert after.st_ctime_ns > before.st_ctime_ns
        assert after.st_mtime_ns == before.st_mtime_ns


def test_atime_follows_reading(make_union):
    root = make_union({}, upper={"f": File(content="x", atime_ns=10**18, mtime_ns=2 * 10**18)}).root
    assert os.stat(root / "f").st_atime_ns == 10**18
    (root / "f").read_bytes()
    assert os.stat(root / "f").st_atime_ns > 10**18


def test_squash_to_root(make_union):
    union = make_union({"f": File(owner=(USER, GROUP))}, options=("squash_to_root",))
    assert made(union.root / "f")[1:] == (0, 0)


def test_uid_and_gid_maps(make_union):
    union = make_union(
        {"f": File(owner=(100_005, 100_006)), "g": File(owner=(5, 6))},
        options=("uidmapping=100000:0:1000", "gidmapping=100000:0:1000"),
    )
    assert made(union.root / "f")[1:] == (5, 6)
    assert made(union.root / "g")[1:] == (65534, 65534)
    (union.root / "new").touch()
    os.chown(union.root / "new", 7, 8)
    os.chown(union.root / "f", 9, -1)
    assert made(union.upper / "new")[1:] == (100_007, 100_008)
    assert made(union.upper / "f")[1:] == (100_009, 100_006)
    assert errno_of(os.chown, union.root / "new", 1000, -1) == "EOVERFLOW"
    union.root.chmod(0o777)
    run_as(1000, 1000, (union.root / "of nobody in here").touch)  # as an engine's root does
    assert made(union.upper / "of nobody in here")[1:] == (65534, 65534)
