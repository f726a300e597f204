"""The study of preferences: its plan, what is flipped, and its table from results made by hand."""

import numpy as np
import pytest
from rich.console import Console

from tokengym.agents.training.learner import Example
from tokengym.agents.training.pairs import Pair
from tokengym.benchmarks.studies.preferences import FLIPPED, VARIANTS, PreferencesStudy, is_flipped, jobs, table, turned


def test_a_variant_brings_what_it_builds_on() -> None:
    plan = [job.name for job in jobs(PreferencesStudy(seeds=(3,), variants=("flipped_mpo", "expo")))]
    assert plan == [f"seed-3/{name}" for name in ("sft", "dpo", "fifth", "expo", "flipped_judge", "flipped_mpo")]


def test_all_offline_variants_learn_from_the_same_attempts() -> None:
    plan = {job.name: job for job in jobs(PreferencesStudy(seeds=(0, 1)))}
    for name in ("dpo_nll", "dpo_nll_4x", "fifth", "judge", "mpo", "flipped_dpo", "flipped_judge", "flipped_mpo"):
        for seed in (0, 1):
            assert {f"seed-{seed}/sft", f"seed-{seed}/dpo"} <= set(plan[f"seed-{seed}/{name}"].needs)


def test_all_pairs_at_a_fifth_of_the_problems_are_turned_round() -> None:
    one, other = (Example(np.array([1]), np.array([token])) for token in (2, 3))
    pairs = [Pair(one, other, f"problem-{number // 2}") for number in range(4000)]
    found = turned(pairs, seed=5)
    exchanged = [pair.chosen is other and pair.rejected is one for pair in found]
    assert exchanged == [is_flipped(pair.problem_id, 5) for pair in pairs]
    assert exchanged[::2] == exchanged[1::2]
    assert np.mean(exchanged) == pytest.approx(FLIPPED, abs=0.03)
    assert exchanged != [is_flipped(pair.problem_id, 6) for pair in pairs]


def test_differences_are_of_the_seeds_that_both_have() -> None:
    rng = np.random.default_rng(0)
    runs = [
        {
            "variant": name, "seed": seed, "attempts": 6400,
            "by_problem": {metric: rng.integers(0, 2, 40).tolist() for metric in ("maj@1", "maj@4", "pass@4")},
        }
        for name in ("sft", *VARIANTS) for seed in ((0, 1) if name != "dpo" else (1,))
    ]  # fmt: skip
    with (console := Console(width=200)).capture() as capture:
        console.print(table({"runs": runs, "test_problems": 40, "n": 4}))
    rows = {line.strip().split("  ")[0]: line for line in capture.get().splitlines() if line.strip()}
    greedy = {(one["variant"], one["seed"]): np.array(one["by_problem"]["maj@1"]) for one in runs}
    only = (greedy["dpo", 1] - greedy["ei", 1]).mean()
    assert f"{only:.3f} [" in rows["DPO less expert iteration, two rounds"]
    without = [one for one in runs if one["variant"] == "ei"]  # expert iteration does not need the start
    assert table({"runs": without, "test_problems": 40, "n": 4}).row_count == 1
    both = np.mean([greedy["iterated_dpo", seed] - greedy["ei", seed] for seed in (0, 1)])
    assert f"{both:.3f} [" in rows["DPO with NLL, two rounds less expert iteration, two rounds"]
