"""/containers/NAME/stats and /top: what a container uses and what runs in it."""

from __future__ import annotations

import json
import shlex
from datetime import UTC, datetime
from functools import partial

import trio

from runtime.api.daemon import Daemon
from runtime.api.http import Call, Reply
from runtime.api.pipes import work
from runtime.api.values import Json
from runtime.containers import lifecycle, stats
from runtime.containers.container import Container
from runtime.containers.stats import Sample
from runtime.containers.top import top as processes

_PAUSE = 1.0
_NEVER = "0001-01-01T00:00:00Z"


async def top(daemon: Daemon, call: Call) -> Reply:
    """GET /containers/NAME/top?ps_args=…"""
    options = shlex.split(call.query.text("ps_args"))
    found = await work(lambda: processes(daemon.root, call.name, options))
    return Reply({"Titles": found.titles, "Processes": found.rows})


async def get(daemon: Daemon, call: Call) -> Reply | None:
    """GET /containers/NAME/stats?stream=…&one-shot=…: once, or each second until the client goes."""
    subject = await work(lambda: lifecycle.inspect(daemon.root, call.name))
    before, after = Sample(0), await work(lambda: stats.sample(subject))
    if not call.query.flag("stream", True):
        if not call.query.flag("one-shot"):
            await trio.sleep(_PAUSE)
            before, after = after, await work(lambda: stats.sample(subject))
        return Reply(_answer(subject, before, after))
    async with call.streaming() as write:
        while True:
            await write(json.dumps(_answer(subject, before, after)).encode() + b"\n")
            await trio.sleep(_PAUSE)
            subject, sample = await work(partial(_look, daemon, subject.id))
            before, after = after, sample


def _look(daemon: Daemon, identifier: str) -> tuple[Container, Sample]:
    subject = lifecycle.inspect(daemon.root, identifier)
    return subject, stats.sample(subject)


def _answer(subject: Container, before: Sample, after: Sample) -> Json:
    limit = {"limit": after.pids_limit} if after.pids_limit else {}
    answer: Json = {
        "name": f"/{subject.name}",
        "id": subject.id,
        "read": _time(after.when),
        "preread": _time(before.when) if before.when else _NEVER,
        "pids_stats": {"current": after.processes, **limit},
        "blkio_stats": {
            "io_service_bytes_recursive": [
                {"major": 0, "minor": 0, "op": "read", "value": after.read},
                {"major": 0, "minor": 0, "op": "write", "value": after.written},
            ],
            "io_serviced_recursive": None,
            "io_queue_recursive": None,
            "io_service_time_recursive": None,
            "io_wait_time_recursive": None,
            "io_merged_recursive": None,
            "io_time_recursive": None,
            "sectors_recursive": None,
        },
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": _cpu(after),
        "precpu_stats": _cpu(before),
        "memory_stats": {
            "usage": after.memory,
            "max_usage": after.memory_peak,
            "stats": {"inactive_file": after.memory_cache, "total_inactive_file": after.memory_cache},
            "limit": after.memory_limit,
        }
        if after.memory_limit
        else {},
    }
    if after.interfaces:
        answer["networks"] = {
            one.name: {
                "rx_bytes": one.rx_bytes,
                "rx_packets": one.rx_packets,
                "rx_errors": one.rx_errors,
                "rx_dropped": one.rx_dropped,
                "tx_bytes": one.tx_bytes,
                "tx_packets": one.tx_packets,
                "tx_errors": one.tx_errors,
                "tx_dropped": one.tx_dropped,
            }
            for one in after.interfaces
        }
    return answer


def _cpu(sample: Sample) -> Json:
    return {
        "cpu_usage": {
            "total_usage": sample.cpu,
            "usage_in_kernelmode": sample.cpu_kernel,
            "usage_in_usermode": sample.cpu_user,
        },
        "system_cpu_usage": sample.system,
        "online_cpus": sample.cpus,
        "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
    }


def _time(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
