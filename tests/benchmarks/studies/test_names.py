"""Studies refuse a name that they do not know, before anything runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tokengym.benchmarks.studies.experts import ExpertsStudy
from tokengym.benchmarks.studies.mismatch import MismatchStudy
from tokengym.benchmarks.studies.policy_optimization import OptimizationStudy
from tokengym.benchmarks.studies.preferences import PreferencesStudy
from tokengym.benchmarks.studies.search_costs import SearchCosts
from tokengym.registry import UnknownNameError


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExpertsStudy(experts=("beem",)), "unknown expert 'beem': did you mean 'beam'?"),
        (lambda: OptimizationStudy(variants=("gpro",)), "unknown variant 'gpro': did you mean 'grpo'?"),
        (lambda: PreferencesStudy(variants=("ei", "dop")), "unknown variant 'dop': did you mean 'dpo'?"),
        (lambda: MismatchStudy(Path(), variants=("8 bit",)), "unknown variant '8 bit': did you mean '8 bits'?"),
        (lambda: SearchCosts(rules=("rebasee",)), "unknown search rule 'rebasee': did you mean 'rebase'?"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        make()
    assert str(caught.value).startswith(message)
