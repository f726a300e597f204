"""Labels that outcome models learn from: what they say, and how positive and negative ones are balanced."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...envs.problems.base import Problem
from ...envs.token_vector_env import TokenVectorEnv
from ...rewards.steps import step_ends, step_texts
from ..rollouts.attempts import Attempt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """An attempt with labels to learn from.

    Attributes:
        attempt: Attempt that is labeled.
        ends: `[S]` increasing positions of the completion's tokens after which it is judged, the last token among them.
        labels: `[S]` labels between 0, negative, and 1, positive; NaN is not trained on. Labels above 0.5 count as
            positive.
    """

    attempt: Attempt
    ends: NDArray[np.int64]
    labels: NDArray[np.float32]


def outcome_labels(attempts: Sequence[Attempt], tokenizer: "PreTrainedTokenizerBase") -> list[Labelled]:
    """Attempts with their own outcome at the end of every step, and at their end."""
    ends = step_ends([a.completion for a in attempts], [a.terminated for a in attempts], tokenizer)
    labelled: list[Labelled] = []
    for attempt, found in zip(attempts, ends, strict=True):
        judged = np.union1d(found, [len(attempt.completion) - 1])
        labelled.append(Labelled(attempt, judged, np.full(len(judged), attempt.is_success, np.float32)))
    return labelled


def monotone(labels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Labels `[S]` with all before a positive one positive: where a later prefix can succeed, so can this one."""
    return np.maximum.accumulate(labels[::-1])[::-1]


def check_steps(steps: Sequence[str], problem: Problem, env: TokenVectorEnv) -> list[bool]:
    """True for each right step, see `ProblemSource.check_steps`.

    Args:
        steps: Texts of the steps of a solution.
        problem: Problem that the solution is of.
        env: Token environment whose problems tell right steps from wrong ones.

    Raises:
        NotImplementedError: The problems cannot tell right steps from wrong ones.
        ValueError: They return another number of verdicts than there are steps.
    """
    right = np.array(env.problems.check_steps(steps, problem), np.bool_)
    if right.shape != (len(steps),):
        raise ValueError(f"{env.problems} checked {len(steps)} steps, and returned {right.shape} verdicts")
    return right.tolist()


def exact_labels(attempts: Sequence[Attempt], env: TokenVectorEnv, after_errors: bool) -> list[Labelled]:
    """Attempts with 1 at the end of every right step, 0 at wrong ones, and NaN at ends that are no steps.

    Args:
        attempts: Attempts at problems of `env`.
        env: Token environment whose problems tell right steps from wrong ones, see `ProblemSource.check_steps`.
        after_errors: Label steps after the first wrong one, too, each by itself; else they are NaN.

    Raises:
        NotImplementedError: The problems cannot tell right steps from wrong ones.
        ValueError: They return another number of verdicts than there are steps.
    """
    labelled = outcome_labels(attempts, env.tokenizer)
    ends = step_ends([a.completion for a in attempts], [a.terminated for a in attempts], env.tokenizer)
    for item, found in zip(labelled, ends, strict=True):
        texts = step_texts(item.attempt.completion, found.tolist(), env.tokenizer)
        right = check_steps(texts, item.attempt.problem, env)
        item.labels[:] = np.nan
        item.labels[: len(found)] = right
        if not after_errors and not all(right):
            item.labels[int(np.argmin(right)) + 1 :] = np.nan
    return labelled


def check_exact(env: TokenVectorEnv, setting: str, others: str) -> None:
    """Raises an error unless the problems of an environment tell right steps from wrong ones.

    Args:
        env: Token environment of the problems.
        setting: Name of the setting that asks for exact labels.
        others: Values of it that could be chosen instead, as the message names them.

    Raises:
        ValueError: They do not.
    """
    try:
        env.problems.check_steps([], env.problems[0])
    except NotImplementedError as error:
        raise ValueError(f'{setting}="exact": {error}, or choose {setting}={others}') from error


def balanced_problems(labelled: Iterable[Labelled], seed: int) -> list[Labelled]:
    """Selects as many correct as incorrect attempts at each problem, at random; the order stays."""
    groups: defaultdict[str, tuple[list[Labelled], list[Labelled]]] = defaultdict(lambda: ([], []))
    for item in labelled:
        groups[item.attempt.problem.id][item.attempt.is_success].append(item)
    rng = np.random.default_rng(seed)
    kept: list[Labelled] = []
    for group in groups.values():
        size = min(map(len, group))
        for side in group:
            kept += [side[i] for i in np.sort(rng.permutation(len(side))[:size])]
    return kept


def balanced_lengths(labelled: Sequence[Labelled], seed: int) -> list[Labelled]:
    """Selects as many labels above 0.5 as others at each number of steps, at random; the rest becomes NaN.

    Attempts that are left without a label are left out.
    """
    labels = np.full((len(labelled), max((len(item.ends) for item in labelled), default=0)), np.nan, np.float32)
    for row, item in enumerate(labelled):
        labels[row, : len(item.ends)] = item.labels
    rng = np.random.default_rng(seed)
    for column in labels.T:
        sides = [np.flatnonzero(column <= 0.5), np.flatnonzero(column > 0.5)]  # a step without a label is in neither
        size = min(map(len, sides))
        for side in sides:
            column[rng.permutation(side)[size:]] = np.nan
    kept = [
        Labelled(item.attempt, item.ends, row[: len(item.ends)]) for item, row in zip(labelled, labels, strict=True)
    ]
    return [item for item in kept if not np.isnan(item.labels).all()]


def label_statistics(labelled: Sequence[Labelled]) -> dict[str, float]:
    """Number of labels, and their mean."""
    labels = np.concatenate([item.labels for item in labelled]) if labelled else np.empty(0)
    labels = labels[~np.isnan(labels)]
    return {"count": len(labels), "positive": float(labels.mean()) if len(labels) else 0.0}


def spread(item: Labelled) -> NDArray[np.float32]:
    """The labels at their tokens of the completion, `[T]`; NaN at all others."""
    targets = np.full(len(item.attempt.completion), np.nan, np.float32)
    targets[item.ends] = item.labels
    return targets
