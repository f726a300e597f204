"""The study of experts: its plan, and its table from results made by hand."""

import numpy as np
from rich.console import Console

from tokengym.benchmarks.studies.experts import EXPERTS, ExpertsStudy, jobs, table


def test_only_searches_with_a_judge_need_an_outcome_model() -> None:
    plan = {job.name: job for job in jobs(ExpertsStudy(seeds=(3,)))}
    for number, settings in enumerate(EXPERTS.values()):
        judged = settings.get("search", "evolution") != "evolution"
        assert ("seed-3/orm" in plan[f"seed-3/expert-{number}"].needs) == judged
    free = jobs(ExpertsStudy(seeds=(3,), experts=("sampling", "evolution")))
    assert [job.name for job in free] == [f"seed-3/{name}" for name in ("sft", "pool", "expert-0", "expert-4")]


def test_new_solutions_count_where_the_pool_has_some() -> None:
    metrics = {"by_problem": {"maj@1": [1.0, 0.0], "pass@4": [1.0, 1.0]}, "tokens": 4000}
    runs = [
        {"expert": "sampling", "seed": 0, "distinct": [2, 4, 3], "new": [1, 0, None], **metrics},
        {"expert": "beam", "seed": 0, "distinct": [3, 1, 5], "new": [3, 0, None], **metrics},
    ]
    with (console := Console(width=220)).capture() as capture:
        console.print(table({"runs": runs, "test_problems": 2, "n": 4}))
    rows = {line.split()[0]: line for line in capture.get().splitlines() if line.strip()}
    assert f"{np.mean([2, 4, 3]):.2f}" in rows["sampling"]
    assert f"{1 / 6:.3f} [" in rows["sampling"]
    assert f"{3 / 4:.3f} [" in rows["beam"]
    assert f"{3 / 4 - 1 / 6:.3f} [" in rows["beam"]
    assert "10" in rows["beam"].split()[2]  # tokens of each of 400 problems
    # Without sampling, in a seed or at all, there is nothing to compare with.
    assert table({"runs": runs[1:], "test_problems": 2, "n": 4}).row_count == 1
    more = [*runs, {**runs[1], "seed": 1}]
    found = [[*table({"runs": own, "test_problems": 2, "n": 4}).columns[6].cells] for own in (runs, more)]
    assert found[0] == found[1]
