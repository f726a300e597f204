"""Next-token prediction on rare long and common short solutions, then reinforcement learning (Tsilivis et al. 2025).

An experiment is a grid: one pretraining for each seed and share of long solutions, and one run of reinforcement
learning for each of these, each of the chosen checkpoints, algorithms, gradings and temperatures. All are jobs in one
folder. A finished one is not repeated and an unfinished one continues, so a killed command is simply given again, and a
larger grid takes over what a smaller one has done.
"""

import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from ...envs.registration import make_spec, make_vec_env
from ...extras import need
from ...files import check_folder, read_json, write_json
from ...registry import unknown_name
from ...settings import Count, CountOrZero, FinitePositive, Positive, check_settings
from ..jobs import Done, Job, Missing, read_result, run_plan
from .jobs import pretrain, probe_checkpoint, reinforce

NUM_ENVS = 256
VALIDATION_PROBLEMS = 200
# Small enough for a core's cache: on CPUs a third faster than the agents' own default.
MICRO_BATCH_TOKENS = 1024


Algorithm = Literal["star", "reinforce", "rloo", "grpo", "dr-grpo", "dapo", "gspo", "cispo", "lite-ppo"]


@dataclass(frozen=True)
class Experiment(ABC):
    """Pretraining and the reinforcement learning that follows; settings with several values make the grid.

    Attributes:
        folder: Folder of all runs; finished runs in it are not repeated.
        p_cot: Shares of long solutions in pretraining. [Tsilivis et al. 2025]
        algorithms: Algorithms of reinforcement learning: "star", "reinforce", "rloo", "grpo", or presets of GRPO by
            name; none measures pretraining alone. [choice]
        gradings: Parts of a response that are rewarded: the whole response ("cot") or its answer ("e2e"). [choice]
        temperatures: Sampling temperatures of reinforcement learning; the source compares 0.75, 1
            and 1.5. [Tsilivis et al. 2025]
        starts: Pretraining steps after which reinforcement learning begins, multiples of `save_steps`; none uses the
            last step.
        seeds: Seeds of the experiment, each with pretraining and reinforcement learning of its own.
        architecture: Architecture of the model: "gpt2", or "llama" for rotary positions, which learns chains in far
            fewer steps. [choice]
        depth: Number of layers of the model. [Tsilivis et al. 2025]
        width: Size of the model's hidden states. [Tsilivis et al. 2025]
        steps: Number of pretraining steps. [choice]
        batch_size: Demonstrations per pretraining step. [Tsilivis et al. 2025]
        pretraining_rate: Peak learning rate of pretraining. [choice]
        save_steps: Pretraining steps between checkpoints and validations. [choice]
        iterations: Iterations of reinforcement learning, or rounds of STaR. [Tsilivis et al. 2025]
        attempts: Attempts sampled in each iteration or round. [choice]
        group: Attempts at each problem for "grpo" and "rloo", which compare them. [choice]
        learning_rate: Peak learning rate of reinforcement learning; `None` takes 3e-4 for "star" and "reinforce", but
            only 1e-4 for the others. [choice]
        test_problems: Test problems that models are measured on before and after reinforcement learning. [choice]
        threads: Number of CPU threads of each process.
        workers: Number of processes that run at the same time.
    """

    env: ClassVar[str]

    folder: Path
    p_cot: tuple[float, ...] = (0.25,)
    algorithms: tuple[Algorithm, ...] = ("star", "reinforce", "grpo")
    gradings: tuple[Literal["cot", "e2e"], ...] = ("cot",)
    temperatures: tuple[FinitePositive, ...] = (1.0,)
    starts: tuple[Count, ...] = ()
    seeds: tuple[CountOrZero, ...] = (0,)
    architecture: Literal["gpt2", "llama"] = "llama"
    depth: Count = 2
    width: Count = 128
    steps: Count = 300
    batch_size: Count = 256
    pretraining_rate: Positive = 1e-3
    save_steps: Count = 25
    iterations: Count = 20
    attempts: Count = 512
    group: Annotated[int, Ge(2)] = 16
    learning_rate: Positive | None = None
    test_problems: Count = 500
    threads: Count = 1
    workers: Count = 1

    def __post_init__(self) -> None:
        check_settings(self)
        for algorithm in self.algorithms:
            if algorithm not in LEARNING_RATES:
                raise unknown_name("algorithm", algorithm, LEARNING_RATES)
        for start in self.starts:
            if start > self.steps or (start % self.save_steps and start != self.steps):
                raise ValueError(
                    f"no checkpoint after {start} of {self.steps} steps: set starts, or save_steps to divide it"
                )
        if self.attempts % self.group:
            raise ValueError(f"group must divide attempts={self.attempts}, got {self.group}")
        if not (self.p_cot and self.seeds and self.gradings and self.temperatures):
            raise ValueError("p_cot, seeds, gradings and temperatures need at least one value each")

    @property
    @abstractmethod
    def env_settings(self) -> dict[str, Any]:
        """The environment's arguments that are the same in all runs."""

    def environment(self, p_cot: float, grading: str) -> dict[str, Any]:
        """Id and arguments of an environment."""
        return {"id": self.env, **self.env_settings, "p_cot": p_cot, "grading": grading}

    @property
    def description(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return json.loads(json.dumps({"env": self.env, **asdict(self)}, default=str))


@dataclass(frozen=True)
class ParityExperiment(Experiment):
    """Parity of d bits.

    Attributes:
        d: Number of bits; the source has 50, and 25 for many comparisons. [Tsilivis et al. 2025]
        leap: Distance of the running parities that long solutions have: every leap-th one. [Tsilivis et al. 2025]
    """

    env: ClassVar[str] = "tokengym/Parity-v0"

    folder: Path = Path("runs/parity")
    d: Count = 25
    leap: Count = 1

    @property
    def env_settings(self) -> dict[str, Any]:
        return {"d": self.d, "leap": self.leap}


@dataclass(frozen=True)
class MultiplicationExperiment(Experiment):
    """Multiplication of numbers with several digits.

    Attributes:
        digits: Number of digits of each factor. [Tsilivis et al. 2025: 4, 5 and 7]
    """

    env: ClassVar[str] = "tokengym/Multiplication-v0"

    folder: Path = Path("runs/multiplication")
    digits: Count = 3

    @property
    def env_settings(self) -> dict[str, Any]:
        return {"digits": self.digits}


_PRESETS = ("dr-grpo", "dapo", "gspo", "cispo", "lite-ppo")
LEARNING_RATES = {"star": 3e-4, "reinforce": 3e-4, "rloo": 1e-4, "grpo": 1e-4, **dict.fromkeys(_PRESETS, 1e-4)}
"""Learning rates of the algorithms. Pushing wrong attempts down undoes what is half learned, unless it goes slowly."""


def run(experiment: Experiment, say: Callable[[str], object] = lambda line: None) -> dict[str, Any]:
    """Runs what is not yet there; writes `results.json` and the plots into the folder, after every run anew.

    Args:
        experiment: Experiment to run.
        say: Function that shows a line of progress.

    Returns:
        JSON values: `settings`; `pretraining`, a list of what each one is, its `curve`, what the model does at each
        start (`before`), and its cost; `runs`, likewise with what the model does `after`; `missing`, why by name.

    Raises:
        ValueError: The folder holds runs with settings other than these, apart from those of the grid.
        OSError: The disk is full; what was finished is kept.
    """
    need("plots", "the plots of this experiment")
    for p_cot, grading in itertools.product(experiment.p_cot, experiment.gradings):
        make_vec_env(make_spec(experiment.environment(p_cot, grading)), 1)  # fails before hours are spent
    _check_folder(experiment)
    jobs, written = plan(experiment), 0

    def progress(line: str) -> None:
        nonlocal written
        say(line)
        states = {job.name: state for job in jobs if (state := read_result(job, experiment.folder)) is not None}
        if len(states) > written:
            _write(experiment, jobs, states)
            written = len(states)

    return _write(experiment, jobs, run_plan(jobs, experiment.folder, workers=experiment.workers, say=progress))


def _write(experiment: Experiment, jobs: Sequence[Job], states: Mapping[str, Done | Missing]) -> dict[str, Any]:
    """Writes and returns what the jobs found so far."""
    from .plots import plot

    pretraining: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    missing = {name: state.reason for name, state in states.items() if isinstance(state, Missing)}
    for job in jobs:
        state, settings = states.get(job.name), job.settings
        if not isinstance(state, Done):
            continue
        which = {"p_cot": settings["env"]["p_cot"], "seed": settings["seed"]}
        if job.work is pretrain:
            pretraining.append({**which, "before": {}, **state.result})
        elif job.work is probe_checkpoint:  # of the pretraining just before it, which it needs
            pretraining[-1]["before"][str(settings["start"])] = dict(state.result)
        else:
            which |= {name: settings[name] for name in ("algorithm", "start")}
            which |= {"grading": settings["env"]["grading"], "temperature": settings["config"]["temperature"]}
            runs.append({**which, **state.result})
    results = {"settings": experiment.description, "pretraining": pretraining, "runs": runs, "missing": missing}
    write_json(experiment.folder / "results.json", results)
    if pretraining:
        plot(results, experiment.folder)
    return results


_GRID = ("folder", "p_cot", "algorithms", "gradings", "temperatures", "starts", "seeds", "threads", "workers")


def _check_folder(experiment: Experiment) -> None:
    """Lets no finished run pass for one with other settings."""
    check_folder(experiment.folder)
    record = experiment.folder / "settings.json"
    settings = {name: value for name, value in experiment.description.items() if name not in _GRID}
    if not record.exists():
        record.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, settings)
    elif (before := read_json(record)) != settings:
        changes = ", ".join(
            f"{name}: {before.get(name)!r} -> {settings.get(name)!r}"
            for name in settings | before
            if before.get(name) != settings.get(name)
        )
        raise ValueError(f"{experiment.folder} holds runs with other settings ({changes}): choose another folder")


