"""Evaluation of policies and outcome models."""

from typing import TYPE_CHECKING

from ...lazy import lazy_names

if TYPE_CHECKING:
    from .classification import accuracy, auc, calibration, expected_calibration_error
    from .evaluate import Evaluation, Interval, bootstrap, majority_vote, pass_at_k, validate
    from .outcome_report import OutcomeReport
    from .tables import evaluation_table, outcome_table

__all__ = [
    "Evaluation",
    "Interval",
    "OutcomeReport",
    "accuracy",
    "auc",
    "bootstrap",
    "calibration",
    "evaluation_table",
    "expected_calibration_error",
    "majority_vote",
    "outcome_table",
    "pass_at_k",
    "validate",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "classification": ("accuracy", "auc", "calibration", "expected_calibration_error"),
        "evaluate": ("Evaluation", "Interval", "bootstrap", "majority_vote", "pass_at_k", "validate"),
        "outcome_report": ("OutcomeReport",),
        "tables": ("evaluation_table", "outcome_table"),
    },
)
