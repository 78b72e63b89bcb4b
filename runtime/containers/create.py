"""From an image and what was asked for to a container's record. Nothing runs yet."""

from __future__ import annotations

import dataclasses
import os
import posixpath
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

from runtime.containers import (
    devices,
    health,
    mounts,
    namespaces,
    netavark,
    networks,
    ports,
    restart,
    rotation,
    seccomp,
    spec,
    ulimits,
    volumes,
)
from runtime.containers.container import Container, Endpoint, Process, Request, find, now, publish
from runtime.containers.layers import Layers, make_init_layer
from runtime.containers.mounts import Mount
from runtime.containers.names import check_name, new_id
from runtime.containers.network import check_address, check_host
from runtime.containers.telling import tell
from runtime.errors import RuntimeFailure
from runtime.images.documents import ImageConfig
from runtime.images.store import Image
from runtime.root import Root

_MEMORY_MINIMUM = 6 << 20


def create(root: Root, image: Image, request: Request, name: str = "") -> Container:
    """Make a container of `image`; without `name` it gets one.

    New volumes are made here, empty: the first start fills them.

    Raises RuntimeFailure when the request makes no sense, or the name is taken.
    """
    _check(request)
    if name:
        check_name(name)
    process = merge(image.config, request)
    config = image.config.raw.get("config") or {}
    check = config.get("Healthcheck") if isinstance(config, dict) else None
    healthcheck = health.merge(check if isinstance(check, dict) else {}, request.healthcheck)
    request = dataclasses.replace(
        request,
        pid=namespaces.settled(root, request.pid, "pid"),
        ipc=namespaces.settled(root, request.ipc, "ipc"),
        network=_network(root, request),
    )
    endpoints = _endpoints(request)
    wanted = mounts.combine(request.mounts, image.config.volumes, _shared_mounts(root, request.volumes_from))
    for mount in wanted:
        if mount.kind == "bind" and not mount.create_source and not os.path.exists(mount.source):
            raise RuntimeFailure(f"bind source path does not exist: {mount.source}", 125)
    made: list[str] = []
    try:
        named = tuple(_with_volume(root, mount, made) for mount in wanted)
        identifier = new_id()
        container = publish(
            root,
            Container(
                directory=root.containers / identifier,
                id=identifier,
                name=name,
                created=now(),
                image_id=image.id,
                layers=tuple(map(str, image.trees)),
                request=request,
                process=process,
                mounts=named,
                labels={**image.config.labels, **request.labels},
                healthcheck=healthcheck,
                endpoints=endpoints,
                exposed=_exposed(request, image.config),
            ),
        )
    except BaseException:
        for volume in made:
            volumes.remove(root, volume, force=True)
        raise
    tell(root, container, "create")
    return container


def prepare_init_layer(container: Container, points: Sequence[str] = ()) -> Path:
    """The container's init layer, made now if it is not yet; the directory appears whole.

    `points` are further mount points that shall not show as changes of the container: paths without a
    leading slash, those of directories with one at the end.
    """
    init = container.directory / "init"
    if not (container.directory / "init-done").exists():
        shutil.rmtree(init, ignore_errors=True)
        init.mkdir(mode=0o755)
        make_init_layer(init, Layers(tuple(reversed(container.layers)) or (init,)), points)
        (container.directory / "init-done").touch()
    return init


def lower_layers(container: Container) -> list[str]:
    """What lies beneath the container's own layer, the uppermost first."""
    return [str(container.directory / "init"), *reversed(container.layers)]


def merge(image: ImageConfig, request: Request) -> Process:
    """The process that `image` and `request` come to; docker's rules.

    An entrypoint that was asked for drops the image's command; an empty one, the image's entrypoint.

    Raises RuntimeFailure when nothing is left to be executed.
    """
    if request.entrypoint is None:
        entrypoint, command = image.entrypoint or (), request.command or image.cmd or ()
    else:
        entrypoint, command = request.entrypoint, request.command
    args = (*entrypoint, *command)
    if not args:
        raise RuntimeFailure("no command specified", 125)
    working_dir = request.working_dir or image.working_dir or "/"
    if not working_dir.startswith("/"):
        if request.working_dir:
            raise RuntimeFailure(
                f"the working directory '{working_dir}' is invalid, it needs to be an absolute path", 125
            )
        working_dir = f"/{working_dir}"
    env = dict(pair.split("=", 1) for pair in image.env if "=" in pair)
    for pair in request.env:
        variable, equals, value = pair.partition("=")
        if equals:
            env[variable] = value
        else:
            env.pop(variable, None)
    return Process(
        args=args,
        env=tuple(f"{variable}={value}" for variable, value in env.items()),
        cwd=posixpath.normpath(working_dir),
        user=request.user or image.user,
        stop_signal=request.stop_signal or image.stop_signal or "SIGTERM",
        entrypoint=tuple(entrypoint),
        command=tuple(command),
    )


