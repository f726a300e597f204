"""Tables of results for the terminal: metrics with intervals, cost and protocol."""

import math
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from .evaluate import Evaluation
from .outcome_report import OutcomeReport


def evaluation_table(results: Mapping[str, Evaluation], data: str) -> Group:
    """One column per evaluated policy, one row per metric, then the protocol.

    Args:
        results: Evaluations by the policy's name, all under the same protocol.
        data: Name of the data that policies were evaluated on.
    """
    table = Table("", *results, title=data, box=SIMPLE_HEAD, show_edge=False, collapse_padding=True)
    first = next(iter(results.values()))
    # Of more than three policies, intervals stand below their values, so that 80 columns hold four.
    between = " " if len(results) <= 3 else "\n"
    for metric in first.metrics:
        table.add_row(metric, *(str(result.metrics[metric]).replace(" ", between, 1) for result in results.values()))
    table.add_section()
    table.add_row("attempts", *(f"{result.episodes:,}" for result in results.values()))
    table.add_row("tokens", *(f"{result.tokens:,}" for result in results.values()))
    table.add_row("verdicts", *(_shares(result.verdicts) for result in results.values()))
    protocol = f"{first.problems} problems, maj@1 greedy, pool of n={first.n} at temperature {first.temperature}"
    kept = [f"{name} {value}" for name in ("top_k", "top_p", "min_p") if (value := getattr(first, name)) is not None]
    intervals = "in brackets: 95 % intervals over problems"
    return Group(table, Text(", ".join([protocol, *kept, f"seed {first.seed}"]) + f"\n{intervals}"))


def outcome_table(reports: Mapping[str, OutcomeReport]) -> Group:
    """Table of how well outcome models judge held-out attempts: a column each, then the calibration of probabilities.

    Args:
        reports: Reports by the model's name, all on the same attempts.
    """
    calibrated = {name: report.calibration for name, report in reports.items() if report.calibration}
    first = next(iter(reports.values()))
    table = Table("", *reports, title="held-out problems")
    for title, name in _OUTCOME_ROWS.items():
        if name != "calibration_error" or calibrated:
            table.add_row(title, *(_share(getattr(report, name)) for report in reports.values()))
    bins = Table("score", *(f"{name}: {what}" for name in calibrated for what in ("attempts", "mean score", "correct")))
    for found in zip(*calibrated.values(), strict=True):
        cells = [cell for item in found for cell in (f"{item.size:,}", _share(item.mean_score), _share(item.positives))]
        bins.add_row(f"{found[0].low:.1f} to {found[0].high:.1f}", *cells)
    counts = f"{first.attempts:,} attempts, {first.correct:.1%} correct; {first.steps:,} labeled steps"
    if first.mixed_problems:
        counts += f"; {first.mixed_problems:,} problems with correct and incorrect attempts"
    if first.steps:
        counts += f", {first.positive_steps:.1%} labeled positive"
    return Group(table, Text(counts + "\n"), bins) if calibrated else Group(table, Text(counts))


_OUTCOME_ROWS = {
    "AUC of attempts": "auc",
    "AUC among attempts at one problem": "within_problem_auc",
    "accuracy on attempts": "attempt_accuracy",
    "accuracy on steps": "step_accuracy",
    "AUC of steps": "step_auc",
    "expected calibration error": "calibration_error",
}


def _share(value: float | None) -> str:
    """Nothing where there is nothing to take a share of."""
    return "" if value is None or math.isnan(value) else f"{value:.3f}"


def _shares(verdicts: Mapping[str, Any]) -> str:
    total = sum(verdicts.values())
    return "\n".join(f"{name} {count / total:.0%}" for name, count in verdicts.items())
