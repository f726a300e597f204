"""Reports on how well outcome models judge held-out attempts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from ...models.outcome import OutcomeModel
from ..training.outcome_labels import Labelled
from .classification import Bin, accuracy, auc, calibration, expected_calibration_error, grouped_auc
from .rerankers import AGGREGATES, judged_ends


@dataclass(frozen=True)
class OutcomeReport:
    """Report on how well an outcome model judges held-out attempts.

    Attributes:
        attempts: Number of attempts.
        correct: Share of attempts that are correct.
        auc: Probability that a correct attempt scores above an incorrect one.
        attempt_accuracy: Share of attempts whose score is above 0.5 exactly when they are correct.
        steps: Number of labeled steps: before the end of an attempt, and of models that judge single steps at it, too.
        positive_steps: Share of steps whose label is positive, that is above 0.5.
        step_accuracy: Share of steps whose score is above 0.5 exactly when their label is positive.
        step_auc: Probability that a positive step scores above a negative one.
        calibration: Attempts by intervals of their score; none for a preference model, whose scores are no
            probabilities.
        calibration_error: Expected calibration error of the attempts' scores; `None` for a preference model.
        within_problem_auc: Mean over problems of the probability that a correct attempt scores above an incorrect one
            at the same problem, see `classification.grouped_auc`; NaN in reports of versions that did not have it.
        mixed_problems: Number of problems with both correct and incorrect attempts, which that mean is over.
    """

    attempts: int
    correct: float
    auc: float
    attempt_accuracy: float
    steps: int
    positive_steps: float
    step_accuracy: float
    step_auc: float
    calibration: list[Bin]
    calibration_error: float | None
    within_problem_auc: float = float("nan")
    mixed_problems: int = 0

    @classmethod
    def of(cls, model: OutcomeModel, attempts: Sequence[Labelled]) -> Self:
        """The report on labeled attempts, whose scores are those of `OutcomeModel.aggregate`."""
        positions = [len(item.attempt.prompt) + item.ends for item in attempts]
        found = model.score([item.attempt.tokens for item in attempts], positions)
        judged = judged_ends(model, [item.attempt.completion for item in attempts])
        scores = [
            float(AGGREGATES[model.aggregate](score[np.isin(item.ends, ends)]))
            for score, item, ends in zip(found, attempts, judged, strict=True)
        ]
        outcomes = [item.attempt.is_success for item in attempts]
        stop = None if model.kind == "prm" else -1  # elsewhere the last label is the outcome, which has its own lines
        steps = np.concatenate([score[:stop] for score in found])
        labels = np.concatenate([item.labels[:stop] for item in attempts])
        known = ~np.isnan(labels)
        steps, labels = steps[known], labels[known] > 0.5
        bins = [] if model.kind == "preference" else calibration(scores, outcomes)
        within, mixed = grouped_auc(scores, outcomes, [item.attempt.problem.id for item in attempts])
        return cls(
            attempts=len(attempts),
            correct=float(np.mean(outcomes)),
            auc=auc(scores, outcomes),
            attempt_accuracy=accuracy(scores, outcomes),
            steps=len(steps),
            positive_steps=float(labels.mean()) if len(labels) else float("nan"),
            step_accuracy=accuracy(steps, labels),
            step_auc=auc(steps, labels),
            calibration=bins,
            calibration_error=expected_calibration_error(bins) if bins else None,
            within_problem_auc=within,
            mixed_problems=mixed,
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Restores a report from the JSON values of `dataclasses.asdict`."""
        return cls(**dict[str, Any](values, calibration=[Bin(*item) for item in values["calibration"]]))

    def metrics(self) -> dict[str, float]:
        """Metrics to log."""
        left_out = {"calibration", "attempts", *([] if self.calibration else ["calibration_error"])}
        return {f"eval/{name}": value for name, value in asdict(self).items() if name not in left_out}
