"""The options that `run` and `create` share, and how they become a Request."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from runtime.cli.pulling import WHEN
from runtime.containers import mounts
from runtime.containers import seccomp as profiles
from runtime.containers.container import Healthcheck, Request
from runtime.containers.times import parse_duration
from runtime.errors import RuntimeFailure, one_line

Command = TypeVar("Command", bound=Callable[..., Any])

#: What follows IMAGE is the container's, dashes and all; and -h is the host name.
CONTEXT = {"allow_interspersed_args": False, "help_option_names": ["--help"]}

_OPTIONS = [
    click.argument("image"),
    click.argument("command", nargs=-1, type=click.UNPROCESSED),
    click.option("-i", "--interactive", is_flag=True, help="Pass our standard input on."),
    click.option("-t", "--tty", is_flag=True, help="Give the container a terminal."),
    click.option("--rm", "remove", is_flag=True, help="Remove the container when it ends."),
    click.option("--name", default="", metavar="NAME", help="Its name; one is made up without."),
    click.option("-e", "--env", multiple=True, metavar="K[=V]", help="Set a variable; K alone takes ours."),
    click.option("--env-file", "env_files", multiple=True, metavar="FILE", help="Set the variables in FILE."),
    click.option("-w", "--workdir", default="", metavar="DIR", help="The directory to begin in."),
    click.option(
        "-u", "--user", default="", metavar="USER[:GROUP]", help="Names of the image's, or numbers."
    ),
    click.option("--entrypoint", metavar="PROGRAM", help="In place of the image's entrypoint."),
    click.option("--init", is_flag=True, help="A small init is process 1: it passes signals on and reaps."),
    click.option(
        "--restart",
        default="no",
        metavar="POLICY",
        help="After its end: no, on-failure[:MAX], always, unless-stopped.",
    ),
    click.option("-h", "--hostname", default="", metavar="NAME", help="The container's host name."),
    click.option("--domainname", default="", metavar="NAME", help="The container's NIS domain name."),
    click.option("--add-host", multiple=True, metavar="HOST:IP", help="Add a line to /etc/hosts."),
    click.option("--dns", multiple=True, metavar="IP", help="Ask this name server, not the host's."),
    click.option("--dns-search", multiple=True, metavar="DOMAIN", help="Look for names in DOMAIN."),
    click.option(
        "--dns-option", "--dns-opt", "dns_options", multiple=True, metavar="OPTION", help="resolv.conf(5)."
    ),
    click.option("--read-only", is_flag=True, help="Mount the root filesystem read-only."),
    click.option(
        "-v",
        "--volume",
        "volumes",
        multiple=True,
        metavar="[SOURCE:]PATH[:OPTIONS]",
        help="Mount SOURCE at PATH.",
    ),
    click.option(
        "--mount", "mount_texts", multiple=True, metavar="KEY=VALUE,…", help="type=bind|volume|tmpfs,…"
    ),
    click.option("--tmpfs", multiple=True, metavar="PATH[:OPTIONS]", help="Mount a filesystem in memory."),
    click.option(
        "--volumes-from", multiple=True, metavar="CONTAINER[:ro]", help="All that CONTAINER has mounted."
    ),
    click.option("--shm-size", default="64m", metavar="SIZE", help="The size of /dev/shm."),
    click.option(
        *("--network", "--net"), default="", metavar="NETWORK", help="bridge, host, none, container:NAME, …"
    ),
    click.option(
        "--network-alias", "aliases", multiple=True, metavar="NAME", help="One more name of it there."
    ),
    click.option("--ip", "address", default="", metavar="IP", help="Its address there."),
    click.option("--mac-address", "mac", default="", metavar="MAC", help="Its hardware address there."),
    click.option(
        *("-p", "--publish", "ports"),
        multiple=True,
        metavar="[[IP:]HOST:]PORT[/udp]",
        help="Let its PORT be reached at the host's.",
    ),
    click.option("-P", "--publish-all", is_flag=True, help="Publish all exposed ports, anywhere."),
    click.option("--expose", multiple=True, metavar="PORT[/udp]", help="Say that it has this port."),
    click.option("--pid", default="", metavar="host|container:NAME", help="Whose processes it sees."),
    click.option(
        "--ipc", default="", metavar="MODE", help="host, container:NAME, shareable, private or none."
    ),
    click.option("--uts", default="", metavar="host", help="Whose host name it has."),
    click.option("--userns", default="", metavar="host", help="Whose user IDs it has; only the host's."),
    click.option("--cgroupns", default="", metavar="host|private", help="Which cgroups it sees."),
    click.option("-m", "--memory", default="0", metavar="SIZE", help="No more memory than SIZE."),
    click.option("--memory-reservation", default="0", metavar="SIZE", help="A soft limit."),
    click.option("--memory-swap", default="0", metavar="SIZE", help="Memory and swap together; -1 is any."),
    click.option(
        "--cpus", type=float, default=0.0, metavar="NUMBER", help="No more time than NUMBER CPUs give."
    ),
    click.option(
        "-c", "--cpu-shares", type=int, default=0, metavar="NUMBER", help="Its weight when CPUs are short."
    ),
    click.option("--cpuset-cpus", default="", metavar="LIST", help="Only these CPUs: 0-2,5."),
    click.option("--cpuset-mems", default="", metavar="LIST", help="Only memory of these nodes."),
    click.option(
        "--pids-limit", type=int, default=0, metavar="NUMBER", help="No more processes than NUMBER."
    ),
    click.option(
        "--ulimit", "ulimits", multiple=True, metavar="NAME=SOFT[:HARD]", help="Set a resource limit."
    ),
    click.option(
        "--oom-score-adj", type=int, default=0, metavar="NUMBER", help="Which process the kernel kills first."
    ),
    click.option(
        "--pull",
        type=click.Choice(WHEN),
        default="missing",
        help="When to pull the image: always, if it is missing, or never. [missing]",
    ),
    click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="For which platform the image has to be."),
    click.option("-q", "--quiet", is_flag=True, help="No word of a pull."),
    click.option("--tls-verify", type=bool, metavar="true|false", help="As in pull."),
    click.option("-l", "--label", "labels", multiple=True, metavar="KEY[=VALUE]", help="Set metadata."),
    click.option(
        "--label-file", "label_files", multiple=True, metavar="FILE", help="Set the metadata in FILE."
    ),
    click.option(
        "--device", "devices", multiple=True, metavar="HOST[:PATH[:rwm]]", help="Give a device of the host."
    ),
    click.option(
        "--device-cgroup-rule", "device_rules", multiple=True, metavar="RULE", help="Like 'c 1:3 rwm'."
    ),
    click.option("--group-add", multiple=True, metavar="GROUP", help="Be in this group, too."),
    click.option("--sysctl", "sysctls", multiple=True, metavar="KEY=VALUE", help="Set a kernel parameter."),
    click.option("--privileged", is_flag=True, help="All devices and capabilities: it is root on the host."),
    click.option("--cap-add", multiple=True, metavar="CAP", help="Give a capability."),
    click.option("--cap-drop", multiple=True, metavar="CAP", help="Take a capability."),
    click.option(
        "--security-opt", multiple=True, metavar="OPTION", help="no-new-privileges, seccomp=unconfined|FILE."
    ),
    click.option(
        "--runtime", default="", metavar="PROGRAM", help="crun, runc or a path; else what works here."
    ),
    click.option("--cidfile", metavar="FILE", help="Write the ID to FILE."),
    click.option("--stop-signal", default="", metavar="SIGNAL", help="What stop sends."),
    click.option("--stop-timeout", type=int, default=10, metavar="SECONDS", help="How long stop waits."),
    click.option(
        "--health-cmd", metavar="COMMAND", help="Ask the container with COMMAND whether it is well."
    ),
    click.option("--health-interval", metavar="TIME", help="How long between two questions. [30s]"),
    click.option("--health-timeout", metavar="TIME", help="How long COMMAND may take. [30s]"),
    click.option("--health-retries", type=int, metavar="NUMBER", help="So many failures are unhealthy. [3]"),
    click.option("--health-start-period", metavar="TIME", help="Failures do not count so long. [0s]"),
    click.option("--health-start-interval", metavar="TIME", help="The interval in that period. [5s]"),
    click.option("--no-healthcheck", is_flag=True, help="Not the image's health check, either."),
    click.option(
        "--log-driver", default="", metavar="DRIVER", help="none, or k8s-file (as json-file and local)."
    ),
    click.option(
        "--log-opt", "log_options", multiple=True, metavar="KEY=VALUE", help="max-size=10m, max-file=3."
    ),
]


def run_options(command: Command) -> Command:
    """Give `command` the options of docker run that make a container."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def to_request(options: dict[str, Any], attached: bool) -> Request:
    """What the options ask for; `attached`, that a client is there from the beginning.

    Raises RuntimeFailure when they make no sense.
    """
    no_new_privileges, seccomp = _security(options["security_opt"])
    entrypoint = options["entrypoint"]
    return Request(
        image=options["image"],
        command=options["command"],
        entrypoint=None if entrypoint is None else tuple(filter(None, [entrypoint])),
        env=(*file_variables(options["env_files"]), *env_variables(options["env"])),
        working_dir=options["workdir"],
        user=options["user"],
        hostname=options["hostname"],
        labels=pairs((*_lines(options["label_files"]), *options["labels"])),
        tty=options["tty"],
        stdin=options["interactive"],
        stdin_once=options["interactive"] and attached,
        remove=options["remove"],
        read_only=options["read_only"],
        mounts=(
            *map(mounts.parse_volume, options["volumes"]),
            *map(mounts.parse_mount, options["mount_texts"]),
            *map(mounts.parse_tmpfs, options["tmpfs"]),
        ),
        network=options["network"] or "default",
        network_aliases=options["aliases"],
        address=options["address"],
        mac=options["mac"],
        ports=options["ports"],
        expose=options["expose"],
        publish_all=options["publish_all"],
        extra_hosts=options["add_host"],
        init=options["init"],
        restart=options["restart"],
        healthcheck=_healthcheck(options),
        devices=options["devices"],
        device_rules=options["device_rules"],
        group_add=options["group_add"],
        sysctls=pairs(options["sysctls"]),
        privileged=options["privileged"],
        pid=options["pid"],
        ipc=options["ipc"],
        uts=options["uts"],
        userns=options["userns"],
        cgroupns=options["cgroupns"],
        domainname=options["domainname"],
        dns=options["dns"],
        dns_search=options["dns_search"],
        dns_options=options["dns_options"],
        volumes_from=options["volumes_from"],
        log_driver=options["log_driver"],
        log_options=pairs(options["log_options"]),
        memory=mounts.size_in_bytes(options["memory"]),
        memory_reservation=mounts.size_in_bytes(options["memory_reservation"]),
        memory_swap=swap_size(options["memory_swap"]),
        cpu_shares=options["cpu_shares"],
        cpuset_cpus=options["cpuset_cpus"],
        cpuset_mems=options["cpuset_mems"],
        nano_cpus=round(options["cpus"] * 10**9),
        pids_limit=options["pids_limit"],
        shm_size=mounts.size_in_bytes(options["shm_size"]),
        ulimits=options["ulimits"],
        oom_score_adj=options["oom_score_adj"],
        cap_add=options["cap_add"],
        cap_drop=options["cap_drop"],
        no_new_privileges=no_new_privileges,
        seccomp=seccomp,
        runtime=options["runtime"],
        stop_signal=options["stop_signal"],
        stop_timeout=options["stop_timeout"],
    )