def plan(experiment: Experiment) -> list[Job]:
    """The jobs: each pretraining, then for each of its starts the model there, and reinforcement learning from it."""
    jobs: list[Job] = []
    for seed, p_cot in itertools.product(experiment.seeds, experiment.p_cot):
        folder = f"seed-{seed}/p_cot-{p_cot:g}"
        pretraining = f"{folder}/pretraining"
        common = {
            "seed": seed,
            "threads": experiment.threads,
            "num_envs": NUM_ENVS,
            "micro_batch_tokens": MICRO_BATCH_TOKENS,
            "validation_problems": VALIDATION_PROBLEMS,
            "env": experiment.environment(p_cot, "cot"),
        }
        jobs.append(Job(pretraining, pretrain, {**common, "config": _pretraining(experiment)}))
        for start in experiment.starts or (experiment.steps,):
            from_here = {**common, "pretraining": pretraining, "start": start}
            from_here["test_problems"] = experiment.test_problems
            before = f"{folder}/before-from-{start}"
            jobs.append(Job(before, probe_checkpoint, from_here, (pretraining,)))
            for algorithm, grading, temperature in itertools.product(
                experiment.algorithms, experiment.gradings, experiment.temperatures
            ):
                agent, config = _algorithm(experiment, algorithm)
                rate = experiment.learning_rate or LEARNING_RATES[algorithm]
                settings = {
                    **from_here,
                    "env": experiment.environment(p_cot, grading),
                    "algorithm": algorithm,
                    "agent": agent,
                    "attempts": experiment.attempts,
                    "config": {"temperature": temperature, "learning_rate": rate, **config},
                }
                name = f"{folder}/{algorithm}-{grading}-temperature-{temperature:g}-from-{start}"
                jobs.append(Job(name, reinforce, settings, (pretraining, before)))
    return jobs


