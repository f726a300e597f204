"""Accuracy against tokens of every search rule, with an outcome model and with exact steps for judges.

    python -m tokengym.benchmarks.studies.search_costs --folder runs/search-costs

The built-in model is fine-tuned on a few demonstrations of arithmetic. An outcome model that learned from its attempts
judges its steps, or the problems themselves do: the upper bound of what a judge can do. Each rule searches the same
test problems at several widths. Its cost is the tokens that the policy drew and the judge read. The pool of "best_of_n"
is plain sampling. Parities are not searched here: their solutions are of one line, a single step. A folder holds all of
it; what is done is not done again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from rich.box import SIMPLE
from rich.table import Table

from ...agents.configs.search import KEEPING, SEARCHES, EvolutionConfig, SearchConfig
from ...agents.evaluation.evaluate import best_is_correct, majority_is_correct
from ...agents.evolution import Evolution
from ...agents.outcome_models import ORM
from ...agents.rollouts.policy import CausalLMPolicy
from ...agents.rollouts.slots import make_rollout_env
from ...agents.search import ExactJudge, Search
from ...files import write_json
from ...models.loading import load
from ...models.outcome import OutcomeModel
from ...registry import check_known
from ...settings import Count, CountOrZero, check_settings
from ..jobs import Done, Job, Missing, run_plan
from ..statistics import crossed_mean
from ..study import study_command
from .demo import ENV
from .ppo_rewards import SFT_SETTINGS, supervised

NUM_ENVS = 64
JUDGE: dict[str, Any] = {"problems": 400, "samples_per_problem": 8, "batch_size": 64, "validation_problems": 100}
TEMPERATURE = 1.0
JudgeName = Literal["orm", "exact"]
METRICS = ("maj", "best", "pass")


@dataclass(frozen=True)
class SearchCosts:
    """Search rules, measured.

    Attributes:
        folder: Folder of all runs; finished runs in it are not repeated.
        judges: Judges of steps: "orm", an outcome model, and "exact", the problems themselves.
        rules: Searches to compare.
        widths: Attempts that a search ends with at each problem; multiples of 4.
        seeds: Seeds of the experiment.
        test_problems: Test problems that are searched.
        workers: Number of processes, of one thread each, that run at the same time.
    """

    folder: Path = Path("runs/search-costs")
    judges: tuple[JudgeName, ...] = ("orm", "exact")
    rules: tuple[str, ...] = SEARCHES
    widths: tuple[int, ...] = (4, 8, 16)
    seeds: tuple[CountOrZero, ...] = (0, 1, 2)
    test_problems: Count = 100
    workers: Count = 1

    def __post_init__(self) -> None:
        check_settings(self)
        check_known("search rule", self.rules, SEARCHES)
        for width in self.widths:
            if width < 4 or width % 4:
                raise ValueError(f"widths must be multiples of 4, got {width}")


def jobs(experiment: SearchCosts) -> list[Job]:
    """The plan, all of a seed before the next seed, and narrow searches before wide ones."""
    plan: list[Job] = []
    for seed in experiment.seeds:
        own = {"seed": seed, "threads": 1}
        sft, orm = f"seed-{seed}/sft", f"seed-{seed}/orm"
        plan.append(Job(sft, supervised, {**own, "test_problems": 1, "n": 0, **SFT_SETTINGS}))
        if "orm" in experiment.judges:
            plan.append(Job(orm, outcome_model, {**own, **JUDGE}, (sft,)))
        for width in experiment.widths:
            for rule in experiment.rules:
                # Nothing judges an evolution.
                for judge in ("none",) if rule == "evolution" else experiment.judges:
                    settings = {**own, "judge": judge, "rule": rule, "width": width}
                    settings["problems"] = experiment.test_problems
                    needs = (sft, orm) if judge == "orm" else (sft,)
                    plan.append(Job(f"seed-{seed}/{judge}/{rule}-{width}", searched, settings, needs))
    return plan


def outcome_model(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """p(correct), learned from attempts of the policy."""
    torch.set_num_threads(settings["threads"])
    own = {name: settings[name] for name in JUDGE}
    agent = ORM(
        ENV, _policy_folder(needs), num_envs=NUM_ENVS, seed=settings["seed"], run=folder / "run",
        resume="auto", device="cpu", temperature=TEMPERATURE, **own,
    )  # fmt: skip
    agent.learn()
    return {"attempts": agent.num_attempts, "tokens": agent.num_tokens}


def searched(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """What one rule of one width finds at the test problems, and its cost, problem by problem."""
    torch.set_num_threads(settings["threads"])
    model, tokenizer = load(_policy_folder(needs), device="cpu")
    policy = CausalLMPolicy(model.eval(), tokenizer)
    env = make_rollout_env(gym.spec(ENV), policy, NUM_ENVS, split="test")
    rule, width = settings["rule"], settings["width"]
    if rule == "evolution":
        search: Search | Evolution = Evolution(policy, env, EvolutionConfig(width, temperature=TEMPERATURE))
    else:
        keeping = {"keep": width // 4} if rule in KEEPING else {}
        judge = ExactJudge(env)
        if settings["judge"] == "orm":
            trained = next(done.folder for name, done in needs.items() if name.endswith("/orm"))
            judge = OutcomeModel.load(trained / "run" / "model", tokenizer, "cpu")
        search = Search(policy, env, judge, SearchConfig(rule, width, temperature=TEMPERATURE, **keeping))
    found = list(search(range(settings["problems"]), settings["seed"]))
    best = [None if one.scores is None else float(best_is_correct(one.attempts, one.scores)) for one in found]
    return {
        **{name: settings[name] for name in ("judge", "rule", "width", "seed")},
        "maj": [float(majority_is_correct(one.attempts)) for one in found],
        "best": None if None in best else best,
        "pass": [float(any(attempt.is_success for attempt in one.attempts)) for one in found],
        "policy_tokens": [one.cost.policy_tokens for one in found],
        "judged_tokens": [one.cost.judged_tokens for one in found],
    }


def _policy_folder(needs: Mapping[str, Done]) -> Path:
    return next(done.folder for name, done in needs.items() if name.endswith("/sft")) / "run" / "model"


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
    """One row for each judge, rule and width; means over seeds and problems with 95 % intervals."""
    grid = Table(
        "judge", "rule", "width", "seeds", "tokens drawn", "tokens judged", "majority", "best by score", "any",
        box=SIMPLE, show_edge=False, title=f"{results['test_problems']} test problems, temperature {TEMPERATURE}",
        caption="tokens of each problem; means with 95 % intervals over seeds and problems, of one seed over problems",
    )  # fmt: skip
    groups: dict[tuple[str, int, str], list[Mapping[str, Any]]] = {}
    for one in results["searches"]:
        groups.setdefault((one["judge"], one["width"], one["rule"]), []).append(one)
    for (judge, width, rule), own in groups.items():
        tokens = [f"{np.mean([one[name] for one in own]):,.0f}" for name in ("policy_tokens", "judged_tokens")]
        grid.add_row(judge, rule, str(width), str(len(own)), *tokens, *(_shown(own, name) for name in METRICS))
    return grid


def _shown(own: Sequence[Mapping[str, Any]], name: str) -> str:
    if any(one[name] is None for one in own):
        return ""
    return str(crossed_mean(np.array([one[name] for one in own])))


if __name__ == "__main__":
    study_command(SearchCosts, run, table, width=140, is_empty=lambda results: not results["searches"])
