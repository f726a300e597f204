"""Return-conditioned RL on the built-in model: what labels are worth, and against what (Havrilla et al. 2024).

Expert iteration makes the policy that samples; return-conditioned models are trained from the base checkpoint on one
pool of its attempts, at several shares of correct ones and several thresholds of good steps, on equally many attempts;
beside them is the base model fine-tuned on the pool's correct attempts alone, which is a round of expert iteration.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ...agents.configs.optimizer import FineTuneConfig
from ...agents.evaluation.evaluate import bootstrap, evaluate
from ...agents.expert_iteration import ExpertIteration
from ...agents.rcrl import RCRL
from ...agents.rollouts.attempts import Attempt, AttemptFile
from ...agents.rollouts.collect import Start, collect, continue_from
from ...agents.rollouts.conditioned_policy import ConditionedPolicy, load_policy
from ...agents.rollouts.policy import CausalLMPolicy
from ...agents.rollouts.slots import make_rollout_env
from ...agents.sft import SFT
from ...agents.training.fine_tuning import fine_tune
from ...agents.training.learner import Example
from ...envs.curriculum import Sequential
from ...envs.token_vector_env import TokenVectorEnv
from ...files import read_jsonl, write_json
from ...models.condition_tokens import BAD, GOOD, OWN
from ...models.loading import load
from ...models.vocabulary import num_token_ids
from ...rewards.grading.solutions import equation_sequence
from ...rewards.steps import step_ends
from ...settings import Count, CountOrZero, check_settings
from ..jobs import Done, Job, Missing, run_plan
from .demo import ENV, SETTINGS

BASE = "tokengym/tiny"
NUM_ENVS = 256
_LIGHT = {name: SETTINGS[name] for name in ("epochs", "batch_size")}


@dataclass(frozen=True)
class ReturnConditioning:
    """Return-conditioned models that differ in one setting each, measured.

    Attributes:
        folder: Folder of all runs; finished runs in it are not repeated.
        problems: Problems of the pool, the first of the training split.
        samples_per_problem: Attempts at each problem of the pool.
        rollouts_per_step: Continuations that are sampled from the end of each step for its label.
        ratios: Shares of correct attempts in the training data; all other comparisons use the first one.
        thresholds: Least shares of successful continuations after a good step; all other comparisons use the first one.
        training_attempts: Attempts that each model is trained on, equally many for all.
        test_problems: Test problems that models are measured on.
        n: Samples of each test problem, for maj@n and pass@n.
        cost_attempts: Attempts whose cost of labeling is counted token by token.
        seed: Seed of sampling and training.
        threads: Number of CPU threads.
    """

    folder: Path = Path("runs/rcrl")
    problems: Count = 1600
    samples_per_problem: Count = 2
    rollouts_per_step: Count = 4
    ratios: tuple[float, ...] = (0.5, 0.7, 0.9)
    thresholds: tuple[float, ...] = (0.5, 0.25, 1.0)
    training_attempts: Count = 600
    test_problems: Count = 200
    n: Count = 16
    cost_attempts: Count = 100
    seed: CountOrZero = 0
    threads: Count = 1

    def __post_init__(self) -> None:
        check_settings(self)


def run(experiment: ReturnConditioning, say: Any = lambda line: None) -> dict[str, Any]:
    """Does what is not done yet; writes `results.json` into the folder.

    Returns:
        JSON values: `settings`, and the result of each job that has one, by name.
    """
    settings = {name: value for name, value in asdict(experiment).items() if name != "folder"}
    done = run_plan(jobs(settings), experiment.folder, say=say)
    results: dict[str, Any] = {"settings": settings, "missing": {}}
    for name, state in done.items():
        if isinstance(state, Missing):
            results["missing"][name] = state.reason
        else:
            results[name] = {**state.result, "seconds": state.seconds}
    write_json(experiment.folder / "results.json", results)
    return results


def jobs(settings: Mapping[str, Any]) -> list[Job]:
    """The plan: cheap and telling jobs first."""
    ratio, threshold = settings["ratios"][0], settings["thresholds"][0]
    shared = {name: value for name, value in settings.items() if name not in ("ratios", "thresholds")}
    sampling = {**shared, "ratio": ratio, "threshold": threshold}
    variants = [(other, threshold) for other in settings["ratios"][1:]]
    variants += [(ratio, other) for other in settings["thresholds"][1:]]
    return [
        Job("expert_iteration", expert_iteration, shared),
        Job("rcrl", return_conditioned, sampling, ("expert_iteration",)),
        Job("correct_only", correct_only, shared, ("rcrl",)),
        Job("sft", supervised, shared),
        Job("cost", cost, shared, ("expert_iteration", "rcrl")),
        *(
            Job(
                f"ratio-{a:g}-threshold-{b:g}",
                return_conditioned,
                {**shared, "ratio": a, "threshold": b},
                ("expert_iteration", "rcrl"),
            )
            for a, b in variants
        ),
    ]


# ---------------------------------------------------------------------------------------------------------------- jobs


def expert_iteration(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """The demonstration's policy."""
    torch.set_num_threads(settings["threads"])
    agent = ExpertIteration(
        ENV, BASE, num_envs=NUM_ENVS, seed=settings["seed"], run=folder / "run", resume="auto", device="cpu", **SETTINGS
    )
    agent.learn()
    return {"attempts": agent.num_attempts, "tokens": agent.num_tokens, "evaluation": _measure(agent.policy, settings)}