def signal_number(name: str) -> int:
    """The number of the signal `name`: `TERM`, `SIGTERM`, `sigterm`, `15`, `RTMIN+3`.

    Raises RuntimeFailure when there is no such signal.
    """
    text = name.upper().removeprefix("SIG")
    base, plus, offset = text.partition("+")
    if text.isdecimal() and 0 < int(text) <= signal.SIGRTMAX:
        return int(text)
    number = getattr(signal, f"SIG{base}", None)
    if isinstance(number, signal.Signals) and (not plus or offset.isdecimal()):
        return int(number) + int(offset or 0)
    raise RuntimeFailure(f"invalid signal: {name}")


def _check(request: Request) -> None:
    for text in request.ports:
        ports.parse(text)
    for text in request.expose:
        ports.parse_exposed(text)
    if request.address:
        check_address(request.address, "--ip")
    for entry in request.extra_hosts:
        check_host(entry)
    for text in request.ulimits:
        ulimits.parse(text)
    namespaces.check(request)
    name, _ = restart.parse(request.restart)
    if request.remove and name != "no":
        raise RuntimeFailure("conflicting options: cannot specify both --restart and --rm", 125)
    for text in request.devices:
        devices.nodes(devices.parse(text))
    for text in request.device_rules:
        devices.check_rule(text)
    rotation.check_options(request.log_driver, request.log_options)
    if request.init:
        spec.init_program()
    for address in request.dns:
        check_address(address, "DNS server")
    if request.stop_signal:
        signal_number(request.stop_signal)
    check_limits(request)
    if not -1000 <= request.oom_score_adj <= 1000:
        raise RuntimeFailure(
            f"invalid value {request.oom_score_adj}: the range of --oom-score-adj is [-1000, 1000]", 125
        )
    if "" in request.labels:
        raise RuntimeFailure(f"invalid label '={request.labels['']}': empty name", 125)
    seccomp.profile(request.seccomp, ())
    if request.hostname and len(request.hostname) > 64:
        raise RuntimeFailure(f"invalid hostname: {request.hostname}", 125)


def _network(root: Root, request: Request) -> str:
    """The network that was asked for by any of its names, or the default one.

    Raises RuntimeFailure when there is none, or it cannot be had with what else was asked for.
    """
    mode = request.network
    if mode in ("", "default"):
        mode = networks.default_network()
        if mode == "none" and (request.ports or request.publish_all):
            netavark.needed()
    if mode.startswith(namespaces.JOIN):
        if request.ports or request.publish_all or request.expose:
            raise RuntimeFailure(
                "conflicting options: port publishing and the container type network mode", 125
            )
        return namespaces.settled(root, mode, "network")
    network = networks.find(root, mode)
    if network.driver == "bridge":
        netavark.needed()
    own = network.name not in networks.BUILT_IN
    if (request.address or request.network_aliases) and not own:
        what = "user specified IP address" if request.address else "network-scoped aliases"
        raise RuntimeFailure(f"{what} is supported on user defined networks only", 125)
    return network.name


def _endpoints(request: Request) -> tuple[Endpoint, ...]:
    if request.network in ("host", "none") or request.network.startswith(namespaces.JOIN):
        return ()
    return (Endpoint(request.network, request.network_aliases, request.address, request.mac),)


def _exposed(request: Request, image: ImageConfig) -> tuple[str, ...]:
    """The ports that the image, --expose and -p name, as keys like 80/tcp."""
    keys = [key for text in (*image.exposed_ports, *request.expose) for key in ports.parse_exposed(text)]
    keys += [port.key for text in request.ports for port in ports.parse(text)]
    return tuple(dict.fromkeys(keys))


def check_limits(request: Request) -> None:
    """Raises RuntimeFailure when a limit on what a container may use makes no sense here."""
    if request.memory and request.memory < _MEMORY_MINIMUM:
        raise RuntimeFailure("Minimum memory limit allowed is 6MB", 125)
    available = os.cpu_count() or 1
    if request.nano_cpus < 0 or request.nano_cpus > available * 10**9:
        raise RuntimeFailure(f"range of CPUs is from 0.01 to {available:.2f}, as there are no more", 125)


def _shared_mounts(root: Root, names: tuple[str, ...]) -> list[Mount]:
    """The mounts of other containers, for --volumes-from NAME[:ro|:rw]; tmpfs are not shared."""
    found = []
    for text in names:
        name, _, mode = text.partition(":")
        if mode not in ("", "ro", "rw", "z", "Z"):
            raise RuntimeFailure(f"invalid --volumes-from '{text}': the mode is ro or rw", 125)
        found += [
            dataclasses.replace(mount, read_only=mode == "ro" or mount.read_only, anonymous=False)
            for mount in find(root, name).mounts
            if mount.kind != "tmpfs"
        ]
    return found


def _with_volume(root: Root, mount: Mount, made: list[str]) -> Mount:
    """`mount` with its volume there; an anonymous one is noted in `made`."""
    if mount.kind != "volume":
        return mount
    volume = volumes.create(root, mount.source)
    if not mount.source:
        made.append(volume.name)
    return dataclasses.replace(mount, source=volume.name)