def _pretraining(experiment: Experiment) -> dict[str, Any]:
    names = ("architecture", "depth", "width", "steps", "batch_size", "save_steps")
    return {"learning_rate": experiment.pretraining_rate, **{name: getattr(experiment, name) for name in names}}


def _algorithm(experiment: Experiment, algorithm: str) -> tuple[str, dict[str, Any]]:
    """The agent of an algorithm and its own settings."""
    if algorithm == "star":
        rounds = {"rounds": experiment.iterations, "patience": experiment.iterations}
        return "star", {"problems": experiment.attempts, "demonstrations": 0, **rounds}
    settings = {"iterations": experiment.iterations, "validation_iterations": 2}
    if algorithm == "reinforce":
        return "reinforce", {"problems_per_iteration": experiment.attempts, **settings}
    groups = {
        "problems_per_iteration": experiment.attempts // experiment.group,
        "samples_per_problem": experiment.group,
    }
    if algorithm == "rloo":
        return "reinforce", {"baseline": "rloo", **groups, **settings}
    if algorithm in _PRESETS:
        return "grpo", {"preset": algorithm, **groups, **settings}
    # Averages over each attempt's tokens would make a long chain's errors count less than a short answer's.
    return "grpo", {"aggregation": "constant", "length_constant": 1, **groups, **settings}
