"""A container's record: what was asked for, what became of it, and how the two are kept on disk.

One directory for each container, named by its ID:

    container.json    the record, replaced by rename
    lock              taken (flock) by whoever changes the container; its content is the last exit code
    init/             the lowest of our own layers: what the runtime mounts onto, as the image lacks it
    upper/ work/      the copy-on-write layer
    rootfs/           where the union is mounted while the container runs
    netns, netavark/  its network namespace, and how it was connected to networks
    shm/              its /dev/shm, if others may share that
    oci/              the OCI runtime's own state
    run-N/            the Nth start: config.json, conmon's pid files, attach socket, exit code
    log, log.1, …     what the container wrote, in the CRI log format, and what was before
    restart-lock      held by the process that waits to restart it

A process that dies at any moment leaves a record that is true or one that `lifecycle.settle` can mend: the
status `starting` with a free lock means that the starter died, `running` without a monitor that the
container ended unseen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from runtime.containers.mounts import Mount
from runtime.containers.names import random_name
from runtime.containers.ports import Port
from runtime.errors import NotFound, RuntimeFailure
from runtime.root import Root

Status = Literal["created", "starting", "running", "paused", "restarting", "exited"]

#: docker's way to write "never".
NEVER = "0001-01-01T00:00:00Z"


@dataclass(frozen=True)
class Healthcheck:
    """How a container is asked whether it is well; None leaves to the image, 0 to docker's default.

    Lengths of time are nanoseconds. `test` is docker's: ("NONE",), ("CMD", WORD, …) or ("CMD-SHELL", LINE).
    """

    test: tuple[str, ...] | None = None
    interval: int | None = None
    timeout: int | None = None
    start_period: int | None = None
    start_interval: int | None = None
    retries: int | None = None


@dataclass(frozen=True)
class Endpoint:
    """A container's place in a network: what was asked for, and as long as it runs what it has."""

    network: str
    aliases: tuple[str, ...] = ()  # more names of it there
    wanted_address: str = ""
    wanted_mac: str = ""
    network_id: str = ""
    address: str = ""
    last_address: str = ""  # that it gets again if it can
    prefix: int = 0
    gateway: str = ""
    mac: str = ""
    interface: str = ""


@dataclass(frozen=True)
class Request:
    """What the user asked for, in the words of docker run; the image supplies what is None or empty."""

    image: str
    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    hostname: str = ""
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    tty: bool = False
    stdin: bool = False
    stdin_once: bool = False  # the first client that leaves closes the container's stdin
    remove: bool = False
    read_only: bool = False
    mounts: tuple[Mount, ...] = ()
    network: str = "none"  # none, host, container:ID or a network's name
    network_aliases: tuple[str, ...] = ()
    address: str = ""
    mac: str = ""
    ports: tuple[str, ...] = ()  # as -p has them
    expose: tuple[str, ...] = ()
    publish_all: bool = False
    extra_hosts: tuple[str, ...] = ()
    memory: int = 0
    nano_cpus: int = 0
    pids_limit: int = 0
    shm_size: int = 64 << 20
    ulimits: tuple[str, ...] = ()
    oom_score_adj: int = 0
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    privileged: bool = False
    no_new_privileges: bool = False
    seccomp: str = ""  # "" is our profile, "unconfined" none, else the JSON of one
    runtime: str = ""
    stop_signal: str = ""
    stop_timeout: int = 10
    init: bool = False  # a small init is process 1: it passes signals on and reaps
    restart: str = "no"  # no, always, unless-stopped, on-failure[:MAXIMUM]
    healthcheck: Healthcheck | None = None  # None, and what is None in it, is the image's
    devices: tuple[str, ...] = ()
    device_rules: tuple[str, ...] = ()
    group_add: tuple[str, ...] = ()
    sysctls: dict[str, str] = dataclasses.field(default_factory=dict)
    pid: str = ""  # the modes of namespaces.py
    ipc: str = ""
    uts: str = ""
    userns: str = ""
    cgroupns: str = ""
    domainname: str = ""
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    volumes_from: tuple[str, ...] = ()
    log_driver: str = ""
    log_options: dict[str, str] = dataclasses.field(default_factory=dict)
    memory_reservation: int = 0
    memory_swap: int = 0  # memory and swap together; -1 is "no limit", 0 twice the memory
    cpu_shares: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""


