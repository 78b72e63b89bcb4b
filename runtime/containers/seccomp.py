"""The seccomp profile of containers, in the form that OCI runtimes take.

seccomp.json says what is allowed; here it is put together with the capabilities the container has, since a
system call that needs CAP_SYS_TIME is no danger to allow to one who has been given CAP_SYS_TIME.
"""

from __future__ import annotations

import errno
import functools
import json
import platform
from collections.abc import Collection
from importlib import resources
from pathlib import Path
from typing import Any

from runtime.errors import RuntimeFailure, one_line

_ARCHITECTURES = {
    "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
    "riscv64": ["SCMP_ARCH_RISCV64"],
    "ppc64le": ["SCMP_ARCH_PPC64LE"],
    "s390x": ["SCMP_ARCH_S390X", "SCMP_ARCH_S390"],
}


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(resources.files(__package__).joinpath("seccomp.json").read_text())
    return table


def profile(choice: str, capabilities: Collection[str]) -> dict[str, Any] | None:
    """The value of linux.seccomp for a container that has `capabilities`.

    `choice` "" is our own profile, "unconfined" none, anything else a file that holds one in the OCI form
    (config-linux.md, "Seccomp").

    Raises RuntimeFailure when that file cannot be read.
    """
    if choice == "unconfined":
        return None
    if choice:
        try:
            given: dict[str, Any] = json.loads(Path(choice).read_text())
        except OSError as error:
            raise RuntimeFailure(f"opening seccomp profile failed: {one_line(error)}") from error
        except ValueError as error:
            raise RuntimeFailure(f"opening seccomp profile failed: {choice}: {error}") from error
        return given
    table = _table()
    names = set(table["allow"])
    for capability, more in table["allow_with_capability"].items():
        if capability in capabilities:
            names.update(more)
    calls: list[dict[str, Any]] = [{"names": sorted(names), "action": "SCMP_ACT_ALLOW"}]
    for rule in table["allow_when"]:
        if rule["name"] not in names:
            condition = {"names": [rule["name"]], "action": "SCMP_ACT_ALLOW", "args": [_condition(rule)]}
            calls.append(condition)
    absent = [name for name in table["enosys"]["names"] if name not in names]
    if absent:
        calls.append({"names": absent, "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS})
    result: dict[str, Any] = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EPERM,
        "syscalls": calls,
    }
    if platform.machine() in _ARCHITECTURES:
        result["architectures"] = _ARCHITECTURES[platform.machine()]
    return result


def _condition(rule: dict[str, Any]) -> dict[str, Any]:
    """One rule on an argument, in the words of seccomp_rule_add(3)."""
    if "mask" in rule:
        return {
            "index": rule["index"],
            "value": rule["mask"],
            "valueTwo": rule["value"],
            "op": "SCMP_CMP_MASKED_EQ",
        }
    if "not_value" in rule:
        return {"index": rule["index"], "value": rule["not_value"], "op": "SCMP_CMP_NE"}
    return {"index": rule["index"], "value": rule["value"], "op": "SCMP_CMP_EQ"}
