"""Plans: jobs that build on each other's results, each in a process and a folder of its own, and each done once.

A job whose result is there is not done again, so a plan that was stopped at any point continues when it is run again. A
job that fails takes with it those that need its result, and no others.
"""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Literal, Self

from ..agents.training.run_folder import differences
from ..files import check_folder, check_new_folder, read_json, read_object, write_json

RESULT, FAILURE, LOG = "result.json", "failure.json", "log.txt"
_NO_SPACE = 3
"""Exit status of a job that found the disk full."""


@dataclass(frozen=True)
class Job:
    """A piece of work with a result.

    Attributes:
        name: Name of the job and of its folder inside the plan's; slashes make folders.
        work: Function of a module that does the work, in a process of its own. It receives the job's folder, where it
            may keep what it needs to continue after it was stopped, the settings, and the folder and result of each job
            it needs; it returns JSON values.
        settings: JSON values; together with the results of other jobs they decide the result.
        needs: Names of the jobs that must be done before.
    """

    name: str
    work: "Callable[[Path, Mapping[str, Any], Mapping[str, Done]], Mapping[str, Any]]"
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Done:
    """A finished job: its folder, its result, and the wall time in seconds that the process which finished it took."""

    folder: Path
    result: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class Missing:
    """A job without a result: it failed, or it was skipped because one that it needs has none. Why, in one line."""

    state: Literal["failed", "skipped"]
    reason: str


