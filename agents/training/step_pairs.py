"""Single steps that follow the same beginning of attempts, labeled: what preferences between steps are learned from.

The form is Step-DPO's (Lai et al. 2024, arXiv 2406.18629): the prompt of a pair is the problem's prompt and the shared
steps, and chosen and rejected are one step each. Where Step-DPO asks people or a larger model for the first wrong step,
labels here are those of Math-Shepherd (Wang et al. 2024): how often the policy reaches the answer from the end of a
step; or they are exact, where problems check steps. Steps are compared where attempts at one problem part ways; a step
is not sampled anew to be the other side of a pair.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from ...arrays import IntArray
from ...envs.token_vector_env import TokenVectorEnv
from ...rewards.grading.solutions import equation_sequence
from ...rewards.steps import step_ends, step_texts
from ..rollouts.attempts import Attempt
from .learner import Example
from .outcome_labels import Labelled, exact_labels, outcome_labels, spread
from .pairs import Group, Pair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Count = Callable[[Sequence[Attempt], Sequence[IntArray]], Sequence[IntArray]]
"""Counts the successes of the continuations of attempts from their tokens at some positions."""


def label_next_steps(
    attempts: Sequence[Attempt], env: TokenVectorEnv, labels: Literal["mean", "exact"], samples: int, count: Count
) -> list[Labelled]:
    """Attempts with a label of each step that follows what another attempt continues by another step; NaN elsewhere.

    Attempts that their token budget cut off are left out: their answer might have been right.

    Args:
        attempts: Attempts at problems of `env`, all those at a problem.
        env: Token environment of the attempts.
        labels: Share of continuations that succeed, "mean", or what the problems say of each step, "exact".
        samples: Continuations of each step, for "mean".
        count: Function that counts the successful ones among them, at the given ends `[S]` of steps of each attempt.

    Raises:
        ValueError: Labels are "exact", and the problems cannot tell right steps from wrong ones.
    """
    attempts = [attempt for attempt in attempts if attempt.terminated]
    if labels == "exact":
        return exact_labels(attempts, env, after_errors=False)
    ends: list[list[int]] = [[] for _ in attempts]
    for fork in _forks(attempts, env.tokenizer):
        for number, _, stop in fork:
            ends[number].append(stop - 1)
    wanted = [np.array(sorted(own), np.int64) for own in ends]
    labelled = outcome_labels(attempts, env.tokenizer)
    for item, own, successes in zip(labelled, wanted, count(attempts, wanted), strict=True):
        item.labels[:] = np.nan
        item.labels[np.searchsorted(item.ends, own)] = successes / samples
    return labelled


def step_groups(labelled: Sequence[Labelled], tokenizer: "PreTrainedTokenizerBase", margin: float) -> list[Group]:
    """The distinct next steps after each beginning that attempts at a problem share, where they make a pair.

    Two steps are the same if their equations are, or if they have none, their texts; the first one counts. The prompts
    of a group hold the problem's prompt and the shared beginning.

    Args:
        labelled: Attempts with labels at the ends of their steps; a step whose label is NaN is left out.
        tokenizer: Tokenizer of the completions.
        margin: Least difference between the labels of two steps that make a pair.
    """
    attempts = [item.attempt for item in labelled]
    targets = [spread(item) for item in labelled]
    groups: list[Group] = []
    for fork in _forks(attempts, tokenizer):
        known = [one for one in fork if not np.isnan(targets[one[0]][one[2] - 1])]
        examples: list[Example] = []
        for number, start, stop in known:
            tokens, prompt = attempts[number].completion, attempts[number].prompt
            examples.append(Example(np.concatenate([prompt, tokens[:start]]), tokens[start:stop]))
        labels = np.array([targets[number][stop - 1] for number, _, stop in known])
        group = Group(examples, labels, attempts[fork[0][0]].problem.id, margin)
        if len(group.pairs):
            groups.append(group)
    return groups


def make_step_pairs(groups: Sequence[Group], per_problem: int, seed: int) -> list[Pair]:
    """Pairs of next steps of the same beginning, drawn at random, problem by problem.

    Args:
        groups: Next steps with their labels, of problems in any order.
        per_problem: Largest number of pairs from one problem.
        seed: Seed of the draws.
    """
    problems: defaultdict[str, list[Pair]] = defaultdict(list)
    for group in groups:
        for chosen, rejected in group.pairs.tolist():
            problems[group.problem_id].append(Pair(group.examples[chosen], group.examples[rejected], group.problem_id))
    rng = np.random.default_rng(seed)
    return [own[i] for own in problems.values() for i in rng.permutation(len(own))[:per_problem].tolist()]


def _forks(attempts: Sequence[Attempt], tokenizer: "PreTrainedTokenizerBase") -> list[list[tuple[int, int, int]]]:
    """The steps by which attempts at a problem continue the same tokens, two or more that differ.

    Each step is the number of its attempt, the position of its first token and that after its last.
    """
    ends = step_ends([a.completion for a in attempts], [a.terminated for a in attempts], tokenizer)
    found: dict[tuple[str, bytes], dict[str, tuple[int, int, int]]] = {}
    for number, (attempt, own) in enumerate(zip(attempts, ends, strict=True)):
        tokens, start = attempt.completion.astype(np.int64), 0
        for end, text in zip(own.tolist(), step_texts(attempt.completion, own.tolist(), tokenizer), strict=True):
            prefix = attempt.problem.id, tokens[:start].tobytes()
            found.setdefault(prefix, {}).setdefault(equation_sequence(text), (number, start, end + 1))
            start = end + 1
    return [list(steps.values()) for steps in found.values() if len(steps) > 1]
