"""Kubernetes' side of the Container Runtime Interface, as far as a pod needs it.

Messages are written by field number (k8s.io/cri-api, pkg/apis/runtime/v1/api.proto), since no Python package
has that file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from machine import PATIENCE

#: A message to be: fields by number; a list is a repeated one.
Fields = dict[int, Any]

#: NamespaceMode.NODE: the machine's own.
NODE = 2

#: The image of the process that keeps a pod's namespaces.
PAUSE = "localhost/pause:1"

#: containerd as a node of Kubernetes, its pods on our snapshotter.
NODE_CONFIG = f"""
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  disable_tcp_service = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "unionfs"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{{place}}/cni"
"""


def encode(fields: Fields) -> bytes:
    """The wire format of a message (protobuf.dev, Encoding)."""
    done = b""
    for number, value in fields.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, int):
                done += _varint(number << 3) + _varint(each)
            else:
                data = encode(each) if isinstance(each, dict) else each.encode()
                done += _varint(number << 3 | 2) + _varint(len(data)) + data
    return done


def decode(data: bytes) -> dict[int, Any]:
    """The fields of a message that has numbers and bytes alone."""
    found: dict[int, Any] = {}
    bytes_left = iter(data)
    for key in _varints(bytes_left):
        size = next(_varints(bytes_left))
        found[key >> 3] = bytes(next(bytes_left) for _ in range(size)) if key & 7 == 2 else size
    return found


def _varint(number: int) -> bytes:
    done = []
    while number > 0x7F:
        done.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*done, number])


def _varints(data: Iterator[int]) -> Iterator[int]:
    number = shift = 0
    for byte in data:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield number
            number = shift = 0


class Kubelet:
    """A client of runtime.v1.RuntimeService."""

    def __init__(self, socket: Path, place: Path, cgroup: str) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        self._place = place
        self._cgroup = cgroup

    def _call(self, method: str, fields: Fields) -> dict[int, Any]:
        return decode(
            self._channel.unary_unary(f"/runtime.v1.RuntimeService/{method}")(
                encode(fields), timeout=PATIENCE
            )
        )

    def _pod(self, name: str) -> Fields:
        """A PodSandboxConfig on the machine's own network."""
        metadata = {1: name, 2: f"uid-{name}", 3: "default"}
        return {1: metadata, 3: str(self._place), 8: {1: f"/{self._cgroup}", 2: {1: {1: NODE}}}}

    def run_pod(self, name: str) -> str:
        """RunPodSandbox; the pod's ID."""
        return str(self._call("RunPodSandbox", {1: self._pod(name)})[1].decode())

    def run_container(
        self, pod: str, pod_name: str, name: str, image: str, command: list[str], volume: Path
    ) -> str:
        """CreateContainer and StartContainer; the container's ID. `volume` is at /shared."""
        config = {
            1: {1: name}, 2: {1: image}, 3: command, 7: [{1: "/shared", 2: str(volume)}], 11: f"{name}.log",
            15: {2: {3: {1: NODE}}},
        }  # fmt: skip
        made = self._call("CreateContainer", {1: pod, 2: config, 3: self._pod(pod_name)})
        container = str(made[1].decode())
        self._call("StartContainer", {1: container})
        return container

    def execute(self, container: str, *command: str) -> str:
        """ExecSync; what it says on stdout. It must end with 0."""
        said = self._call("ExecSync", {1: container, 2: list(command), 3: PATIENCE})
        assert not said.get(3), said
        return str(said.get(1, b"").decode())

    def remove_pod(self, pod: str) -> None:
        """StopPodSandbox and RemovePodSandbox, with the containers in it."""
        self._call("StopPodSandbox", {1: pod})
        self._call("RemovePodSandbox", {1: pod})

    def close(self) -> None:
        """Let go of the socket."""
        self._channel.close()
