"""PPO and GRPO's presets on the built-in model, from the demonstration's SFT start, at equal attempts.

    python -m tokengym.benchmarks.studies.policy_optimization --folder runs/policy-optimization

For each seed the built-in model is fine-tuned on a few demonstrations, and every variant learns from there. Settings
that are not named here are the agents' defaults. A folder holds all of it; what is done is not done again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.box import SIMPLE
from rich.table import Table

from ...agents import AGENTS
from ...agents.on_policy import PolicyGradientAgent
from ...arrays import FloatArray
from ...files import read_jsonl, write_json
from ...registry import check_known
from ...settings import Count, CountOrZero, check_settings
from ..jobs import Done, Job, Missing, run_plan
from ..statistics import crossed_mean
from ..study import study_command
from .demo import ENV
from .ppo_rewards import NUM_ENVS, SFT_SETTINGS, measure, start, supervised

ATTEMPTS = 10_240
GROUPS: dict[str, Any] = {"problems_per_iteration": 16, "samples_per_problem": 16, "validation_iterations": 10}
WHOLE: dict[str, Any] = {"validation_iterations": 2, "save_iterations": 1}
VARIANTS: dict[str, dict[str, Any]] = {
    "ppo": {"agent": "ppo", **WHOLE},
    "ppo, critic_lambda=1": {"agent": "ppo", "critic_lambda": 1.0, **WHOLE},
    "ppo, one rate": {"agent": "ppo", "critic_learning_rate": 5e-5, **WHOLE},
    "grpo": {"agent": "grpo", **GROUPS},
    **{
        f"grpo --preset {name}": {"agent": "grpo", "preset": name, **GROUPS}
        for name in ("dapo", "dr-grpo", "gspo", "cispo", "lite-ppo")
    },
    "reinforce --preset rloo": {"agent": "reinforce", "preset": "rloo", **GROUPS},
}


@dataclass(frozen=True)
class OptimizationStudy:
    """Policy-optimization agents and presets, measured.

    Attributes:
        folder: Folder of all runs; finished runs in it are not repeated.
        variants: Names of the variants to compare, keys of `VARIANTS`.
        seeds: Seeds of the experiment, with one run of each variant for each.
        test_problems: Test problems that policies are measured on before and after training.
        n: Samples of each test problem, for maj@n and pass@n.
        workers: Number of processes, of one thread each, that run at the same time.
    """

    folder: Path = Path("runs/policy-optimization")
    variants: tuple[str, ...] = tuple(VARIANTS)
    seeds: tuple[CountOrZero, ...] = (0, 1, 2)
    test_problems: Count = 400
    n: Count = 8
    workers: Count = 2

    def __post_init__(self) -> None:
        check_settings(self)
        check_known("variant", self.variants, VARIANTS)


def jobs(experiment: OptimizationStudy) -> list[Job]:
    """The plan, all variants of a seed before the next seed."""
    measured = {"test_problems": experiment.test_problems, "n": experiment.n, "threads": 1}
    plan: list[Job] = []
    for seed in experiment.seeds:
        plan.append(Job(f"seed-{seed}/sft", supervised, {**measured, **SFT_SETTINGS, "seed": seed}))
        for number, name in enumerate(VARIANTS):
            if name in experiment.variants:
                settings = {**measured, "seed": seed, "variant": name, "settings": VARIANTS[name]}
                plan.append(Job(f"seed-{seed}/variant-{number}", learned, settings, (f"seed-{seed}/sft",)))
    return plan


def learned(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """A variant from the start."""
    torch.set_num_threads(settings["threads"])
    own = dict(settings["settings"])
    kind = cast(type[PolicyGradientAgent], AGENTS.get(own.pop("agent")))
    agent = kind(
        ENV, start(needs), num_envs=NUM_ENVS, seed=settings["seed"], run=folder / "run", resume="auto", device="cpu",
        iterations=10**6, validation_problems=100, micro_batch_tokens=1024, **own,
    )  # fmt: skip
    agent.learn(ATTEMPTS)
    curve = read_jsonl(folder / "run" / "metrics.jsonl")
    names = ("step", "eval/maj@1", "rollout/success_rate", "rollout/mean_length", "train/explained_variance")
    return {
        "variant": settings["variant"],
        "seed": settings["seed"],
        "attempts": agent.num_attempts,
        "learning_rate": agent.make_learner(1).learning_rate,
        "minutes": sum(value for line in curve for name, value in line.items() if name.endswith("_seconds")) / 60,
        "curve": [{name: line[name] for name in names if name in line} for line in curve],
        "evaluation": measure(agent.policy, settings),
    }


def run(experiment: OptimizationStudy) -> dict[str, Any]:
    """Does what is not done yet, and writes `results.json` into the folder."""
    states = run_plan(jobs(experiment), experiment.folder, workers=experiment.workers)
    results: dict[str, Any] = {"attempts": ATTEMPTS, "test_problems": experiment.test_problems, "n": experiment.n}
    results |= {"sft": [], "runs": []}
    results["missing"] = {name: state.reason for name, state in states.items() if isinstance(state, Missing)}
    for name, state in states.items():
        if not isinstance(state, Missing):
            results["sft" if name.endswith("sft") else "runs"].append(dict(state.result))
    write_json(experiment.folder / "results.json", results)
    return results


def table(results: Mapping[str, Any]) -> Table:
    """One row for the start and each variant: means over seeds, with intervals over other seeds and problems."""
    solved = f"pass@{results['n']}"
    grid = Table(
        "", "seeds", "maj@1", "gain", solved, "explained variance", "minutes", box=SIMPLE, show_edge=False,
        title=f"{ENV}, {results['attempts']:,} attempts, {results['test_problems']} test problems",
        caption="mean [95 % interval over other seeds and problems; with one seed, over other problems alone]\n"
        "gain: of maj@1 over the start of the same seed; explained variance: in the fourth iteration, of each seed",
    )  # fmt: skip
    starts = {one["seed"]: one for one in results["sft"]}
    grid.add_row("SFT", str(len(starts)), _mean([_solved(one, "maj@1") for one in starts.values()]))
    for name in VARIANTS:
        runs = [one for one in results["runs"] if one["variant"] == name]
        if runs:
            key = "train/explained_variance"
            explained = [[line[key] for line in one["curve"] if key in line] for one in runs]
            gains = [_solved(one, "maj@1") - _solved(starts[one["seed"]], "maj@1") for one in runs]
            grid.add_row(
                name,
                str(len(runs)),
                _mean([_solved(one, "maj@1") for one in runs]),
                _mean(gains, -1.0),
                _mean([_solved(one, solved) for one in runs]),
                ", ".join(f"{values[3]:.2f}" for values in explained if len(values) > 3),
                f"{np.mean([one['minutes'] for one in runs]):.0f}",
            )
    return grid


def _solved(one: Mapping[str, Any], metric: str) -> FloatArray:
    return np.array(one["evaluation"]["by_problem"][metric], float)


def _mean(values: Sequence[FloatArray], least: float = 0.0) -> str:
    return str(crossed_mean(np.stack(values), (least, 1.0)))


if __name__ == "__main__":
    study_command(OptimizationStudy, run, table, width=130, is_empty=lambda results: not results["runs"])
