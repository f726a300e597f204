"""Calls in another process, so that one that hangs or dies costs no more than its own result."""

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import psutil

IDLE = 20
"""Times as long as its limit of processor time that a call may take by the clock, on however busy a machine."""


@dataclass(frozen=True)
class Fault:
    """Why a call has no result."""

    why: str


def isolated(function: Callable[[Any], Any], arguments: Iterable[Any], time_limit: float) -> Iterator[Any]:
    """Results of `function` for each argument, or a `Fault`, in order.

    One process serves until it dies or is killed; the next call then begins another.

    Args:
        function: A function that can be imported; what it is given and returns can be pickled.
        arguments: Arguments of each call.
        time_limit: Seconds of processor time that a call may take, and `IDLE` times as many by the clock; what the
            function's module imports is not counted.
    """
    context = multiprocessing.get_context("spawn")
    process: Any = None
    ours: Any = None
    try:
        for argument in arguments:
            if process is None:
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(function, theirs), daemon=True)
                process.start()
                theirs.close()
                ours.recv()  # it has imported everything
            ours.send(argument)
            try:
                in_time = _answers(ours, psutil.Process(process.pid), time_limit)
                result = ours.recv() if in_time else Fault(f"it took more than {time_limit:g} seconds")
            except EOFError:
                process.join()
                result = Fault(f"its process died with exit code {process.exitcode}")
            if isinstance(result, Fault):
                process.kill()
                process = None
            yield result
    finally:
        if process is not None:
            process.kill()


def _answers(connection: Connection, process: psutil.Process, time_limit: float) -> bool:
    """True if an answer, or the end of the process, comes within the limits."""

    def used() -> float:
        times = process.cpu_times()
        return times.user + times.system

    start, end = used(), time.monotonic() + IDLE * time_limit
    while not connection.poll(min(time_limit, 1)):
        if used() - start > time_limit or time.monotonic() > end:
            return False
    return True


def _serve(function: Callable[[Any], Any], connection: Connection) -> None:
    connection.send(None)
    while True:
        try:
            argument = connection.recv()
        except EOFError:  # the other side has ended
            return
        try:
            result = function(argument)
        except Exception as error:
            result = Fault(f"{type(error).__name__}: {error}")
        connection.send(result)