@dataclass(frozen=True)
class Process:
    """What the image's config and the request come to."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    user: str
    stop_signal: str
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]


@dataclass(frozen=True)
class State:
    """How the container is; of the record's other fields only name, limits and networks ever change."""

    status: Status = "created"
    pid: int = 0
    exit_code: int = 0
    started_at: str = NEVER
    finished_at: str = NEVER
    oom_killed: bool = False
    error: str = ""
    starts: int = 0
    restarts: int = 0  # by the restart policy, since it was last started by hand
    restart_delay: float = 0.0  # seconds; how long the policy waited, or waits, before the last restart
    stopped: bool = False  # somebody stopped or killed it: the policy does not restart it
    runtime: str = ""  # the OCI runtime that holds it
    ports: tuple[Port, ...] = ()  # published, as long as it runs

    @property
    def live(self) -> bool:
        """Whether there is, or should be, a process."""
        return self.status in ("starting", "running", "paused")

    @property
    def active(self) -> bool:
        """Whether it runs in docker's sense: what waits to be restarted does."""
        return self.live or self.status == "restarting"


@dataclass(frozen=True)
class Container:
    """One container's record, and where its files are."""

    directory: Path
    id: str
    name: str
    created: str
    image_id: str
    layers: tuple[str, ...]  # unpacked, bottom first
    request: Request
    process: Process
    mounts: tuple[Mount, ...]  # all of them, anonymous volumes by name
    labels: dict[str, str]
    healthcheck: Healthcheck | None = None  # what the image's and the request's come to
    endpoints: tuple[Endpoint, ...] = ()  # the networks that it is in
    exposed: tuple[str, ...] = ()  # ports that the image or the request names: 80/tcp
    state: State = State()

    @property
    def rootfs(self) -> Path:
        """Where the union is mounted while the container runs."""
        return self.directory / "rootfs"

    @property
    def upper(self) -> Path:
        """The copy-on-write layer."""
        return self.directory / "upper"

    @property
    def shm(self) -> Path:
        """The /dev/shm of a container that lets others share it."""
        return self.directory / "shm"

    @property
    def netns(self) -> Path:
        """Where the network namespace of a running container is mounted, if it has one that we made."""
        return self.directory / "netns"

    @property
    def log(self) -> Path:
        """What the container wrote."""
        return self.directory / "log"

    @property
    def bundle(self) -> Path:
        """The OCI bundle of the present start, or of the last one."""
        return self.directory / f"run-{self.state.starts}"

    def with_state(self, **changes: Any) -> Container:
        """The same container in a changed state; nothing is saved."""
        return dataclasses.replace(self, state=dataclasses.replace(self.state, **changes))

    def save(self) -> Container:
        """Write the record; a reader sees the old one or the new."""
        record = dataclasses.asdict(self)
        del record["directory"]
        write_atomically(self.directory / "container.json", json.dumps(record, indent=1))
        return self


def now() -> str:
    """This instant as docker writes it: RFC 3339 in UTC, with nanoseconds."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def write_atomically(path: Path, text: str) -> None:
    """Make `path` hold `text`, by a rename over it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def load(directory: Path) -> Container:
    """Read the record in `directory`.

    Raises FileNotFoundError when there is none (any more), RuntimeFailure when it makes no sense.
    """
    text = (directory / "container.json").read_text()
    try:
        record = json.loads(text)
        request = {
            **record["request"],
            "mounts": _mounts(record["request"]["mounts"]),
            "healthcheck": _healthcheck(record["request"].get("healthcheck")),
        }
        record["request"] = Request(**_tuples(request))
        record["healthcheck"] = _healthcheck(record.get("healthcheck"))
        record["process"] = Process(**_tuples(record["process"]))
        record["mounts"] = _mounts(record["mounts"])
        record["endpoints"] = tuple(Endpoint(**_tuples(one)) for one in record.get("endpoints", ()))
        ports = tuple(Port(**port) for port in record["state"].get("ports", ()))
        record["state"] = State(**{**record["state"], "ports": ports})
        return Container(directory=directory, **_tuples(record))
    except (ValueError, KeyError, TypeError) as error:
        raise RuntimeFailure(f"{directory / 'container.json'} is damaged: {error}") from error


