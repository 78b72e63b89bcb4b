"""The OCI runtime configuration of a container: config.json, as docker would write it.

The words are those of the runtime specification (config.md, config-linux.md). What the machine cannot do is
left out and said: each such thing is a warning for the user.
"""

from __future__ import annotations

import dataclasses
import resource
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime import rootless
from runtime.containers import cgroups, devices, seccomp, ulimits
from runtime.containers.container import Container, Request
from runtime.containers.mounts import Mount
from runtime.containers.users import User
from runtime.errors import RuntimeFailure

Json = dict[str, Any]
Warn = Callable[[str], None]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: What a process of uid 0 in a container may do; docker's default.
DEFAULT_CAPABILITIES = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)

#: In the order of their numbers (linux/capability.h).
_CAPABILITY_NAMES = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT
SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE
AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ
PERFMON BPF CHECKPOINT_RESTORE
"""
ALL_CAPABILITIES = tuple(f"CAP_{name}" for name in _CAPABILITY_NAMES.split())

#: Parts of /proc and /sys that show or change the host.
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

#: Where --init's program is in the container: on a /dev of its own, so that nothing of the image changes.
INIT = "/dev/init"
_INIT_PROGRAMS = ("docker-init", "tini-static", "tini", "catatonit")

_CPU_PERIOD = 100_000  # microseconds, the kernel's default
_NOSUID = ["nosuid", "noexec", "nodev"]


@dataclass(frozen=True)
class Bind:
    """A host path that is mounted in the container."""

    source: Path
    mount: Mount


def config(
    container: Container,
    user: User,
    binds: Iterable[Bind],
    files: dict[str, Path],
    namespaces: list[Json],
    shm: Path | None,
    window: tuple[int, int] | None,
    warn: Warn,
) -> Json:
    """The whole configuration.

    `binds` are the bind mounts and volumes with their host paths; `files` the files that are mounted for
    the network's sake, by their path in the container; `namespaces` those of linux.namespaces; `shm` a
    directory that takes the place of an own /dev/shm; `window` the terminal's (rows, columns). `warn` is told
    what this machine cannot give.

    Raises RuntimeFailure for a request that makes no sense: an unknown capability or limit, no such device.
    """
    request = container.request
    capabilities = _of_request(request, warn)
    by_target = {bind.mount.target: _bind(bind) for bind in binds}
    for mount in container.mounts:
        if mount.kind == "tmpfs":
            by_target[mount.target] = _tmpfs(mount)
    standard = _standard_mounts(
        request, shm, own_network=any(each["type"] == "network" for each in namespaces)
    )
    mounts = [mount for mount in standard if mount["destination"] not in by_target]
    mounts += [_plain_bind(path, source) for path, source in files.items() if path not in by_target]
    mounts += [by_target[mount.target] for mount in container.mounts if mount.target in by_target]

    if request.init:
        mounts.append(_plain_bind(INIT, Path(init_program()), "ro"))

    resources = _resources(container, warn)
    linux: Json = {
        # Without a path, a runtime that may make no cgroups leaves the container in the caller's.
        **({"cgroupsPath": cgroups.path_of(container.id)} if cgroups.can_be_made() else {}),
        "namespaces": namespaces,
        "resources": resources,
        "sysctl": _sysctls(request, namespaces),
    }
    if request.privileged:
        linux["devices"] = devices.host_nodes()
        resources["devices"] = [{"allow": True, "access": "rwm"}]
    else:
        linux["maskedPaths"] = list(MASKED_PATHS)
        linux["readonlyPaths"] = list(READONLY_PATHS)
        linux["devices"] = []
    taken = {node["path"] for node in linux["devices"]}
    for text in request.devices:
        nodes, rules = devices.nodes(devices.parse(text))
        linux["devices"] += [node for node in nodes if node["path"] not in taken]
        resources["devices"] += rules
    resources["devices"] += map(devices.rule, request.device_rules)
    profile = seccomp.profile(request.seccomp or ("unconfined" if request.privileged else ""), capabilities)
    if profile is not None:
        linux["seccomp"] = profile

    return {
        "ociVersion": "1.0.2",
        **({"hostname": hostname(container)} if _has(namespaces, "uts") else {}),
        "root": {"path": str(container.rootfs), "readonly": request.read_only},
        "process": process(container, user, capabilities, window, warn),
        "mounts": mounts,
        "linux": linux,
        "annotations": dict(container.labels),
    }


def process(
    container: Container,
    user: User,
    capabilities: Sequence[str],
    window: tuple[int, int] | None,
    warn: Warn,
) -> Json:
    """The `process` object of the container's first process."""
    request, wanted = container.request, container.process
    result: Json = {
        "terminal": request.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.additional_gids)},
        "args": [INIT, "--", *wanted.args] if request.init else list(wanted.args),
        "env": environment(wanted.env, container, user, request.tty),
        "cwd": wanted.cwd,
        "capabilities": capability_sets(user, capabilities),
        "noNewPrivileges": request.no_new_privileges,
        "rlimits": _rlimits(request.ulimits, warn),
    }
    if request.oom_score_adj < 0 and not _may_exceed_limits():
        warn("a negative OOM score needs CAP_SYS_RESOURCE, which is missing here: not applied")
    elif request.oom_score_adj:
        result["oomScoreAdj"] = request.oom_score_adj
    if request.tty and window:
        result["consoleSize"] = {"height": window[0], "width": window[1]}
    return result


