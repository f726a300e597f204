"""Judges of attempts on one pool: outcome models, a preference model, DPO's implicit reward, and likelihoods.

    python -m tokengym.benchmarks.studies.judges --folder runs/judges

For each seed the built-in model is fine-tuned on a few demonstrations, and samples attempts at training problems. All
judges learn from these same attempts, but for the built-in outcome model, which is taken as it is too, and for
likelihoods; then they score one pool of 16 attempts at each test problem. Reported are the AUC of all attempts, the AUC
among attempts at one problem, rerank@16 and weighted_maj@16, beside maj@16 and pass@1 of the pool. A folder holds all
of it; what is done is not done again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from rich.box import SIMPLE
from rich.table import Table

from ...agents.dpo import DPO
from ...agents.evaluation.classification import auc
from ...agents.evaluation.evaluate import best_is_correct, majority_is_correct
from ...agents.evaluation.rerankers import (
    ImplicitReward,
    MeanLogprob,
    OutcomeAndLikelihood,
    OutcomeScore,
    Reranker,
    VotingReranker,
)
from ...agents.outcome_models import ORM
from ...agents.preference import PreferenceModel
from ...agents.rollouts.attempts import Attempt
from ...agents.rollouts.collect import collect
from ...agents.rollouts.policy import CausalLMPolicy
from ...agents.rollouts.slots import make_rollout_env
from ...agents.training.fine_tuning import restore
from ...agents.training.rounds import Round
from ...arrays import FloatArray
from ...envs.curriculum import Sequential
from ...files import write_json
from ...models.loading import load
from ...models.outcome import OutcomeModel
from ...models.tokenizers import TINY, TINY_ORM
from ...settings import Count, CountOrZero, check_settings
from ..jobs import Done, Job, Missing, run_plan
from ..statistics import crossed_mean, ratio_difference, ratio_mean
from ..study import study_command
from .demo import ENV
from .ppo_rewards import NUM_ENVS, SFT_SETTINGS, start, supervised

SAMPLES, TEMPERATURE = 16, 0.7
MICRO_BATCH = 4096
# As many sequences in a batch of either outcome model, and all attempts; the rest are the agents' defaults.
KINDS: dict[str, dict[str, Any]] = {
    "orm": {"batch_size": 64, "balance": False},
    "tiny_orm": {"batch_size": 64, "balance": False, "base": TINY_ORM},
    "preference": {"batch_size": 64 // SAMPLES},
}
LIKELIHOOD = 15.0
"""Factor of the mean log-probability beside an outcome model's log-odds."""
# DPO proper, and with the likelihood of the chosen attempt.
DPO_KINDS: dict[str, dict[str, Any]] = {"dpo": {"nll_coef": 0.0}, "dpo_nll": {"nll_coef": 1.0}}
JUDGES = {
    "orm": "ORM",
    "built_in": "tokengym/tiny-orm as it is",
    "tiny_orm": "ORM from tokengym/tiny-orm",
    "preference": "preference model",
    "dpo": "implicit reward, DPO",
    "dpo_nll": "implicit reward, DPO with NLL",
    "mean_logprob": "mean log-probability",
    "base_logprob": "mean log-probability, tokengym/tiny",
    "built_in_likely": "tokengym/tiny-orm and the last one",
    "tiny_orm_likely": "ORM from it and the last one",
}


@dataclass(frozen=True)
class JudgesStudy:
    """Judges, measured.

    Attributes:
        folder: Folder of all runs; finished runs in it are not repeated.
        seeds: Seeds of the experiment.
        problems: Training problems, with 16 attempts each.
        test_problems: Test problems of the pool that all judges score.
        workers: Number of processes, of one thread each, that run at the same time.
    """

    folder: Path = Path("runs/judges")
    seeds: tuple[CountOrZero, ...] = (0, 1, 2)
    problems: Count = 400
    test_problems: Count = 200
    workers: Count = 1

    def __post_init__(self) -> None:
        check_settings(self)


