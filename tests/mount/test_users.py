"""The whole life of a union that a plain user mounts: by fusermount3, and in a user namespace."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pyfuse3
import pytest
from support.layers import build

import unionfs

pytestmark = pytest.mark.root

#: fusermount3 wants an account.
UID = pwd.getpwnam("nobody").pw_uid

#: Runs as the user: mounts, changes one of everything, mounts again, and prints what it saw.
_LIFE = r"""
import errno, json, os, stat, subprocess, sys, time

place, unmount, options = sys.argv[1], sys.argv[2].split(), sys.argv[3:]
root = place + "/merged"
seen = {"pictures": []}

def mount():
    layers = f"lowerdir={place}/top:{place}/bottom,upperdir={place}/upper,workdir={place}/work"
    done = subprocess.run(
        [sys.executable, "-m", "unionfs", "-o", ",".join([layers, *options]), root],
        capture_output=True,
        text=True,
    )
    if done.returncode or done.stderr:
        seen["refused"] = done.stderr
        print(json.dumps(seen))
        sys.exit()

def picture():
    found = {}
    for directory, directories, files in os.walk(root):
        for name in directories + files:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            content = None
            if stat.S_ISREG(status.st_mode):
                with open(path) as file:
                    content = file.read()
            shown = [status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_ino, content]
            found[path[len(root) + 1 :]] = shown
    return found

def failure(act, *arguments):
    try:
        act(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return ""

mount()
os.chdir(root)
seen["before"] = sorted(picture())
with open("new", "w") as file:
    file.write("new")
os.chmod("f", 0o600)
with open("d/g", "a") as file:
    file.write(" and more")
os.unlink("gone")
os.rename("d/h", "d/moved")
os.unlink("e/x")
os.rmdir("e")
os.mkdir("e")
with open("e/fresh", "w"):
    pass
os.unlink("one")
os.symlink("f", "link")
os.mkfifo("pipe")
os.setxattr("d/g", "user.colour", b"blue")
os.truncate("big", 10)
if "redirect_dir=on" in options:
    os.rename("renamed", "again")
seen["rmdir"] = failure(os.rmdir, "d")
seen["exists"] = failure(os.mkdir, "f")
seen["owners"] = failure(os.chown, "f", os.getuid() + 1, -1)
os.chdir("/")
for _ in range(3):
    seen["pictures"].append(picture())
    subprocess.run([*unmount, root], check=True)
    seen["after"] = os.listdir(root)
    mount()
seen["xattr"] = os.getxattr(root + "/d/g", "user.colour").decode()
subprocess.run([*unmount, root], check=True)
print(json.dumps(seen))
"""

TOP = {"f": "top", "d": {"g": "top"}}
BOTTOM = {
    "f": "bottom",
    "gone": "x",
    "d": {"g": "bottom", "h": "bottom"},
    "e": {"x": "x"},
    "one": "linked",
    "two": "linked",
    "big": "b" * 400_000,
    "renamed": {"r": "r"},
}

STAYS = {"f", "d", "d/g", "e", "two", "big"}
BEFORE = STAYS | {"gone", "d/h", "e/x", "one", "renamed", "renamed/r"}
AFTER = STAYS | {"d/moved", "e/fresh", "link", "new", "pipe"}


@pytest.fixture
def place():
    """Not below pytest's own directory, which every other pytest that starts closes to other users."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


@pytest.fixture
def interpreter():
    """A Python that every user may start, and the environment by which it finds the driver."""
    for candidate in (sys.executable, "/usr/bin/python3"):
        if shutil.which(candidate) is None:
            continue
        paths = [Path(module.__file__).parent.parent for module in (unionfs, pyfuse3)]
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": "/nonexistent",
            "PYTHONPATH": ":".join(map(os.fspath, paths)),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        tried = subprocess.run(
            ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "env", candidate, "-c",
             "import unionfs.daemon, importlib.metadata as m; m.version('unionfs')"],
            env=environment, capture_output=True, text=True, check=False, cwd="/",
        )  # fmt: skip
        if tried.returncode == 0:
            return candidate, environment
    pytest.skip(f"a plain user can start no Python that has the driver: {tried.stderr.strip()[-200:]}")


