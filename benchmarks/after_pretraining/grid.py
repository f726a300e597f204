"""Next-token prediction on rare long and common short solutions, then reinforcement learning (Tsilivis et al. 2025).

An experiment is a grid: one pretraining for each seed and share of long solutions, and one run of reinforcement
learning for each of these, each of the chosen checkpoints, algorithms, gradings and temperatures. All runs live in one
folder. A finished one is not repeated and an unfinished one continues, so a killed command is simply given again, and a
larger grid takes over what a smaller one has done.
"""

import copy
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from safetensors.torch import load_file

from ...agents import Agent, make_agent
from ...agents.rollouts.attempts import Attempt
from ...agents.rollouts.collect import collect
from ...agents.rollouts.policy import CausalLMPolicy
from ...agents.rollouts.slots import make_rollout_env
from ...agents.training.fine_tuning import NothingToLearnError, restore
from ...envs.curriculum import Sequential
from ...envs.registration import make_vec_env
from ...extras import need
from ...files import read_jsonl, write_json
from ...models.loading import load
from ...registry import unknown_name

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
        learning_rate: Peak learning rate of reinforcement learning; `None` uses the algorithm's
            in `LEARNING_RATES`. [choice]
        test_problems: Test problems that models are measured on before and after reinforcement learning. [choice]
        threads: Number of CPU threads.
    """

    env: ClassVar[str]

    folder: Path
    p_cot: tuple[float, ...] = (0.25,)
    algorithms: tuple[Algorithm, ...] = ("star", "reinforce", "grpo")
    gradings: tuple[Literal["cot", "e2e"], ...] = ("cot",)
    temperatures: tuple[float, ...] = (1.0,)
    starts: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0,)
    architecture: Literal["gpt2", "llama"] = "llama"
    depth: int = 2
    width: int = 128
    steps: int = 300
    batch_size: int = 256
    pretraining_rate: float = 1e-3
    save_steps: int = 25
    iterations: int = 20
    attempts: int = 512
    group: int = 16
    learning_rate: float | None = None
    test_problems: int = 500
    threads: int = 1

    def __post_init__(self) -> None:
        for algorithm in self.algorithms:
            if algorithm not in LEARNING_RATES:
                raise unknown_name("algorithm", algorithm, LEARNING_RATES)
        for start in self.starts:
            if start > self.steps or (start % self.save_steps and start != self.steps):
                raise ValueError(
                    f"no checkpoint after {start} of {self.steps} steps: set starts, or save_steps to divide it"
                )
        if self.group < 2 or self.attempts % self.group:
            raise ValueError(f"group must be at least 2 and divide attempts={self.attempts}, got {self.group}")
        if not (self.p_cot and self.seeds and self.gradings and self.temperatures):
            raise ValueError("p_cot, seeds, gradings and temperatures need at least one value each")

    @property
    @abstractmethod
    def env_settings(self) -> dict[str, Any]:
        """The environment's arguments that are the same in all runs."""

    def spec(self, p_cot: float, grading: str) -> EnvSpec:
        """The environment, of which agents make what they need."""
        spec = copy.deepcopy(gym.spec(self.env))
        spec.kwargs |= {**self.env_settings, "p_cot": p_cot, "grading": grading}
        return spec

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

    d: int = 25
    leap: int = 1

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

    digits: int = 3

    @property
    def env_settings(self) -> dict[str, Any]:
        return {"digits": self.digits}


_PRESETS = ("dr-grpo", "dapo", "gspo", "cispo", "lite-ppo")
LEARNING_RATES = {"star": 3e-4, "reinforce": 3e-4, "rloo": 1e-4, "grpo": 1e-4, **dict.fromkeys(_PRESETS, 1e-4)}
"""Learning rates of the algorithms. Pushing wrong attempts down undoes what is half learned, unless it goes slowly."""


def run(experiment: Experiment) -> dict[str, Any]:
    """Runs what is not yet there; writes `results.json` and the plots into the folder, after every run anew.

    Returns:
        JSON values: `settings`; `pretraining`, a list of what each one is, its `curve`, what the model does at each
        start (`before`), and its cost; `runs`, likewise with what the model does `after`.

    Raises:
        ValueError: The folder holds runs with settings other than these, apart from those of the grid.
    """
    from .plots import plot

    need("plots", "the plots of this experiment")
    for p_cot in experiment.p_cot:
        for grading in experiment.gradings:
            make_vec_env(experiment.spec(p_cot, grading), 1)  # what is wrong here fails before hours are spent
    _check_folder(experiment)
    threads = torch.get_num_threads()
    torch.set_num_threads(experiment.threads)
    results: dict[str, Any] = {"settings": experiment.description, "pretraining": [], "runs": []}
    try:
        for part, result in _results(experiment):
            results[part].append(result)
            write_json(experiment.folder / "results.json", results)
            plot(results, experiment.folder)
    finally:
        torch.set_num_threads(threads)
    return results


