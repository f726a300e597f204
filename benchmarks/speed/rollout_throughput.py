"""The rollout engine against transformers' `generate`: completions per CPU second, and the engine's own share of time.

Both sides run the same model object on the same prompts, in turns, in one process. The model is a random, tiny,
grouped-query Llama whose head has a bias on the end-of-sequence token: that token's logit is the bias alone, and those
of the others vary little, so that an attempt ends at every token with nearly the same probability, and lengths are
geometric. All prompts have one length, so `generate` loses nothing on padding, and it neither records log-probabilities
nor grades: the engine steps a real environment and does both.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...agents.rollouts.collect import collect
from ...agents.rollouts.policy import CausalLMPolicy
from ...envs.token_vector_env import TokenVectorEnv
from ...models.tokenizers import CHARS, load_tokenizer
from .random_models import random_problems, tiny_llama

# 1,022 characters that are printable, and none that combines with its neighbor; with end and pad, V = 1,024.
_CHARACTERS = "\n" + "".join(map(chr, [*range(0x20, 0x7F), *range(0x4E00, 0x4E00 + 1022 - 96)]))
GOALS = {"geometric": 6.0, "fixed": 2.0, "outside": 0.15}
"""Speed over `generate` for either kind of lengths, at least; share of time outside the forward pass, at most."""


@dataclass(frozen=True, slots=True)
class EngineRun:
    """Measurements of one engine in one run.

    Attributes:
        completions: Number of completions.
        tokens: Sampled tokens of all completions, end-of-sequence included, padding not.
        seconds: CPU seconds of the process.
        outside: Share of `seconds` spent outside the model's forward pass.
    """

    completions: int
    tokens: int
    seconds: float
    outside: float

    @property
    def rate(self) -> float:
        """Completions per CPU second."""
        return self.completions / self.seconds


def run(
    *,
    rows: int = 256,
    completions: int = 512,
    attempts_per_problem: int = 8,
    prompt_tokens: int = 64,
    mean_new_tokens: int = 64,
    max_new_tokens: int = 256,
    fixed_completions: int = 256,
    fixed_new_tokens: int = 128,
    repeats: int = 3,
    threads: int = 1,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures both sides with geometric and with fixed lengths.

    `generate` runs batches of `rows` until every row of the batch has ended; the engine refills its slots.

    Args:
        rows: Batch size of `generate`, and slots of the engine.
        completions: Number of completions that each side makes per run with geometric lengths; a multiple of `rows`.
        attempts_per_problem: Completions that share a prompt, K.
        prompt_tokens: Length of every prompt.
        mean_new_tokens: Mean of the geometric distribution, end-of-sequence included.
        max_new_tokens: Length limit of attempts in tokens.
        fixed_completions: Number of completions that each side makes per run with fixed lengths; a multiple of `rows`.
        fixed_new_tokens: Fixed length in tokens.
        repeats: Number of runs of each side, in turns.
        threads: Number of torch's threads.
        seed: Seed of weights, prompts and samples.

    Returns:
        JSON values: `settings`, and for `geometric` and `fixed` each side's runs, the medians of `generate` and
        `engine` in completions per CPU second, their ratio `speedup`, and the engine's median share `outside` the
        forward pass.

    Raises:
        ValueError: `completions` or `fixed_completions` is not a multiple of `rows`, which would leave `generate` with
            a batch that is partly empty.
    """
    settings = dict(locals())
    for name in ("completions", "fixed_completions"):
        if settings[name] < rows or settings[name] % rows:
            raise ValueError(f"{name} must be a multiple of rows={rows}, got {settings[name]}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        results: dict[str, Any] = {"settings": settings}
        for kind, count, limit, stop in (
            ("geometric", completions, max_new_tokens, 1 / mean_new_tokens),
            ("fixed", fixed_completions, fixed_new_tokens, 0.0),
        ):
            tokenizer = load_tokenizer(CHARS + _CHARACTERS)
            model = tiny_llama(tokenizer, prompt_tokens + limit, stop, seed)
            problems = random_problems(count // attempts_per_problem, prompt_tokens, _CHARACTERS[1:], seed)
            env = TokenVectorEnv(
                problems,
                rows,
                tokenizer=tokenizer,
                prompt="{question}",
                max_prompt_tokens=prompt_tokens,
                max_new_tokens=limit,
                curriculum={"name": "sequential", "repeats": attempts_per_problem},
                autoreset_mode=AutoresetMode.DISABLED,
                copy=False,
            )
            results[kind] = _compare(model, tokenizer, env, count, repeats, seed)
    finally:
        torch.set_num_threads(before)
    return results


def table(results: dict[str, Any]) -> str:
    """Formats the results of `run` as text."""
    lines = [
        f"{'lengths':<10}{'generate/s':>11}{'engine/s':>10}{'ratio':>7}{'goal':>6}{'outside forward':>17}{'goal':>7}"
    ]
    for kind in ("geometric", "fixed"):
        r = results[kind]
        lines.append(
            f"{kind:<10}{r['generate']:>11.1f}{r['engine']:>10.1f}{r['speedup']:>7.2f}{GOALS[kind]:>6}"
            f"{r['outside']:>17.1%}{GOALS['outside']:>7.0%}"
        )
    return "\n".join(lines)


def _compare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    env: TokenVectorEnv,
    count: int,
    repeats: int,
    seed: int,
) -> dict[str, Any]:
    generate, engine = [], []
    untouched = copy.deepcopy(model)  # the policy may change the layers of its own
    for repeat in range(repeats):
        generate.append(_measure(untouched, lambda r=repeat: _generate(untouched, env, count, seed + r)))
        engine.append(_measure(model, lambda r=repeat: _engine(model, tokenizer, env, count, seed + r)))
    medians = {name: float(np.median([s.rate for s in runs])) for name, runs in _named(generate, engine)}
    return {
        **medians,
        "speedup": medians["engine"] / medians["generate"],
        "outside": float(np.median([side.outside for side in engine])),
        "runs": {name: [asdict(side) for side in runs] for name, runs in _named(generate, engine)},
    }


def _named(generate: list[EngineRun], engine: list[EngineRun]) -> list[tuple[str, list[EngineRun]]]:
    return [("generate", generate), ("engine", engine)]


def _measure(model: PreTrainedModel, sample: Callable[[], Iterator[int]]) -> EngineRun:
    """Runs `sample`, which yields the number of tokens of each completion."""
    with _forward_seconds(model) as forward:
        begun = time.process_time()
        lengths = list(sample())
        seconds = time.process_time() - begun
    return EngineRun(len(lengths), sum(lengths), seconds, 1 - sum(forward) / seconds)


@contextmanager
def _forward_seconds(model: PreTrainedModel) -> Iterator[list[float]]:
    """CPU seconds of each forward pass of `model` within the block."""
    begun, spent = [0.0], []
    before = model.register_forward_pre_hook(lambda *_: begun.__setitem__(0, time.process_time()))
    after = model.register_forward_hook(lambda *_: spent.append(time.process_time() - begun[0]))
    try:
        yield spent
    finally:
        before.remove()
        after.remove()


def _engine(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, env: TokenVectorEnv, count: int, seed: int
) -> Iterator[int]:
    for attempt in collect(CausalLMPolicy(model, tokenizer), env, count, seed=seed):
        yield len(attempt.completion)


def _generate(model: PreTrainedModel, env: TokenVectorEnv, count: int, seed: int) -> Iterator[int]:
    env.seek(seed)
    torch.manual_seed(seed)
    eos = model.config.eos_token_id
    for _ in range(count // env.num_envs):
        env.reset()
        prompts = torch.from_numpy(np.stack([env.prompt(slot) for slot in range(env.num_envs)]))
        sequences = model.generate(  # pyright: ignore[reportCallIssue]
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            max_new_tokens=env.max_new_tokens,
        )
        ended = (sequences[:, prompts.shape[1] :] == eos).int()
        first = torch.where(ended.any(1), ended.argmax(1) + 1, ended.shape[1])
        yield from first.tolist()
