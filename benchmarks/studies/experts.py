"""Expert iteration with a search in place of sampling: what each expert finds, at what cost, and what a policy gains.

    python -m tokengym.benchmarks.studies.experts --folder runs/experts

For each seed the built-in model is fine-tuned on a few demonstrations, and an outcome model learns from its attempts.
One round of expert iteration follows with each expert: plain sampling, twice as much of it, searches that the outcome
model guides, and evolution. Solutions are new if a pool of the start's own samples at the same problems lacks them, and
sampling is compared with that pool, too: what it lacks of a second pool of the same policy is chance. A folder holds
all of it; what is done is not done again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from rich.box import SIMPLE
from rich.table import Table

from ...agents.expert_iteration import ExpertIteration
from ...agents.rollouts.collect import collect
from ...agents.rollouts.policy import CausalLMPolicy
from ...agents.rollouts.pools import read_pool
from ...agents.rollouts.slots import make_rollout_env
from ...arrays import FloatArray
from ...envs.curriculum import Sequential
from ...files import read_jsonl, write_json
from ...models.loading import load
from ...registry import check_known
from ...rewards.grading.solutions import equation_sequence
from ...settings import Count, CountOrZero, check_settings
from ..jobs import Done, Job, Missing, run_plan
from ..statistics import crossed_mean, ratio_difference, ratio_mean
from ..study import study_command
from .demo import ENV
from .ppo_rewards import NUM_ENVS, ORM_SETTINGS, SFT_SETTINGS, measure, outcome_model, start, supervised

PROBLEMS, SAMPLES, POOL_SEED = 400, 8, 7_919
EXPERTS: dict[str, dict[str, Any]] = {
    "sampling": {},
    "sampling, twice": {"samples_per_problem": 2 * SAMPLES},
    "beam": {"search": "beam", "search_keep": 2},
    "rebase": {"search": "rebase"},
    "evolution": {"search": "evolution"},
}


@dataclass(frozen=True)
class ExpertsStudy:
    """Experts of expert iteration, measured.

    Attributes:
        folder: Folder of all runs; finished runs in it are not repeated.
        experts: Experts to compare, keys of `EXPERTS`.
        seeds: Seeds of the experiment.
        test_problems: Test problems that policies are measured on.
        n: Samples of each test problem, for maj@n and pass@n.
        workers: Number of processes, of one thread each, that run at the same time.
    """

    folder: Path = Path("runs/experts")
    experts: tuple[str, ...] = tuple(EXPERTS)
    seeds: tuple[CountOrZero, ...] = (0, 1, 2)
    test_problems: Count = 300
    n: Count = 8
    workers: Count = 1

    def __post_init__(self) -> None:
        check_settings(self)
        check_known("expert", self.experts, EXPERTS)


def jobs(experiment: ExpertsStudy) -> list[Job]:
    """The plan, all of a seed before the next seed."""
    measured = {"test_problems": experiment.test_problems, "n": experiment.n, "threads": 1}
    plan: list[Job] = []
    for seed in experiment.seeds:
        own, sft, orm, pool = {**measured, "seed": seed}, f"seed-{seed}/sft", f"seed-{seed}/orm", f"seed-{seed}/pool"
        plan.append(Job(sft, supervised, {**own, **SFT_SETTINGS}))
        plan.append(Job(pool, pooled, own, (sft,)))
        for number, (name, settings) in enumerate(EXPERTS.items()):
            if name in experiment.experts:
                needs = (sft, pool)
                if settings.get("search", "evolution") != "evolution":
                    needs += (orm,)
                    if all(job.name != orm for job in plan):
                        plan.append(Job(orm, outcome_model, {"seed": seed, "threads": 1, **ORM_SETTINGS}, (sft,)))
                plan.append(Job(f"seed-{seed}/expert-{number}", iterated, {**own, **settings, "expert": name}, needs))
    return plan


def pooled(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """The distinct right solutions among the start's own samples at the training problems."""
    torch.set_num_threads(settings["threads"])
    model, tokenizer = load(start(needs), device="cpu")
    policy = CausalLMPolicy(model.eval(), tokenizer)
    env = make_rollout_env(gym.spec(ENV), policy, NUM_ENVS)
    env.curriculum = Sequential(repeats=SAMPLES)
    known: dict[str, set[str]] = {}
    for attempt in collect(policy, env, PROBLEMS * SAMPLES, seed=settings["seed"] + POOL_SEED):
        own = known.setdefault(attempt.problem.id, set())
        if attempt.is_success:
            own.add(equation_sequence(env.decode(attempt.completion)))
    return {"known": {problem: sorted(own) for problem, own in known.items()}}


