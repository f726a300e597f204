"""Peak memory of collecting attempts into a list, above the model and its cache.

A rollout keeps the tokens of an attempt, not its observations, so what grows with the number of attempts is a few
numbers per token. The model is as small as a model can be: it changes the time this takes, and nothing else.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from resource import getpagesize
from typing import Any

import torch
from gymnasium.vector import AutoresetMode

from ...agents.rollouts.attempts import Attempt
from ...agents.rollouts.collect import collect
from ...agents.rollouts.policy import CausalLMPolicy
from ...envs.token_vector_env import TokenVectorEnv
from ...models.tokenizers import CHARS, load_tokenizer
from .random_models import random_problems, tiny_llama

GOAL = 300.0
"""MB above the model and its cache for 100,000 attempts of 128 tokens, at most."""
_CHARACTERS = "\n0123456789abcdefghijklmnopqrstuvwxyz+-*/=. "


def run(
    *,
    attempts: int = 100_000,
    new_tokens: int = 128,
    rows: int = 512,
    attempts_per_problem: int = 8,
    prompt_tokens: int = 64,
    seed: int = 0,
) -> dict[str, Any]:
    """Collects attempts in a process of its own, which holds them all, and watches its resident memory.

    Args:
        attempts: Number of attempts.
        new_tokens: Tokens of each attempt; end-of-sequence is never sampled.
        rows: Number of slots of the environment.
        attempts_per_problem: Attempts that share a prompt, K.
        prompt_tokens: Length of every prompt.
        seed: Seed of weights, problems and samples.

    Returns:
        JSON values: `settings`, `attempts` and `tokens` held at the end, `base` (MB resident when the first attempts
        end: the cache has its full size, and nothing is held yet but these), `peak` (MB above `base`, the most after
        any environment step that ended an attempt), and `bytes_per_attempt`.

    Raises:
        FileNotFoundError: The system has no /proc: only Linux reports resident memory this way.
    """
    settings = dict(locals())
    # A fresh interpreter: what this process freed before would hide growth.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return {"settings": settings, **pool.submit(_collect, **settings).result()}


def table(results: dict[str, Any]) -> str:
    """Formats the results of `run` as text."""
    attempts, tokens = results["attempts"], results["tokens"]
    return (
        f"{'attempts':>10}{'tokens each':>13}{'peak MB':>9}{'goal':>6}\n"
        f"{attempts:>10,}{tokens / attempts:>13.0f}{results['peak']:>9.0f}{GOAL:>6.0f}"
    )


def _collect(
    attempts: int, new_tokens: int, rows: int, attempts_per_problem: int, prompt_tokens: int, seed: int
) -> dict[str, Any]:
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(CHARS + _CHARACTERS)
    model = tiny_llama(tokenizer, prompt_tokens + new_tokens, 0.0, seed, layers=1, width=16, heads=2, kv_heads=1)
    env = TokenVectorEnv(
        random_problems(-(-attempts // attempts_per_problem), prompt_tokens, _CHARACTERS[1:], seed),
        rows,
        tokenizer=tokenizer,
        prompt="{question}",
        max_prompt_tokens=prompt_tokens,
        max_new_tokens=new_tokens,
        curriculum={"name": "sequential", "repeats": attempts_per_problem},
        autoreset_mode=AutoresetMode.DISABLED,
        copy=False,
    )
    resident: list[float] = []
    held: list[Attempt] = []
    policy = CausalLMPolicy(model, tokenizer)
    held.extend(collect(policy, env, attempts, seed=seed, on_step=lambda _: resident.append(_resident())))
    base, peak = resident[0], max(resident)
    return {
        "attempts": len(held),
        "tokens": sum(len(attempt.completion) for attempt in held),
        "base": base,
        "peak": peak - base,
        "bytes_per_attempt": (peak - base) * 1e6 / len(held),
    }


def _resident() -> float:
    """MB of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize() / 1e6
