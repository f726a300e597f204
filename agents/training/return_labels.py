"""Sequences with labels from attempts and the values of their steps, for return-conditioned training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...arrays import FloatArray, IntArray
from ...models.condition_tokens import Labels
from ..rollouts.attempts import Attempt
from .learner import Example


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """An attempt and what its steps are worth.

    Attributes:
        attempt: Attempt that is judged.
        ends: `[S]` index of the last token of each step, see `rewards.steps.step_ends`, or of the attempt as a whole.
        values: `[S]` value of each step.
    """

    attempt: Attempt
    ends: IntArray
    values: FloatArray


def labels_of(values: FloatArray, edges: Sequence[float]) -> IntArray:
    """Number of the label for each value, 0 for the worst: the edges that it reaches; a tie is good."""
    return np.searchsorted(np.asarray(edges), values, side="right")


def quantile_edges(values: FloatArray, buckets: int) -> tuple[float, ...]:
    """Edges that cut values into `buckets` parts of about equal size; fewer where many values are the same.

    None for values that are all the same.
    """
    above = values[values > values.min()]
    if not len(above):
        return ()
    edges = np.quantile(values, np.arange(1, buckets) / buckets, method="higher")
    return tuple(np.unique(np.maximum(edges, above.min())).tolist())


def labelled(judged: Judged, labels: Labels, ends_step: NDArray[np.bool_]) -> tuple[Example, IntArray]:
    """A training sequence with labels where decoding places them, and the label `[S]` of each step, 0 for the worst.

    A label stands at the beginning and behind each newline, for nobody can know beforehand that a line will be blank:
    a blank one has the label of the step that follows it, or of the last. The line that a token budget cuts off is no
    step and is left out.

    Args:
        judged: Attempt of one step or more.
        labels: Labels to insert.
        ends_step: `[V]` bool, true for tokens that contain a newline.
    """
    attempt, chosen = judged.attempt, labels_of(judged.values, labels.edges)
    completion = attempt.completion.astype(np.int64)
    starts = np.zeros(1, np.int64)
    if labels.granularity == "step":
        if not attempt.terminated:
            completion = completion[: judged.ends[-1] + 1]
        starts = np.append(starts, np.flatnonzero(ends_step[completion[:-1]]) + 1)
    step = np.minimum(np.searchsorted(judged.ends, starts), len(judged.ends) - 1)
    return Example(attempt.prompt, np.insert(completion, starts, labels.first + chosen[step])), chosen


def balanced(is_success: NDArray[np.bool_], positive_ratio: float | None, seed: int) -> IntArray:
    """Indices of as many attempts as can be kept, in order, so that a share of `positive_ratio` is correct.

    Args:
        is_success: `[N]` bool, true for correct attempts.
        positive_ratio: Share of correct attempts to reach; `None` keeps all as sampled.
        seed: Seed of the choice.

    Raises:
        ValueError: Attempts of a kind are wanted, but there are none of it.
    """
    if positive_ratio is None:
        return np.arange(len(is_success))
    groups = [np.flatnonzero(is_success), np.flatnonzero(~is_success)]
    shares = [positive_ratio, 1 - positive_ratio]
    for group, share, kind in zip(groups, shares, ("correct", "incorrect"), strict=True):
        if share > 0 and not len(group):
            raise ValueError(
                f"none of the {len(is_success)} attempts is {kind}, but positive_ratio={positive_ratio} wants some: "
                "sample more, or set positive_ratio to None to train on them as they are"
            )
    total = min(len(group) / share for group, share in zip(groups, shares, strict=True) if share > 0)
    rng = np.random.default_rng(seed)
    kept = [rng.permutation(group)[: round(total * share)] for group, share in zip(groups, shares, strict=True)]
    return np.sort(np.concatenate(kept))
