"""The experiment on return conditioning, small: its jobs fit together, and its counts are what they say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import tokengym  # noqa: F401 - registers the environments
from tokengym.agents.rollouts.conditioned_policy import ConditionedPolicy, load_policy
from tokengym.benchmarks.jobs import Done, Missing
from tokengym.benchmarks.studies import return_conditioning as rc
from tokengym.models import load
from tokengym.models.condition_tokens import BAD, GOOD, OWN

SMALL = {
    "demonstrations": 16, "problems": 12, "samples_per_problem": 2, "rounds": 1, "epochs": 1, "batch_size": 8,
    "validation_problems": 2, "patience": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def experiment(
    tmp_path_factory: pytest.TempPathFactory, shorten_problems: Callable[[pytest.MonkeyPatch], None]
) -> tuple[rc.ReturnConditioning, dict[str, Any], list[str]]:
    """All jobs, one after the other in this process."""
    experiment = rc.ReturnConditioning(
        tmp_path_factory.mktemp("rcrl"), problems=12, samples_per_problem=2, rollouts_per_step=2, ratios=(0.5, 0.8),
        thresholds=(0.5,), training_attempts=8, test_problems=2, n=2, cost_attempts=10,
    )  # fmt: skip
    order: list[str] = []

    def serially(jobs: Any, folder: Path, *, say: Any) -> dict[str, Done | Missing]:
        done: dict[str, Done] = {}
        for job in jobs:
            order.append(job.name)
            (folder / job.name).mkdir(parents=True)
            needs = {name: done[name] for name in job.needs}
            settings = json.loads(json.dumps(job.settings))
            done[job.name] = Done(folder / job.name, dict(job.work(folder / job.name, settings, needs)), 1.0)
        return {**done, "lost": Missing("failed", "its disk is full")}

    with pytest.MonkeyPatch.context() as patch:
        threads = torch.get_num_threads()
        shorten_problems(patch)
        patch.setattr(rc, "SETTINGS", SMALL)
        patch.setattr(rc, "_LIGHT", {"epochs": 1, "batch_size": 8})
        patch.setattr(rc, "NUM_ENVS", 16)
        patch.setattr(rc, "run_plan", serially)
        results = rc.run(experiment)
        torch.set_num_threads(threads)
    return experiment, results, order


def test_every_job_measures_its_policy_and_the_variants_share_one_pool(experiment) -> None:
    experiment, results, order = experiment
    assert order == ["expert_iteration", "rcrl", "correct_only", "sft", "cost", "ratio-0.8-threshold-0.5"]
    assert json.loads((experiment.folder / "results.json").read_text()) == json.loads(json.dumps(results))
    pools = list(experiment.folder.rglob("attempts-0.jsonl"))
    assert [str(path.relative_to(experiment.folder)) for path in pools if "pool" in path.parts] == [
        "rcrl/run/pool/attempts-0.jsonl"
    ]
    for name in ("rcrl", "ratio-0.8-threshold-0.5"):
        assert results[name]["metrics"]["train/examples"] <= 8
        assert results[name]["gap"][0] == pytest.approx(
            results[name][GOOD]["metrics"]["maj@1"][0] - results[name][BAD]["metrics"]["maj@1"][0]
        )
        assert 0 <= results[name]["own_labels_good"] <= 1
    assert set(results["rcrl"][OWN]["metrics"]) >= {"maj@1", "maj@2", "pass@2"}
    assert set(results["ratio-0.8-threshold-0.5"][GOOD]["metrics"]) == {"maj@1"}


def test_labels_that_the_model_writes_are_counted_in_greedy_attempts_alone(experiment) -> None:
    """Every variant has these, and samples only the first."""
    policy = load_policy(experiment[0].folder / "rcrl" / "run" / "model", device="cpu")
    assert isinstance(policy, ConditionedPolicy)
    own = rc._Watched(policy, OWN)
    greedy, _ = (own.with_sampling(temperature=temperature).decoder(1) for temperature in (0.0, 0.7))
    assert own.decoders == [greedy]


def test_what_labels_cost_is_counted(experiment) -> None:
    experiment, results, _ = experiment
    cost = results["cost"]
    _, tokenizer = load("tokengym/tiny", device="cpu")
    lines = (experiment.folder / "rcrl/run/pool/attempts-0.jsonl").read_text().splitlines()[:10]
    prefixes, steps = set(), 0
    for line in map(json.loads, lines):
        tokens = line["completion"]
        text = ""
        for at, token in enumerate(tokens):
            text += str(tokenizer.decode([token], skip_special_tokens=True))
            last = at == len(tokens) - 1
            if ("\n" in text or (last and line["terminated"])) and text.strip():
                steps += 1
                if not last:
                    prefixes.add((line["problem_id"], *tokens[: at + 1]))
            text = "" if "\n" in text else text
    assert (cost["steps"], cost["prefixes"], cost["rollouts"]) == (steps, len(prefixes), 2 * len(prefixes))
    assert cost["prefill_tokens"] < cost["prefill_tokens_prefix_by_prefix"]
    assert 2 * cost["prefill_tokens_prefix_by_prefix"] == cost["prefill_tokens_rollout_by_rollout"]


def test_the_table_shows_every_policy_and_what_is_missing(experiment) -> None:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(rc.table(experiment[1]))
    text = console.export_text()
    for part in (
        "EI, which samples the pool",
        "asked for [GOOD]",
        "labels of its own",
        "0.8",
        "missing: lost: its disk",
    ):
        assert part in text
