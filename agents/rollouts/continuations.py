"""Monte-Carlo labels of steps: how often the policy reaches the answer from each prefix of an attempt.

What is made of the counts is their users' business: for a stepwise outcome model a prefix is good if any continuation
succeeds, for return conditioning if at least a share of them does (Havrilla et al. 2024; GLoRe, arXiv 2402.10963).
"""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...arrays import IntArray
from ...envs.token_vector_env import TokenVectorEnv
from ...files import read_jsonl, write_text
from ...rewards.grading.solutions import uses_results
from ...rewards.steps import step_ends
from .attempts import Attempt
from .collect import Start, continue_from
from .policy import CausalLMPolicy

_Prefix = tuple[str, tuple[int, ...]]
"""A problem's id and the tokens that a completion starts with."""


def label_prefixes(
    policy: CausalLMPolicy,
    env: TokenVectorEnv,
    attempts: Sequence[Attempt],
    samples: int,
    *,
    seed: int,
    consistent: bool = False,
    path: Path | None = None,
    on_step: Callable[[int], object] | None = None,
) -> list[IntArray]:
    """Counts, for each step of each attempt, the continuations of the attempt up to there that reach the answer.

    Steps are those of `rewards.base.step_ends`. Nothing can follow a step that ends with the attempt: its count is
    `samples` if the attempt is correct and 0 if not. A prefix that several attempts share is continued once for all.

    Args:
        policy: draws the continuations.
        env: where the attempts' problems are from, with `autoreset_mode` DISABLED.
        attempts: finished attempts.
        samples: K, continuations of each prefix.
        seed: of their random streams; another one than the attempts were sampled with.
        consistent: count a continuation only if it builds on the results of the prefix (`uses_results`) [GLoRe].
        path: JSON lines to write the counts to as they come; those already there are not sampled again.
        on_step: called with the number of prefixes just labelled.

    Returns:
        Counts `[S]` between 0 and `samples` for the S steps of each attempt.

    Raises:
        ValueError: `samples` is below 1, or the file holds counts of other prefixes or of another number of samples.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    ends = step_ends([a.completion for a in attempts], [a.terminated for a in attempts], env.tokenizer)
    prefixes: dict[_Prefix, int] = {}
    for attempt, steps in zip(attempts, ends, strict=True):
        for end in steps[steps < len(attempt.completion) - 1]:
            prefixes.setdefault(_prefix(attempt, end), len(prefixes))
    counts = _counts(policy, env, list(prefixes), samples, seed, consistent, path, on_step)
    return [
        np.array([
            counts[prefixes[_prefix(attempt, end)]] if end < len(attempt.completion) - 1
            else samples * attempt.is_success
            for end in steps
        ], np.int64)
        for attempt, steps in zip(attempts, ends, strict=True)
    ]  # fmt: skip


def _prefix(attempt: Attempt, end: int) -> _Prefix:
    return attempt.problem.id, tuple(attempt.completion[: end + 1].tolist())


def _counts(
    policy: CausalLMPolicy,
    env: TokenVectorEnv,
    prefixes: Sequence[_Prefix],
    samples: int,
    seed: int,
    consistent: bool,
    path: Path | None,
    on_step: Callable[[int], object] | None,
) -> list[int]:
    """Successes among the continuations of each prefix, by the file as far as it goes."""
    counts: list[int] = []
    if path is not None and path.exists():
        lines = read_jsonl(path)
        counts = [line["successes"] for line in lines]
        if lines != [_line(*item, samples) for item in zip(prefixes, counts, strict=False)]:
            raise ValueError(
                f"{path} holds labels of other prefixes, or of another number of samples than {samples}: delete it, or "
                "choose another file"
            )
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))  # less a line that was left unfinished
        if on_step is not None:
            on_step(len(counts))
    starts = [start for name, tokens in prefixes for start in [Start(name, np.array(tokens, np.int64))] * samples]
    continuations = continue_from(policy, env, starts, seed=seed, start=samples * len(counts))
    for prefix in prefixes[len(counts) :]:
        verified = [
            item.is_success
            and (not consistent or uses_results(env.decode(np.array(prefix[1])), env.decode(item.completion)))
            for item in itertools.islice(continuations, samples)
        ]
        counts.append(sum(verified))
        if path is not None:
            with path.open("a") as file:
                file.write(json.dumps(_line(prefix, counts[-1], samples)) + "\n")
        if on_step is not None:
            on_step(1)
    return counts


def _line(prefix: _Prefix, successes: int, samples: int) -> dict[str, Any]:
    return {"problem_id": prefix[0], "prefix": list(prefix[1]), "samples": samples, "successes": successes}