def capability_sets(user: User, capabilities: Sequence[str]) -> Json:
    """The sets of a process: for a user other than root they only bound what a file may give (execve(2))."""
    held = list(capabilities) if user.uid == 0 else []
    return {"bounding": list(capabilities), "effective": held, "permitted": held}


def environment(wanted: Iterable[str], container: Container, user: User, tty: bool) -> list[str]:
    """What docker adds to the environment, below what image and user say."""
    merged = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname(container)}
    if tty:
        merged["TERM"] = "xterm"
    for pair in wanted:
        name, _, value = pair.partition("=")
        merged[name] = value
    merged.setdefault("HOME", user.home)
    return [f"{name}={value}" for name, value in merged.items()]


def hostname(container: Container) -> str:
    """The container's host name: as asked for, the host's in its network, else the short ID."""
    if container.request.hostname:
        return container.request.hostname
    if container.request.network == "host" or container.request.uts == "host":
        return Path("/proc/sys/kernel/hostname").read_text().strip()
    return container.id[:12]


def container_capabilities(container: Container, privileged: bool = False) -> list[str]:
    """The capabilities of the container, or all that there are, without a word on those missing here."""
    request = container.request
    if privileged:
        request = dataclasses.replace(request, privileged=True)
    return _of_request(request, lambda _: None)


def _of_request(request: Request, warn: Warn) -> list[str]:
    if request.privileged:  # all that there are here
        return _capabilities(("ALL",), (), lambda _: None)
    return _capabilities(request.cap_add, request.cap_drop, warn)


def _capabilities(add: Iterable[str], drop: Iterable[str], warn: Warn) -> list[str]:
    added, dropped = _capability_names(add), _capability_names(drop)
    wanted = set(() if "ALL" in dropped else DEFAULT_CAPABILITIES)
    wanted |= set(ALL_CAPABILITIES) if "ALL" in added else added
    wanted -= dropped
    missing = {name for name in wanted if not _have(name)}
    if missing - {"ALL"}:
        warn(f"not given, as this machine does not have it: {', '.join(sorted(missing))}")
    return sorted(wanted - missing - {"ALL"})


def _capability_names(names: Iterable[str]) -> set[str]:
    result = set()
    for name in names:
        upper = name.upper()
        full = upper if upper == "ALL" or upper.startswith("CAP_") else f"CAP_{upper}"
        if full != "ALL" and full not in ALL_CAPABILITIES:
            raise RuntimeFailure(f"invalid capability: '{name}'")
        result.add(full)
    return result


def _have(capability: str) -> bool:
    """Whether `capability` is in our bounding set (capabilities(7)), so that it can be given on."""
    if capability not in ALL_CAPABILITIES:
        return False
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapBnd:"):
            return bool(int(line.split()[1], 16) >> ALL_CAPABILITIES.index(capability) & 1)
    return False


def _may_exceed_limits() -> bool:
    """Whether we have CAP_SYS_RESOURCE where it counts: limits are the machine's, not a user namespace's."""
    return _have("CAP_SYS_RESOURCE") and not rootless.is_own_namespace()


def _rlimits(texts: Iterable[str], warn: Warn) -> list[Json]:
    """NAME=SOFT[:HARD] as rlimits, held below our own hard limits where we may not raise them."""
    limits = []
    for text in texts:
        limit = ulimits.parse(text)
        name, soft, hard = limit.name, limit.soft, limit.hard
        ours = resource.getrlimit(limit.resource)[1]
        if ours != resource.RLIM_INFINITY and not _may_exceed_limits() and not 0 <= hard <= ours:
            warn(f"ulimit {name} is held at {ours}: more needs CAP_SYS_RESOURCE, which is missing here")
            hard = ours
            soft = min(soft, hard) if soft >= 0 else hard
        # -1 is "unlimited"; the runtime takes the kernel's RLIM_INFINITY.
        limits.append({"type": f"RLIMIT_{name.upper()}", "soft": soft % 2**64, "hard": hard % 2**64})
    return limits


def _has(namespaces: Iterable[Json], kind: str) -> bool:
    """Whether the container has a namespace of this kind of its own."""
    return any(namespace["type"] == kind and "path" not in namespace for namespace in namespaces)


def _sysctls(request: Request, namespaces: Iterable[Json]) -> dict[str, str]:
    sysctls = {}
    if any(namespace["type"] == "network" for namespace in namespaces) and ":" not in request.network:
        # Its own network: no port and no ping needs privilege there.
        sysctls["net.ipv4.ip_unprivileged_port_start"] = "0"
        sysctls["net.ipv4.ping_group_range"] = f"0 {rootless.last_gid()}"
    if request.domainname:
        sysctls["kernel.domainname"] = request.domainname
    return sysctls | request.sysctls


