"""Host devices in a container: --device, and all of them for a privileged one.

The words are --device's (docker-run(1)): HOST[:CONTAINER[:PERMISSIONS]], where HOST may be a directory of
devices, and PERMISSIONS some of `r`, `w` and `m` (mknod).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from runtime.errors import RuntimeFailure, one_line

#: Of the host's /dev: what a container has of its own, or is no device.
_OWN = {"pts", "shm", "fd", "mqueue", "console", ".lxc", ".lxd-mounts", ".udev", "core"}
_RULE = re.compile(r"([acb]) ((?:\d+|\*):(?:\d+|\*)) ([rwm]{1,3})")


@dataclass(frozen=True)
class Device:
    """One --device, parsed."""

    host: str
    container: str
    access: str = "rwm"


def parse(text: str) -> Device:
    """Parse HOST[:CONTAINER[:PERMISSIONS]]; two parts may also be HOST:PERMISSIONS.

    Raises RuntimeFailure when a path is not absolute or the permissions are none.
    """
    host, *rest = text.split(":")
    container, access = host, "rwm"
    if len(rest) == 1 and _is_access(rest[0]):
        access = rest[0]
    elif rest:
        container, access = rest[0], rest[1] if len(rest) > 1 else access
    if len(rest) > 2 or not host.startswith("/") or not container.startswith("/") or not _is_access(access):
        raise RuntimeFailure(f"invalid device specification: '{text}' (HOST[:CONTAINER[:rwm]])", 125)
    return Device(host, container, access)


def _is_access(text: str) -> bool:
    return bool(re.fullmatch(r"[rwm]{1,3}", text)) and len(set(text)) == len(text)


def check_rule(text: str) -> str:
    """`text` itself when it is a rule of the devices cgroup, as --device-cgroup-rule takes it: `c 1:3 rwm`.

    Raises RuntimeFailure when it is none.
    """
    if not _RULE.fullmatch(text):
        raise RuntimeFailure(f"invalid device cgroup rule: '{text}' (like 'c 1:3 rwm')", 125)
    return text


def rule(text: str) -> dict[str, Any]:
    """A rule that was checked, in the words of linux.resources.devices."""
    match = _RULE.fullmatch(text)
    assert match is not None
    value: dict[str, Any] = {"allow": True, "type": match[1], "access": match[3]}
    for key, number in zip(("major", "minor"), match[2].split(":"), strict=True):
        if number != "*":
            value[key] = int(number)
    return value


def nodes(device: Device) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What linux.devices and linux.resources.devices say of `device` (config-linux.md, "Devices").

    Raises RuntimeFailure when there is no such device on the host.
    """
    found = list(_nodes(device.host, device.container))
    if not found:
        raise RuntimeFailure(f"{device.host}: not a device node, and no directory of them", 125)
    rules = [
        {
            "allow": True,
            "type": node["type"],
            "major": node["major"],
            "minor": node["minor"],
            "access": device.access,
        }
        for node in found
    ]
    return found, rules


def host_nodes() -> list[dict[str, Any]]:
    """What linux.devices says of all the host's devices, for a privileged container."""
    found: list[dict[str, Any]] = []
    for name in sorted(os.listdir("/dev")):
        if name not in _OWN:
            found += _nodes(f"/dev/{name}", f"/dev/{name}")
    return found


def _nodes(host: str, container: str) -> Iterator[dict[str, Any]]:
    try:
        status = os.stat(host)
    except OSError as error:
        if host.startswith("/dev/") and os.path.islink(host):  # one that leads nowhere
            return
        raise RuntimeFailure(f"error gathering device information: {one_line(error)}", 125) from error
    if stat.S_ISDIR(status.st_mode):
        for name in sorted(os.listdir(host)):
            path = f"{host}/{name}"
            if not os.path.islink(path):
                yield from _nodes(path, f"{container}/{name}")
    elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        yield {
            "path": container,
            "type": "c" if stat.S_ISCHR(status.st_mode) else "b",
            "major": os.major(status.st_rdev),
            "minor": os.minor(status.st_rdev),
            "fileMode": stat.S_IMODE(status.st_mode),
            "uid": status.st_uid,
            "gid": status.st_gid,
        }
