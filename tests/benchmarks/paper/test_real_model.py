"""A real model on real data: the plan, its result, and a table whose numbers are those of the evaluations."""

import json

import numpy as np
import pytest

from tokengym.benchmarks.jobs import Done, Missing
from tokengym.benchmarks.paper import real_model
from tokengym.benchmarks.paper.real_model import RealModelStudy


def test_grpo_starts_from_sft_and_samples_as_many_attempts_as_expert_iteration():
    experiment = RealModelStudy("model", problems=600, rounds=2, seeds=(3,))
    jobs = {job.name: job for job in real_model.jobs(experiment)}
    assert len(jobs) == 7  # the start is evaluated only
    grpo, ei = jobs["seed-3/grpo/train"], jobs["seed-3/ei/train"]
    assert grpo.needs == ("seed-3/sft/train",)
    assert grpo.settings["model"] == {"output_of": "seed-3/sft/train", "path": "run/model"}
    settings = grpo.settings["config"]
    sampled = settings["iterations"] * settings["problems_per_iteration"] * settings["samples_per_problem"]
    wanted = ei.settings["config"]["rounds"] * 600 * ei.settings["config"]["samples_per_problem"]
    assert wanted <= sampled < wanted + 128


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"systems": ("sft", "dpo")}, "no system is named dpo; there are start, sft, ei, grpo"),
        ({"systems": ("grpo",)}, 'GRPO starts from the result of SFT: add "sft"'),
        ({"seeds": ()}, "nothing to run: seeds and systems"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_run_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RealModelStudy("model", **settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    experiment = RealModelStudy(
        "tokengym/tiny", env="tokengym/Arithmetic-v0", folder=folder, seeds=(0,), systems=("start", "sft"),
        problems=4, test_problems=3, n=2, workers=1,
    )  # fmt: skip
    return experiment, real_model.run(experiment)


@pytest.mark.slow
def test_results_are_those_of_the_evaluations(finished):
    experiment, results = finished
    assert results["missing"] == {}
    assert results == json.loads((experiment.folder / "results.json").read_text()) | {"settings": results["settings"]}
    for name in ("start", "sft"):
        record = json.loads((experiment.folder / f"seed-0/{name}/evaluate/result.json").read_text())["result"]
        for metric, (mean, _, _) in record["metrics"].items():
            if metric in results["systems"][name]["by_problem"]:
                assert np.mean(results["systems"][name]["by_problem"][metric]) == pytest.approx(mean)
    assert results["systems"]["sft"]["cost"][0]["cpu_seconds"] > 0


@pytest.mark.slow
def test_a_system_without_results_has_no_row(finished):
    _, results = finished
    lost = results | {"systems": results["systems"] | {"ei": {"seeds": [], "by_problem": {}, "cost": []}}}
    assert real_model.table(lost).row_count == 2


def test_a_gain_is_of_the_seeds_that_both_have():
    sft = {"seeds": [0, 1], "by_problem": {"maj@1": [[0, 0, 1, 1], [0, 1, 1, 1]]}}
    ei = {"seeds": [1], "by_problem": {"maj@1": [[1, 1, 1, 1]]}}
    assert real_model._gain(ei, sft).startswith("0.250 ")
    assert real_model._gain(ei, {"seeds": [0], "by_problem": {"maj@1": [[0, 0, 1, 1]]}}) == ""


def test_what_grpo_starts_from_is_among_its_minutes(tmp_path):
    (tmp_path / "outcomes.json").write_text('{"by_problem": {"maj@1": [0, 1], "maj@8": [0, 1], "pass@8": [0, 1]}}')
    done = lambda seconds: Done(tmp_path, {"cpu_seconds": seconds, "attempts": 10, "tokens": 99, "seconds": 1.0}, 1.0)  # noqa: E731
    minutes = {
        "sft/train": 14,
        "sft/evaluate": 1,
        "ei/train": 56,
        "ei/evaluate": 1,
        "grpo/train": 30,
        "grpo/evaluate": 1,
    }
    states = {f"seed-0/{name}": done(60 * value) for name, value in minutes.items()}
    systems = {name: real_model._measured(name, (0,), states) for name in ("sft", "ei", "grpo")}
    settings = {"n": 8, "model": "m", "env": "e", "test_problems": 2}
    grid = real_model.table({"settings": settings, "systems": systems})
    assert [*grid.columns[-1].cells] == ["14", "56", "44"]


def test_a_missing_job_is_named(tmp_path):
    states = {"seed-0/ei/train": Missing("failed", "why"), "seed-0/ei/evaluate": Missing("skipped", "it needs that")}
    assert real_model._measured("ei", (0,), states)["seeds"] == []