def supervised(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """Reference solutions instead of attempts, as many as the others train on."""
    torch.set_num_threads(settings["threads"])
    agent = SFT(
        ENV, BASE, num_envs=NUM_ENVS, seed=settings["seed"], run=folder / "run", resume="auto", device="cpu",
        demonstrations=settings["training_attempts"], validation_problems=0, **_LIGHT,
    )  # fmt: skip
    agent.learn()
    return {"attempts": 0, "evaluation": _measure(agent.policy, settings)}


def return_conditioned(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """A pool of the policy's attempts with labels, or another job's, and a model that is conditioned on them."""
    torch.set_num_threads(settings["threads"])
    agent = RCRL(
        ENV, needs["expert_iteration"].folder / "run" / "model", num_envs=NUM_ENVS, seed=settings["seed"],
        run=folder / "run", resume="auto", device="cpu", base=BASE, validation_problems=0,
        pool=str(needs["rcrl"].folder / "run" / "pool") if "rcrl" in needs else None,
        positive_ratio=settings["ratio"], threshold=settings["threshold"],
        **{name: settings[name] for name in ("problems", "samples_per_problem", "rollouts_per_step")},
        training_attempts=settings["training_attempts"], **_LIGHT,
    )  # fmt: skip
    agent.learn()
    (metrics,) = read_jsonl(folder / "run" / "metrics.jsonl")
    policy = load_policy(folder / "run" / "model", device="cpu")
    if not isinstance(policy, ConditionedPolicy):
        raise TypeError(f"the model in {folder / 'run'} has no labels")
    whole = "rcrl" not in needs
    own = _Watched(policy, OWN)
    result = {"attempts": agent.num_attempts, "metrics": metrics, **_gap(policy, settings)}
    result |= {GOOD: _measure(policy, settings, whole), BAD: _measure(policy.with_condition(BAD), settings, whole)}
    result[OWN] = _measure(own, settings, whole)
    return result | {"own_labels_good": own.share_of_best}


def correct_only(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """The base model, fine-tuned on distinct correct attempts of the pool: a round of expert iteration on it alone."""
    torch.set_num_threads(settings["threads"])
    model, tokenizer = load(BASE, device="cpu")
    env = _env(CausalLMPolicy(model, tokenizer), "train")
    kept = {
        (attempt.problem.id, equation_sequence(env.decode(attempt.completion))): attempt
        for attempt in reversed(_pool(needs["rcrl"].folder, env))
        if attempt.is_success
    }
    order = np.random.default_rng(settings["seed"]).permutation(len(kept))[: settings["training_attempts"]]
    attempts = list(kept.values())
    fine_tune(
        model,
        [Example(attempts[i].prompt, attempts[i].completion) for i in order],
        FineTuneConfig(**_LIGHT),
        accelerator=Accelerator(cpu=True),
        seed=settings["seed"],
        vocab_size=num_token_ids(tokenizer),
        checkpoints=folder / "training",
    )
    return {"examples": len(order), "evaluation": _measure(CausalLMPolicy(model, tokenizer), settings)}


def cost(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """Cost of labels by continuations, and the prompt tokens that shared prefixes save."""
    torch.set_num_threads(settings["threads"])
    policy = load_policy(needs["expert_iteration"].folder / "run" / "model", device="cpu")
    env = _env(policy, "train")
    attempts = _pool(needs["rcrl"].folder, env)[: settings["cost_attempts"]]
    ends = step_ends([a.completion for a in attempts], [a.terminated for a in attempts], env.tokenizer)
    samples = settings["rollouts_per_step"]
    prefixes = {
        (attempt.problem.id, attempt.completion[: end + 1].tobytes()): (attempt, end)
        for attempt, steps in zip(attempts, ends, strict=True)
        for end in steps[steps < len(attempt.completion) - 1]
    }
    starts = [Start(attempt.problem.id, attempt.completion[: end + 1]) for attempt, end in prefixes.values()]
    rollout = continue_from(policy, env, [start for start in starts for _ in range(samples)], seed=settings["seed"])
    tokens = sum(len(attempt.completion) for attempt in rollout)
    # The last token of a prompt is no part of its prefill.
    scratch = sum(len(attempt.prompt) + int(end) for attempt, end in prefixes.values())
    return {
        "attempts": len(attempts),
        "steps": sum(map(len, ends)),
        "prefixes": len(prefixes),
        "rollouts": samples * len(prefixes),
        "sampled_tokens": tokens,
        "prefill_tokens": int(rollout.prefill_tokens),
        "prefill_tokens_prefix_by_prefix": scratch,
        "prefill_tokens_rollout_by_rollout": scratch * samples,
    }


# ------------------------------------------------------------------------------------------------------------- measures


class _Watched(ConditionedPolicy):
    """A conditioned policy that knows which labels its greedy decoders have placed, which every variant has."""

    def __init__(self, policy: ConditionedPolicy, condition: str) -> None:
        super().__init__(policy.model, policy.tokenizer, policy.labels, condition)
        self.decoders: list[Any] = []

    def decoder(self, num_slots: int) -> Any:
        decoder = super().decoder(num_slots)
        if self.sampling.temperature == 0:
            self.decoders.append(decoder)
        return decoder

    @property
    def share_of_best(self) -> float:
        placed = np.sum([decoder.placed for decoder in self.decoders], axis=0)
        return float(placed[-1] / placed.sum())


def _env(policy: CausalLMPolicy, split: str) -> TokenVectorEnv:
    return make_rollout_env(gym.spec(ENV), policy, NUM_ENVS, split=split)


def _pool(folder: Path, env: TokenVectorEnv) -> list[Attempt]:
    return list(AttemptFile(folder / "run" / "pool" / "attempts-0.jsonl").read(env))


def _measure(policy: CausalLMPolicy, settings: Mapping[str, Any], whole: bool = True) -> dict[str, Any]:
    """An evaluation on test problems, with the samples only where the `whole` of it is asked for."""
    n = settings["n"] if whole else 0
    env = _env(policy, "test")
    return evaluate(policy, env, problems=settings["test_problems"], n=n, seed=settings["seed"]).to_dict()


def _gap(policy: ConditionedPolicy, settings: Mapping[str, Any]) -> dict[str, Any]:
    """maj@1 under the best label less that under the worst, problem by problem, with its interval."""
    solved = []
    for condition in (GOOD, BAD):
        env = _env(policy, "test")
        env.curriculum = Sequential()
        greedy = policy.with_condition(condition).with_sampling(temperature=0.0)
        attempts = collect(greedy, env, settings["test_problems"], seed=settings["seed"])
        solved.append(np.array([attempt.is_success for attempt in attempts], float))
    return {"gap": list(bootstrap(solved[0] - solved[1], bounds=(-1.0, 1.0)))}


# --------------------------------------------------------------------------------------------------------------- report


def table(results: Mapping[str, Any]) -> Group:
    """Policies against each other, the sweep, and the cost of labels."""
    settings, n = results["settings"], results["settings"]["n"]
    policies = Table("policy", "maj@1", f"maj@{n}", "pass@1", f"pass@{n}", title=f"{ENV}, test split")
    for name, title in (
        ("sft", f"SFT on {settings['training_attempts']} reference solutions"),
        ("expert_iteration", "EI, which samples the pool"),
        ("correct_only", "EI's next round, on the pool alone"),
    ):
        if name in results:
            _add(policies, title, results[name]["evaluation"], n)
    for condition, title in ((GOOD, "asked for [GOOD]"), (BAD, "asked for [BAD]"), (OWN, "labels of its own")):
        if "rcrl" in results:
            _add(policies, f"RCRL, {title}", results["rcrl"][condition], n)
    sweep = Table(
        "share correct", "T", "good labels", "maj@1 [GOOD]", "maj@1 [BAD]", "gap", "maj@1 own", "own labels good",
        title=f"labels, {settings['training_attempts']} attempts each",
    )  # fmt: skip
    names = [name for name in results if name == "rcrl" or name.startswith("ratio-")]
    for name in names:
        result = results[name]
        ratio, threshold = settings["ratios"][0], settings["thresholds"][0]
        if name != "rcrl":
            _, ratio, _, threshold = name.split("-")
        sweep.add_row(
            f"{float(ratio):g}", f"{float(threshold):g}", f"{result['metrics']['labels/share/good']:.2f}",
            *(_interval(result[condition]["metrics"]["maj@1"]) for condition in (GOOD, BAD)),
            _interval(result["gap"]), _interval(result[OWN]["metrics"]["maj@1"]), f"{result['own_labels_good']:.2f}",
        )  # fmt: skip
    parts: list[Any] = [policies, sweep]
    if "cost" in results:
        parts.append(Text(_cost_line(results["cost"])))
    parts += [Text(f"missing: {name}: {reason}") for name, reason in results["missing"].items()]
    return Group(*parts)


def _add(policies: Table, title: str, evaluation: Mapping[str, Any], n: int) -> None:
    metrics = evaluation["metrics"]
    policies.add_row(title, *(_interval(metrics[key]) for key in ("maj@1", f"maj@{n}", "pass@1", f"pass@{n}")))


def _interval(values: Sequence[float]) -> str:
    return f"{values[0]:.3f} [{values[1]:.3f}, {values[2]:.3f}]"


def _cost_line(cost: Mapping[str, Any]) -> str:
    steps, prefill = cost["steps"], cost["prefill_tokens"]
    return (
        f"labels: {cost['rollouts'] / steps:.2f} attempts and {cost['sampled_tokens'] / steps:.1f} sampled tokens per "
        f"labeled step; {prefill / steps:.1f} prompt tokens computed, "
        f"{cost['prefill_tokens_prefix_by_prefix'] / prefill:.1f} times fewer than prefix by prefix and "
        f"{cost['prefill_tokens_rollout_by_rollout'] / prefill:.1f} times fewer than rollout by rollout"
    )