class Stopwatch:
    """Wall and CPU time that a job takes, with what killed processes have saved of theirs.

    Args:
        folder: Folder of the job.

    Attributes:
        spent: `seconds` and `cpu_seconds` until the newest `save`.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "spent.json"
        self._before = read_json(self._path) if self._path.exists() else {}

    def __enter__(self) -> Self:
        self._wall, self._cpu = time.monotonic(), time.process_time()
        return self

    def __exit__(self, *exc: object) -> None:
        self.save()

    def save(self) -> None:
        """Writes down what was spent so far."""
        now = {"seconds": time.monotonic() - self._wall, "cpu_seconds": time.process_time() - self._cpu}
        self.spent = {name: round(self._before.get(name, 0.0) + value, 1) for name, value in now.items()}
        write_json(self._path, self.spent)


def run_plan(
    jobs: Sequence[Job],
    folder: Path,
    *,
    workers: int = 1,
    say: Callable[[str], object] = lambda line: print(line, file=sys.stderr, flush=True),
) -> dict[str, Done | Missing]:
    """Does all jobs that can be done, in an order that respects their needs; what became of each, by name.

    Args:
        jobs: Jobs of the plan; where nothing else decides, earlier ones start first.
        folder: Folder of the plan; every job has its own inside it.
        workers: Number of jobs that run at the same time.
        say: Function that receives a line for each job that starts or ends, with the reason where it failed; the
            default writes it to the standard error.

    Raises:
        ValueError: A name is given twice, a job needs one that is not in the plan or needs itself in the end, or a
            result in the folder is of another version or of other settings, or was made from one that is gone.
        NotADirectoryError: There is a file in the folder's place.
        PermissionError: Jobs are left to do, and the folder cannot be written to.
        DamagedFileError: A result in the folder cannot be read.
        OSError: The disk is full; what was finished is kept.
        SystemExit: The process was asked to end (SIGTERM), as schedulers do; its jobs end first.
    """
    plan = _checked(jobs)
    check_folder(folder)
    states: dict[str, Done | Missing] = {}
    for job in jobs:
        found = read_result(job, folder)
        if found is not None:
            states[job.name] = found
    for job in jobs:
        gone = [name for name in job.needs if name not in states]
        if job.name in states and gone:
            raise ValueError(
                f"{folder / job.name / RESULT} was made from a result of {gone[0]} that is gone, and the next one may "
                f"be another: delete {folder / job.name}, too, or choose another folder"
            )
    if states:
        say(f"{len(states)} of {len(jobs)} jobs are done already")
    waiting = [job for job in jobs if job.name not in states]
    if waiting:
        check_new_folder(folder)
    running: dict[ForkServerProcess, tuple[Job, float]] = {}
    with _ending_with_the_plan(running):
        while waiting or running:
            for job in list(waiting):
                lost = [name for name in job.needs if isinstance(states.get(name), Missing)]
                if lost:
                    waiting.remove(job)
                    states[job.name] = Missing("skipped", f"it needs {lost[0]}")
                    say(f"{job.name}: skipped, {states[job.name].reason}")  # pyright: ignore[reportAttributeAccessIssue]
                elif len(running) < workers and all(name in states for name in job.needs):
                    waiting.remove(job)
                    running[_start(job, plan, folder)] = job, time.monotonic()
                    say(f"{job.name}: begun")
            if not running:
                continue
            for sentinel in wait([process.sentinel for process in running]):
                process = next(process for process in running if process.sentinel == sentinel)
                job, started = running.pop(process)
                process.join()
                states[job.name] = state = _outcome(job, folder, process.exitcode)
                took = f"after {time.monotonic() - started:.0f} s"
                say(f"{job.name}: done {took}" if isinstance(state, Done) else f"{job.name}: {state.reason} ({took})")
    return states


def read_result(job: Job, folder: Path) -> Done | None:
    """The job's result, if it is there.

    Raises:
        DamagedFileError: The result cannot be read; the message names its file.
        ValueError: The result is of another version or of other settings; the message names the difference.
    """
    path = folder / job.name / RESULT
    if not path.exists():
        return None
    record, expected = read_object(path, "result", "seconds"), _identity(job)
    expected["settings"].pop("threads", None)  # a plan may continue with another number
    if changes := differences(record, expected):
        raise ValueError(
            f"{path} is the result of another run ({changes}): choose another folder, or delete {path.parent} and what "
            "was made from it"
        )
    return Done(path.parent, record["result"], record["seconds"])


def _checked(jobs: Sequence[Job]) -> dict[str, Job]:
    plan: dict[str, Job] = {}
    for job in jobs:
        if job.name in plan:
            raise ValueError(f"two jobs are named {job.name!r}: give each value of a setting, such as a seed, once")
        plan[job.name] = job
    left = set(plan)
    for job in jobs:
        for name in job.needs:
            if name not in plan:
                raise ValueError(f"job {job.name!r} needs {name!r}, which is not in the plan")
    while left:
        ready = {name for name in left if not left.intersection(plan[name].needs)}
        if not ready:
            raise ValueError(f"jobs need each other in a circle: {', '.join(sorted(left))}")
        left -= ready
    return plan


def _start(job: Job, plan: Mapping[str, Job], folder: Path) -> ForkServerProcess:
    inputs = [plan[name] for name in job.needs]
    # Forked from a server that has imported what jobs do and has done nothing: importing it takes seconds, a fork none.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(sorted({item.work.__module__ for item in plan.values()}))
    process = context.Process(target=_work, args=(job, inputs, folder), daemon=True)
    with _ctrl_c_ignored():
        process.start()
    return process


@contextmanager
def _ending_with_the_plan(running: Iterable[ForkServerProcess]) -> Iterator[None]:
    """Processes that still run when the block is left, by an error or a signal too, are ended."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number)) if is_main else None
    try:
        yield
    finally:
        for process in running:
            process.terminate()
            process.join()
        if is_main:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """Processes that begin in here never mind Ctrl-C: the plan minds it, and ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _work(job: Job, inputs: Sequence[Job], folder: Path) -> None:
    """Does a job, in its process."""
    own = folder / job.name
    own.mkdir(parents=True, exist_ok=True)
    try:
        with (own / LOG).open("a", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
            # A process whose plan was killed may still be at work here: it goes first, and then nothing is left to do.
            fcntl.flock(log, fcntl.LOCK_EX)
            if (own / RESULT).exists():
                return
            (own / FAILURE).unlink(missing_ok=True)
            started = time.monotonic()
            needed = {item.name: done for item in inputs if (done := read_result(item, folder)) is not None}
            result = job.work(own, job.settings, needed)
            seconds = round(time.monotonic() - started, 1)
            write_json(own / RESULT, {**_identity(job), "seconds": seconds, "result": result})
    except Exception as error:
        # Not every library that finds the disk full says so by an OSError: safetensors does not.
        if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
            os._exit(_NO_SPACE)
        _fail(own, error)


def _fail(own: Path, error: Exception) -> None:
    write_json(own / FAILURE, {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()})
    sys.exit(1)


def _outcome(job: Job, folder: Path, status: int | None) -> Done | Missing:
    done = read_result(job, folder)
    if done is not None:
        return done
    if status == _NO_SPACE:
        raise OSError(
            errno.ENOSPC, f"no space is left for {job.name}: what was finished is kept, and the same command continues"
        )
    failure = folder / job.name / FAILURE
    if failure.exists():
        return Missing("failed", json.loads(failure.read_text())["error"].splitlines()[0])
    return Missing("failed", f"its process ended with status {status}; see {folder / job.name / LOG}")


def _identity(job: Job) -> dict[str, Any]:
    """Settings and version that a result of this job must have been made with."""
    return json.loads(json.dumps({"version": version("tokengym"), "settings": job.settings}))
