"""The table of the study of policy optimization, from results that are known."""

from typing import Any

from tokengym.benchmarks.statistics import crossed_mean
from tokengym.benchmarks.studies.policy_optimization import VARIANTS, table


def result(right: list[int], **fields: Any) -> dict[str, Any]:
    return {"evaluation": {"by_problem": {"maj@1": right, "pass@4": [1.0] * len(right)}}, **fields}


def test_rows_have_means_and_intervals_over_seeds_and_problems() -> None:
    starts = [[0, 0, 1, 0, 0, 1, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0]]
    ends = [[1, 0, 1, 0, 1, 1, 0, 0], [0, 1, 1, 1, 0, 1, 0, 0]]
    name = next(iter(VARIANTS))
    curve = [{"train/explained_variance": value} for value in (0.0, 0.1, 0.2, 0.35)]
    runs = [result(end, seed=i, variant=name, curve=curve, minutes=3.0) for i, end in enumerate(ends)]
    results = {"attempts": 10, "test_problems": 8, "n": 4, "runs": runs}
    grid = table(results | {"sft": [result(start, seed=i) for i, start in enumerate(starts)]})
    cells = [list(column.cells) for column in grid.columns]
    assert cells[0] == ["SFT", name]
    assert cells[2][0].startswith("0.250 [")
    assert cells[2][1].startswith("0.500 [")
    difference = [[b - a for a, b in zip(start, end, strict=True)] for start, end in zip(starts, ends, strict=True)]
    low, high = crossed_mean(difference, (-1.0, 1.0)).interval  # pyright: ignore[reportArgumentType]
    assert cells[3][1] == f"0.250 [{low:.3f}, {high:.3f}]"
    assert grid.columns[4].header == "pass@4"
    assert cells[5][1] == "0.35, 0.35"