def iterated(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """A round of expert iteration, and what its expert found, problem by problem."""
    torch.set_num_threads(settings["threads"])
    own: dict[str, Any] = {"samples_per_problem": SAMPLES, **EXPERTS[settings["expert"]]}
    if own.get("search", "evolution") != "evolution":
        trained = next(done.folder for name, done in needs.items() if name.endswith("/orm"))
        own["search_orm"] = str(trained / "run" / "model")
    agent = ExpertIteration(
        ENV, num_envs=NUM_ENVS, seed=settings["seed"], run=folder / "run", resume="auto", device="cpu",
        rounds=1, problems=PROBLEMS, validation_problems=100, **SFT_SETTINGS, **own,
    )  # fmt: skip
    agent.learn()
    (line,) = (one for one in read_jsonl(folder / "run" / "metrics.jsonl") if one.get("round") == 1)
    known = next(done.result["known"] for name, done in needs.items() if name.endswith("/pool"))
    distinct, new = [], []
    found = read_pool(str(folder / "run" / "round-1"), agent.env, None, None)
    for problem, before in known.items():
        right = [one for one in found[problem] if one.is_success]
        solutions = {equation_sequence(agent.env.decode(one.completion)) for one in right}
        distinct.append(len(solutions))
        # Where the pool solves nothing everything would be new, which says nothing of exploration.
        new.append(len(solutions - set(before)) if before else None)
    evaluation = measure(agent.policy, settings)
    return {
        "expert": settings["expert"],
        "seed": settings["seed"],
        "attempts": agent.num_attempts,
        "tokens": agent.num_tokens,
        "success_rate": line["rollout/success_rate"],
        "distinct": distinct,
        "new": new,
        "by_problem": {name: evaluation["by_problem"][name] for name in ("maj@1", f"pass@{settings['n']}")},
    }


def run(experiment: ExpertsStudy) -> dict[str, Any]:
    """Does what is not done yet, and writes `results.json` into the folder."""
    states = run_plan(jobs(experiment), experiment.folder, workers=experiment.workers)
    results = {
        "test_problems": experiment.test_problems,
        "n": experiment.n,
        "missing": {name: state.reason for name, state in states.items() if isinstance(state, Missing)},
        "runs": [dict(one.result) for one in states.values() if isinstance(one, Done) and "expert" in one.result],
    }
    write_json(experiment.folder / "results.json", results)
    return results


def table(results: Mapping[str, Any]) -> Table:
    """One row for each expert; means over seeds and problems with 95 % intervals."""
    metrics = ("maj@1", f"pass@{results['n']}")
    grid = Table(
        "expert", "seeds", "tokens", "solved", "distinct", "new", "less sampling's", *metrics, "less sampling's",
        box=SIMPLE, show_edge=False, title=f"{ENV}, {PROBLEMS} problems, {results['test_problems']} test problems",
        caption="tokens: drawn and judged, of each problem, without those that the judge learned from; solved: share\n"
        "of problems with a right attempt; distinct: right solutions of a problem; new: share of these that the\n"
        "start's pool lacks, where it solves the problem; means with 95 % intervals over seeds and problems,\n"
        "the last column of maj@1; differences are paired",
    )  # fmt: skip
    by_expert = {name: [one for one in results["runs"] if one["expert"] == name] for name in EXPERTS}
    plain = {one["seed"]: one for one in by_expert["sampling"]}
    for name, own in by_expert.items():
        if not own:
            continue
        distinct = np.array([one["distinct"] for one in own], float)
        newer = gain = ""
        paired = [one for one in own if name != "sampling" and one["seed"] in plain]
        if paired:
            others = [plain[one["seed"]] for one in paired]
            newer = str(ratio_difference(*_share(paired), *_share(others)))
            gain = str(crossed_mean(_of(paired, "maj@1") - _of(others, "maj@1"), (-1.0, 1.0)))
        grid.add_row(
            name, str(len(own)), f"{np.mean([one['tokens'] for one in own]) / PROBLEMS:,.0f}",
            str(crossed_mean((distinct > 0).astype(float))), f"{distinct.mean():.2f}",
            str(ratio_mean(*_share(own))), newer, *(str(crossed_mean(_of(own, metric))) for metric in metrics),
            gain,
        )  # fmt: skip
    return grid


def _of(runs: list[Mapping[str, Any]], metric: str) -> FloatArray:
    return np.array([one["by_problem"][metric] for one in runs], float)


def _share(runs: list[Mapping[str, Any]]) -> tuple[FloatArray, FloatArray]:
    """New solutions, and all that might be new, `[S, P]` each."""
    new = np.array([[np.nan if value is None else value for value in one["new"]] for one in runs], float)
    distinct = np.array([one["distinct"] for one in runs], float)
    return np.nan_to_num(new), np.where(np.isnan(new), 0.0, distinct)


if __name__ == "__main__":
    study_command(ExpertsStudy, run, table, width=180, is_empty=lambda results: not results["runs"])
