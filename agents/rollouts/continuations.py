"""Monte-Carlo labels of steps: how often the policy reaches the answer from each prefix of an attempt.

What is made of the counts is their users' business: for a stepwise outcome model a prefix is good if any continuation
succeeds, for return conditioning if at least a share of them does (Havrilla et al. 2024; GLoRe, arXiv 2402.10963).
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from ...arrays import IntArray
from ...envs.token_vector_env import TokenVectorEnv
from ...files import LineFile, read_jsonl
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
    ends: Sequence[IntArray] | None = None,
    consistent: bool = False,
    stem: Path | None = None,
    rank: int = 0,
    on_step: Callable[[int, int], object] | None = None,
) -> list[IntArray]:
    """Counts, for each step of each attempt, the continuations of the attempt up to there that reach the answer.

    Steps are those of `rewards.steps.step_ends`. Nothing can follow a step that ends with the attempt: its count is
    `samples` if the attempt is correct and 0 if not. A prefix that several attempts share is continued once for all.

    Args:
        policy: Policy that draws the continuations.
        env: Token environment of the attempts' problems, with `autoreset_mode` DISABLED.
        attempts: Attempts that have ended.
        samples: K, continuations of each prefix.
        seed: Seed of the continuations' random streams, which must differ from the seed of the attempts.
        ends: Positions `[S]` of the last tokens of the steps of each attempt that are counted; `None` takes all steps.
        consistent: Count a continuation only if it builds on the results of the prefix (`uses_results`), as in GLoRe.
        stem: Path of the files `<stem>-<rank>.jsonl` to which each process writes its counts as they come; counts that
            any of them has written are not sampled again. `None` writes nothing.
        rank: Rank of this process. All attempts at a problem must be on one process.
        on_step: Function that is called with the number of prefixes that have just been labeled and with the number of
            tokens sampled for them; those that were written before count, too.

    Returns:
        Counts `[S]` between 0 and `samples` for S steps of each attempt.

    Raises:
        ValueError: `samples` is below 1, or a file holds counts of other prefixes or of another number of samples.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if ends is None:
        ends = step_ends([a.completion for a in attempts], [a.terminated for a in attempts], env.tokenizer)
    prefixes: dict[_Prefix, int] = {}
    for attempt, steps in zip(attempts, ends, strict=True):
        for end in steps[steps < len(attempt.completion) - 1]:
            prefixes.setdefault(_prefix(attempt, end), len(prefixes))
    problems = {attempt.problem.id for attempt in attempts}
    recorded = {} if stem is None else _recorded(stem, problems, prefixes, samples)
    path = None if stem is None else stem.with_name(f"{stem.name}-{rank}.jsonl")
    counts = _counts(policy, env, list(prefixes), samples, seed, consistent, recorded, path, on_step)
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
    recorded: Mapping[int, tuple[int, int]],
    path: Path | None,
    on_step: Callable[[int, int], object] | None,
) -> list[int]:
    """Successes among the continuations of each prefix; those that are recorded are not sampled."""
    indices = _indices(prefixes)
    if recorded and on_step is not None:
        on_step(len(recorded), sum(tokens for _, tokens in recorded.values()))
    starts = [start for name, tokens in prefixes for start in [Start(name, np.array(tokens, np.int64))] * samples]
    counts = {number: successes for number, (successes, _) in recorded.items()}
    for known, group in itertools.groupby(range(len(prefixes)), recorded.__contains__):
        if known:
            continue
        part = list(group)
        continuations = continue_from(
            policy, env, starts[: samples * (part[-1] + 1)], seed=seed, start=samples * part[0]
        )
        with nullcontext() if path is None else LineFile(path) as file:
            for number in part:
                problem_id, prefix = prefixes[number]
                sampled = list(itertools.islice(continuations, samples))
                counts[number] = sum(
                    item.is_success
                    and (not consistent or uses_results(env.decode(np.array(prefix)), env.decode(item.completion)))
                    for item in sampled
                )
                tokens = sum(len(item.completion) for item in sampled)
                if file is not None:
                    line = {"problem_id": problem_id, "prefix": list(prefix), "index": indices[number]}
                    file.write({**line, "samples": samples, "successes": counts[number], "tokens": tokens})
                if on_step is not None:
                    on_step(1, tokens)
    return [counts[number] for number in range(len(prefixes))]


def _indices(prefixes: Iterable[_Prefix]) -> list[int]:
    """Number of earlier prefixes of the same problem, for each: by this their continuations draw from other streams."""
    seen = Counter[str]()
    indices: list[int] = []
    for problem_id, _ in prefixes:
        indices.append(seen[problem_id])
        seen[problem_id] += 1
    return indices


def _recorded(
    stem: Path, problems: Set[str], prefixes: Mapping[_Prefix, int], samples: int
) -> dict[int, tuple[int, int]]:
    """Counts that are in the processes' files, and tokens sampled for them, by the number of the prefix."""
    indices = _indices(prefixes)
    counts: dict[int, tuple[int, int]] = {}
    for path in sorted(stem.parent.glob(f"{stem.name}-*.jsonl")):
        for line in read_jsonl(path, "problem_id", "prefix", "index", "samples", "successes", "tokens"):
            if line["problem_id"] not in problems:
                continue  # another process's
            number = prefixes.get((line["problem_id"], tuple(line["prefix"])))
            if number is None or indices[number] != line["index"] or line["samples"] != samples:
                raise ValueError(
                    f"{path} holds labels of other prefixes, or of another number of samples than {samples}: delete "
                    "it, or choose another folder"
                )
            counts[number] = line["successes"], line["tokens"]
    return counts
