"""Cost of an outcome model in a rollout: CPU time with the sparse reward, the sparse ORM and the dense ORM.

The three sample the very same attempts, in turns, in one process: what is paid changes no draw. The outcome model is
the built-in language model under a new head: as large as the policy, and what it says makes no difference to its cost.
"""

import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from ...agents.rollouts.collect import collect
from ...agents.rollouts.policy import CausalLMPolicy
from ...envs import make_vec_env
from ...models import OutcomeModel, load
from ...models.tokenizers import TINY

REWARDS = ("sparse", "sparse_orm", "dense_orm")
RATIOS = (("dense_orm", "sparse_orm"), ("dense_orm", "sparse"), ("sparse_orm", "sparse"))
GOAL = 1.5
"""Time of the dense over that of the sparse ORM, at most."""


@dataclass(frozen=True, slots=True)
class RewardRun:
    """One rollout under one reward.

    Attributes:
        attempts: Number of attempts.
        tokens: Sampled tokens, end-of-sequence included.
        scores: Number of tokens that were paid.
        seconds: CPU seconds of the process.
    """

    attempts: int
    tokens: int
    scores: int
    seconds: float


def run(
    *,
    env_id: str = "tokengym/Arithmetic-v0",
    slots: int = 256,
    attempts: int = 512,
    attempts_per_problem: int = 8,
    max_new_tokens: int = 256,
    repeats: int = 5,
    threads: int = 1,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures the three rewards.

    Args:
        env_id: Id of the environment.
        slots: Number of slots of the environment.
        attempts: Number of attempts in one rollout.
        attempts_per_problem: Attempts that share a prompt, K.
        max_new_tokens: Length limit of attempts in tokens.
        repeats: Rollouts with each reward, in turns; every turn samples other attempts.
        threads: Number of torch's threads.
        seed: Seed of problems, samples and the outcome model's head.

    Returns:
        JSON values: `settings`; `runs` of each reward; `seconds`, their medians; and `ratios`, for each pair of rewards
        the median, the least and the largest of the ratios within a turn.
    """
    settings = dict(locals())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        policy = CausalLMPolicy(*load(TINY, device="cpu"))
        orm = OutcomeModel.from_causal_lm(policy.model, policy.tokenizer, "orm", seed)
        runs: dict[str, list[RewardRun]] = defaultdict(list)
        for repeat in range(repeats):
            for name in np.roll(REWARDS, repeat).tolist():
                reward = name if name == "sparse" else {"name": name, "orm": orm}
                env = make_vec_env(
                    env_id,
                    slots,
                    tokenizer=policy.tokenizer,
                    reward=reward,
                    max_new_tokens=max_new_tokens,
                    curriculum={"name": "sequential", "repeats": attempts_per_problem},
                    autoreset_mode=AutoresetMode.DISABLED,
                    copy=False,
                )
                runs[name].append(_measure(policy, env, attempts, seed + repeat))
    finally:
        torch.set_num_threads(before)
    seconds = {name: np.array([side.seconds for side in runs[name]]) for name in REWARDS}
    ratios = {f"{one}/{other}": seconds[one] / seconds[other] for one, other in RATIOS}
    return {
        "settings": settings,
        "seconds": {name: float(np.median(values)) for name, values in seconds.items()},
        "ratios": {name: [float(f(values)) for f in (np.median, np.min, np.max)] for name, values in ratios.items()},
        "runs": {name: [asdict(side) for side in runs[name]] for name in REWARDS},
    }


def table(results: dict[str, Any]) -> str:
    """Formats the results of `run` as text."""
    lines = [f"{'reward':<24}{'CPU seconds':>12}{'tokens/s':>10}{'scores':>8}"]
    for name, seconds in results["seconds"].items():
        sides = results["runs"][name]
        tokens, scores = (float(np.median([side[key] for side in sides])) for key in ("tokens", "scores"))
        lines.append(f"{name:<24}{seconds:>12.2f}{tokens / seconds:>10.0f}{scores:>8.0f}")
    lines.append(f"{'ratio':<24}{'median':>12}{'from':>10}{'to':>8}{'goal':>6}")
    for pair, (median, least, most) in results["ratios"].items():
        goal = GOAL if pair == "dense_orm/sparse_orm" else ""
        lines.append(f"{pair:<24}{median:>12.2f}{least:>10.2f}{most:>8.2f}{goal:>6}")
    return "\n".join(lines)


def _measure(policy: CausalLMPolicy, env: Any, attempts: int, seed: int) -> RewardRun:
    count = tokens = scores = 0
    begun = time.process_time()
    for attempt in collect(policy, env, attempts, seed=seed):
        count += 1
        tokens += len(attempt.completion)
        scores += np.count_nonzero(attempt.rewards)
    return RewardRun(count, tokens, int(scores), time.process_time() - begun)
