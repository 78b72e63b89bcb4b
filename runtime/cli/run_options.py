"""The options that `run` and `create` share, and how they become a Request."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from runtime.cli.pulling import WHEN
from runtime.containers import mounts
from runtime.containers.container import Request
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
    click.option("-h", "--hostname", default="", metavar="NAME", help="The container's host name."),
    click.option("--add-host", multiple=True, metavar="HOST:IP", help="Add a line to /etc/hosts."),
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
    click.option("--shm-size", default="64m", metavar="SIZE", help="The size of /dev/shm."),
    click.option("--network", "--net", default="none", metavar="none|host", help="Which network it is in."),
    click.option("-m", "--memory", default="0", metavar="SIZE", help="No more memory than SIZE."),
    click.option(
        "--cpus", type=float, default=0.0, metavar="NUMBER", help="No more time than NUMBER CPUs give."
    ),
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
        env=(*_file_variables(options["env_files"]), *_variables(options["env"])),
        working_dir=options["workdir"],
        user=options["user"],
        hostname=options["hostname"],
        labels=dict(label.partition("=")[::2] for label in options["labels"]),
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
        network=options["network"],
        extra_hosts=options["add_host"],
        memory=mounts.size_in_bytes(options["memory"]),
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


def _variables(pairs: tuple[str, ...]) -> list[str]:
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


def _file_variables(files: tuple[str, ...]) -> list[str]:
    """The variables in --env-file files: a line each, no quotes, # for comments."""
    lines: list[str] = []
    for file in files:
        try:
            text = Path(file).read_text()
        except OSError as error:
            raise RuntimeFailure(f"cannot read {one_line(error)}", 125) from error
        except UnicodeDecodeError as error:
            raise RuntimeFailure(f"cannot read {file}: {error}", 125) from error
        lines += [line.lstrip() for line in text.splitlines()]
    return _variables(tuple(line for line in lines if line and not line.startswith("#")))


def _security(options: tuple[str, ...]) -> tuple[bool, str]:
    """--security-opt as (no new privileges, seccomp)."""
    no_new_privileges, seccomp = False, ""
    for option in options:
        name, _, value = option.replace(":", "=", 1).partition("=")
        if name == "no-new-privileges":
            no_new_privileges = value in ("", "true")
        elif name == "seccomp":
            seccomp = value if value == "unconfined" else str(Path(value).absolute())
        elif name not in ("label", "apparmor"):
            raise RuntimeFailure(f"invalid --security-opt: '{option}'", 125)
    return no_new_privileges, seccomp