def life(place, interpreter, uid, command, unmount, *options):
    """Run `_LIFE` as a user, in namespaces that end with it, where everybody may open /dev/fuse."""
    python, environment = interpreter
    for name, names in (("top", TOP), ("bottom", BOTTOM)):
        build(place / name, names)
    for name in ("upper", "work", "merged"):
        (place / name).mkdir()
    assert subprocess.run(["chown", "-R", f"{uid}:{uid}", place], check=False).returncode == 0
    (place / "life.py").write_text(_LIFE)
    os.mknod(place / "fuse", 0o20600, os.stat("/dev/fuse").st_rdev)
    os.chmod(place / "fuse", 0o666)
    script = 'mount --make-rprivate / && mount --bind "$1" /dev/fuse && shift && exec "$@"'
    own = [
        "unshare",
        "-m",
        "-p",
        "-f",
        "--kill-child",
        "--mount-proc",
        "sh",
        "-c",
        script,
        "sh",
        place / "fuse",
    ]
    user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "env", *command]
    done = subprocess.run(
        [*own, *user, python, place / "life.py", place, unmount, *options],
        env=environment, capture_output=True, text=True, check=False, timeout=60, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check(seen, uid, redirects):
    assert "refused" not in seen, seen
    assert set(seen["before"]) == BEFORE
    first, *later = seen["pictures"]
    renamed = "again" if redirects == "on" else "renamed"
    assert set(first) == AFTER | {renamed, f"{renamed}/r"}
    content = {"f": "top", "d/g": "top and more", "d/moved": "bottom", "new": "new", "e/fresh": ""}
    content |= {"two": "linked", "big": "b" * 10, f"{renamed}/r": "r"}
    assert {name: first[name][5] for name in content} == content
    owner = uid if seen["owners"] else uid + 1
    assert {name: shown[1] for name, shown in first.items()} == {**dict.fromkeys(first, uid), "f": owner}
    assert first["f"][0] & 0o777 == 0o600
    for picture in later:
        assert picture == first
    assert (seen["rmdir"], seen["exists"], seen["after"], seen["xattr"]) == (
        "ENOTEMPTY",
        "EEXIST",
        [],
        "blue",
    )


@pytest.mark.parametrize("redirects", ["off", "on"])
def test_by_fusermount3(place, interpreter, redirects):
    if not shutil.which("fusermount3"):
        pytest.skip("fusermount3 is not installed")
    seen = life(place, interpreter, UID, [], "fusermount3 -u", f"redirect_dir={redirects}")
    check(seen, UID, redirects)
    assert seen["owners"] == "EPERM"
    check_layers(place)


def subordinate_user():
    """An account with subordinate ids, for newuidmap."""
    if shutil.which("newuidmap") and os.path.exists("/etc/subuid"):
        for line in Path("/etc/subuid").read_text().splitlines():
            try:
                return pwd.getpwnam(line.split(":")[0]).pw_uid
            except KeyError:
                continue
    return None


@pytest.mark.parametrize("redirects", ["off", "on"])
@pytest.mark.parametrize("ids", ["one id", "subordinate ids"])
def test_in_a_user_namespace(place, interpreter, ids, redirects):
    uid, command = UID, ["unshare", "-U", "-r", "-m"]
    if ids == "subordinate ids":
        uid = subordinate_user()
        if uid is None:
            pytest.skip("no account has subordinate ids (newuidmap, /etc/subuid)")
        command += ["--map-auto"]
    tried = subprocess.run(
        ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *command, "true"],
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    if tried.returncode:
        pytest.skip(f"no user namespace here: {tried.stderr.strip()}")
    seen = life(place, interpreter, uid, command, "umount", f"redirect_dir={redirects}")
    check(seen, 0, redirects)
    assert seen["owners"] == ("EINVAL" if ids == "one id" else "")
    check_layers(place)


def check_layers(place):
    """What was made is read by root too; the lower layers are as they were."""
    assert (place / "bottom" / "gone").read_text() == "x"
    assert (place / "top" / "f").read_text() == "top"
    assert os.listdir(place / "work" / "work") == []
    whiteouts = set(os.listdir(place / "upper")) & {"gone", ".wh.gone"}
    assert len(whiteouts) == 1, "a whiteout in one form"
