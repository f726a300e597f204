"""A real model on real data: SFT, expert iteration and GRPO from one start, on two cores or one GPU.

    python -m tokengym.benchmarks.paper.real_model --model SmolLM2-135M-Instruct.gguf --data svamp --folder runs/svamp
    python -m tokengym.benchmarks.paper.real_model --env tokengym/GSM8K-v0 --max-new-tokens 192 --device cuda ...

For each seed a model is fine-tuned on the reference solutions of its training split; expert iteration, which begins
with the same fine-tuning, and GRPO, from its result, sample as many attempts as each other. All are evaluated on the
same test problems. A folder holds all of it: what is done is not done again, and a job that was stopped goes on from
its last checkpoint, so the same command may be run in pieces.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from ...arrays import FloatArray
from ...files import read_json, write_json
from ...settings import Count, CountOrZero, check_settings
from ..jobs import Done, Job, Missing, run_plan
from ..statistics import crossed_mean
from ..study import study_command
from .jobs import OUTCOMES, evaluate_system, train_system
from .systems import MODEL, output

SYSTEMS = {"start": "the model as it is", "sft": "SFT", "ei": "expert iteration", "grpo": "GRPO"}
# Three times the paper's rate and more, for a model of a fiftieth of the size: the rates of the paper grid's scale.
FINE_TUNING: dict[str, Any] = {"batch_size": 32, "learning_rate": 1e-4}
GRPO_RATE = 5e-6
GROUP, GROUPS = 8, 16
"""Attempts at a problem, and problems, of an iteration of GRPO."""
TEMPERATURE = 0.7


@dataclass(frozen=True)
class RealModelStudy:
    """A real model on real data, measured.

    Attributes:
        model: Checkpoint to start from: a folder, a GGUF file, or a name on the hub.
        data: Folder or file with the data set; by default it comes from the hub.
        env: Id of the environment.
        folder: Folder of all runs; finished runs in it are not repeated.
        seeds: Seeds of the experiment.
        systems: Systems to train and evaluate, keys of `SYSTEMS`; GRPO needs "sft".
        rounds: Rounds of expert iteration, with 4 attempts at each training problem.
        epochs: Passes over the training data of every fine-tuning.
        problems: Training problems, the first of the split.
        test_problems: Test problems of the evaluations, the first of the split.
        n: Samples of each test problem, for maj@n and pass@n.
        max_new_tokens: Length limit of attempts in tokens.
        num_envs: Attempts that are sampled at the same time.
        bf16: Train under autocast, and sample in bfloat16, in evaluations too.
        device: Device of all jobs.
        threads: CPU threads of each job.
        workers: Number of jobs that run at the same time.
    """

    model: str
    data: str | None = None
    env: str = "tokengym/SVAMP-v0"
    folder: Path = Path("runs/real-model")
    seeds: tuple[CountOrZero, ...] = (0, 1)
    systems: tuple[str, ...] = tuple(SYSTEMS)
    rounds: Count = 2
    epochs: Count = 2
    problems: Count = 600
    test_problems: Count = 300
    n: Count = 8
    max_new_tokens: Count = 96
    num_envs: Count = 64
    bf16: bool = False
    device: str = "cpu"
    threads: Count = 1
    workers: Count = 2

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.seeds or not self.systems:
            raise ValueError("nothing to run: seeds and systems need at least one each")
        unknown = sorted({*self.systems} - {*SYSTEMS})
        if unknown:
            raise ValueError(f"no system is named {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
        if "grpo" in self.systems and "sft" not in self.systems:
            raise ValueError('GRPO starts from the result of SFT: add "sft" to systems, or leave "grpo" out')

    @property
    def attempts(self) -> int:
        """Attempts that expert iteration samples in all its rounds, and GRPO in all its iterations, or a few more."""
        return self.rounds * self.problems * 4


def jobs(experiment: RealModelStudy) -> list[Job]:
    """The plan, all systems of a seed before the next seed."""
    return [
        job
        for seed in experiment.seeds
        for name in SYSTEMS
        if name in experiment.systems
        for job in _jobs(experiment, name, seed)
    ]


def _jobs(experiment: RealModelStudy, name: str, seed: int) -> list[Job]:
    """Training of a system, where it has any, and its evaluation."""
    env = {"id": experiment.env, "max_new_tokens": experiment.max_new_tokens, "on_long_prompt": "skip"}
    if experiment.data is not None:
        env["data"] = experiment.data
    common = {"env": env, "seed": seed, "threads": experiment.threads}
    title = lambda system, what: f"seed-{seed}/{system}/{what}"  # noqa: E731
    start = output(title("sft", "train"), MODEL) if name == "grpo" else experiment.model
    plan: list[Job] = []
    if name != "start":
        own = {"micro_batch_tokens": 1024, "validation_problems": 100, "bf16": experiment.bf16}
        training = {
            **common,
            "agent": name,
            "model": start,
            "arguments": {"num_envs": experiment.num_envs, "device": experiment.device},
            "config": own | _config(experiment, name),
        }
        needs = (title("sft", "train"),) if name == "grpo" else ()
        plan.append(Job(title(name, "train"), train_system, training, needs))
    evaluation = {
        **common,
        "title": SYSTEMS[name],
        "model": output(title(name, "train"), MODEL) if plan else experiment.model,
        "n": experiment.n,
        "problems": experiment.test_problems,
        "temperature": TEMPERATURE,
        "reward": "sparse",
        "browsed": 0,
        "num_envs": experiment.num_envs,
        "device": experiment.device,
        "dtype": "bfloat16" if experiment.bf16 else "float32",
    }
    return [*plan, Job(title(name, "evaluate"), evaluate_system, evaluation, tuple(job.name for job in plan))]


def _config(experiment: RealModelStudy, name: str) -> dict[str, Any]:
    supervised = {"epochs": experiment.epochs, "demonstrations": experiment.problems, "save_steps": 10}
    if name == "sft":
        return FINE_TUNING | supervised
    if name == "ei":
        rounds = {"rounds": experiment.rounds, "patience": experiment.rounds, "samples_per_problem": 4}
        return FINE_TUNING | supervised | rounds | {"problems": experiment.problems}
    return {
        "learning_rate": GRPO_RATE,
        "problems_per_iteration": GROUPS,
        "samples_per_problem": GROUP,
        "iterations": -(-experiment.attempts // (GROUPS * GROUP)),
        "validation_iterations": 10,
        "save_iterations": 1,
        "keep_best": True,
    }


def run(experiment: RealModelStudy, say: Any = lambda line: None) -> dict[str, Any]:
    """Does what is not done yet, and writes `results.json` into the folder.

    Returns:
        JSON values: `settings`; `systems`, of each its `seeds`, and by metric the values `[S, P]` of all problems, and
        what training, that of what it starts from (`start_cpu_seconds`), and evaluation cost; `missing`, why by job.
    """
    states = run_plan(jobs(experiment), experiment.folder, workers=experiment.workers, say=say)
    settings = {
        name: value
        for name, value in vars(experiment).items()
        if name not in ("model", "data", "folder", "workers", "systems")
    }
    results: dict[str, Any] = {"settings": settings | {"model": Path(experiment.model).name}, "systems": {}}
    for name in experiment.systems:
        results["systems"][name] = _measured(name, experiment.seeds, states)
    results["missing"] = {name: state.reason for name, state in states.items() if isinstance(state, Missing)}
    write_json(experiment.folder / "results.json", results)
    return results


def _measured(name: str, seeds: Sequence[int], states: Mapping[str, Done | Missing]) -> dict[str, Any]:
    found: dict[str, Any] = {"seeds": [], "by_problem": {}, "cost": []}
    for seed in seeds:
        evaluation = states[f"seed-{seed}/{name}/evaluate"]
        if isinstance(evaluation, Missing):
            continue
        found["seeds"].append(seed)
        for metric, values in read_json(evaluation.folder / OUTCOMES)["by_problem"].items():
            found["by_problem"].setdefault(metric, []).append(values)
        training = states.get(f"seed-{seed}/{name}/train")
        spent = training.result if isinstance(training, Done) else {}
        cost = {key: spent.get(key, 0) for key in ("attempts", "tokens", "seconds", "cpu_seconds")}
        # Expert iteration fine-tunes for itself, before its first round.
        start = states.get(f"seed-{seed}/sft/train") if name == "grpo" else None
        cost["start_cpu_seconds"] = start.result["cpu_seconds"] if isinstance(start, Done) else 0
        found["cost"].append(cost | {"evaluation_cpu_seconds": evaluation.result["cpu_seconds"]})
        if "curve" in spent:
            found.setdefault("curves", []).append(spent["curve"])
    return found


def table(results: Mapping[str, Any]) -> Table:
    """One row for each system: means over seeds and problems with 95 % intervals, and gains over SFT."""
    settings = results["settings"]
    n = settings["n"]
    metrics = ["maj@1", f"maj@{n}", f"pass@{n}"]
    grid = Table(
        "", "seeds", *metrics, "gain of maj@1 over SFT", "attempts", "minutes",
        box=SIMPLE, show_edge=False,
        title=f"{settings['model']}, {settings['env']}, {settings['test_problems']} test problems",
        caption="means with 95 % intervals over seeds and problems; gains are paired; CPU minutes of training, that of "
        "the start included",
    )  # fmt: skip
    systems = results["systems"]
    for name, found in systems.items():
        if not found["seeds"]:
            continue
        cost = found["cost"]
        grid.add_row(
            SYSTEMS[name],
            str(len(found["seeds"])),
            *(str(crossed_mean(np.array(found["by_problem"][metric], float))) for metric in metrics),
            "" if name in ("start", "sft") else _gain(found, systems.get("sft")),
            f"{np.mean([one['attempts'] for one in cost]):,.0f}",
            f"{np.mean([one['cpu_seconds'] + one['start_cpu_seconds'] for one in cost]) / 60:.0f}",
        )
    return grid


def _gain(found: Mapping[str, Any], start: Mapping[str, Any] | None) -> str:
    """The difference to SFT's greedy accuracy, of the seeds that both have."""
    both = [seed for seed in found["seeds"] if start is not None and seed in start["seeds"]]
    if start is None or not both:
        return ""
    return str(crossed_mean(_values(found, both) - _values(start, both), (-1.0, 1.0)))


def _values(found: Mapping[str, Any], seeds: Sequence[int]) -> FloatArray:
    return np.array([found["by_problem"]["maj@1"][found["seeds"].index(seed)] for seed in seeds], float)


if __name__ == "__main__":
    study_command(
        RealModelStudy,
        partial(run, say=print),
        table,
        is_empty=lambda results: not any(system["seeds"] for system in results["systems"].values()),
    )
