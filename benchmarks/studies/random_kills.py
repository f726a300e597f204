"""Random kills: runs of every agent are killed at random moments and resumed, and must end as runs that were not.

    OMP_NUM_THREADS=1 python -m tokengym.benchmarks.studies.random_kills --minutes 10 --output random_kills.json

A killed run is resumed, and perhaps killed again, until it ends. It is then compared with a run that was left alone.
In one process and in two, weights and metrics must be equal bit for bit. Where a run that began in one process goes on
in two, or the other way round, sums are rounded otherwise; there the attempts and metrics on record must be as many,
and every figure the same up to `TOLERANCE`, but for the share of padding, which depends on how batches are cut.
"""

import argparse
import itertools
import json
import math
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...agents import AGENTS, make_agent
from ...exits import exit_status
from ...files import check_output, read_jsonl, read_tensors, write_text
from ...models.loading import load
from ...registry import check_known

_FINE_TUNING = {"epochs": 2, "batch_size": 8, "save_steps": 1, "validation_problems": 4}
_POLICY = {"iterations": 3, "problems_per_iteration": 8, "samples_per_problem": 2, "validation_problems": 4}
_POLICY |= {"save_iterations": 1, "validation_iterations": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {**_FINE_TUNING, "demonstrations": 24},
    "pretrain": {"steps": 8, "batch_size": 8, "save_steps": 2, "log_steps": 1, "validation_problems": 4},
    "ei": {**_FINE_TUNING, "demonstrations": 16, "problems": 12, "samples_per_problem": 2, "rounds": 2, "patience": 2},
    "star": {**_FINE_TUNING, "demonstrations": 16, "problems": 12, "rounds": 2, "patience": 2},
    "dpo": {**_FINE_TUNING, "problems": 16, "samples_per_problem": 4, "rounds": 2, "patience": 2},
    "rcrl": {**_FINE_TUNING, "problems": 12, "samples_per_problem": 2, "rollouts_per_step": 2, "positive_ratio": None},
    "orm": {**_FINE_TUNING, "problems": 16, "samples_per_problem": 4},
    "prm": {**_FINE_TUNING, "problems": 8, "samples_per_problem": 2, "rollouts_per_step": 2},
    "preference": {**_FINE_TUNING, "problems": 16, "samples_per_problem": 8},
    "sorm": {**_FINE_TUNING, "problems": 8, "samples_per_problem": 2, "rollouts_per_step": 2},
    "reinforce": _POLICY,
    "grpo": {**_POLICY, "epochs": 2, "minibatches": 2, "kl_coef": 0.05},
    "ppo": {**_POLICY, "epochs": 2, "minibatch_size": 8, "critic_layers": 2},
}
"""Small settings of each agent, with checkpoints as often as they can be."""

WORLDS: dict[str, tuple[int, int]] = {
    "1 process": (1, 1),
    "2 processes": (2, 2),
    "1, then 2 processes": (1, 2),
    "2, then 1 process": (2, 1),
}
"""Numbers of processes that a run begins and goes on with."""

TOLERANCE = 1e-4
"""Largest difference, absolute or relative, of a figure where the number of processes changes."""

_ENV = {"steps": 1, "max_new_tokens": 48, "max_prompt_tokens": 96}


def _learn(name: str, folder: Path, resume: bool) -> None:
    """One process of a run, from its start or its newest checkpoint to its end."""
    import gymnasium as gym

    spec = gym.spec("tokengym/Arithmetic-v0")
    spec.kwargs.update(_ENV)
    model = None if name == "pretrain" else "tokengym/tiny"
    settings = {"num_envs": 16, "device": "cpu", "run": folder, "resume": "auto" if resume else False}
    make_agent(name, spec, model, **settings, **SETTINGS[name]).learn()


