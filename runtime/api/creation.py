"""What a client asks for in POST /containers/create, as the runtime's Request.

What the runtime cannot do is refused by name when it would change what the container is or may do; a wish
that only tunes it becomes a warning in the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runtime.api.errors import ApiError, NotImplementedHere
from runtime.api.values import Fields
from runtime.containers import mounts, rotation
from runtime.containers.container import Endpoint, Healthcheck, Request
from runtime.containers.mounts import Mount

#: Fields of HostConfig that are refused, with the values by which clients say "default".
_REFUSED: dict[str, tuple[Any, ...]] = {
    "DeviceRequests": (),
    "Links": (),
    "Isolation": ("", "default"),
}
_WARNED: dict[str, tuple[Any, ...]] = {
    "BlkioWeight": (0,),
    "OomKillDisable": (False,),
    "MemorySwappiness": (-1, 0),
    "CgroupParent": ("",),
    "StorageOpt": (),
    "VolumeDriver": ("", "local"),
}


@dataclass(frozen=True)
class Wanted:
    """A request, what of it cannot be had, and the (rows, columns) that its terminal begins with."""

    request: Request
    warnings: list[str]
    window: tuple[int, int] | None
    more: list[Endpoint]  # networks to be connected to besides the request's own


def to_request(config: Fields) -> Wanted:
    """The body of a create as a Request.

    Raises ApiError 400 for what makes no sense, 501 for what the runtime has not.
    """
    host = config.fields("HostConfig")
    warnings = _check(host)
    if not config.text("Image"):
        raise ApiError(400, "no image was named: Config.Image is empty")
    log = host.fields("LogConfig")
    mode = host.text("NetworkMode") or "default"
    endpoint = endpoint_of(mode, _first_endpoint(config, mode))
    driver = log.text("Type")
    no_new_privileges, seccomp = _security(host.texts("SecurityOpt"))
    entrypoint = config.words("Entrypoint")
    attached = config.flag("AttachStdin")
    window = host.value.get("ConsoleSize")
    size = tuple(window) if isinstance(window, list) and len(window) == 2 and all(window) else None
    return Wanted(
        Request(
            image=config.text("Image"),
            command=config.words("Cmd") or (),
            entrypoint=tuple(filter(None, entrypoint)) if entrypoint else None,
            env=config.texts("Env"),
            working_dir=config.text("WorkingDir"),
            user=config.text("User"),
            hostname=config.text("Hostname"),
            labels=config.mapping("Labels"),
            tty=config.flag("Tty"),
            stdin=config.flag("OpenStdin"),
            stdin_once=config.flag("StdinOnce") or (attached and config.flag("OpenStdin")),
            remove=host.flag("AutoRemove"),
            read_only=host.flag("ReadonlyRootfs"),
            mounts=tuple(_mounts(config, host)),
            network=mode,
            network_aliases=endpoint.aliases if mode not in ("default", "bridge") else (),
            address=endpoint.wanted_address,
            mac=endpoint.wanted_mac or config.text("MacAddress"),
            ports=tuple(_ports(host.fields("PortBindings"))),
            expose=config.keys("ExposedPorts"),
            publish_all=host.flag("PublishAllPorts"),
            extra_hosts=host.texts("ExtraHosts"),
            init=host.flag("Init"),
            restart=_restart(host.fields("RestartPolicy")),
            healthcheck=_healthcheck(config.fields("Healthcheck")),
            devices=tuple(_device(fields) for fields in host.list("Devices")),
            device_rules=host.texts("DeviceCgroupRules"),
            group_add=host.texts("GroupAdd"),
            sysctls=host.mapping("Sysctls"),
            privileged=host.flag("Privileged"),
            pid=host.text("PidMode"),
            ipc=host.text("IpcMode"),
            uts=host.text("UTSMode"),
            userns=host.text("UsernsMode"),
            cgroupns=host.text("CgroupnsMode"),
            domainname=config.text("Domainname"),
            dns=host.texts("Dns"),
            dns_search=host.texts("DnsSearch"),
            dns_options=host.texts("DnsOptions"),
            volumes_from=host.texts("VolumesFrom"),
            log_driver=driver if driver in rotation.DRIVERS else "",
            log_options=log.mapping("Config") if driver in rotation.DRIVERS else {},
            memory=host.number("Memory"),
            memory_reservation=host.number("MemoryReservation"),
            memory_swap=host.number("MemorySwap"),
            cpu_shares=host.number("CpuShares"),
            cpuset_cpus=host.text("CpusetCpus"),
            cpuset_mems=host.text("CpusetMems"),
            nano_cpus=_nano_cpus(host),
            pids_limit=max(host.number("PidsLimit"), 0),
            shm_size=host.number("ShmSize") or 64 << 20,
            ulimits=tuple(_ulimits(host)),
            oom_score_adj=host.number("OomScoreAdj"),
            cap_add=host.texts("CapAdd"),
            cap_drop=host.texts("CapDrop"),
            no_new_privileges=no_new_privileges,
            seccomp=seccomp,
            runtime=host.text("Runtime"),
            stop_signal=config.text("StopSignal"),
            stop_timeout=config.number("StopTimeout", 10),
        ),
        warnings,
        size,
        more_endpoints(config),
    )


def to_changes(wanted: Fields) -> dict[str, Any]:
    """The body of an update as fields of a Request; what is 0, empty or absent stays as it is.

    Raises ApiError 400 for what makes no sense.
    """
    changes: dict[str, Any] = {
        "memory": wanted.number("Memory"),
        "memory_reservation": wanted.number("MemoryReservation"),
        "memory_swap": wanted.number("MemorySwap"),
        "nano_cpus": _nano_cpus(wanted),
        "cpu_shares": wanted.number("CpuShares"),
        "cpuset_cpus": wanted.text("CpusetCpus"),
        "cpuset_mems": wanted.text("CpusetMems"),
        "pids_limit": wanted.number("PidsLimit"),
    }
    policy = wanted.fields("RestartPolicy")
    if policy.text("Name"):
        changes["restart"] = _restart(policy)
    return {key: value for key, value in changes.items() if value}


def _check(host: Fields) -> list[str]:
    for key, defaults in _REFUSED.items():
        value = host.value.get(key)
        if value and value not in defaults:
            raise NotImplementedHere(f"HostConfig.{key}")
    driver = host.fields("LogConfig").text("Type")
    warnings = [
        f"HostConfig.{key} is not applied"
        for key, defaults in _WARNED.items()
        if host.value.get(key) and host.value[key] not in defaults
    ]
    if driver not in rotation.DRIVERS:
        warnings.append(f"the log driver {driver} is not there: k8s-file is used")
    return warnings


def _restart(policy: Fields) -> str:
    """A RestartPolicy in the command's words."""
    name, maximum = policy.text("Name"), policy.number("MaximumRetryCount")
    if maximum and name != "on-failure":
        raise ApiError(400, f"invalid restart policy: maximum retry count cannot be used with '{name}'")
    return f"{name}:{maximum}" if maximum else name or "no"