def jobs(experiment: JudgesStudy) -> list[Job]:
    """The plan, all judges of a seed before the next seed."""
    plan: list[Job] = []
    for seed in experiment.seeds:
        own = {"seed": seed, "problems": experiment.problems, "threads": 1}
        name = lambda kind, seed=seed: f"seed-{seed}/{kind}"  # noqa: E731
        small = {"seed": seed, "test_problems": 1, "n": 0, "threads": 1}
        plan += [
            Job(name("sft"), supervised, {**small, **SFT_SETTINGS}),
            Job(name("orm"), judge, {**own, "kind": "orm", **KINDS["orm"]}, (name("sft"),)),
            *(Job(name(kind), judge, {**own, "kind": kind, **KINDS[kind]}, (name("sft"), name("orm")))
              for kind in KINDS if kind != "orm"),
            *(Job(name(kind), preferred, {**own, **settings}, (name("sft"), name("orm")))
              for kind, settings in DPO_KINDS.items()),
        ]  # fmt: skip
        needs = tuple(name(kind) for kind in ("sft", *KINDS, *DPO_KINDS))
        plan.append(Job(name("scores"), scored, {**own, "test_problems": experiment.test_problems}, needs))
    return plan


def judge(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """An outcome model, from attempts of the start; the ORM samples them and the others read its pool."""
    torch.set_num_threads(settings["threads"])
    agent_class = PreferenceModel if settings["kind"] == "preference" else ORM
    own = {name: settings[name] for name in ("batch_size", "balance", "base") if name in settings}
    agent = agent_class(
        ENV, start(needs), num_envs=NUM_ENVS, seed=settings["seed"], run=folder / "run", resume="auto", device="cpu",
        problems=settings["problems"], samples_per_problem=SAMPLES, temperature=TEMPERATURE,
        micro_batch_tokens=MICRO_BATCH, validation_problems=10, pool=_pool(needs), **own,
    )  # fmt: skip
    agent.learn()
    return {"attempts": agent.num_attempts}


def preferred(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """A policy that one round of DPO trained on pairs from the same attempts, whether or not it validates better."""
    torch.set_num_threads(settings["threads"])
    agent = DPO(
        ENV, start(needs), num_envs=NUM_ENVS, seed=settings["seed"], run=folder / "run", resume="auto", device="cpu",
        problems=settings["problems"], samples_per_problem=SAMPLES, pool=_pool(needs), rounds=1,
        nll_coef=settings["nll_coef"], micro_batch_tokens=MICRO_BATCH, validation_problems=10,
    )  # fmt: skip
    agent.learn()
    last = Round.load(folder / "run" / "round-1", 1)
    assert last is not None  # noqa: S101
    restore(agent.model, last.weights)
    agent.save(folder / "last")
    return {"validation": last.accuracy}


def scored(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """One pool at the test problems, and what each judge makes of it, problem by problem."""
    torch.set_num_threads(settings["threads"])
    model, tokenizer = load(start(needs), device="cpu")
    policy = CausalLMPolicy(model.eval(), tokenizer)
    env = make_rollout_env(gym.spec(ENV), policy, NUM_ENVS, split="test")
    env.curriculum = Sequential(repeats=SAMPLES)
    count = settings["test_problems"]
    sampled = policy.with_sampling(temperature=TEMPERATURE)
    pool = list(collect(sampled, env, count * SAMPLES, seed=settings["seed"]))
    groups = [pool[i * SAMPLES : (i + 1) * SAMPLES] for i in range(count)]
    folders = {name.rpartition("/")[2]: done.folder for name, done in needs.items()}

    places = {name: folders[name] / "run" / "model" for name in KINDS}
    outcomes = {
        name: OutcomeScore(OutcomeModel.load(place, tokenizer, "cpu"))
        for name, place in {**places, "built_in": TINY_ORM}.items()
    }
    judges: dict[str, Reranker] = {**outcomes}
    for name in DPO_KINDS:
        judges[name] = ImplicitReward(load(folders[name] / "last", device="cpu")[0].eval(), model, tokenizer)
    judges["mean_logprob"] = MeanLogprob(model, tokenizer)
    judges["base_logprob"] = base = MeanLogprob(load(TINY, device="cpu")[0].eval(), tokenizer)
    for name in ("built_in", "tiny_orm"):
        judges[f"{name}_likely"] = OutcomeAndLikelihood(outcomes[name], base, LIKELIHOOD)
    rates = [float(np.mean([attempt.is_success for attempt in group])) for group in groups]
    return {
        "seed": settings["seed"],
        "pass@1": rates,
        f"maj@{SAMPLES}": [float(majority_is_correct(group)) for group in groups],
        f"pass@{SAMPLES}": [float(rate > 0) for rate in rates],
        "judges": {name: _measured(score, groups) for name, score in judges.items()},
    }


def _measured(score: Reranker, groups: list[list[Attempt]]) -> dict[str, Any]:
    """What a judge makes of a pool: by problem, the AUC within, 0 where it has none, and whether choices are right."""
    scores = [np.asarray(score(group)) for group in groups]
    labels = [[attempt.is_success for attempt in group] for group in groups]
    within = [auc(own, truth) for own, truth in zip(scores, labels, strict=True)]
    found: dict[str, Any] = {
        "auc": auc(np.concatenate(scores), np.concatenate(labels)),
        "within": np.nan_to_num(within).tolist(),
        "rerank": [float(best_is_correct(group, own)) for group, own in zip(groups, scores, strict=True)],
    }
    if isinstance(score, VotingReranker):
        weights = [score.weights(own) for own in scores]
        found["weighted"] = [float(majority_is_correct(*pair)) for pair in zip(groups, weights, strict=True)]
    return found


def _pool(needs: Mapping[str, Done]) -> str | None:
    """The folder of the attempts that all judges learn from, once there are any."""
    return next((str(done.folder / "run" / "train") for name, done in needs.items() if name.endswith("/orm")), None)


def run(experiment: JudgesStudy) -> dict[str, Any]:
    """Does what is not done yet, and writes `results.json` into the folder."""
    states = run_plan(jobs(experiment), experiment.folder, workers=experiment.workers)
    results: dict[str, Any] = {"problems": experiment.problems, "test_problems": experiment.test_problems}
    results["missing"] = {name: state.reason for name, state in states.items() if isinstance(state, Missing)}
    results["seeds"] = [
        dict(state.result)
        for name, state in states.items()
        if name.endswith("/scores") and not isinstance(state, Missing)
    ]
    write_json(experiment.folder / "results.json", results)
    return results


def table(results: Mapping[str, Any]) -> Table:
    """One row for each judge, and those of the pool; means over seeds and problems with 95 % intervals."""
    seeds = results["seeds"]
    metrics = [f"maj@{SAMPLES}", "pass@1", f"pass@{SAMPLES}"]
    matrices = {name: np.array([one[name] for one in seeds]) for name in metrics}
    mixed = ((matrices["pass@1"] > 0) & (matrices["pass@1"] < 1)).astype(float)
    read = lambda name, key: np.array([one["judges"][name][key] for one in seeds])  # noqa: E731
    grid = Table(
        "", "AUC of all", "AUC within problems", "less the ORM's", f"rerank@{SAMPLES}", f"less maj@{SAMPLES}",
        f"weighted_maj@{SAMPLES}", f"less maj@{SAMPLES}",
        box=SIMPLE, show_edge=False,
        title=f"{ENV}: {len(seeds)} seeds, judges trained on {SAMPLES} attempts at each of {results['problems']} "
        f"problems, {results['test_problems']} test problems, temperature {TEMPERATURE}",
        caption="means with 95 % intervals over seeds and problems; differences are paired",
    )  # fmt: skip
    for name, title in JUDGES.items():
        within, rerank = read(name, "within"), read(name, "rerank")
        orm = read("orm", "within")
        grid.add_row(
            title,
            f"{np.mean([one['judges'][name]['auc'] for one in seeds]):.3f}",
            str(ratio_mean(within, mixed)),
            "" if name == "orm" else str(ratio_difference(within, mixed, orm, mixed)),
            str(crossed_mean(rerank)),
            str(crossed_mean(rerank - matrices[f"maj@{SAMPLES}"], (-1.0, 1.0))),
            *_weighted(name, seeds, matrices[f"maj@{SAMPLES}"]),
        )
    grid.add_section()
    for name in metrics:
        grid.add_row(name, "", "", "", str(crossed_mean(matrices[name])), "", "", "")
    return grid


def _weighted(name: str, seeds: Sequence[Mapping[str, Any]], majority: FloatArray) -> tuple[str, str]:
    """The weighted majority of a judge and its lead over the majority, of those that weigh votes."""
    if any("weighted" not in one["judges"][name] for one in seeds):
        return "", ""
    weighted = np.array([one["judges"][name]["weighted"] for one in seeds])
    return str(crossed_mean(weighted)), str(crossed_mean(weighted - majority, (-1.0, 1.0)))


if __name__ == "__main__":
    study_command(JudgesStudy, run, table, width=200, is_empty=lambda results: not results["seeds"])
