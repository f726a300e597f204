"""The processes that compare answers by math-verify, for those outside the grammar of `reader`.

A worker is forked by a process that keeps math-verify warm, is started when it is first needed, and stays. An answer
that takes longer than the deadline gets the verdict `timeout`, and the worker is killed and replaced, in milliseconds.
One that makes the worker end, or run out of memory, gets `crashed`. If the worker is killed from outside, its answer is
graded once more by a new one, and is `crashed` only if that is killed too. None of this affects the next answer.

`WORKERS.counters` has how the comparisons of this process ended. `in_background` lets others go on meanwhile.
"""

import json
import os
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar, cast

from . import latex_worker
from .latex_worker import read_line

DEADLINE = 1.5
"""Seconds for one answer; nearly all take milliseconds. [choice]"""
MEMORY = 2 << 30
"""Bytes of address space of a worker. [choice]"""
START = 60.0
"""Seconds for the process to start, where one or two are usual."""
GRACE = 5.0
"""Seconds beyond its own deadlines after which the process counts as dead."""
PROCESSES = min(4, os.cpu_count() or 1)
"""Largest number of workers of one process; one is started only while the others are busy. [choice]"""

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """A process apart that compares answers by math-verify; safe to share between threads, and not inherited by forks.

    Args:
        deadline: Seconds for one comparison.
        memory: Bytes of address space of the process.
        script: Python file of the process; the default compares by math-verify.

    Attributes:
        deadline: Seconds for one comparison; a change applies from the next comparison on.
        counters: Number of comparisons that ended with each reason.
    """

    def __init__(
        self, deadline: float = DEADLINE, memory: int = MEMORY, script: str | os.PathLike[str] = latex_worker.__file__
    ) -> None:
        self.deadline = deadline
        self.memory = memory
        self.script = script
        self.counters: Counter[str] = Counter()
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._lock = threading.Lock()
        # A forked child must not read replies to its parent's questions.
        forget = weakref.WeakMethod(self._forget)
        os.register_at_fork(after_in_child=lambda: (method := forget()) and method())

    def compare(self, gold: str, answers: Sequence[str]) -> tuple[str, str | None]:
        """Compares `answers[0]` with `gold`, and gives its normal form; the others are earlier answers of the attempt.

        Returns:
            A reason as in `Verdict` (`correct`, `wrong`, `ambiguous`, `unparsed`, `timeout` or `crashed`), and for the
            first two the answer in SymPy's notation.

        Raises:
            RuntimeError: The process does not start.
        """
        request = json.dumps({"gold": gold, "answers": list(answers), "seconds": self.deadline}).encode() + b"\n"
        with self._lock:
            try:
                reply = self._ask(request)
                if reply is None:  # the process is gone, killed from outside
                    self._stop()
                    reply = self._ask(request)
                if reply is None:
                    self._stop()
                    reply = ("crashed", None)
            except BaseException:
                self._stop()  # or the next question would get this one's reply
                raise
            self.counters[reply[0]] += 1
        return reply

    def close(self) -> None:
        """Ends the process; the next comparison starts another."""
        with self._lock:
            self._stop()

    @property
    def pid(self) -> int | None:
        """The id of the process, None while there is none."""
        return None if self._process is None else self._process.pid

    def _ask(self, request: bytes) -> tuple[str, str | None] | None:
        """The reply; None if the process died or does not answer."""
        process = self._process or self._start()
        try:
            cast(Any, process.stdin).write(request)
        except BrokenPipeError:
            return None
        # It keeps the deadline itself, twice if a worker of its own is killed.
        line = read_line(cast(Any, process.stdout).fileno(), 2 * self.deadline + GRACE)
        return tuple(json.loads(line)) if line else None

    def _start(self) -> subprocess.Popen[bytes]:
        # -P: the script's folder is not searched for modules.
        command = [sys.executable, "-P", os.fspath(self.script), str(self.memory)]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere, bufsize=0)  # noqa: S603
        self._process, self._finalizer = process, weakref.finalize(self, _end, process, os.getpid())
        if read_line(cast(Any, process.stdout).fileno(), START) != b"ready":
            self._stop()
            raise RuntimeError(
                f"the process for free-form answers did not start: see what `{' '.join(command)}` says; it needs "
                "math-verify"
            )
        return process

    def _stop(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._process = self._finalizer = None

    def _forget(self) -> None:
        """Forgets the process in a forked child, because the parent's process is not ours to end or to ask."""
        if self._process is not None and self._finalizer is not None:
            self._finalizer.detach()
            _close(self._process)
            self._process.returncode = 0  # no child of this process
        self._process = self._finalizer = None
        self._lock = threading.Lock()


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() == owner:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _close(process)


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        cast(Any, pipe).close()


class Workers:
    """Workers that share the comparisons of a process, for whoever compares in several threads.

    Args:
        count: Largest number of workers; one is started only while the others are busy.
        script: Python file of their processes, as in `Worker`.

    Attributes:
        deadline: Seconds for one comparison; a change applies from the next comparison on.
        counters: Number of comparisons that ended with each reason.
    """

    def __init__(self, count: int = PROCESSES, script: str | os.PathLike[str] = latex_worker.__file__) -> None:
        self.deadline = DEADLINE
        self.counters: Counter[str] = Counter()
        self._workers = [Worker(script=script) for _ in range(count)]
        self._renew()
        renew = weakref.WeakMethod(self._renew)
        os.register_at_fork(after_in_child=lambda: (method := renew()) and method())

    def compare(self, gold: str, answers: Sequence[str]) -> tuple[str, str | None]:
        """Compares as `Worker.compare`, by a worker that has nothing else to do, once there is one."""
        if _AT_ONCE.get():
            raise _TakesLongerError
        with self._free:
            worker = self._idle.pop()
            try:
                worker.deadline = self.deadline
                reply = worker.compare(gold, answers)
            finally:
                self._idle.append(worker)
        with self._lock:
            self.counters[reply[0]] += 1
        return reply

    @property
    def pids(self) -> list[int]:
        """The ids of the processes that run."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    def close(self) -> None:
        """Ends all processes; the next comparison starts another."""
        for worker in self._workers:
            worker.close()

    def background(self) -> ThreadPoolExecutor:
        """Threads that wait for the workers, as many as there are workers at most."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(len(self._workers), thread_name_prefix="grading")
        return self._threads

    def _renew(self) -> None:
        """Makes all workers free; in a forked child no thread of its parent holds one."""
        self._idle = self._workers[::-1]
        self._free = threading.Semaphore(len(self._workers))
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None


class _TakesLongerError(BaseException):
    """A worker is needed where nobody wants to wait; no `Exception`, which graders turn into verdicts."""


_AT_ONCE: ContextVar[bool] = ContextVar("at_once", default=False)


def in_background(grade: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Future[T]:
    """Result of `grade(*args, **kwargs)`, or a future of it if it needs a worker of `WORKERS`.

    Args:
        grade: Function without side effects: what a worker is needed for is begun anew in a thread.
        args: Arguments of the function.
        kwargs: Further arguments of the function.
    """
    token = _AT_ONCE.set(True)
    try:
        return grade(*args, **kwargs)
    except _TakesLongerError:
        pass
    finally:
        _AT_ONCE.reset(token)
    return WORKERS.background().submit(grade, *args, **kwargs)


WORKERS = Workers()
"""The workers of this process; started at the first answers that need them."""
