"""Containers, images and volumes in docker's words: the objects that inspect shows.

The field names are those of the Docker Engine API (ContainerInspect, ImageInspect, Volume).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from runtime.containers import cgroups, devices, health, networks, ports, restart, ulimits
from runtime.containers.container import Container, Endpoint, Healthcheck
from runtime.containers.create import lower_layers
from runtime.containers.health import Health
from runtime.containers.mounts import Mount
from runtime.containers.networks import Network
from runtime.containers.ports import Port
from runtime.containers.spec import hostname
from runtime.containers.volumes import Volume
from runtime.images.store import Image
from runtime.root import Root

Json = dict[str, Any]


def container(root: Root, subject: Container) -> Json:
    """What docker inspect shows of a container."""
    request, process, state = subject.request, subject.process, subject.state
    mounted = state.status in ("running", "paused")
    policy, maximum = restart.parse(request.restart)
    status = health.read(subject)
    return {
        "Id": subject.id,
        "Created": subject.created,
        "Path": process.args[0],
        "Args": list(process.args[1:]),
        "State": {
            "Status": "created" if state.status == "starting" else state.status,
            "Running": mounted or state.status == "restarting",
            "Paused": state.status == "paused",
            "Restarting": state.status == "restarting",
            "OOMKilled": state.oom_killed,
            "Dead": False,
            "Pid": state.pid if mounted else 0,
            "ExitCode": state.exit_code,
            "Error": state.error,
            "StartedAt": state.started_at,
            "FinishedAt": state.finished_at,
            **({"Health": _health(status)} if status is not None else {}),
        },
        "Image": subject.image_id,
        "ResolvConfPath": str(subject.directory / "resolv.conf"),
        "HostnamePath": str(subject.directory / "hostname"),
        "HostsPath": str(subject.directory / "hosts"),
        "LogPath": str(subject.log),
        "Name": f"/{subject.name}",
        "RestartCount": state.restarts,
        "Driver": "unionfs",
        "Platform": "linux",
        "HostConfig": {
            "Binds": [_bind_words(mount) for mount in request.mounts if mount.kind != "tmpfs"] or None,
            "Tmpfs": {
                mount.target: ",".join(mount.options) for mount in request.mounts if mount.kind == "tmpfs"
            },
            "NetworkMode": request.network,
            "PortBindings": _bindings(
                [port for text in request.ports for port in ports.parse(text)], chosen=False
            ),
            "PublishAllPorts": request.publish_all,
            "RestartPolicy": {"Name": policy, "MaximumRetryCount": maximum},
            "AutoRemove": request.remove,
            "CapAdd": list(request.cap_add) or None,
            "CapDrop": list(request.cap_drop) or None,
            "ExtraHosts": list(request.extra_hosts) or None,
            "Privileged": request.privileged,
            "GroupAdd": list(request.group_add) or None,
            "Devices": [_device(text) for text in request.devices],
            "DeviceCgroupRules": list(request.device_rules) or None,
            "Dns": list(request.dns),
            "DnsSearch": list(request.dns_search),
            "DnsOptions": list(request.dns_options),
            "VolumesFrom": list(request.volumes_from) or None,
            "PidMode": request.pid,
            "IpcMode": request.ipc or "private",
            "UTSMode": request.uts,
            "UsernsMode": request.userns,
            "CgroupnsMode": request.cgroupns or ("private" if cgroups.is_v2() else "host"),
            **({"Init": True} if request.init else {}),
            **({"Sysctls": dict(request.sysctls)} if request.sysctls else {}),
            "ReadonlyRootfs": request.read_only,
            "SecurityOpt": _security_options(subject),
            "ShmSize": request.shm_size,
            "Runtime": state.runtime or request.runtime,
            "Memory": request.memory,
            "MemoryReservation": request.memory_reservation,
            "MemorySwap": request.memory_swap or 2 * request.memory,
            "CpuShares": request.cpu_shares,
            "CpusetCpus": request.cpuset_cpus,
            "CpusetMems": request.cpuset_mems,
            "NanoCpus": request.nano_cpus,
            "PidsLimit": request.pids_limit or None,
            "OomScoreAdj": request.oom_score_adj,
            "Ulimits": [_ulimit(text) for text in request.ulimits] or None,
            "LogConfig": {
                "Type": "none" if request.log_driver == "none" else "k8s-file",
                "Config": dict(request.log_options),
            },
        },
        "GraphDriver": {
            "Name": "unionfs",
            "Data": {
                "LowerDir": ":".join(lower_layers(subject)),
                "UpperDir": str(subject.upper),
                "WorkDir": str(subject.directory / "work"),
                "MergedDir": str(subject.rootfs),
            },
        },
        "Mounts": [_mount(root, mount) for mount in subject.mounts],
        "Config": {
            "Hostname": hostname(subject),
            "Domainname": request.domainname,
            **({"ExposedPorts": {key: {} for key in subject.exposed}} if subject.exposed else {}),
            "User": process.user,
            "AttachStdin": request.stdin_once,
            "Tty": request.tty,
            "OpenStdin": request.stdin,
            "StdinOnce": request.stdin_once,
            "Env": list(process.env),
            "Cmd": list(process.command) or None,
            "Image": request.image,
            "Volumes": {mount.target: {} for mount in subject.mounts if mount.kind == "volume"} or None,
            "WorkingDir": process.cwd,
            "Entrypoint": list(process.entrypoint) or None,
            "Labels": dict(subject.labels),
            "StopSignal": process.stop_signal,
            "StopTimeout": request.stop_timeout,
            **({"Healthcheck": _healthcheck(subject.healthcheck)} if subject.healthcheck else {}),
        },
        "NetworkSettings": _network_settings(subject),
    }


def _network_settings(subject: Container) -> Json:
    running = subject.state.live
    first = subject.endpoints[0] if subject.endpoints else Endpoint("")
    published: Json = dict.fromkeys(subject.exposed) if running else {}
    found = {end.network: _endpoint(subject, end) for end in subject.endpoints}
    return {
        "SandboxID": subject.id if running else "",
        "SandboxKey": str(subject.netns) if running and subject.endpoints else "",
        "Ports": published | _bindings(subject.state.ports),
        "EndpointID": _endpoint_id(subject, first),
        "Gateway": first.gateway,
        "IPAddress": first.address,
        "IPPrefixLen": first.prefix if first.address else 0,
        "MacAddress": first.mac,
        "Networks": found or ({} if ":" in subject.request.network else {subject.request.network: {}}),
    }


def _endpoint(subject: Container, end: Endpoint) -> Json:
    own = end.network != "bridge"
    return {
        "IPAMConfig": {"IPv4Address": end.wanted_address} if end.wanted_address else None,
        "Links": None,
        "Aliases": list(end.aliases) or None,
        "MacAddress": end.mac,
        "NetworkID": end.network_id,
        "EndpointID": _endpoint_id(subject, end),
        "Gateway": end.gateway,
        "IPAddress": end.address,
        "IPPrefixLen": end.prefix if end.address else 0,
        "DNSNames": [subject.name, *end.aliases, subject.id[:12]] if own else None,
    }


def _endpoint_id(subject: Container, end: Endpoint) -> str:
    """64 hexadecimal digits that are the same as long as the container is in the network."""
    if not end.address:
        return ""
    return hashlib.sha256(f"{subject.id} {end.network_id}".encode()).hexdigest()


def _bindings(published: Iterable[Port], chosen: bool = True) -> Json:
    found: Json = {}
    for port in published:
        host = str(port.host) if port.host or chosen else ""
        found.setdefault(port.key, []).append({"HostIp": port.host_ip, "HostPort": host})
    return found


def network(root: Root, subject: Network) -> Json:
    """What docker network inspect shows."""
    config = [{"Subnet": subject.subnet, "Gateway": subject.gateway}] if subject.subnet else []
    return {
        "Name": subject.name,
        "Id": subject.id,
        "Created": subject.created,
        "Scope": "local",
        "Driver": subject.driver,
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": {}, "Config": config},
        "Internal": subject.internal,
        "Attachable": False,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {
            container.id: {
                "Name": container.name,
                "EndpointID": _endpoint_id(container, end),
                "MacAddress": end.mac,
                "IPv4Address": f"{end.address}/{end.prefix}",
                "IPv6Address": "",
            }
            for container, end in networks.members(root, subject)
        },
        "Options": dict(subject.options),
        "Labels": dict(subject.labels),
    }


def _health(health: Health) -> Json:
    return {
        "Status": health.status,
        "FailingStreak": health.failing_streak,
        "Log": [
            {"Start": probe.start, "End": probe.end, "ExitCode": probe.exit_code, "Output": probe.output}
            for probe in health.log
        ],
    }


def _healthcheck(check: Healthcheck) -> Json:
    keys = ("Interval", "Timeout", "StartPeriod", "StartInterval", "Retries")
    values = (check.interval, check.timeout, check.start_period, check.start_interval, check.retries)
    numbers = {key: value for key, value in zip(keys, values, strict=True) if value}
    return {"Test": list(check.test or ()), **numbers}


def _device(text: str) -> Json:
    device = devices.parse(text)
    return {
        "PathOnHost": device.host,
        "PathInContainer": device.container,
        "CgroupPermissions": device.access,
    }


def image(subject: Image) -> Json:
    """What docker inspect shows of an image."""
    raw = subject.config.raw
    return {
        "Id": subject.id,
        "RepoTags": [name.familiar for name in subject.names if name.tag],
        "RepoDigests": [digest.familiar for digest in subject.digests],
        "Created": str(raw.get("created") or "") or None,
        "Author": raw.get("author", ""),
        "Config": raw.get("config") or {},
        "Architecture": subject.config.architecture,
        "Os": subject.config.os,
        "Size": subject.size,
        "GraphDriver": {
            "Name": "unionfs",
            "Data": {"LowerDir": ":".join(str(layer.path) for layer in reversed(subject.layers))},
        },
        "RootFS": {"Type": "layers", "Layers": list(subject.config.diff_ids)},
    }


def volume(subject: Volume) -> Json:
    """What docker volume inspect shows."""
    return {
        "CreatedAt": subject.created,
        "Driver": "local",
        "Labels": subject.labels or None,
        "Mountpoint": str(subject.data),
        "Name": subject.name,
        "Options": None,
        "Scope": "local",
    }


def _mount(root: Root, mount: Mount) -> Json:
    common = {"Destination": mount.target, "Mode": ",".join(mount.options), "RW": not mount.read_only}
    if mount.kind == "volume":
        source = str(root.volumes / mount.source / "_data")
        return {
            "Type": "volume",
            "Name": mount.source,
            "Source": source,
            **common,
            "Driver": "local",
            "Propagation": "",
        }
    propagation = next(
        (word for word in mount.options if word.endswith(("private", "shared", "slave"))), "rprivate"
    )
    return {
        "Type": mount.kind,
        "Source": mount.source,
        **common,
        "Propagation": propagation if mount.kind == "bind" else "",
    }


def _bind_words(mount: Mount) -> str:
    words = [*mount.options, *(["ro"] if mount.read_only else [])]
    return ":".join(filter(None, [mount.source, mount.target, ",".join(words)]))


def _security_options(subject: Container) -> list[str] | None:
    options = ["no-new-privileges"] if subject.request.no_new_privileges else []
    if subject.request.seccomp:
        options.append(f"seccomp={subject.request.seccomp}")
    return options or None


def _ulimit(text: str) -> Json:
    limit = ulimits.parse(text)
    return {"Name": limit.name, "Soft": limit.soft, "Hard": limit.hard}
