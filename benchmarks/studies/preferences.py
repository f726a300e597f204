"""Expert iteration, DPO, extrapolated DPO and MPO at equal attempts; DPO and MPO with a fifth of the pairs flipped.

    python -m tokengym.benchmarks.studies.preferences --folder runs/preferences

For each seed the built-in model is fine-tuned on a few demonstrations, and every variant learns from there with 6,400
attempts. All that learn from pairs offline read the attempts of "dpo". A label is flipped for a whole problem: all
pairs at it are turned round, for the policy and for the preference model that MPO trusts. Settings that are not named
here are the agents' defaults. A folder holds all of it; what is done is not done again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE
from rich.table import Table

from ...agents.base import Agent
from ...agents.dpo import DPO
from ...agents.expert_iteration import ExpertIteration
from ...agents.expo import best_alpha, compare_alphas, extrapolated
from ...agents.mpo import MPO, EasyPairs
from ...agents.ppo import PPO
from ...agents.preference import PreferenceModel
from ...agents.presets import PRESETS
from ...agents.rollouts.policy import CausalLMPolicy
from ...agents.training.fine_tuning import restore
from ...agents.training.outcome_labels import Labelled
from ...agents.training.pairs import Pair
from ...agents.training.rounds import Round
from ...arrays import FloatArray
from ...files import write_json
from ...models.loading import load
from ...registry import check_known
from ...settings import Count, CountOrZero, check_settings
from ..jobs import Done, Job, Missing, run_plan
from ..statistics import crossed_mean
from ..study import study_command
from .demo import ENV
from .ppo_rewards import NUM_ENVS, SFT_SETTINGS, measure, start, supervised

ATTEMPTS, PROBLEMS, SAMPLES = 6_400, 400, 16
FLIPPED = 0.2
RATE = 5e-5
"""DPO's default learning rate for the built-in model."""
ALPHAS = (0.0, 0.25, 0.5, 1.0, 2.5)
VALIDATION = {"validation_problems": 100}
ROUNDS: dict[str, Any] = {"problems": PROBLEMS, "samples_per_problem": SAMPLES // 2, "rounds": 2, "patience": 2}
ONCE: dict[str, Any] = {"problems": PROBLEMS, "samples_per_problem": SAMPLES, "rounds": 1}
# MPO reads half of the pool, and PPO adds as many attempts again.
HALF: dict[str, Any] = {"pair_problems": PROBLEMS // 2, "pair_samples": SAMPLES}
TINY_PPO: dict[str, Any] = {**PRESETS["tiny"].settings, "patience": None, "validation_iterations": 5}
VARIANTS: dict[str, str] = {
    "ei": "expert iteration, two rounds",
    "dpo": "DPO",
    "dpo_nll": "DPO with NLL",
    "dpo_nll_4x": "DPO with NLL, four times the rate",
    "dpo_nll_10x": "DPO with NLL, ten times the rate",
    "iterated_dpo": "DPO with NLL, two rounds",
    "fifth": "DPO, a fifth of the updates",
    "expo": "the same, extrapolated",
    "ppo": "PPO",
    "mpo": "MPO",
    "flipped_dpo": "DPO with NLL, 20 % flipped",
    "flipped_mpo": "MPO, 20 % flipped",
}
COMPARED = (
    ("dpo", "ei"), ("dpo_nll", "ei"), ("iterated_dpo", "ei"), ("dpo_nll", "dpo"), ("dpo_nll_4x", "dpo_nll"),
    ("dpo_nll_4x", "ei"), ("iterated_dpo", "dpo_nll"),
    ("expo", "dpo"), ("mpo", "dpo"), ("mpo", "ppo"), ("flipped_dpo", "dpo_nll"),
    ("flipped_mpo", "mpo"), ("flipped_mpo", "flipped_dpo"),
)  # fmt: skip


@dataclass(frozen=True)
class PreferencesStudy:
    """Preference optimization and what it is compared with, measured.

    Attributes:
        folder: Folder of all runs; finished runs in it are not repeated.
        variants: Variants to compare, keys of `VARIANTS`; those that they build on are run, too.
        seeds: Seeds of the experiment.
        test_problems: Test problems that policies are measured on.
        n: Samples of each test problem, for maj@n and pass@n.
        workers: Number of processes, of one thread each, that run at the same time.
    """

    folder: Path = Path("runs/preferences")
    variants: tuple[str, ...] = tuple(VARIANTS)
    seeds: tuple[CountOrZero, ...] = (0, 1, 2)
    test_problems: Count = 300
    n: Count = 8
    workers: Count = 1

    def __post_init__(self) -> None:
        check_settings(self)
        check_known("variant", self.variants, VARIANTS)


def jobs(experiment: PreferencesStudy) -> list[Job]:
    """The plan: what the chosen variants need, all of a seed before the next seed."""
    measured = {"test_problems": experiment.test_problems, "n": experiment.n, "threads": 1}
    plan: list[Job] = []
    for seed in experiment.seeds:
        own = {**measured, "seed": seed}
        work: dict[str, tuple[Any, dict[str, Any], tuple[str, ...]]] = {
            "sft": (fine_tuned, dict(SFT_SETTINGS), ()),
            "ei": (iterated, {**SFT_SETTINGS, **ROUNDS}, ()),
            "dpo": (preferred, {**ONCE, "nll_coef": 0.0}, ("sft",)),
            "dpo_nll": (preferred, {**ONCE, "nll_coef": 1.0}, ("sft", "dpo")),
            "dpo_nll_4x": (preferred, {**ONCE, "nll_coef": 1.0, "learning_rate": 4 * RATE}, ("sft", "dpo")),
            "dpo_nll_10x": (preferred, {**ONCE, "nll_coef": 1.0, "learning_rate": 10 * RATE}, ("sft", "dpo")),
            "iterated_dpo": (preferred, {**ROUNDS, "nll_coef": 1.0}, ("sft",)),
            "fifth": (preferred, {**ONCE, "problems": PROBLEMS // 5, "nll_coef": 0.0}, ("sft", "dpo")),
            "expo": (beyond, {"alphas": ALPHAS, **VALIDATION}, ("sft", "fifth")),
            "ppo": (reinforced, {}, ("sft",)),
            "judge": (judge, {}, ("sft", "dpo")),
            "mpo": (mixed, {}, ("sft", "dpo", "judge")),
            "flipped_dpo": (preferred, {**ONCE, "nll_coef": 1.0, "flipped": True}, ("sft", "dpo")),
            "flipped_judge": (judge, {"flipped": True}, ("sft", "dpo")),
            "flipped_mpo": (mixed, {"flipped": True}, ("sft", "dpo", "flipped_judge")),
        }
        wanted = {"sft", *experiment.variants}
        for name in reversed(work):  # what is needed stands before what needs it
            if name in wanted:
                wanted.update(work[name][2])
        for name, (function, settings, needs) in work.items():
            if name in wanted:
                before = tuple(f"seed-{seed}/{need}" for need in needs)
                plan.append(Job(f"seed-{seed}/{name}", function, {**own, **settings, "variant": name}, before))
    return plan


def fine_tuned(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """The start."""
    return {**_slim(supervised(folder, settings, needs)["evaluation"], settings), "attempts": 0}


def iterated(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """Expert iteration, whose round without sampling is the others' start."""
    own = {name: settings[name] for name in (*SFT_SETTINGS, *ROUNDS)}
    return _learned(ExpertIteration(ENV, **_shared(folder, settings), **own), settings)


def preferred(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """DPO; of one round the policy that it ends with, whether or not it validates better than the start."""
    own = {name: settings[name] for name in (*ONCE, "nll_coef", "learning_rate", "patience") if name in settings}
    kind = FlippedDPO if settings.get("flipped") else DPO
    agent = kind(ENV, start(needs), pool=_pool(needs), **_shared(folder, settings), **own)
    agent.learn()
    if settings["rounds"] == 1:
        last = Round.load(folder / "run" / "round-1", 1)
        assert last is not None  # noqa: S101
        restore(agent.model, last.weights)
    agent.save(folder / "policy")
    return _result(agent, settings)


def beyond(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """The policy of a fifth of the updates, extrapolated by the distance that validates best."""
    torch.set_num_threads(settings["threads"])
    weaker, _ = load(start(needs), device="cpu")
    trained = next(done.folder for name, done in needs.items() if name.endswith("/fifth")) / "policy"
    agent = DPO(ENV, trained, num_envs=NUM_ENVS, seed=settings["seed"], device="cpu")
    validation = agent.make_env(split="validation", reward="sparse")
    found = compare_alphas(
        weaker, agent.policy, validation, settings["alphas"], problems=settings["validation_problems"]
    )
    alpha = best_alpha(found)
    return {
        **_measured(extrapolated(weaker, agent.policy, alpha), settings),
        "attempts": 0,
        "alpha": alpha,
        "validation": {str(one): result.metrics["maj@1"].value for one, result in found.items()},
    }


def reinforced(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """PPO by its preset for the built-in model."""
    agent = PPO(ENV, start(needs), iterations=10**6, **TINY_PPO, **_shared(folder, settings))
    return _learned(agent, settings, ATTEMPTS)


def judge(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """The preference model that tells easy pairs from hard ones, from the same attempts."""
    kind = FlippedPreferenceModel if settings.get("flipped") else PreferenceModel
    agent = kind(
        ENV, start(needs), pool=_pool(needs), problems=PROBLEMS // 2, samples_per_problem=SAMPLES,
        **{**_shared(folder, settings), "validation_problems": 10},
    )  # fmt: skip
    agent.learn()
    return {}


def mixed(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """MPO: DPO on easy pairs of half of the attempts, and PPO at the problems of the others."""
    trusted = next(done.folder for name, done in needs.items() if name.endswith("judge")) / "run" / "model"
    kind = FlippedMPO if settings.get("flipped") else MPO
    agent = kind(
        ENV, start(needs), orm=str(trusted), pool=_pool(needs), iterations=10**6, **HALF, **TINY_PPO,
        **_shared(folder, settings),
    )  # fmt: skip
    return _learned(agent, settings, ATTEMPTS // 2)


def is_flipped(problem_id: str, seed: int) -> bool:
    """True for a share `FLIPPED` of all problems, drawn at random, and the same whoever asks."""
    return bool(np.random.default_rng([seed, *problem_id.encode()]).random() < FLIPPED)


def turned(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """The pairs, with chosen and rejected exchanged at problems that are flipped."""
    return [
        replace(pair, chosen=pair.rejected, rejected=pair.chosen) if is_flipped(pair.problem_id, seed) else pair
        for pair in pairs
    ]


class FlippedDPO(DPO):
    """DPO on pairs of which a share is turned round."""

    def choose_pairs(self, pairs: list[Pair]) -> list[Pair]:
        return turned(pairs, self.seed)


class FlippedEasyPairs(EasyPairs):
    """MPO's DPO, on pairs of which a share is turned round."""

    def choose_pairs(self, pairs: list[Pair]) -> list[Pair]:
        return super().choose_pairs(turned(pairs, self.seed))


class FlippedMPO(MPO):
    """MPO on pairs of which a share is turned round."""

    preferences_class = FlippedEasyPairs


class FlippedPreferenceModel(PreferenceModel):
    """A preference model that learns from labels of which a share is flipped."""

    def _train(self, labelled: Sequence[Labelled], *args: Any, **options: Any) -> int:
        shown = [
            replace(item, attempt=replace(item.attempt, is_success=not item.attempt.is_success))
            if is_flipped(item.attempt.problem.id, self.seed)
            else item
            for item in labelled
        ]
        return super()._train(shown, *args, **options)


def _shared(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(settings["threads"])
    run_folder = {"run": folder / "run", "resume": "auto", "device": "cpu"}
    return {"num_envs": NUM_ENVS, "seed": settings["seed"], **run_folder, **VALIDATION}


def _learned(agent: Agent[Any], settings: Mapping[str, Any], attempts: int | None = None) -> dict[str, Any]:
    agent.learn(attempts)
    return _result(agent, settings)


def _result(agent: Agent[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {**_measured(agent.policy, settings), "attempts": agent.num_attempts}


def _measured(policy: CausalLMPolicy, settings: Mapping[str, Any]) -> dict[str, Any]:
    return _slim(measure(policy, settings), settings)


def _slim(evaluation: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the table needs of an evaluation, problem by problem."""
    kept = ("maj@1", f"maj@{settings['n']}", f"pass@{settings['n']}")
    by_problem = {name: evaluation["by_problem"][name] for name in kept}
    return {"variant": settings["variant"], "seed": settings["seed"], "by_problem": by_problem}


def _pool(needs: Mapping[str, Done]) -> str | None:
    """The folder of DPO's attempts, once there are any."""
    return next((str(done.folder / "run") for name, done in needs.items() if name.endswith("/dpo")), None)


def run(experiment: PreferencesStudy) -> dict[str, Any]:
    """Does what is not done yet, and writes `results.json` into the folder."""
    states = run_plan(jobs(experiment), experiment.folder, workers=experiment.workers)
    done = {name: state.result for name, state in states.items() if isinstance(state, Done)}
    results = {
        "test_problems": experiment.test_problems,
        "n": experiment.n,
        "missing": {name: state.reason for name, state in states.items() if isinstance(state, Missing)},
        "runs": [dict(one) for one in done.values() if one.get("variant") in ("sft", *VARIANTS)],
    }
    write_json(experiment.folder / "results.json", results)
    return results


def table(results: Mapping[str, Any]) -> Table:
    """One row for the start and each variant, then differences; means over seeds and problems, 95 % intervals."""
    columns = ("maj@1", f"maj@{results['n']}", f"pass@{results['n']}")
    grid = Table(
        "", "seeds", "attempts", "maj@1", "gain", *columns[1:], box=SIMPLE, show_edge=False,
        title=f"{ENV}, {results['test_problems']} test problems",
        caption="means with 95 % intervals over seeds and problems; gain: of maj@1 over the start, in pairs\n"
        "attempts: those that were sampled; who samples none learns from those of DPO, and MPO from half of them",
    )  # fmt: skip
    runs = {(one["variant"], one["seed"]): one for one in results["runs"]}
    for name, title in {"sft": "SFT, the start", **VARIANTS}.items():
        own = [one for one in runs.values() if one["variant"] == name]
        if own:
            sampled = f"{np.mean([one['attempts'] for one in own]):,.0f}"
            shown = [_shown(np.array([one["by_problem"][column] for one in own], float)) for column in columns]
            gains = _difference(runs, name, "sft")
            gain = _shown(gains, -1.0) if name != "sft" and len(gains) else ""
            grid.add_row(title, str(len(own)), sampled, shown[0], gain, *shown[1:])
    grid.add_section()
    for name, other in COMPARED:
        if len(values := _difference(runs, name, other)):
            grid.add_row(f"{VARIANTS[name]} less {VARIANTS[other]}", str(len(values)), "", "", _shown(values, -1.0))
    return grid


def _difference(runs: Mapping[tuple[str, int], Mapping[str, Any]], name: str, other: str) -> FloatArray:
    """maj@1 of a variant less that of another, `[S, P]`, of the seeds that both have."""
    seeds = [seed for variant, seed in runs if variant == name and (other, seed) in runs]
    read = lambda variant, seed: np.array(runs[variant, seed]["by_problem"]["maj@1"])  # noqa: E731
    return np.array([read(name, seed) - read(other, seed) for seed in seeds], float)


def _shown(values: FloatArray, least: float = 0.0) -> str:
    return str(crossed_mean(values, (least, 1.0)))


if __name__ == "__main__":
    study_command(PreferencesStudy, run, table, width=160, is_empty=lambda results: not results["runs"])