def _mounts(records: list[dict[str, Any]]) -> tuple[Mount, ...]:
    return tuple(Mount(**_tuples(record)) for record in records)


def _healthcheck(record: dict[str, Any] | None) -> Healthcheck | None:
    return None if record is None else Healthcheck(**_tuples(record))


def _tuples(record: dict[str, Any]) -> dict[str, Any]:
    """`record` with tuples where JSON knows only lists."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}


def load_all(root: Root) -> list[Container]:
    """All containers, the newest first."""
    containers = []
    for entry in _entries(root):
        with contextlib.suppress(FileNotFoundError):  # removed since it was listed
            containers.append(load(root.containers / entry))
    return sorted(containers, key=lambda container: container.created, reverse=True)


def find(root: Root, reference: str) -> Container:
    """The container that `reference` means: a name, an ID, or the beginning of one ID only.

    Raises RuntimeFailure when there is none, or when it begins several IDs.
    """
    containers = load_all(root)
    name = reference.removeprefix("/")
    for container in containers:
        if name == container.name or reference == container.id:
            return container
    matches = [container for container in containers if reference and container.id.startswith(reference)]
    if len(matches) > 1:
        raise RuntimeFailure(f"Multiple IDs found with provided prefix: {reference}")
    if not matches:
        raise NotFound(f"No such container: {reference}")
    return matches[0]


def images_in_use(root: Root) -> dict[str, str]:
    """Image ID → the ID of a container made of it, for all that have one."""
    return {container.image_id: container.id for container in load_all(root)}


def _entries(root: Root) -> list[str]:
    try:
        return [name for name in os.listdir(root.containers) if len(name) == 64]
    except FileNotFoundError:
        return []


class Gone(RuntimeFailure):
    """The container was removed."""


#: The locks this process holds, by directory.
_held: dict[Path, int] = {}


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[Container]:
    """Hold the container's lock, and give its record as it is now.

    Raises Gone when the container was removed before the lock was had.
    """
    with contextlib.ExitStack() as stack:
        try:
            fd = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX)
            container = load(directory)
        except FileNotFoundError:
            raise Gone(f"No such container: {directory.name}") from None
        _held[directory] = fd
        stack.callback(_held.pop, directory)
        yield container


def lock_descriptor(directory: Path) -> int:
    """The descriptor by which this process holds the container's lock (see `locked`)."""
    return _held[directory]


def lock_is_free(directory: Path) -> bool:
    """Whether nobody changes the container at this moment."""
    try:
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


@contextlib.contextmanager
def all_names_locked(root: Root) -> Iterator[list[Container]]:
    """Hold the lock under which containers get their names, and give all that there are."""
    fd = os.open(root.containers / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield load_all(root)
    finally:
        os.close(fd)


def publish(root: Root, container: Container) -> Container:
    """Give a new container its place and its name, all at once or not at all.

    An empty name is replaced by a random one.

    Raises RuntimeFailure when the name is taken.
    """
    with all_names_locked(root) as others:
        names = {other.name: other.id for other in others}
        if container.name in names:
            raise RuntimeFailure(
                f'Conflict. The container name "/{container.name}" is already in use by container '
                f'"{names[container.name]}". You have to remove (or rename) that container to be able to '
                f"reuse that name."
            )
        staging = root.tmp / f"container-{container.id}"
        staging.mkdir(mode=0o700)
        for part in ("upper", "work", "rootfs", "init"):
            (staging / part).mkdir(mode=0o755)
        (staging / "lock").touch(mode=0o600)
        named = dataclasses.replace(container, name=container.name or random_name(names))
        dataclasses.replace(named, directory=staging).save()
        os.rename(staging, named.directory)
        return named


def discard(root: Root, directory: Path) -> None:
    """Remove a container's directory: it is gone by one rename, its bytes follow.

    Leftovers of removals that were cut short go with it.
    """
    os.rename(directory, root.tmp / f"removed-{directory.name}")
    for leftover in root.tmp.glob("removed-*"):
        shutil.rmtree(leftover, ignore_errors=True)
