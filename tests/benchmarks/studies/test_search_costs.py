"""The study of search rules: its plan, its table from results made by hand, and one rule of it on a small model."""

from pathlib import Path

import pytest
from rich.console import Console

from tokengym.agents.configs.search import RULES
from tokengym.benchmarks.jobs import Done
from tokengym.benchmarks.studies.search_costs import SearchCosts, jobs, searched, table
from tokengym.models import load


def test_every_rule_searches_with_the_same_policy_and_judge() -> None:
    plan = {job.name: job for job in jobs(SearchCosts(seeds=(3,), widths=(4, 8)))}
    for judge, needs in (("orm", ("sft", "orm")), ("exact", ("sft",))):
        for rule in RULES:
            for width in (4, 8):
                job = plan[f"seed-3/{judge}/{rule}-{width}"]
                assert job.needs == tuple(f"seed-3/{name}" for name in needs)
    assert plan["seed-3/none/evolution-4"].needs == ("seed-3/sft",)
    assert len(plan) == 2 + 2 * (2 * len(RULES) + 1)


def test_the_table_has_means_over_seeds_and_no_score_where_there_is_none() -> None:
    made = {"judge": "orm", "width": 4, "policy_tokens": [10, 30], "judged_tokens": [0, 0]}
    beams = [
        {**made, "rule": "beam", "seed": i, "maj": [1.0, 0.0], "best": [1.0, 1.0], "pass": [1.0, 1.0]} for i in (0, 1)
    ]
    evolution = {**made, "rule": "evolution", "seed": 0, "maj": [0.0, 0.0], "best": None, "pass": [1.0, 0.0]}
    with (console := Console(width=160)).capture() as capture:
        console.print(table({"test_problems": 2, "searches": [*beams, evolution]}))
    rows = {line.split()[1]: line.split() for line in capture.get().splitlines() if line.strip().startswith("orm")}
    assert rows["beam"][2:6] == ["4", "2", "20", "0"]
    assert rows["beam"][6] == "0.500"
    assert sum("[" in word for word in rows["beam"]) == 3
    assert sum("[" in word for word in rows["evolution"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["beam", "evolution"])
def test_a_rule_is_measured_problem_by_problem(rule: str, tmp_path: Path) -> None:
    model, tokenizer = load("tokengym/tiny")
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "run" / "model")
    settings = {"judge": "exact", "rule": rule, "width": 4, "problems": 2, "seed": 0, "threads": 1}
    found = searched(tmp_path, settings, {"seed-0/sft": Done(tmp_path, {}, 0.0)})
    assert all(len(found[name]) == 2 for name in ("maj", "pass", "policy_tokens", "judged_tokens"))
    assert all(a <= b for a, b in zip(found["maj"], found["pass"], strict=True))
    assert (found["best"] is None) == (rule == "evolution") == (not any(found["judged_tokens"]))
    assert min(found["policy_tokens"]) > 0
