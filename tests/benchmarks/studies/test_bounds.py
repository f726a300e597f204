"""Settings of studies out of their bounds: one line before anything runs."""

from pathlib import Path

import pytest

from tokengym.benchmarks.studies.judges import JudgesStudy
from tokengym.benchmarks.studies.mismatch import MismatchStudy
from tokengym.benchmarks.studies.policy_optimization import OptimizationStudy
from tokengym.benchmarks.studies.ppo_rewards import PPOExperiment
from tokengym.benchmarks.studies.return_conditioning import ReturnConditioning
from tokengym.benchmarks.studies.search_costs import SearchCosts


@pytest.mark.parametrize(
    ("study", "name"),
    [
        (JudgesStudy, "problems"),
        (OptimizationStudy, "n"),
        (PPOExperiment, "iterations"),
        (ReturnConditioning, "n"),
        (MismatchStudy, "d"),
    ],
)
def test_counts_are_at_least_one(study: type, name: str) -> None:
    study(Path(), **{name: 1})
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        study(Path(), **{name: 0})


@pytest.mark.parametrize("width", [0, 2, 6])
def test_searches_keep_a_quarter_of_their_width(width: int) -> None:
    with pytest.raises(ValueError, match=f"widths must be multiples of 4, got {width}"):
        SearchCosts(widths=(4, width))