def _healthcheck(check: Fields) -> Healthcheck | None:
    if not check.value:
        return None
    return Healthcheck(
        check.texts("Test") or None,
        *(check.number(key) for key in ("Interval", "Timeout", "StartPeriod", "StartInterval", "Retries")),
    )


def _device(fields: Fields) -> str:
    host = fields.text("PathOnHost")
    words = fields.text("PathInContainer") or host, fields.text("CgroupPermissions") or "rwm"
    return ":".join((host, *words))


def _ports(bindings: Fields) -> list[str]:
    """HostConfig.PortBindings in the words of -p."""
    found = []
    for key in bindings.value:
        for binding in bindings.list(key):
            address = binding.text("HostIp")
            address = f"[{address}]" if ":" in address else address
            found.append(f"{address}:{binding.text('HostPort')}:{key}")
    return found


def _first_endpoint(config: Fields, mode: str) -> Fields:
    """NetworkingConfig's words on the network `mode`."""
    endpoints = config.fields("NetworkingConfig").fields("EndpointsConfig")
    return endpoints.fields(mode) if mode in endpoints.value else Fields.of({})


def more_endpoints(config: Fields) -> list[Endpoint]:
    """The networks of NetworkingConfig besides HostConfig.NetworkMode."""
    mode = config.fields("HostConfig").text("NetworkMode") or "default"
    endpoints = config.fields("NetworkingConfig").fields("EndpointsConfig")
    names = [name for name in endpoints.value if name != mode]
    return [endpoint_of(name, endpoints.fields(name)) for name in names if mode not in ("host", "none")]


