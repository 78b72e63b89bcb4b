"""unionctl run: what the command gets, and what comes back."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from unionctl_runner import Unionctl, eventually

pytestmark = pytest.mark.root


def test_exit_codes_are_the_commands(unionctl: Unionctl) -> None:
    unionctl("run", "--rm", "busybox", "true", code=0)
    unionctl("run", "--rm", "busybox", "false", code=1)
    unionctl("run", "--rm", "busybox", "sh", "-c", "exit 42", code=42)


def test_exit_codes_of_failures_are_dockers(unionctl: Unionctl) -> None:
    assert "not found" in unionctl.err("run", "--rm", "busybox", "no-such-command", code=127)
    assert "no such file" in unionctl.err("run", "--rm", "busybox", "/no/such/command", code=127)
    assert "denied" in unionctl.err("run", "--rm", "busybox", "/etc", code=126)
    assert "denied" in unionctl.err("run", "--rm", "busybox", "/etc/passwd", code=126)
    assert "No such image" in unionctl.err("run", "--rm", "--pull=never", "no-such-image", "true", code=125)
    unionctl("run", "--no-such-option", "busybox", code=125)
    unionctl("run", "--rm", "--runtime", "/no/such/runtime", "busybox", "true", code=125)
    unionctl("run", "--rm", "-u", "nobody-here", "busybox", "true", code=125)
    unionctl("run", "--rm", "--network", "bridge0", "busybox", "true", code=125)
    unionctl("run", "--rm", "-m", "1m", "busybox", "true", code=125)


def test_a_container_that_could_not_start_is_kept_without_rm(unionctl: Unionctl) -> None:
    unionctl("run", "--name", "box", "busybox", "no-such-command", code=127)
    assert unionctl.out("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "box") == "created 127"
    assert unionctl.mounts() == []


def test_command_killed_by_a_signal_ends_with_128_and_its_number(unionctl: Unionctl) -> None:
    process = unionctl.popen("run", "--rm", "--name", "box", "busybox", "sleep", "60")
    assert eventually(lambda: "box" in unionctl.out("ps", "--format", "{{.Names}}"))
    unionctl("kill", "box")
    assert process.wait(20) == 137


def test_stdout_and_stderr_are_kept_apart(unionctl: Unionctl) -> None:
    result = unionctl("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; printf last")
    assert result.stdout == b"out\nlast"
    assert result.stderr == b"err\n"


def test_environment(unionctl: Unionctl, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# a comment\nC=from file\nHOST_ONLY\nNOT_SET\n")
    unionctl.environment["HOST_ONLY"] = "ours"
    options = ["-e", "A=1", "-e", "B=x=y", "-e", "HOST_ONLY", "--env-file", str(tmp_path / "env")]
    lines = unionctl.out("run", "--rm", *options, "-h", "box", "busybox", "env").splitlines()
    expected = {"A=1", "B=x=y", "C=from file", "HOST_ONLY=ours", "FROM=image", "HOME=/root", "HOSTNAME=box"}
    assert expected <= set(lines)
    assert not any(line.startswith("NOT_SET") for line in lines)
    assert "FROM=me" in unionctl.out("run", "--rm", "-e", "FROM=me", "busybox", "env").splitlines()


def test_working_directory_is_made_when_it_is_not_there(unionctl: Unionctl) -> None:
    assert unionctl.out("run", "--rm", "-w", "/new/place", "busybox", "pwd") == "/new/place"
    unionctl("run", "--rm", "-w", "relative", "busybox", "pwd", code=125)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("alice", "uid=1000(alice) gid=1000(alice) groups=10(wheel),29(audio)"),
        ("1000", "uid=1000(alice) gid=1000(alice) groups=10(wheel),29(audio)"),
        ("alice:audio", "uid=1000(alice) gid=29(audio)"),
        ("0:1234", "uid=0(root) gid=1234"),
        ("4321", "uid=4321 gid=0(root)"),
        ("", "uid=0(root) gid=0(root) groups=10(wheel)"),
    ],
)
def test_user(unionctl: Unionctl, user: str, expected: str) -> None:
    said = unionctl.out("run", "--rm", "-u", user, "busybox", "id")
    assert said.replace(" groups=0(root),10", " groups=10") == expected


def test_a_user_other_than_root_has_no_capabilities(unionctl: Unionctl) -> None:
    said = unionctl.out("run", "--rm", "-u", "alice", "busybox", "grep", "Cap", "/proc/self/status")
    values = dict(line.split(":\t") for line in said.splitlines())
    assert values["CapEff"] == values["CapPrm"] == values["CapInh"] == values["CapAmb"] == "0" * 16
    assert values["CapBnd"] == "00000000a80425fb"  # docker's default set


def test_entrypoint_and_command_of_the_image(unionctl: Unionctl) -> None:
    unionctl.load("echo", Entrypoint=["echo", "entry"], Cmd=["image"], User="alice", WorkingDir="/opt")
    assert unionctl.out("run", "--rm", "echo") == "entry image"
    assert unionctl.out("run", "--rm", "echo", "mine") == "entry mine"
    assert unionctl.out("run", "--rm", "--entrypoint", "pwd", "echo") == "/opt"
    assert unionctl.out("run", "--rm", "--entrypoint", "", "echo", "id", "-un") == "alice"
    unionctl("run", "--rm", "--entrypoint", "", "echo", code=125)


def test_hostname_is_in_every_place(unionctl: Unionctl) -> None:
    script = "hostname; cat /etc/hostname; grep -c box /etc/hosts; grep two /etc/hosts"
    options = ["-h", "box", "--add-host", "two:10.0.0.2"]
    said = unionctl.out("run", "--rm", *options, "busybox", "sh", "-c", script)
    assert said.splitlines() == ["box", "box", "1", "10.0.0.2\ttwo"]
    said = unionctl.out("run", "--rm", "busybox", "hostname")
    assert len(said) == 12 and int(said, 16) >= 0


def test_read_only_root_has_writable_mounts(unionctl: Unionctl) -> None:
    assert "Read-only" in unionctl.err("run", "--rm", "--read-only", "busybox", "touch", "/x", code=1)
    unionctl("run", "--rm", "--read-only", "--tmpfs", "/tmp", "busybox", "touch", "/tmp/x")


def test_network_none_has_only_the_loopback_and_host_has_the_hosts(unionctl: Unionctl) -> None:
    def interfaces(network: str) -> set[str]:
        said = unionctl.out("run", "--rm", "--network", network, "busybox", "cat", "/proc/net/dev")
        return {line.split(":")[0].strip() for line in said.splitlines()[2:]}

    # Kernels make tunnel devices in every new network: what counts is that the host's are not there.
    assert "lo" in interfaces("none") and "eth0" not in interfaces("none")
    assert interfaces("host") == set(os.listdir("/sys/class/net"))


def test_stdin_passes_through_unharmed(unionctl: Unionctl) -> None:
    data = random.Random(1).randbytes(20_000_000)
    assert unionctl("run", "--rm", "-i", "busybox", "cat", stdin=data).stdout == data
    digest = hashlib.md5(data).hexdigest()
    assert unionctl.out("run", "--rm", "-i", "busybox", "md5sum", stdin=data).split()[0] == digest


def test_without_i_stdin_is_empty(unionctl: Unionctl) -> None:
    assert unionctl("run", "--rm", "busybox", "cat", stdin=b"not for you").stdout == b""


def test_a_command_that_does_not_read_its_stdin_ends_all_the_same(unionctl: Unionctl) -> None:
    unionctl("run", "--rm", "-i", "busybox", "true", stdin=bytes(5_000_000))


def test_large_output_to_a_slow_reader_is_complete(unionctl: Unionctl) -> None:
    with unionctl.popen(
        "run", "--rm", "busybox", "sh", "-c", "yes 0123456789abcde | head -c 8000000", stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        total = 0
        while data := process.stdout.read(100_000):
            assert data.startswith(b"0123456789abcde\n"[total % 16 :])
            total += len(data)
            time.sleep(0.002)
    assert total == 8_000_000 and process.returncode == 0


def test_signals_are_passed_on(unionctl: Unionctl) -> None:
    script = "trap 'echo caught; exit 7' TERM; echo ready; while :; do sleep 0.1; done"
    with unionctl.popen("run", "--rm", "busybox", "sh", "-c", script, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"caught\n"
    assert process.returncode == 7


def test_limits_are_set_in_the_cgroup(unionctl: Unionctl) -> None:
    options = ["-m", "32m", "--cpus", "0.5", "--pids-limit", "20"]
    unionctl("run", "-d", "--name", "box", *options, "busybox", "sleep", "60")
    group = f"unionfs-{unionctl.directory('box').name}"
    values = {
        path: (Path("/sys/fs/cgroup") / path.replace("*", group)).read_text().strip()
        for path in ("memory/*/memory.limit_in_bytes", "cpu/*/cpu.cfs_quota_us", "pids/*/pids.max")
        if not Path("/sys/fs/cgroup/cgroup.controllers").exists()
    }
    assert list(values.values()) in ([], [str(32 << 20), "50000", "20"])
    config = ["{{.HostConfig.Memory}}", "{{.HostConfig.NanoCpus}}", "{{.HostConfig.PidsLimit}}"]
    assert unionctl.out("inspect", "-f", " ".join(config), "box") == f"{32 << 20} 500000000 20"


def test_memory_limit_kills(unionctl: Unionctl) -> None:
    hog = ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"]
    unionctl("run", "--name", "box", "-m", "16m", "busybox", *hog, code=137)
    state = unionctl.out("inspect", "-f", "{{json .State.OOMKilled}} {{.State.ExitCode}}", "box")
    assert state == "true 137"
    unionctl("run", "--rm", "-m", "128m", "busybox", *hog)


def test_pids_limit_stops_forks(unionctl: Unionctl) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; echo all"
    result = unionctl("run", "--rm", "--pids-limit", "5", "busybox", "sh", "-c", script, code=None)
    assert b"can't fork" in result.stderr and b"all" not in result.stdout


def test_what_cannot_be_applied_is_said(unionctl: Unionctl) -> None:
    bounding = int(Path("/proc/self/status").read_text().split("CapBnd:")[1].split()[0], 16)
    if bounding >> 24 & 1:
        pytest.skip("CAP_SYS_RESOURCE is here: all can be applied")
    options = ["--oom-score-adj", "-500", "--cap-add", "SYS_RESOURCE", "--ulimit", "nofile=9999999"]
    result = unionctl("run", "--rm", *options, "busybox", "true")
    warnings = result.stderr.decode().splitlines()
    assert len(warnings) == 3 and all(line.startswith("WARNING: ") for line in warnings)


def test_ulimit(unionctl: Unionctl) -> None:
    script = "ulimit -n; ulimit -Hn"
    said = unionctl.out("run", "--rm", "--ulimit", "nofile=100:200", "busybox", "sh", "-c", script)
    assert said == "100\n200"


def test_capabilities_can_be_added_and_dropped(unionctl: Unionctl) -> None:
    def held(*options: str) -> int:
        said = unionctl.out("run", "--rm", *options, "busybox", "grep", "CapEff", "/proc/self/status")
        return int(said.split()[1], 16)

    assert held("--cap-drop", "ALL") == 0
    assert held("--cap-drop", "all", "--cap-add", "chown") == 1
    assert held("--cap-add", "NET_ADMIN") == 0xA80425FB | 1 << 12
    unionctl("run", "--rm", "--cap-add", "NO_SUCH", "busybox", "true", code=125)


def test_seccomp_and_masked_paths_confine(unionctl: Unionctl) -> None:
    script = """
        grep Seccomp: /proc/self/status; grep NoNewPrivs /proc/self/status; ls /sys/firmware | wc -l
        unshare -U true
    """
    result = unionctl("run", "--rm", "busybox", "sh", "-c", script, code=1)
    assert result.stdout.decode().split() == ["Seccomp:", "2", "NoNewPrivs:", "0", "0"]
    assert b"not permitted" in result.stderr
    options = ["--security-opt", "seccomp=unconfined", "--security-opt", "no-new-privileges"]
    result = unionctl("run", "--rm", *options, "busybox", "sh", "-c", script, code=None)
    assert result.stdout.decode().split() == ["Seccomp:", "0", "NoNewPrivs:", "1", "0"]


def test_passwd_that_is_a_symlink_out_of_the_image_leads_nowhere(unionctl: Unionctl, tmp_path: Path) -> None:
    outside = tmp_path / "passwd"
    outside.write_text("mallory:x:7:7::/:/bin/sh\n")
    unionctl("create", "--name", "box", "-u", "mallory", "busybox", "id")
    upper = unionctl.directory("box") / "upper"
    (upper / "etc").mkdir()
    (upper / "etc" / "passwd").symlink_to(outside)
    assert "unable to find user mallory" in unionctl.err("start", "-a", "box", code=None)


def test_cidfile(unionctl: Unionctl, tmp_path: Path) -> None:
    cidfile = str(tmp_path / "cid")
    unionctl("run", "-d", "--cidfile", cidfile, "busybox", "true")
    assert Path(cidfile).read_text() == unionctl.out("ps", "-aq", "--no-trunc")
    unionctl("run", "-d", "--cidfile", cidfile, "busybox", "true", code=125)


def test_nothing_is_made_where_the_id_cannot_be_written(unionctl: Unionctl, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "missing" / "cid")
    assert nowhere in unionctl.err("run", "--cidfile", nowhere, "busybox", "true", code=125)
    cidfile = tmp_path / "cid"
    unionctl("run", "--cidfile", str(cidfile), "no-such-image", "true", code=125)
    assert not cidfile.exists()
    assert unionctl.out("ps", "-aq") == ""


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--add-host", "foo", "'foo'"),
        ("--add-host", ":10.0.0.1", "':10.0.0.1'"),
        ("--add-host", "foo:bar", "'bar'"),
        ("--ulimit", "nofile=5:1", "nofile=5:1"),
        ("--ulimit", "nofile=x", "nofile=x"),
        ("--ulimit", "shoes=1", "shoes"),
        ("--oom-score-adj", "2000", "2000"),
        ("--label", "=x", "'=x'"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_made(
    unionctl: Unionctl, option: str, value: str, named: str
) -> None:
    said = unionctl.err("create", option, value, "busybox", code=125)
    assert named in said and said.count("\n") == 1
    assert unionctl.out("ps", "-aq") == ""


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_runtime_is_the_one_that_was_asked_for(unionctl: Unionctl, runtime: str) -> None:
    result = unionctl("run", "--name", "box", "--runtime", runtime, "busybox", "echo", "ran", code=None)
    if result.returncode == 125:  # it does not work on this machine, and nothing else was taken instead
        assert result.stdout == b"" and result.stderr
    else:
        assert result.stdout == b"ran\n"
    assert unionctl.out("inspect", "-f", "{{.HostConfig.Runtime}}", "box").endswith(runtime)