_GRID = ("folder", "p_cot", "algorithms", "gradings", "temperatures", "starts", "seeds", "threads")


def _check_folder(experiment: Experiment) -> None:
    """Lets no finished run pass for one with other settings."""
    record = experiment.folder / "settings.json"
    settings = {name: value for name, value in experiment.description.items() if name not in _GRID}
    if not record.exists():
        record.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, settings)
    elif (before := json.loads(record.read_text())) != settings:
        changes = ", ".join(
            f"{name}: {before.get(name)!r} -> {value!r}"
            for name, value in settings.items()
            if before.get(name) != value
        )
        raise ValueError(f"{experiment.folder} holds runs with other settings ({changes}): choose another folder")


def _results(experiment: Experiment) -> Iterator[tuple[str, dict[str, Any]]]:
    for seed in experiment.seeds:
        for p_cot in experiment.p_cot:
            folder = experiment.folder / f"seed-{seed}" / f"p_cot-{p_cot:g}"
            yield "pretraining", {"seed": seed, "p_cot": p_cot, **_pretrain(experiment, folder, p_cot, seed)}
            for start in experiment.starts or (experiment.steps,):
                for algorithm in experiment.algorithms:
                    for grading in experiment.gradings:
                        for temperature in experiment.temperatures:
                            what = {"algorithm": algorithm, "grading": grading, "temperature": temperature}
                            what |= {"start": start, "p_cot": p_cot, "seed": seed}
                            yield "runs", {**what, **_reinforce(experiment, folder, **what)}


# ------------------------------------------------------------------------------------------------------------- stages


def _pretrain(experiment: Experiment, folder: Path, p_cot: float, seed: int) -> dict[str, Any]:
    stage = folder / "pretraining"
    run_folder, spec = stage / "run", experiment.spec(p_cot, "cot")
    result = _finished(stage)
    if result is None:
        settings = {
            "architecture": experiment.architecture,
            "depth": experiment.depth,
            "width": experiment.width,
            "steps": experiment.steps,
            "batch_size": experiment.batch_size,
            "learning_rate": experiment.pretraining_rate,
            "save_steps": experiment.save_steps,
        }
        agent = make_agent("pretrain", spec, run=run_folder, **_COMMON, seed=seed, **settings)
        _learn(agent, stage)
        result = {"curve": _curve(run_folder, experiment.batch_size), "before": {}, **_cost(stage)}
    starts = [str(start) for start in experiment.starts or (experiment.steps,)]
    for start in starts:
        if start not in result["before"]:
            policy = CausalLMPolicy(*load(run_folder / "checkpoints" / f"step-{start}", device="cpu"))
            result["before"][start] = probe(policy, spec, experiment.test_problems)
            write_json(stage / "result.json", result)
    return {**result, "before": {start: result["before"][start] for start in starts}}


def _reinforce(
    experiment: Experiment,
    folder: Path,
    *,
    algorithm: str,
    grading: str,
    temperature: float,
    start: int,
    p_cot: float,
    seed: int,
) -> dict[str, Any]:
    stage = folder / f"{algorithm}-{grading}-temperature-{temperature:g}-from-{start}"
    if (result := _finished(stage)) is not None:
        return result
    spec = experiment.spec(p_cot, grading)
    name, settings = _algorithm(experiment, algorithm)
    agent = make_agent(
        name,
        spec,
        folder / "pretraining" / "run" / "checkpoints" / f"step-{start}",
        run=stage / "run",
        **_COMMON,
        seed=seed,
        temperature=temperature,
        learning_rate=experiment.learning_rate or LEARNING_RATES[algorithm],
        **settings,
    )
    stopped = None
    try:
        _learn(agent, stage)
    except NothingToLearnError as error:  # no attempt of a round was right: that is a result, too
        stopped = str(error)
    # The paper's STaR ends with its last round, the agent with the one that validated best.
    if algorithm == "star" and stopped is None:
        last = stage / "run" / f"round-{experiment.iterations}" / "finished" / "weights.safetensors"
        restore(agent.model, load_file(last))
    after = probe(agent.policy, spec, experiment.test_problems)
    result = {"curve": _curve(stage / "run", experiment.attempts), "after": after, "stopped": stopped, **_cost(stage)}
    write_json(stage / "result.json", result)
    return result


