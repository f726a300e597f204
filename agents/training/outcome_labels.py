"""Labels that outcome models learn from: what they say, and how positive and negative ones are balanced."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...rewards.steps import step_ends
from ..rollouts.attempts import Attempt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """An attempt with labels to learn from.

    Attributes:
        attempt: Attempt that is labeled.
        ends: `[S]` increasing positions of the completion's tokens after which it is judged, the last token among them.
        labels: `[S]` labels, 1 for positive and 0 for negative; the last is the attempt's outcome. NaN is not trained
            on.
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
    """Selects as many positive as negative labels at each number of steps, at random; the others become NaN.

    Attempts that are left without a label are left out.
    """
    labels = np.full((len(labelled), max((len(item.ends) for item in labelled), default=0)), np.nan, np.float32)
    for row, item in enumerate(labelled):
        labels[row, : len(item.ends)] = item.labels
    rng = np.random.default_rng(seed)
    for column in labels.T:
        sides = [np.flatnonzero(column == side) for side in (0, 1)]
        size = min(map(len, sides))
        for side in sides:
            column[rng.permutation(side)[size:]] = np.nan
    kept = [
        Labelled(item.attempt, item.ends, row[: len(item.ends)]) for item, row in zip(labelled, labels, strict=True)
    ]
    return [item for item in kept if not np.isnan(item.labels).all()]


def label_statistics(labelled: Sequence[Labelled]) -> dict[str, float]:
    """Number of labels, and the share of positive ones."""
    labels = np.concatenate([item.labels for item in labelled]) if labelled else np.empty(0)
    labels = labels[~np.isnan(labels)]
    return {"count": len(labels), "positive": float(labels.mean()) if len(labels) else 0.0}


def spread(item: Labelled) -> NDArray[np.float32]:
    """The labels at their tokens of the completion, `[T]`; NaN at all others."""
    targets = np.full(len(item.attempt.completion), np.nan, np.float32)
    targets[item.ends] = item.labels
    return targets
