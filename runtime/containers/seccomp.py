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

    `choice` "" is our own profile, "unconfined" none, anything else the JSON of one: in the OCI form
    (config-linux.md, "Seccomp") or in docker's, which differs in that rules can depend on capabilities.

    Raises RuntimeFailure when that is no JSON of a profile.
    """
    if choice == "unconfined":
        return None
    if choice:
        return _given(choice, capabilities)
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


def read(choice: str) -> str:
    """What --security-opt seccomp=CHOICE names: `unconfined`, `builtin`, or the content of a file.

    Raises RuntimeFailure when the file cannot be read.
    """
    if choice in ("unconfined", "builtin"):
        return "" if choice == "builtin" else choice
    try:
        return Path(choice).read_text()
    except OSError as error:
        raise RuntimeFailure(f"opening seccomp profile failed: {one_line(error)}", 125) from error
    except UnicodeDecodeError as error:
        raise RuntimeFailure(f"opening seccomp profile failed: {choice}: {error}", 125) from error


def _given(text: str, capabilities: Collection[str]) -> dict[str, Any]:
    """The profile `text` in the OCI form, for a container that has `capabilities`."""
    try:
        profile = json.loads(text)
        if not isinstance(profile, dict) or "defaultAction" not in profile:
            raise ValueError("there is no defaultAction")
        rules = profile.get("syscalls") or []
        calls = [_oci_rule(rule) for rule in rules if _applies(rule, capabilities)]
        result = {key: value for key, value in profile.items() if key not in ("syscalls", "archMap")}
        for entry in profile.get("archMap") or ():
            if entry["architecture"] in _ARCHITECTURES.get(platform.machine(), ()):
                result["architectures"] = [entry["architecture"], *(entry.get("subArchitectures") or ())]
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise RuntimeFailure(f"decoding seccomp profile failed: {error}", 125) from error
    return {**result, "syscalls": calls}


def _applies(rule: dict[str, Any], capabilities: Collection[str]) -> bool:
    """Whether docker's conditions on a rule are met; the OCI form has none."""
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    if set(excludes.get("caps") or ()) & set(capabilities) or machine in (excludes.get("arches") or ()):
        return False
    if not set(includes.get("caps") or ()) <= set(capabilities):
        return False
    arches = includes.get("arches")
    return not arches or machine in arches


def _oci_rule(rule: dict[str, Any]) -> dict[str, Any]:
    kept = ("names", "action", "errnoRet", "args")
    value = {key: rule[key] for key in kept if rule.get(key) is not None}
    return value if "names" in value else {**value, "names": [rule["name"]]}


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
