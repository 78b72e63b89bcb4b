"""netavark, which connects a network namespace to bridges: how it is called.

Podman's network program (Debian package netavark): `netavark --config DIR setup|teardown NETNS` reads what is
wanted as JSON on standard input, and answers in JSON; it makes the bridge, the pair of interfaces, and the
rules of the firewall that publish ports. For names it runs aardvark-dns, a server on the bridge's address
that ends with the last container; the files of that one are in DIR.

What was asked for is kept in the container's directory, `netavark/NETWORK.json`, until it is undone: so
anyone can undo it, also after a sudden death.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from runtime import rootless
from runtime.containers import rootfs, uplink
from runtime.containers.ports import Port
from runtime.containers.uplink import Uplink
from runtime.errors import RuntimeFailure
from runtime.root import Root

_SEARCH = "/usr/libexec/podman:/usr/lib/podman:/usr/local/libexec/podman:/usr/local/lib/podman:/usr/bin"


def program(name: str = "netavark") -> str | None:
    """Where netavark (or aardvark-dns) is, or None."""
    return shutil.which(name, path=_SEARCH)


def needed() -> str:
    """Where netavark is. Raises RuntimeFailure when it is not installed."""
    found = program()
    if found is None:
        raise RuntimeFailure(
            "netavark is not installed, and bridge networks need it (Debian package netavark): "
            "without it there are the networks host and none",
            125,
        )
    return found


def make_namespace(file: Path) -> None:
    """Make a network namespace that lasts until `file`, on which it is mounted, is unmounted.

    Raises RuntimeFailure when that cannot be.
    """
    rootfs.unmount(file)
    file.touch(mode=0o600)
    result = subprocess.run(
        ["unshare", f"--net={file}", "true"], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if result.returncode != 0:
        raise RuntimeFailure(f"cannot make a network namespace: {result.stderr.strip()}", 125)


def connect(root: Root, directory: Path, namespace: Path, network: str, options: dict[str, Any]) -> Any:
    """Connect `namespace` to `network` as `options` (netavark's NetworkOptions) say; its answer for it.

    `directory` is the container's. Raises RuntimeFailure in netavark's words.
    """
    kept = directory / "netavark"
    kept.mkdir(mode=0o700, exist_ok=True)
    config = rootless.runtime_directory() / hashlib.sha256(os.fsencode(root.path)).hexdigest()[:16]
    config.mkdir(mode=0o700, parents=True, exist_ok=True)
    (kept / f"{network}.json").write_text(json.dumps({"config": str(config), "options": options}))
    way_out = uplink.ensured(root)
    if way_out is not None:
        published = [
            Port(0, one["protocol"], one["host_ip"], one["host_port"]) for one in options["port_mappings"]
        ]
        # Past slirp4netns, they come to its own address whatever they were published on.
        inside = [{**one, "host_ip": ""} for one in options["port_mappings"]]
        answer = _call("setup", config, namespace, {**options, "port_mappings": inside}, way_out)
        way_out.publish(published)
    else:
        answer = _call("setup", config, namespace, options)
    return json.loads(answer or "{}").get(network, {})


def disconnect(directory: Path, namespace: Path, network: str) -> None:
    """Undo `connect`; what cannot be undone, as it is gone already, is no error."""
    file = directory / "netavark" / f"{network}.json"
    try:
        kept = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return
    if rootfs.is_mounted(namespace):
        with contextlib.suppress(RuntimeFailure):
            # root/containers/ID is the container's directory.
            way_out = uplink.existing(directory.parent.parent)
            if way_out is not None:
                way_out.withdraw(one["host_port"] for one in kept["options"]["port_mappings"])
            _call("teardown", Path(kept["config"]), namespace, kept["options"], way_out)
    file.unlink(missing_ok=True)


def disconnect_all(directory: Path, namespace: Path) -> None:
    """Undo all connections of the container in `directory`, and let go of its network namespace."""
    for file in sorted((directory / "netavark").glob("*.json")):
        disconnect(directory, namespace, file.stem)
    rootfs.unmount(namespace)


def _call(
    verb: str, config: Path, namespace: Path, options: dict[str, Any], way_out: Uplink | None = None
) -> str:
    command = [*(way_out.words() if way_out else ()), needed(), "--config", str(config)]
    if names := program("aardvark-dns"):
        command += ["--aardvark-binary", names]
    result = subprocess.run(
        [*command, verb, str(namespace)],
        input=json.dumps(options),
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, **({"XTABLES_LOCKFILE": str(config / "xtables.lock")} if way_out else {})},
    )
    if result.returncode != 0:
        words = (result.stdout or result.stderr).strip()
        with contextlib.suppress(ValueError, KeyError, TypeError):
            words = json.loads(words)["error"]
        raise RuntimeFailure(f"cannot set up the network: {words or 'netavark failed and said nothing'}", 125)
    return result.stdout
