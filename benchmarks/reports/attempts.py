"""Attempts as a report shows them: their steps as lines, each with what it was paid and how it was scored."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...agents.rollouts.attempts import Attempt
from ...rewards.steps import step_ends
from .content import AttemptRecord, StepRecord

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def attempt_records(
    system: str,
    attempts: Sequence[Attempt],
    tokenizer: "PreTrainedTokenizerBase",
    scores: Sequence[NDArray[np.floating]] | None = None,
) -> list[AttemptRecord]:
    """Records of attempts, by the steps of `rewards.steps.step_ends`; a line that was cut off is shown without a score.

    Args:
        system: Name of the system whose attempts they are.
        attempts: Attempts that have ended.
        tokenizer: Tokenizer of the attempts.
        scores: `[S]` p(correct) after each of the S steps of each attempt.

    Raises:
        ValueError: An attempt has another number of scores than of steps.
    """
    ends = step_ends([a.completion for a in attempts], [a.terminated for a in attempts], tokenizer)
    records: list[AttemptRecord] = []
    for i, (attempt, steps) in enumerate(zip(attempts, ends, strict=True)):
        of_steps: list[float | None] = [None] * len(steps) if scores is None else [float(p) for p in scores[i]]
        if len(of_steps) != len(steps):
            raise ValueError(
                f"attempt {attempt.index} at {attempt.problem.id} has {len(steps)} steps and {len(of_steps)} scores"
            )
        records.append(
            AttemptRecord(
                system=system,
                problem_id=attempt.problem.id,
                question=attempt.problem.question,
                reference=attempt.problem.answer,
                verdict=attempt.verdict,
                answer=attempt.answer,
                steps=_steps(attempt, steps.tolist(), of_steps, tokenizer),
            )
        )
    return records


def _steps(
    attempt: Attempt, ends: Sequence[int], scores: Sequence[float | None], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[StepRecord, ...]:
    stops = [end + 1 for end in ends]
    if len(attempt.completion) > (stops[-1] if stops else 0):
        stops, scores = [*stops, len(attempt.completion)], [*scores, None]
    steps: list[StepRecord] = []
    start, before = 0, ""
    for stop, score in zip(stops, scores, strict=True):
        # The text of all tokens up to there less that of those before: some tokenizers read a piece alone otherwise.
        text = str(tokenizer.decode(attempt.completion[:stop].tolist(), skip_special_tokens=True))
        steps.append(StepRecord(text[len(before) :], float(attempt.rewards[start:stop].sum()), score))
        start, before = stop, text
    return tuple(steps)
