"""PPO on the built-in model, from the demonstration's SFT start: four rewards, and no penalty (Havrilla et al. 2024).

For each seed the built-in model is fine-tuned on a few demonstrations, an outcome model learns from attempts of the
result, and PPO starts from there with each reward, everything else equal. A folder holds all of it; what is done is
not done again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from rich.box import SIMPLE
from rich.table import Table

from ...agents.evaluation.evaluate import evaluate
from ...agents.outcome_models import ORM
from ...agents.ppo import PPO
from ...agents.presets import PRESETS
from ...agents.rollouts.policy import CausalLMPolicy
from ...agents.rollouts.slots import make_rollout_env
from ...agents.sft import SFT
from ...envs.registration import make_spec
from ...envs.token_vector_env import TokenVectorEnv
from ...extras import need
from ...files import new_file, read_jsonl, write_json
from ...models.loading import load
from ...settings import Count, CountOrZero, check_settings
from ..jobs import Done, Job, Missing, run_plan
from .demo import ENV
from .demo import SETTINGS as DEMO

NUM_ENVS = 256
PPO_SETTINGS: dict[str, Any] = {
    **PRESETS["tiny"].settings,
    "patience": None,
    "micro_batch_tokens": 1024,
    "validation_problems": 100,
    "validation_iterations": 10,
    "save_iterations": 10,
}
ORM_SETTINGS: dict[str, Any] = {
    "problems": 400,
    "samples_per_problem": 8,
    "batch_size": 64,
    "validation_problems": 100,
}
SFT_SETTINGS: dict[str, Any] = {name: DEMO[name] for name in ("demonstrations", "epochs", "batch_size")}
# Rewards, and the sparse one without a penalty; with a vanishing one, that is, so that the divergence is measured.
VARIANTS: dict[str, dict[str, Any]] = {
    "sparse": {},
    "no_penalty": {"kl_coef": 1e-9},
    "dense": {},
    "sparse_orm": {},
    "dense_orm": {},
}
Variant = Literal["sparse", "no_penalty", "dense", "sparse_orm", "dense_orm"]


@dataclass(frozen=True)
class PPOExperiment:
    """PPO under several rewards, measured.

    Attributes:
        folder: Folder of all runs; finished runs in it are not repeated.
        variants: Rewards to compare, and "no_penalty", the sparse reward without a KL penalty.
        seeds: Seeds of the experiment, with one run of each variant for each.
        iterations: Iterations of PPO, with 256 attempts each.
        test_problems: Test problems that policies are measured on before and after PPO.
        n: Samples of each test problem, for maj@n and pass@n.
        threads: Number of CPU threads of each process.
        workers: Number of processes that run at the same time.
    """

    folder: Path = Path("runs/ppo")
    variants: tuple[Variant, ...] = ("sparse", "no_penalty", "dense", "sparse_orm", "dense_orm")
    seeds: tuple[CountOrZero, ...] = (0, 1, 2)
    iterations: Count = 40
    test_problems: Count = 400
    n: Count = 8
    threads: Count = 1
    workers: Count = 2

    def __post_init__(self) -> None:
        check_settings(self)


def run(experiment: PPOExperiment, say: Callable[[str], object] = lambda line: None) -> dict[str, Any]:
    """Does what is not done yet; writes `results.json` and a plot into the folder.

    Returns:
        JSON values: `settings`; `sft` and `ppo`, lists of evaluations with what they are of; `missing`, why by name.
    """
    need("plots", "the plot of this experiment")
    settings = {name: getattr(experiment, name) for name in ("iterations", "test_problems", "n", "threads")}
    states = run_plan(jobs(experiment, settings), experiment.folder, workers=experiment.workers, say=say)
    results: dict[str, Any] = {"settings": {**settings, **PPO_SETTINGS}, "sft": [], "ppo": [], "missing": {}}
    for name, state in states.items():
        if isinstance(state, Missing):
            results["missing"][name] = state.reason
        elif (kind := name.split("/")[1].split("-")[0]) in ("sft", "ppo"):
            results[kind].append({**state.result, "seconds": state.seconds})
    write_json(experiment.folder / "results.json", results)
    if results["ppo"]:
        plot(results, experiment.folder / "ppo.png")
    return results


def jobs(experiment: PPOExperiment, settings: Mapping[str, Any]) -> list[Job]:
    """The plan, all seeds of a variant before the next variant."""
    measured = {name: settings[name] for name in ("test_problems", "n", "threads")}
    plan = [
        Job(f"seed-{seed}/sft", supervised, {**measured, **SFT_SETTINGS, "seed": seed}) for seed in experiment.seeds
    ]
    for variant in experiment.variants:
        for seed in experiment.seeds:
            needs = [f"seed-{seed}/sft"]
            if variant.endswith("orm"):
                needs.append(f"seed-{seed}/orm")
                if all(job.name != needs[-1] for job in plan):
                    own = {"seed": seed, "threads": settings["threads"], **ORM_SETTINGS}
                    plan.append(Job(needs[-1], outcome_model, own, (needs[0],)))
            own = {**settings, **PPO_SETTINGS, **VARIANTS[variant], "seed": seed, "variant": variant}
            plan.append(Job(f"seed-{seed}/ppo-{variant}", reinforced, own, tuple(needs)))
    return plan


def supervised(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """The demonstration's start."""
    torch.set_num_threads(settings["threads"])
    light = {name: settings[name] for name in SFT_SETTINGS}
    agent = SFT(
        ENV, num_envs=NUM_ENVS, seed=settings["seed"], run=folder / "run", resume="auto", device="cpu",
        validation_problems=0, **light,
    )  # fmt: skip
    agent.learn()
    return {"seed": settings["seed"], "evaluation": measure(agent.policy, settings)}


