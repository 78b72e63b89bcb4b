"""The options of run that say what a container may do and sees."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from unionctl_runner import Unionctl, eventually

from runtime.containers import devices, seccomp
from runtime.containers.times import duration_text, parse_duration
from runtime.errors import RuntimeFailure

pytestmark = pytest.mark.root


def test_init_is_the_first_process_and_reaps(unionctl: Unionctl) -> None:
    script = "cat /proc/1/cmdline | head -c 9; echo; sh -c 'sleep 0.1 & exit'; sleep 0.5; ps | grep -c sleep"
    lines = unionctl.out("run", "--rm", "--init", "busybox", "sh", "-c", script).splitlines()
    assert lines[0] == "/dev/init"
    assert "Z" not in lines[1]
    assert unionctl.out("run", "--name", "one", "--init", "busybox", "true") == ""
    assert unionctl.out("diff", "one") == ""


def test_a_device_of_the_host(unionctl: Unionctl) -> None:
    run = ("run", "--rm", "--device")
    assert unionctl.out(*run, "/dev/fuse", "busybox", "stat", "-c", "%F", "/dev/fuse") == (
        "character special file"
    )
    unionctl(*run, "/dev/zero:/dev/nothing:r", "busybox", "head", "-c", "1", "/dev/nothing")
    words = unionctl.err(*run, "/dev/fuse:/dev/f:r", "busybox", "sh", "-c", "echo > /dev/f", code=1)
    assert "/dev/f" in words
    assert "/dev/nosuch" in unionctl.err(*run, "/dev/nosuch", "busybox", "true", code=125)
    assert "invalid device" in unionctl.err(*run, "fuse", "busybox", "true", code=125)
    assert "not a device" in unionctl.err(*run, "/etc/passwd", "busybox", "true", code=125)


def test_privileged_has_devices_and_writes_kernel_parameters(unionctl: Unionctl) -> None:
    script = "grep CapBnd /proc/self/status; test -e /dev/fuse && test -w /proc/sys && mount -t tmpfs x /tmp"
    lines = unionctl.out("run", "--rm", "--privileged", "busybox", "sh", "-c", script).splitlines()
    host = Path("/proc/self/status").read_text().partition("CapBnd:\t")[2].split()[0]
    assert int(lines[0].split()[1], 16) == int(host, 16)


def test_kernel_parameters(unionctl: Unionctl) -> None:
    options = ["--sysctl", "net.core.somaxconn=77", "--sysctl", "kernel.shmmni=123", "--domainname", "dom"]
    files = ["/proc/sys/net/core/somaxconn", "/proc/sys/kernel/shmmni", "/proc/sys/kernel/domainname"]
    assert unionctl.out("run", "--rm", *options, "busybox", "cat", *files).split() == ["77", "123", "dom"]
    words = unionctl.err("run", "--rm", "--network=host", *options[:2], "busybox", "true", code=125)
    assert "not allowed" in words


def test_groups_on_top(unionctl: Unionctl) -> None:
    options = ["--group-add", "audio", "--group-add", "777", "-u", "4321"]
    assert unionctl.out("run", "--rm", *options, "busybox", "id") == (
        "uid=4321 gid=0(root) groups=29(audio),777"
    )
    unionctl("run", "-d", "--name", "one", *options, "busybox", "sleep", "1000")
    assert unionctl.out("exec", "one", "id") == "uid=4321 gid=0(root) groups=29(audio),777"
    words = unionctl.err("run", "--rm", "--group-add", "nobodys", "busybox", "true", code=125)
    assert "nobodys" in words


def test_namespaces_of_the_host(unionctl: Unionctl) -> None:
    for kind, option in (("pid", "--pid"), ("ipc", "--ipc"), ("uts", "--uts")):
        ours = os.readlink(f"/proc/self/ns/{kind}")
        assert (
            unionctl.out("run", "--rm", f"{option}=host", "busybox", "readlink", f"/proc/self/ns/{kind}")
            == ours
        )
        assert unionctl.out("run", "--rm", "busybox", "readlink", f"/proc/self/ns/{kind}") != ours
    assert "invalid PID mode" in unionctl.err("run", "--rm", "--pid=nosuch", "busybox", "true", code=125)


def test_namespaces_of_another_container(unionctl: Unionctl) -> None:
    unionctl("run", "-d", "--name", "one", "--ipc=shareable", "-h", "first", "busybox", "sleep", "1000")
    share = ["--pid=container:one", "--ipc=container:one", "--network=container:one"]
    assert "sleep 1000" in unionctl.out("run", "--rm", *share, "busybox", "ps")
    unionctl("run", "--rm", *share, "busybox", "sh", "-c", "echo shared > /dev/shm/file")
    assert unionctl.out("exec", "one", "cat", "/dev/shm/file") == "shared"
    assert unionctl.out("run", "--rm", *share, "busybox", "cat", "/etc/hostname") == "first"
    kind = "/proc/self/ns/net"
    assert unionctl.out("run", "--rm", *share, "busybox", "readlink", kind) == unionctl.out(
        "exec", "one", "readlink", kind
    )
    unionctl("run", "-d", "--name", "closed", "busybox", "sleep", "1000")
    words = unionctl.err("run", "--rm", "--ipc=container:closed", "busybox", "true", code=125)
    assert "non-shareable" in words
    unionctl("stop", "-t", "0", "one")
    assert "non running" in unionctl.err("run", "--rm", "--pid=container:one", "busybox", "true", code=125)


def test_no_shared_memory(unionctl: Unionctl) -> None:
    mounts = unionctl.out("run", "--rm", "--ipc=none", "busybox", "cat", "/proc/mounts")
    assert "/dev/shm" not in mounts


def test_the_name_servers_that_were_asked_for(unionctl: Unionctl) -> None:
    options = ["--dns", "192.0.2.1", "--dns-search", "example.com", "--dns-option", "ndots:3"]
    lines = unionctl.out("run", "--rm", *options, "busybox", "cat", "/etc/resolv.conf").splitlines()
    assert {"nameserver 192.0.2.1", "search example.com", "options ndots:3"} <= set(lines)
    assert sum(line.startswith("nameserver") for line in lines) == 1
    assert "invalid IP" in unionctl.err("run", "--rm", "--dns", "name", "busybox", "true", code=125)


def test_labels_of_a_file(unionctl: Unionctl, tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("# comment\na=1\nb\n")
    unionctl("create", "--name", "one", "--label-file", str(tmp_path / "labels"), "-l", "a=2", "busybox")
    assert json.loads(unionctl.out("inspect", "-f", "{{json .Config.Labels}}", "one")) == {"a": "2", "b": ""}


def test_volumes_of_another_container(unionctl: Unionctl, tmp_path: Path) -> None:
    (tmp_path / "bind").mkdir()
    mounts = ["-v", "named:/named", "-v", "/anonymous", "-v", f"{tmp_path}/bind:/bind", "--tmpfs", "/t"]
    unionctl("run", "--name", "one", *mounts, "busybox", "sh", "-c", "echo 1 > /anonymous/file")
    script = "cat /anonymous/file; echo 2 > /named/file; echo 3 > /bind/file; grep -c ' /t ' /proc/mounts"
    lines = unionctl.out("run", "--rm", "--volumes-from", "one", "busybox", "sh", "-c", script, code=1)
    assert lines == "1\n0"
    assert (tmp_path / "bind/file").read_text() == "3\n"
    unionctl("run", "--rm", "--volumes-from", "one:ro", "busybox", "sh", "-c", "! echo x > /named/file")
    assert "anonymous" in unionctl.out("inspect", "-f", "{{json .Mounts}}", "one")
    assert "No such container" in unionctl.err("run", "--volumes-from", "no", "busybox", "true", code=125)


def test_a_seccomp_profile_in_dockers_form(unionctl: Unionctl, tmp_path: Path) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [
            {"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO"},
            {
                "names": ["mkdir", "mkdirat"],
                "action": "SCMP_ACT_ERRNO",
                "includes": {"caps": ["CAP_SYS_TIME"]},
            },
        ],
    }
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    run = ("run", "--rm", "--security-opt", f"seccomp={tmp_path}/profile.json", "busybox", "sh", "-c")
    assert "not permitted" in unionctl.err(*run, "chmod 700 /tmp", code=1)
    unionctl(*run, "mkdir /new")
    (tmp_path / "bad.json").write_text("{}")
    bad = ("--security-opt", f"seccomp={tmp_path}/bad.json")
    assert "defaultAction" in unionctl.err("run", "--rm", *bad, "busybox", "true", code=125)
    nosuch = ("--security-opt", f"seccomp={tmp_path}/nosuch")
    assert "nosuch" in unionctl.err("run", "--rm", *nosuch, "busybox", "true", code=125)


def test_a_profile_depends_on_capabilities() -> None:
    rule = {"names": ["mkdir"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_TIME"]}}
    text = json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]})
    assert seccomp.profile(text, ())["syscalls"] == []  # type: ignore[index]
    allowed = seccomp.profile(text, ("CAP_SYS_TIME",))["syscalls"]  # type: ignore[index]
    assert allowed == [{"names": ["mkdir"], "action": "SCMP_ACT_ALLOW"}]


def test_the_log_is_kept_to_a_size(unionctl: Unionctl) -> None:
    options = ["--log-opt", "max-size=64k", "--log-opt", "max-file=3", "--name", "one"]
    script = "i=0; while [ $i -lt 4000 ]; do echo line $i 01234567890123456789; i=$((i+1)); "
    script += "[ $((i % 500)) != 0 ] || sleep 0.3; done"
    unionctl("run", "-d", *options, "busybox", "sh", "-c", script)
    unionctl("wait", "one")
    directory = unionctl.directory("one")
    assert eventually(lambda: not any("rotation" in line for line in unionctl.processes().values()))
    files = {path.name for path in directory.glob("log*")}
    assert files <= {"log", "log.0", "log.1", "log.2"}
    assert {"log", "log.1"} <= files
    assert all(path.stat().st_size <= (64 << 10) for path in directory.glob("log*"))
    lines = unionctl.out("logs", "one").splitlines()
    assert lines[-1].startswith("line 3999 ")
    numbers = [int(line.split()[1]) for line in lines]
    assert numbers == list(range(numbers[0], 4000))
    assert len(numbers) > 1500
    assert unionctl.out("logs", "--tail", "1200", "one").splitlines() == lines[-1200:]


def test_log_options_that_are_none(unionctl: Unionctl) -> None:
    for words in (["--log-driver", "syslog"], ["--log-opt", "max-size=1k"], ["--log-opt", "nosuch=1"]):
        assert "log" in unionctl.err("run", "--rm", *words, "busybox", "true", code=125)
    assert "max-size" in unionctl.err("run", "--log-opt", "max-file=3", "busybox", "true", code=125)
    unionctl("run", "--name", "one", "--log-driver", "none", "busybox", "echo", "text")
    assert unionctl.out("logs", "one") == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30s", 30 * 10**9), ("1m30s", 90 * 10**9), ("500ms", 5 * 10**8), ("1.5h", 5400 * 10**9), ("0", 0)],
)
def test_durations(text: str, expected: int) -> None:
    assert parse_duration(text, "--x") == expected


@pytest.mark.parametrize("text", ["", "30", "-1s", "1x", "s", "1s 2s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(RuntimeFailure, match="duration"):
        parse_duration(text, "--x")


def test_durations_as_go_prints_them() -> None:
    seconds = [0, 0.5, 30, 90, 3600, 3661.5]
    texts = ["0s", "500ms", "30s", "1m30s", "1h0m0s", "1h1m1.5s"]
    assert [duration_text(round(value * 10**9)) for value in seconds] == texts


def test_device_words() -> None:
    assert devices.parse("/dev/a") == devices.Device("/dev/a", "/dev/a")
    assert devices.parse("/dev/a:r") == devices.Device("/dev/a", "/dev/a", "r")
    assert devices.parse("/dev/a:/dev/b:rw") == devices.Device("/dev/a", "/dev/b", "rw")
    for text in ("/dev/a:/dev/b:x", "/dev/a:/dev/b:rr", "/dev/a:b", "/dev/a:/b:r:w"):
        with pytest.raises(RuntimeFailure, match="invalid device"):
            devices.parse(text)
