"""The table of judges from results made by hand: means over problems that have a value, paired differences."""

import numpy as np
import pytest
from rich.console import Console

from tokengym.benchmarks.statistics import ratio_mean
from tokengym.benchmarks.studies.judges import JUDGES, SAMPLES, JudgesStudy, jobs, table


def test_the_mean_of_a_share_is_over_those_that_have_one() -> None:
    values, there = np.array([[0.5, 0.0, 1.0], [0.0, 0.8, 0.6]]), np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    assert ratio_mean(values, there).mean == pytest.approx(np.mean([0.5, 1.0, 0.8, 0.6]))
    low, high = ratio_mean(values, there).interval
    assert 0 <= low < 0.725 < high <= 1
    with pytest.raises(ValueError, match="nothing to take a share of"):
        ratio_mean(values, np.zeros_like(values))


def test_all_judges_learn_from_the_attempts_of_the_same_job() -> None:
    plan = {job.name: job for job in jobs(JudgesStudy(seeds=(3,), problems=5))}
    assert set(plan["seed-3/scores"].needs) == plan.keys() - {"seed-3/scores"}
    for name in ("preference", "tiny_orm", "dpo", "dpo_nll"):
        assert "seed-3/orm" in plan[f"seed-3/{name}"].needs
    assert plan["seed-3/orm"].needs == ("seed-3/sft",)


def test_the_table_compares_in_pairs() -> None:
    rng = np.random.default_rng(0)
    rates = rng.integers(0, SAMPLES + 1, (2, 30)) / SAMPLES
    mixed = (rates > 0) & (rates < 1)
    within = {name: rng.random((2, 30)) * mixed for name in JUDGES}
    seeds = [
        {
            "pass@1": rates[i].tolist(), f"maj@{SAMPLES}": (rates[i] > 0.5).astype(float).tolist(),
            f"pass@{SAMPLES}": (rates[i] > 0).astype(float).tolist(),
            "judges": {
                name: {"auc": 0.5, "within": within[name][i].tolist(), "rerank": (rates[i] > 0).astype(float).tolist()}
                | ({} if name.startswith("dpo") else {"weighted": (rates[i] > 0.3).astype(float).tolist()})
                for name in JUDGES
            },
        }
        for i in range(2)
    ]  # fmt: skip
    with (console := Console(width=240)).capture() as capture:
        console.print(table({"seeds": seeds, "problems": 5, "test_problems": 30}))
    shown = capture.get()
    mean = {name: values.sum() / mixed.sum() for name, values in within.items()}
    for name in JUDGES:
        assert f"{mean[name]:.3f} [" in shown
        if name != "orm":
            assert f"{mean[name] - mean['orm']:.3f} [" in shown
    assert f"{((rates > 0).mean() - (rates > 0.5).mean()):.3f} [" in shown
    assert shown.count(f"{((rates > 0.3).mean() - (rates > 0.5).mean()):.3f} [") == len(JUDGES) - 2
