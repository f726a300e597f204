"""The outcome models' cost at a tiny size: what is counted is there, and nothing is timed."""

import json

import pytest

from tokengym.benchmarks.speed import orm_cost


def test_all_rewards_see_the_same_attempts_and_pay_for_what_they_should() -> None:
    results = orm_cost.run(slots=8, attempts=16, attempts_per_problem=2, max_new_tokens=40, repeats=2)
    assert json.loads(json.dumps(results)) == results
    sparse, sparse_orm, dense_orm = (results["runs"][name] for name in orm_cost.REWARDS)
    for turn in range(2):
        assert sparse[turn]["tokens"] == sparse_orm[turn]["tokens"] == dense_orm[turn]["tokens"]
        assert sparse[turn]["attempts"] == 16
        assert 0 < sparse_orm[turn]["scores"] <= 16
        assert sparse_orm[turn]["scores"] < dense_orm[turn]["scores"]
    assert sparse[0]["tokens"] != sparse[1]["tokens"]
    for pair, (median, least, most) in results["ratios"].items():
        one, other = ([side["seconds"] for side in results["runs"][name]] for name in pair.split("/"))
        assert sorted([a / b for a, b in zip(one, other, strict=True)]) == pytest.approx([least, most])
        assert median == pytest.approx((least + most) / 2)
    assert [line.split()[0] for line in orm_cost.table(results).splitlines()] == [
        "reward",
        *orm_cost.REWARDS,
        "ratio",
        "dense_orm/sparse_orm",
        "dense_orm/sparse",
        "sparse_orm/sparse",
    ]