def env_variables(pairs: tuple[str, ...]) -> list[str]:
    """K=V as it is; K alone with our value, or dropped when we have none."""
    result = []
    for pair in pairs:
        if "=" in pair:
            if pair.startswith("="):
                raise RuntimeFailure(f"invalid environment variable: {pair}", 125)
            result.append(pair)
        elif pair in os.environ:
            result.append(f"{pair}={os.environ[pair]}")
        else:
            result.append(pair)
    return result


def file_variables(files: tuple[str, ...]) -> list[str]:
    """The variables in --env-file files."""
    return env_variables(_lines(files))


def _lines(files: tuple[str, ...]) -> tuple[str, ...]:
    """The lines of --env-file and --label-file files: no quotes, # for comments."""
    lines: list[str] = []
    for file in files:
        try:
            text = Path(file).read_text()
        except OSError as error:
            raise RuntimeFailure(f"cannot read {one_line(error)}", 125) from error
        except UnicodeDecodeError as error:
            raise RuntimeFailure(f"cannot read {file}: {error}", 125) from error
        lines += [line.lstrip() for line in text.splitlines()]
    return tuple(line for line in lines if line and not line.startswith("#"))


def pairs(texts: Iterable[str]) -> dict[str, str]:
    """KEY=VALUE words as a mapping; KEY alone has the empty value."""
    return dict(text.partition("=")[::2] for text in texts)