_COMMON: dict[str, Any] = {
    "device": "cpu",
    "num_envs": NUM_ENVS,
    "resume": "auto",
    "micro_batch_tokens": MICRO_BATCH_TOKENS,
    "validation_problems": VALIDATION_PROBLEMS,
}


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


def _learn(agent: Agent, stage: Path) -> None:
    """Lets an agent learn, and adds what it costs to what earlier, killed processes spent on it."""
    spent = _cost(stage)
    cpu, wall = time.process_time(), time.perf_counter()

    def record(agent: Agent, metrics: dict[str, float]) -> None:
        seconds = {"cpu_seconds": time.process_time() - cpu, "seconds": time.perf_counter() - wall}
        write_json(stage / "cost.json", {name: spent[name] + value for name, value in seconds.items()})

    agent.learn(callback=record, progress_bar=True)


def _cost(stage: Path) -> dict[str, float]:
    file = stage / "cost.json"
    return json.loads(file.read_text()) if file.exists() else {"cpu_seconds": 0.0, "seconds": 0.0}


def _finished(stage: Path) -> dict[str, Any] | None:
    file = stage / "result.json"
    return json.loads(file.read_text()) if file.exists() else None


_CURVES = {
    "loss": "train/loss",
    "sampled": "rollout/success_rate",
    "greedy": "eval/maj@1",
    "sampled_at_1": "eval/pass@1",
    "median_length": "eval/median_response_length",
    "mean_length": "rollout/mean_length",
    "uniform_groups": "rollout/uniform_groups",
}


def _curve(run_folder: Path, per_iteration: int) -> list[dict[str, float]]:
    """Metrics that a run logged, by optimizer steps of pretraining or iterations of reinforcement learning (`at`)."""
    file = run_folder / "metrics.jsonl"
    lines = read_jsonl(file) if file.exists() else []  # a run that found nothing to learn from may have none
    pretraining = any("train/demonstrations" in line for line in lines)
    return [
        {"at": line["step"] / (1 if pretraining else per_iteration)}
        | {name: round(line[key], 4) for name, key in _CURVES.items() if key in line}
        for line in lines
    ]


# -------------------------------------------------------------------------------------------------------------- probe


def probe(policy: CausalLMPolicy, spec: EnvSpec, problems: int) -> dict[str, float | None]:
    """Metrics of a policy on the first problems of the test split, greedily and sampled once at temperature 1.

    Whatever a run was rewarded for, both are measured: `accuracy`, the final answer is right, and `correct`, so is the
    way to it. A response is long if it is longer than the longest short solution.
    """
    spec = copy.deepcopy(spec)
    spec.kwargs |= {"split": "test", "grading": "cot"}
    env = make_rollout_env(spec, policy, NUM_ENVS, curriculum=Sequential())
    short = make_rollout_env(spec, policy, 1, p_cot=0.0)
    limit = max(len(short.encode_solution(short.problems[i])) for i in range(problems))
    found: dict[str, float | None] = {}
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        attempts = list(collect(policy.with_sampling(temperature=temperature), env, problems, seed=0))
        found |= {f"{name}_{key}": value for key, value in _shares(attempts, limit).items()}
    return found


def _shares(attempts: list[Attempt], limit: int) -> dict[str, float | None]:
    # The limit is with the end-of-sequence token, which a truncated attempt lacks.
    long = np.array([len(attempt.completion) > limit for attempt in attempts])
    correct = np.array([attempt.is_success for attempt in attempts])
    right = correct | np.array([attempt.verdict == "wrong_chain" for attempt in attempts])
    lengths = [len(attempt.completion) - attempt.terminated for attempt in attempts]
    values = {
        "accuracy": right.mean(),
        "correct": correct.mean(),
        "long": long.mean(),
        "correct_if_long": correct[long].mean() if long.any() else None,
        "correct_if_short": correct[~long].mean() if not long.all() else None,
        "median_length": np.median(lengths),
    }
    return {name: None if value is None else round(float(value), 4) for name, value in values.items()}