def endpoint_of(name: str, fields: Fields) -> Endpoint:
    """An EndpointSettings of the API."""
    address = fields.fields("IPAMConfig").text("IPv4Address")
    return Endpoint(name, fields.texts("Aliases"), address, fields.text("MacAddress"))


def _nano_cpus(host: Fields) -> int:
    quota = host.number("CpuQuota")
    if quota > 0:
        return quota * 10**9 // (host.number("CpuPeriod") or 100_000)
    return host.number("NanoCpus")


def _ulimits(host: Fields) -> list[str]:
    return [
        f"{limit.text('Name')}={limit.number('Soft')}:{limit.number('Hard')}"
        for limit in host.list("Ulimits")
    ]


def _mounts(config: Fields, host: Fields) -> list[Mount]:
    found = [mounts.parse_volume(text) for text in host.texts("Binds")]
    found += [_mount(fields) for fields in host.list("Mounts")]
    found += [mounts.parse_tmpfs(f"{path}:{words}") for path, words in host.mapping("Tmpfs").items()]
    taken = {mount.target for mount in found}
    found += [
        volume for volume in map(mounts.parse_volume, config.keys("Volumes")) if volume.target not in taken
    ]
    return found


def _mount(fields: Fields) -> Mount:
    """One of HostConfig.Mounts, by way of the command's own words for it."""
    kind = fields.text("Type") or "volume"
    words = [f"type={kind}", f"target={fields.text('Target')}"]
    if source := fields.text("Source"):
        if "," in source:
            raise ApiError(400, f"invalid mount source {source!r}: a comma")
        words.append(f"source={source}")
    if fields.flag("ReadOnly"):
        words.append("readonly")
    bind, volume, tmpfs = (fields.fields(f"{name}Options") for name in ("Bind", "Volume", "Tmpfs"))
    if propagation := bind.text("Propagation"):
        words.append(f"bind-propagation={propagation}")
    if bind.flag("NonRecursive"):
        words.append("bind-nonrecursive=true")
    if volume.flag("NoCopy"):
        words.append("volume-nocopy=true")
    if size := tmpfs.number("SizeBytes"):
        words.append(f"tmpfs-size={size}")
    if mode := tmpfs.number("Mode"):
        words.append(f"tmpfs-mode={mode:o}")
    return mounts.parse_mount(",".join(words))


def _security(options: tuple[str, ...]) -> tuple[bool, str]:
    """HostConfig.SecurityOpt as (no new privileges, seccomp); a seccomp profile comes as its JSON."""
    no_new_privileges, seccomp = False, ""
    for option in options:
        name, _, value = option.replace(":", "=", 1).partition("=")
        if name == "no-new-privileges":
            no_new_privileges = value in ("", "true")
        elif name == "seccomp":
            seccomp = "" if value == "builtin" else value
        elif name not in ("label", "apparmor"):
            raise ApiError(400, f"invalid --security-opt: {option!r}")
    return no_new_privileges, seccomp
