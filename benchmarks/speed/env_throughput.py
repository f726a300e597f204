"""Tokens per second that the environments take: Gymnasium's loop over single ones against the vector one.

Three ways through the same attempts: `gym.make_vec` with "sync", `TokenVectorEnv.step`, and its `step_tokens`
with whole completions. Every attempt is graded and followed by the next one, and every call returns copies.
"""

import time
from collections.abc import Callable
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from ...arrays import IntArray
from ...envs.registration import make_vec_env
from ...envs.token_vector_env import TokenVectorEnv

GOALS = {"step": 10.0, "step_tokens": 100.0}
"""Tokens per second over those of the loop, at least."""

_ENV_ID = "tokengym/Arithmetic-v0"
_PROMPT_TOKENS = 128


def run(num_envs: int = 64, length: int = 512, rounds: int = 3) -> dict[str, float]:
    """Measures all three, in one process and one thread, in CPU seconds.

    Args:
        num_envs: Number of slots.
        length: Length of an observation: 128 tokens for the prompt, the others for a completion that uses all of them.
        rounds: Number of times that each is measured, in turns; the best of them counts.

    Returns:
        Tokens per CPU second of "sync", "step" and "step_tokens", and "step_ratio" and "step_tokens_ratio" over "sync".
    """
    settings: dict[str, Any] = {
        "max_prompt_tokens": _PROMPT_TOKENS,
        "max_new_tokens": length - _PROMPT_TOKENS,
        "on_long_prompt": "skip",
        # As expert iteration samples: several attempts at each problem.
        "curriculum": {"name": "sequential", "repeats": 8},
    }
    same_step = AutoresetMode.SAME_STEP
    vectorized = make_vec_env(_ENV_ID, num_envs, autoreset_mode=same_step, **settings)
    loop = gym.make_vec(
        _ENV_ID, num_envs, vectorization_mode="sync", vector_kwargs={"autoreset_mode": same_step}, **settings
    )
    tokens = _completions(vectorized, num_envs, length - _PROMPT_TOKENS)
    ways: dict[str, tuple[VectorEnv[Any, Any, Any], Callable[[], None], int]] = {
        "sync": (loop, lambda: _step(loop, tokens), 1),
        "step": (vectorized, lambda: _step(vectorized, tokens), 5),
        "step_tokens": (vectorized, lambda: _step_tokens(vectorized, tokens), 50),
    }
    best = dict.fromkeys(ways, 0.0)
    for _ in range(rounds):
        for name, (env, go, repeats) in ways.items():
            env.reset(seed=0)
            begin = time.process_time()
            for _ in range(repeats):
                go()
            best[name] = max(best[name], repeats * tokens.size / (time.process_time() - begin))
    return {**best, **{f"{name}_ratio": best[name] / best["sync"] for name in GOALS}}


def table(results: dict[str, float]) -> str:
    """Formats the results of `run` as text."""
    lines = [f"{'way':<12}{'tokens/s':>14}{'ratio':>10}{'goal':>8}", f"{'sync':<12}{results['sync']:>14,.0f}{1:>10.1f}"]
    lines += [
        f"{name:<12}{results[name]:>14,.0f}{results[f'{name}_ratio']:>10.1f}{goal:>8.0f}"
        for name, goal in GOALS.items()
    ]
    return "\n".join(lines)


def _completions(env: TokenVectorEnv, num_envs: int, length: int) -> IntArray:
    """Random token ids `[num_envs, length]`, end-of-sequence at the last place only."""
    ordinary = np.setdiff1d(np.arange(env.encoder.vocab_size), list(env.eos_token_ids))
    tokens = np.random.default_rng(0).choice(ordinary, size=(num_envs, length))
    tokens[:, -1] = cast(int, env.tokenizer.eos_token_id)
    return tokens


def _step(env: VectorEnv[Any, Any, Any], tokens: IntArray) -> None:
    for actions in tokens.T:
        env.step(actions)


def _step_tokens(env: TokenVectorEnv, tokens: IntArray) -> None:
    env.step_tokens(tokens, np.full(len(tokens), tokens.shape[1]))
