"""Between asynchronous connections and blocking functions: a pipe, with the function in a thread of its own.

A function that only ever waits for its pipe ends with it: a writer gets BrokenPipeError when nobody reads on,
a reader the end of the file when the client goes.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import BinaryIO, TypeVar

import trio

from runtime.api.http import Call, Write

Result = TypeVar("Result")

_CHUNK = 64 << 10

#: Threads that wait for a client or a container are many and idle; they must not take others' places.
_waiting = trio.CapacityLimiter(10_000)


async def work(function: Callable[[], Result]) -> Result:
    """Call a blocking function of the runtime in a worker thread, to its end even if the client goes."""
    return await trio.to_thread.run_sync(function)


async def patiently(function: Callable[[], Result]) -> Result:
    """Like `work`, for a function that may take as long as a container lives."""
    return await trio.to_thread.run_sync(function, limiter=_waiting)


async def produced(call: Call, write: Write, function: Callable[[BinaryIO], object]) -> None:
    """Pass on what `function` writes to the file it is called with.

    Raises what `function` raises, BrokenPipeError apart.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)

    def run() -> None:
        try:
            with open(write_end, "wb", buffering=0) as file:
                function(file)
        except BrokenPipeError:
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(patiently, run)
        # Closed also when the client goes, which ends the function.
        async with trio.lowlevel.FdStream(read_end) as stream:
            while data := await stream.receive_some(_CHUNK):
                await write(bytes(data))


async def reported(
    call: Call, function: Callable[[BinaryIO], object], failed: Callable[[Exception], bytes]
) -> None:
    """Answer with what `function` writes to the file it is called with, and with `failed` of what it raises.

    Raises that only while nothing was written: then it can be the answer itself.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    failures: list[Exception] = []

    def run() -> None:
        with open(write_end, "wb", buffering=0) as file:
            try:
                function(file)
            except Exception as error:
                failures.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(patiently, run)
        # Closed also when the client goes, which ends the function.
        async with trio.lowlevel.FdStream(read_end) as stream:
            if data := await stream.receive_some(_CHUNK):
                async with call.streaming() as write:
                    while data:
                        await write(bytes(data))
                        data = await stream.receive_some(_CHUNK)
                    if failures:
                        await write(failed(failures[0]))
    if failures and not call.begun:
        raise failures[0]


@asynccontextmanager
async def body_file(call: Call) -> AsyncIterator[BinaryIO]:
    """The body of a request as a file that a thread can read; it ends early when the client goes."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    with open(read_end, "rb") as file:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_fill, call, write_end)
            yield file
            # What is behind the archive's end is of no interest, but the client has to get rid of it.
            await patiently(lambda: _drain(file))


async def _fill(call: Call, write_end: int) -> None:
    async with trio.lowlevel.FdStream(write_end) as stream:
        async for data in call.body():
            await stream.send_all(data)


def _drain(file: BinaryIO) -> None:
    while file.read(_CHUNK):
        pass