def init_program() -> str:
    """The host's program for --init.

    Raises RuntimeFailure when none is installed.
    """
    for name in _INIT_PROGRAMS:
        if program := shutil.which(name, path="/usr/libexec/podman:/usr/bin:/bin:/usr/sbin:/sbin"):
            return program
    raise RuntimeFailure(f"--init needs one of {', '.join(_INIT_PROGRAMS)}, and none is installed", 125)


def limits(container: Container, warn: Warn) -> Json:
    """The limits on the container's resources (config-linux.md, "Control groups"), its devices apart."""
    return {key: value for key, value in _resources(container, warn).items() if key != "devices"}


def _resources(container: Container, warn: Warn) -> Json:
    """The limits that were asked for and that this machine's cgroups know."""
    request = container.request
    rules: list[Json] = [
        {"allow": False, "access": "rwm"},
        # A node may be made (images have them), used only if it is one of the runtime's harmless ones.
        {"allow": True, "type": "c", "access": "m"},
        {"allow": True, "type": "b", "access": "m"},
    ]
    resources: Json = {"devices": rules}
    if request.memory:
        if cgroups.has_controller("memory"):
            resources["memory"] = {"limit": request.memory}
            if cgroups.can_limit_swap():
                resources["memory"]["swap"] = request.memory_swap or 2 * request.memory
            else:
                warn("the kernel does not account for swap: memory limited without swap")
        else:
            warn("no memory cgroup here: the memory limit is not applied")
    if request.memory_reservation:
        if cgroups.has_controller("memory"):
            resources.setdefault("memory", {})["reservation"] = request.memory_reservation
        else:
            warn("no memory cgroup here: the memory reservation is not applied")
    cpu: Json = {}
    if request.nano_cpus:
        cpu |= {"period": _CPU_PERIOD, "quota": request.nano_cpus * _CPU_PERIOD // 10**9}
    if request.cpu_shares:
        cpu["shares"] = request.cpu_shares
    if cpu and not cgroups.has_controller("cpu"):
        warn("no cpu cgroup here: the limit on CPUs is not applied")
        cpu = {}
    if request.cpuset_cpus or request.cpuset_mems:
        if cgroups.has_controller("cpuset"):
            cpu |= {"cpus": request.cpuset_cpus, "mems": request.cpuset_mems}
        else:
            warn("no cpuset cgroup here: the choice of CPUs is not applied")
    if cpu:
        resources["cpu"] = {key: value for key, value in cpu.items() if value}
    if request.pids_limit > 0:
        if cgroups.has_controller("pids"):
            resources["pids"] = {"limit": request.pids_limit}
        else:
            warn("no pids cgroup here: the limit on processes is not applied")
    return resources


def _standard_mounts(request: Request, shm: Path | None, *, own_network: bool) -> list[Json]:
    """The filesystems that every Linux container has (config-linux.md, "Default Filesystems")."""
    writable = "rw" if request.privileged else "ro"
    mounts: list[Json] = [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": _NOSUID},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*_NOSUID, writable]},
        {
            "destination": "/sys/fs/cgroup",
            "type": "cgroup",
            "source": "cgroup",
            "options": [*_NOSUID, writable],
        },
    ]
    if not own_network and not rootless.owns_network():
        # A sysfs shows a network, and is mounted only by who has rights in that one.
        mounts[:] = [mount for mount in mounts if not mount["destination"].startswith("/sys")]
        mounts.append(_plain_bind("/sys", Path("/sys"), *_NOSUID, "ro"))
    if request.ipc == "host" and Path("/dev/mqueue").is_dir():
        mounts.append(_plain_bind("/dev/mqueue", Path("/dev/mqueue")))
    elif request.ipc != "host":
        mqueue = {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": _NOSUID}
        mounts.append(mqueue)
    if shm is not None:
        mounts.append(_plain_bind("/dev/shm", shm))
    elif request.ipc != "none":
        options = [*_NOSUID, "mode=1777", f"size={request.shm_size}"]
        mounts.append({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": options})
    return mounts


def _plain_bind(target: str, source: Path, *more: str) -> Json:
    options = ["rbind", "rprivate", *more]
    return {"destination": target, "type": "bind", "source": str(source), "options": options}


def _bind(bind: Bind) -> Json:
    options = [option for option in bind.mount.options if option not in ("bind", "rbind")]
    # Recursive as docker's: what is mounted under the source is there too.
    recursive = "bind" if "bind" in bind.mount.options else "rbind"
    if not any(option.lstrip("r") in ("private", "shared", "slave") for option in options):
        options.append("rprivate")
    options.append("ro" if bind.mount.read_only else "rw")
    return {
        "destination": bind.mount.target,
        "type": "bind",
        "source": str(bind.source),
        "options": [recursive, *options],
    }


def _tmpfs(mount: Mount) -> Json:
    """A tmpfs. runc before 1.2 gives it the mode of the directory it covers, whatever `mode=` says."""
    options = [*mount.options, "ro"] if mount.read_only else list(mount.options)
    return {"destination": mount.target, "type": "tmpfs", "source": "tmpfs", "options": options}
