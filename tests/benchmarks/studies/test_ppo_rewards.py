"""The experiment over PPO's rewards, at its smallest."""

import pytest
import torch

from tokengym.benchmarks.jobs import Done
from tokengym.benchmarks.studies import ppo_rewards as ppo
from tokengym.models import OutcomeModel, load

SMALL = {
    "problems_per_iteration": 2, "samples_per_problem": 2, "minibatch_size": 4, "epochs": 1, "validation_problems": 2,
    "validation_iterations": 1,
}  # fmt: skip


def untrained(folder, settings, needs):
    """Attempts of so small a start are hardly ever correct: nothing can be learnt from them."""
    (start,) = needs.values()
    OutcomeModel.from_causal_lm(*load(start.folder / "run" / "model"), "orm").save(folder / "run" / "model")
    return {"attempts": 0}


@pytest.mark.usefixtures("short_problems")
def test_every_variant_runs_on_what_it_needs_and_the_table_compares_them(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(ppo, "NUM_ENVS", 8)
    monkeypatch.setattr(ppo, "PPO_SETTINGS", ppo.PPO_SETTINGS | SMALL)
    monkeypatch.setattr(ppo, "SFT_SETTINGS", {"demonstrations": 4, "epochs": 1, "batch_size": 4})
    monkeypatch.setattr(ppo, "outcome_model", untrained)
    experiment = ppo.PPOExperiment(tmp_path, seeds=(0,), iterations=1, test_problems=2, n=2, threads=1)
    threads = torch.get_num_threads()

    def run_plan(jobs, folder, workers, say):
        """In this process, in the given order."""
        done = {}
        for job in jobs:
            own = folder / job.name
            own.mkdir(parents=True)
            done[job.name] = Done(own, job.work(own, job.settings, {name: done[name] for name in job.needs}), 1.0)
        return done

    monkeypatch.setattr(ppo, "run_plan", run_plan)
    results = ppo.run(experiment)
    torch.set_num_threads(threads)
    assert [one["variant"] for one in results["ppo"]] == list(ppo.VARIANTS)
    assert {one["attempts"] for one in results["ppo"]} == {4}
    assert all(one["curve"][-1]["eval/maj@1"] >= 0 for one in results["ppo"])
    assert sorted(job.name for job in (tmp_path / "seed-0").iterdir()) == [
        "orm",
        *(f"ppo-{name}" for name in sorted(ppo.VARIANTS)),
        "sft",
    ]
    assert ppo.table(results).row_count == 6
    assert (tmp_path / "ppo.png").exists()
    assert (tmp_path / "results.json").exists()
