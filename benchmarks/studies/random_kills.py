"""Random kills: runs of every agent are killed at random moments and resumed, and must end as runs that were not.

    OMP_NUM_THREADS=1 python -m tokengym.benchmarks.studies.random_kills --minutes 10 --output random_kills.json

A killed run is resumed, and perhaps killed again, until it ends. Weights, metrics and attempts are then compared with
those of a run that was left alone, in one process and in two.
"""

import argparse
import itertools
import json
import os
import shutil
import signal
import socket
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
from ...files import read_jsonl, read_tensors
from ...models.loading import load

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


def _difference(one: Path, other: Path) -> str:
    """What differs between two finished runs; empty if nothing does."""
    for file in sorted(one.glob("model/*.safetensors")):
        ours, theirs = read_tensors(file), read_tensors(other / "model" / file.name)
        for name, tensor in ours.items():
            if not torch.equal(tensor, theirs[name]):
                return f"{file.name}: {name} differs by {(tensor - theirs[name]).abs().max():.1e}"
    lines = [
        [
            {name: value for name, value in line.items() if "time/" not in name}
            for line in read_jsonl(run / "metrics.jsonl")
        ]
        for run in (one, other)
    ]
    if lines[0] != lines[1]:
        return f"metrics.jsonl: {len(lines[0])} and {len(lines[1])} lines differ"
    return ""


def run(minutes: float, agents: tuple[str, ...] = tuple(SETTINGS), seed: int = 0) -> dict[str, Any]:
    """Kills runs for some minutes.

    Args:
        minutes: Time after which no trial begins; every agent has one in one process and one in two.
        agents: Names of the agents.
        seed: Seed of the moments.

    Returns:
        By agent and number of processes, the trials, the kills in them, and what differed at the end.
    """
    torch.set_num_threads(1)
    load("tokengym/tiny", device="cpu")  # and all else that children would import again and again
    for name in agents:
        AGENTS.get(name)
    import_module("torch.utils.tensorboard")
    rng, end = np.random.default_rng(seed), time.monotonic() + 60 * minutes
    found: dict[str, Any] = defaultdict(lambda: {"trials": 0, "kills": 0, "equal": 0, "differences": []})
    lengths: dict[tuple[str, int], float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for turn in itertools.count():
            if turn and time.monotonic() > end:
                break
            for processes in (1, 2):
                for name in agents:
                    if turn and time.monotonic() > end:
                        break
                    key, whole = (
                        f"{name}, {processes} process{'es' if processes > 1 else ''}",
                        root / f"{name}-{processes}",
                    )
                    record = found[key]
                    if (name, processes) not in lengths:
                        started = time.monotonic()
                        if not _wait(_start(name, whole, processes, resume=False), 600):
                            record["differences"].append("the run left alone failed: " + _last_line(whole))
                            lengths[name, processes] = 0.0
                            continue
                        lengths[name, processes] = time.monotonic() - started
                    if not lengths[name, processes]:
                        continue
                    cut, moments = root / "cut", rng.uniform(0.02, 1, 2) * lengths[name, processes]
                    kills, ended = 0, None
                    for number in range(8):
                        limit = moments[number] if number < len(moments) else 600.0
                        ended = _wait(_start(name, cut, processes, resume=True), limit)
                        kills += ended is None
                        if ended is not None:
                            break
                    record["trials"] += 1
                    record["kills"] += kills
                    difference = _difference(whole, cut) if ended else "failed: " + _last_line(cut)
                    record["equal"] += not difference
                    if difference:
                        record["differences"].append(difference)
                    shutil.rmtree(cut, ignore_errors=True)
                    (root / "cut.log").unlink(missing_ok=True)
    return dict(found)


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
    text = json.dumps(run(arguments.minutes, tuple(arguments.agents), arguments.seed), indent=1)
    print(text)
    if arguments.output is not None:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