def swap_size(text: str) -> int:
    """--memory-swap: a size, or -1 for no limit."""
    return -1 if text == "-1" else mounts.size_in_bytes(text)


def _healthcheck(options: dict[str, Any]) -> Healthcheck | None:
    """What the --health options come to; None when there are none of them."""
    times = {
        key: parse_duration(options[f"health_{key}"], f"--health-{key.replace('_', '-')}")
        for key in ("interval", "timeout", "start_period", "start_interval")
        if options[f"health_{key}"] is not None
    }
    command, retries = options["health_cmd"], options["health_retries"]
    if options["no_healthcheck"]:
        if command is not None or times or retries is not None:
            raise RuntimeFailure("--no-healthcheck conflicts with --health-* options", 125)
        return Healthcheck(("NONE",))
    if retries is not None and retries < 0:
        raise RuntimeFailure("--health-retries cannot be negative", 125)
    if command is None and not times and retries is None:
        return None
    return Healthcheck(("CMD-SHELL", command) if command else None, retries=retries, **times)


def _security(options: tuple[str, ...]) -> tuple[bool, str]:
    """--security-opt as (no new privileges, seccomp)."""
    no_new_privileges, seccomp = False, ""
    for option in options:
        name, _, value = option.replace(":", "=", 1).partition("=")
        if name == "no-new-privileges":
            no_new_privileges = value in ("", "true")
        elif name == "seccomp":
            seccomp = profiles.read(value)
        elif name not in ("label", "apparmor"):
            raise RuntimeFailure(f"invalid --security-opt: '{option}'", 125)
    return no_new_privileges, seccomp