def _start(name: str, folder: Path, processes: int, resume: bool) -> list[int]:
    """Forks the processes of a run; their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children: list[int] = []
    for rank in range(processes):
        child = os.fork()
        if child:
            children.append(child)
            continue
        status = 1
        try:
            torch.set_num_threads(1)  # in one thread: two that find the parent's pool at once fail
            if processes > 1:
                ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
                os.environ.update({key: str(value) for key, value in ranks.items()})
                os.environ.update(MASTER_ADDR="127.0.0.1", ACCELERATE_USE_CPU="true")
            with (folder.parent / f"{folder.name}.log").open("a") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                _learn(name, folder, resume)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return children


def _wait(children: list[int], seconds: float) -> bool | None:
    """Waits for processes: whether all ended well, or `None` after some seconds, when all that are left are killed."""
    left, good, end = list(children), True, time.monotonic() + seconds
    while left and good and time.monotonic() < end:
        for child in list(left):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                left.remove(child)
                good &= status == 0
        time.sleep(0.005)
    for child in left:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return None if left and good else good


def _difference(one: Path, other: Path, tolerance: float) -> str:
    """What differs between two finished runs by more than a tolerance; empty if nothing does."""
    for file in sorted(one.glob("model/*.safetensors")):
        ours, theirs = read_tensors(file), read_tensors(other / "model" / file.name)
        for name, tensor in ours.items():
            if not torch.allclose(tensor, theirs[name], rtol=tolerance, atol=tolerance):
                return f"{file.name}: {name} differs by {(tensor - theirs[name]).abs().max():.1e}"
    ours, theirs = (list(read_jsonl(run / "metrics.jsonl")) for run in (one, other))
    if len(ours) != len(theirs):
        return f"metrics.jsonl: {len(ours)} and {len(theirs)} lines"
    for number, (own, their) in enumerate(zip(ours, theirs, strict=True), 1):
        if own.keys() != their.keys():
            return f"metrics.jsonl, line {number}: other names: {sorted(own.keys() ^ their.keys())}"
        for name, value in own.items():
            if tolerance and name == "train/padding":
                continue
            if "time/" not in name and not _is_equal(value, their[name], tolerance):
                return f"metrics.jsonl, line {number}: {name} is {value} and {their[name]}"
    return ""


def _is_equal(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
    return bool(one == other)


def run(minutes: float, agents: tuple[str, ...] = tuple(SETTINGS), seed: int = 0) -> dict[str, Any]:
    """Kills runs for some minutes.

    Args:
        minutes: Time after which no trial begins; every agent has one in each of `WORLDS`.
        agents: Names of the agents.
        seed: Seed of the moments.

    Returns:
        By agent and processes, the trials, the kills in them, and what differed at the end.
    """
    torch.set_num_threads(1)
    load("tokengym/tiny", device="cpu")  # and all else that children would import again and again
    for name in agents:
        AGENTS.get(name)
    import_module("torch.utils.tensorboard")
    rng, end = np.random.default_rng(seed), time.monotonic() + 60 * minutes
    found: dict[str, Any] = defaultdict(lambda: {"trials": 0, "kills": 0, "equal": 0, "differences": []})
    with tempfile.TemporaryDirectory() as temporary:
        trials = _Trials(Path(temporary), rng)
        for turn in itertools.count():
            for (world, processes), name in itertools.product(WORLDS.items(), agents):
                if turn and time.monotonic() > end:
                    return dict(found)
                kills, difference = trials.run(name, *processes)
                record = found[f"{name}, {world}"]
                record["trials"] += 1
                record["kills"] += kills
                record["equal"] += not difference
                if difference:
                    record["differences"].append(difference)
    raise AssertionError  # the turns have no end of their own


class _Trials:
    """Runs that are killed, in a folder beside those that are left alone.

    Args:
        root: Folder of all runs.
        rng: Draws the moments of the kills.
    """

    def __init__(self, root: Path, rng: np.random.Generator) -> None:
        self._root, self._rng = root, rng
        self._seconds: dict[tuple[str, int], float] = {}  # that a run takes which is left alone

    def run(self, name: str, before: int, after: int) -> tuple[int, str]:
        """Kills a run and resumes it until it ends.

        Args:
            name: Name of the agent.
            before: Number of processes until the first kill.
            after: Number of processes from then on.

        Returns:
            Number of kills, and what differs from a run left alone in `after` processes.
        """
        for processes in {before, after}:
            if (name, processes) not in self._seconds and (failure := self._leave_alone(name, processes)):
                return 0, failure
        cut, kills, ended = self._root / "cut", 0, None
        moments = self._rng.uniform(0.02, 1, 2) * self._seconds[name, before]
        for limit in (*moments, 600.0):
            ended = _wait(_start(name, cut, after if kills else before, resume=True), limit)
            kills += ended is None
            if ended is not None:
                break
        whole = self._root / f"{name}-{after}"
        tolerance = 0.0 if before == after else TOLERANCE
        difference = _difference(whole, cut, tolerance) if ended else "failed: " + _last_line(cut)
        shutil.rmtree(cut, ignore_errors=True)
        (self._root / "cut.log").unlink(missing_ok=True)
        return kills, difference

    def _leave_alone(self, name: str, processes: int) -> str:
        """A run that nothing happens to; why it failed, or an empty text."""
        folder, started = self._root / f"{name}-{processes}", time.monotonic()
        if not _wait(_start(name, folder, processes, resume=False), 600):
            return "the run left alone failed: " + _last_line(folder)
        self._seconds[name, processes] = time.monotonic() - started
        return ""


def _last_line(folder: Path) -> str:
    lines = (folder.parent / f"{folder.name}.log").read_text().strip().splitlines()
    return lines[-1][:300] if lines else "without a word"


def main() -> None:
    """Kills, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--agents", nargs="*", default=list(SETTINGS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    check_output(arguments.output)
    check_known("agent", arguments.agents, SETTINGS)
    if not arguments.agents or not arguments.minutes > 0:
        raise ValueError("nothing to run: minutes must be above 0, and agents need at least one name")
    text = json.dumps(run(arguments.minutes, tuple(arguments.agents), arguments.seed), indent=1)
    print(text)
    if arguments.output is not None:
        write_text(arguments.output, text + "\n")


if __name__ == "__main__":
    sys.exit(exit_status(main))
