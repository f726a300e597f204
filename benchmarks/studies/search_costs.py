"""Accuracy against tokens of every search rule, on parities with an outcome model and on arithmetic with exact steps.

    python -m tokengym.benchmarks.studies.search_costs --folder runs/search-costs

On parities of 8 bits a policy is pretrained on next tokens, an outcome model learns from its attempts, and judges. On
arithmetic the built-in model is fine-tuned on a few demonstrations, and the problems themselves judge steps: the upper
bound of what a judge can do. Each rule searches the same test problems at several widths. Its cost is the tokens that
the policy drew and the judge read. The pool of "best_of_n" is plain sampling. A folder holds all of it; what is done is
not done again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.envs.registration import EnvSpec
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ...agents.configs.search import KEEPING, SEARCHES, EvolutionConfig, SearchConfig
from ...agents.evaluation.evaluate import best_is_correct, majority_is_correct
from ...agents.evolution import Evolution
from ...agents.outcome_models import ORM
from ...agents.pretrain import Pretrain
from ...agents.rollouts.policy import CausalLMPolicy
from ...agents.rollouts.slots import make_rollout_env
from ...agents.search import ExactJudge, Search
from ...envs.registration import make_spec
from ...files import write_json
from ...models.loading import load
from ...models.outcome import OutcomeModel
from ...settings import Count, check_settings
from ..jobs import Done, Job, Missing, run_plan
from ..statistics import crossed_mean
from .demo import ENV
from .ppo_rewards import SFT_SETTINGS, supervised

NUM_ENVS = 64
PARITY: dict[str, Any] = {"id": "tokengym/Parity-v0", "d": 8, "p_cot": 0.5}
PRETRAINING: dict[str, Any] = {"architecture": "llama", "steps": 150}
JUDGE: dict[str, Any] = {"problems": 300, "samples_per_problem": 8, "balance": False, "validation_problems": 10}
TEMPERATURE = 1.0
Task = Literal["parity", "arithmetic"]
METRICS = ("maj", "best", "pass")


@dataclass(frozen=True)
class SearchCosts:
    """Search rules, measured.

    Attributes:
        folder: Folder of all runs; finished runs in it are not repeated.
        tasks: Tasks: "parity" with an outcome model, "arithmetic" with exact steps.
        rules: Searches to compare.
        widths: Attempts that a search ends with at each problem; multiples of 4.
        seeds: Seeds of the experiment.
        test_problems: Test problems that are searched.
        workers: Number of processes, of one thread each, that run at the same time.
    """

    folder: Path = Path("runs/search-costs")
    tasks: tuple[Task, ...] = ("parity", "arithmetic")
    rules: tuple[str, ...] = SEARCHES
    widths: tuple[int, ...] = (4, 8, 16)
    seeds: tuple[int, ...] = (0, 1, 2)
    test_problems: Count = 100
    workers: Count = 1

    def __post_init__(self) -> None:
        check_settings(self)


def jobs(experiment: SearchCosts) -> list[Job]:
    """The plan, all of a seed before the next seed, and narrow searches before wide ones."""
    plan: list[Job] = []
    for seed in experiment.seeds:
        own = {"seed": seed, "threads": 1}
        for task in experiment.tasks:
            name = f"seed-{seed}/{task}"
            needs = (f"{name}/sft",)
            if task == "parity":
                needs = (f"{name}/policy", f"{name}/orm")
                plan.append(Job(needs[0], pretrained, {**own, **PRETRAINING}))
                plan.append(Job(needs[1], outcome_model, {**own, **JUDGE}, needs[:1]))
            else:
                plan.append(Job(needs[0], supervised, {**own, "test_problems": 1, "n": 0, **SFT_SETTINGS}))
            for width in experiment.widths:
                for rule in experiment.rules:
                    settings = {**own, "task": task, "rule": rule, "width": width, "problems": experiment.test_problems}
                    plan.append(Job(f"{name}/{rule}-{width}", searched, settings, needs))
    return plan


def pretrained(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """A policy of parities, from next-token prediction."""
    torch.set_num_threads(settings["threads"])
    own = {name: settings[name] for name in PRETRAINING}
    agent = Pretrain(
        make_spec(PARITY), num_envs=NUM_ENVS, seed=settings["seed"], run=folder / "run", resume="auto", device="cpu",
        validation_problems=100, **own,
    )  # fmt: skip
    agent.learn()
    return {}


def outcome_model(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """p(correct), learned from attempts of the policy."""
    torch.set_num_threads(settings["threads"])
    own = {name: settings[name] for name in JUDGE}
    agent = ORM(
        make_spec(PARITY), _policy_folder(needs), num_envs=NUM_ENVS, seed=settings["seed"], run=folder / "run",
        resume="auto", device="cpu", temperature=TEMPERATURE, **own,
    )  # fmt: skip
    agent.learn()
    return {"attempts": agent.num_attempts, "tokens": agent.num_tokens}


def searched(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """What one rule of one width finds at the test problems, and its cost, problem by problem."""
    torch.set_num_threads(settings["threads"])
    model, tokenizer = load(_policy_folder(needs), device="cpu")
    policy = CausalLMPolicy(model.eval(), tokenizer)
    is_parity = settings["task"] == "parity"
    spec: EnvSpec = make_spec(PARITY) if is_parity else gym.spec(ENV)
    env = make_rollout_env(spec, policy, NUM_ENVS, split="test")
    rule, width = settings["rule"], settings["width"]
    if rule == "evolution":
        search: Search | Evolution = Evolution(policy, env, EvolutionConfig(width, temperature=TEMPERATURE))
    else:
        keeping = {"keep": width // 4} if rule in KEEPING else {}
        judge = ExactJudge(env)
        if is_parity:
            trained = next(done.folder for name, done in needs.items() if name.endswith("/orm"))
            judge = OutcomeModel.load(trained / "run" / "model", tokenizer, "cpu")
        search = Search(policy, env, judge, SearchConfig(rule, width, temperature=TEMPERATURE, **keeping))
    found = list(search(range(settings["problems"]), settings["seed"]))
    best = [None if one.scores is None else float(best_is_correct(one.attempts, one.scores)) for one in found]
    return {
        **{name: settings[name] for name in ("task", "rule", "width", "seed")},
        "maj": [float(majority_is_correct(one.attempts)) for one in found],
        "best": None if None in best else best,
        "pass": [float(any(attempt.is_success for attempt in one.attempts)) for one in found],
        "policy_tokens": [one.cost.policy_tokens for one in found],
        "judged_tokens": [one.cost.judged_tokens for one in found],
    }


def _policy_folder(needs: Mapping[str, Done]) -> Path:
    return next(done.folder for name, done in needs.items() if name.endswith(("/policy", "/sft"))) / "run" / "model"


def run(experiment: SearchCosts) -> dict[str, Any]:
    """Does what is not done yet, and writes `results.json` into the folder."""
    states = run_plan(jobs(experiment), experiment.folder, workers=experiment.workers)
    results: dict[str, Any] = {
        "test_problems": experiment.test_problems,
        "missing": {name: state.reason for name, state in states.items() if isinstance(state, Missing)},
        "searches": [dict(one.result) for one in states.values() if isinstance(one, Done) and "rule" in one.result],
    }
    write_json(experiment.folder / "results.json", results)
    return results


def table(results: Mapping[str, Any]) -> Table:
    """One row for each task, rule and width; means over seeds and problems with 95 % intervals."""
    grid = Table(
        "", "rule", "width", "seeds", "tokens drawn", "tokens judged", "majority", "best by score", "any",
        box=SIMPLE, show_edge=False, title=f"{results['test_problems']} test problems, temperature {TEMPERATURE}",
        caption="tokens of each problem; means with 95 % intervals over seeds and problems, of one seed over problems",
    )  # fmt: skip
    groups: dict[tuple[str, int, str], list[Mapping[str, Any]]] = {}
    for one in results["searches"]:
        groups.setdefault((one["task"], one["width"], one["rule"]), []).append(one)
    for (task, width, rule), own in groups.items():
        tokens = [f"{np.mean([one[name] for one in own]):,.0f}" for name in ("policy_tokens", "judged_tokens")]
        grid.add_row(task, rule, str(width), str(len(own)), *tokens, *(_shown(own, name) for name in METRICS))
    return grid


def _shown(own: Sequence[Mapping[str, Any]], name: str) -> str:
    if any(one[name] is None for one in own):
        return ""
    estimate = crossed_mean(np.array([one[name] for one in own]))
    low, high = estimate.interval
    return f"{estimate.mean:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    Console(width=140).print(table(run(tyro.cli(SearchCosts))))