def outcome_model(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """p(correct), learned from attempts of the start."""
    torch.set_num_threads(settings["threads"])
    own = {name: settings[name] for name in ORM_SETTINGS}
    run_folder = {"seed": settings["seed"], "run": folder / "run", "resume": "auto", "device": "cpu"}
    agent = ORM(ENV, start(needs), num_envs=NUM_ENVS, **run_folder, **own)
    agent.learn()
    return {"attempts": agent.num_attempts}


def reinforced(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """PPO from the start."""
    torch.set_num_threads(settings["threads"])
    variant, initial = settings["variant"], start(needs)
    reward: Any = "sparse" if variant == "no_penalty" else variant
    if variant.endswith("orm"):
        folders = [done.folder for name, done in needs.items() if name.endswith("orm")]
        reward = {"name": variant, "orm": str(folders[0] / "run" / "model")}
    spec = make_spec({"id": ENV, "reward": reward})
    own = {name: settings[name] for name in (*PPO_SETTINGS, *VARIANTS[variant], "iterations")}
    agent = PPO(
        spec, initial, num_envs=NUM_ENVS, seed=settings["seed"], run=folder / "run", resume="auto", device="cpu",
        validation_env=_env(CausalLMPolicy(*load(initial, device="cpu")), "validation"), **own,
    )  # fmt: skip
    agent.learn()
    curve = read_jsonl(folder / "run" / "metrics.jsonl")
    names = ("step", "eval/maj@1", "rollout/success_rate", "rollout/mean_length", "rollout/entropy")
    names += ("train/reference_kl_per_attempt", "train/explained_variance", "train/clip_fraction", "train/approx_kl")
    return {
        "variant": variant,
        "seed": settings["seed"],
        "attempts": agent.num_attempts,
        "minutes": sum(value for line in curve for name, value in line.items() if name.endswith("_seconds")) / 60,
        "curve": [{name: line[name] for name in names if name in line} for line in curve],
        "evaluation": measure(agent.policy, settings),
    }


def start(needs: Mapping[str, Done]) -> Path:
    return next(done.folder for name, done in needs.items() if name.endswith("sft")) / "run" / "model"


def _env(policy: CausalLMPolicy, split: str) -> TokenVectorEnv:
    return make_rollout_env(gym.spec(ENV), policy, NUM_ENVS, split=split)


def measure(policy: CausalLMPolicy, settings: Mapping[str, Any]) -> dict[str, Any]:
    env = _env(policy, "test")
    return evaluate(policy, env, problems=settings["test_problems"], n=settings["n"], seed=0).to_dict()


def table(results: Mapping[str, Any]) -> Table:
    """One row for the start and each variant: means over seeds, and standard deviations of them."""
    n = results["settings"]["n"]
    metrics = ("maj@1", f"pass@{n}")
    attempts = max((one["attempts"] for one in results["ppo"]), default=0)
    judged = ""
    if any(one["variant"].endswith("orm") for one in results["ppo"]):
        sampled = ORM_SETTINGS["problems"] * ORM_SETTINGS["samples_per_problem"]
        judged = f", with an ORM's reward {sampled:,} more, which it learned from"
    grid = Table(
        "", "seeds", *metrics, "gain", "KL", "minutes", box=SIMPLE, show_edge=False, collapse_padding=True,
        title=f"{ENV}, {results['settings']['test_problems']} test problems; mean ± standard deviation over seeds",
        caption=f"{attempts:,} attempts each{judged}; gain: in maj@1; KL: to the start, in nats per attempt",
    )  # fmt: skip
    starts = {one["seed"]: one for one in results["sft"]}
    score = lambda one, metric: one["evaluation"]["metrics"][metric][0]  # noqa: E731
    if starts:
        grid.add_row("SFT", str(len(starts)), *(_spread([score(one, m) for one in starts.values()]) for m in metrics))
    for variant in VARIANTS:
        runs = [one for one in results["ppo"] if one["variant"] == variant]
        if runs:
            gains = [score(one, "maj@1") - score(starts[one["seed"]], "maj@1") for one in runs]
            distances = [one["curve"][-1]["train/reference_kl_per_attempt"] for one in runs]
            grid.add_row(
                f"PPO, {variant}", str(len(runs)), *(_spread([score(one, m) for one in runs]) for m in metrics),
                _spread(gains), _spread(distances), _spread([one["minutes"] for one in runs]),
            )  # fmt: skip
    return grid


def _spread(values: Sequence[float]) -> str:
    digits = 3 if max(map(abs, values)) < 2 else 1
    deviation = f"\n± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Success of sampled attempts, validation maj@1 and KL to the start against attempts, a line for each run."""
    from matplotlib.figure import Figure

    panels = {"rollout/success_rate": "success of sampled attempts", "eval/maj@1": "validation maj@1 (greedy)"}
    panels["train/reference_kl_per_attempt"] = "KL to the start, nats per attempt"
    figure = Figure(figsize=(13, 4), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for number, variant in enumerate(VARIANTS):
            runs = [one for one in results["ppo"] if one["variant"] == variant]
            for i, one in enumerate(runs):
                points = [(line["step"], line[name]) for line in one["curve"] if name in line]
                told = f"PPO, {variant}" if i == 0 else None
                axes.plot(*zip(*points, strict=True), color=f"C{number}", alpha=0.7, linewidth=1, label=told)
        axes.set_xlabel("attempts")
        axes.set_ylabel(label)
    figure.axes[0].legend(fontsize=8)
    with new_file(path) as file:
        figure.savefig(file, format="png", dpi=150)
