"""Checkpoints: the newest counts, whatever a killed process has left beside it."""

import shutil

import numpy as np
import torch
from accelerate import Accelerator

from tokengym.agents.configs.optimizer import OptimizerConfig
from tokengym.agents.training.checkpoints import load_checkpoint, load_tensors, save_checkpoint
from tokengym.agents.training.fine_tuning import nll
from tokengym.agents.training.learner import Example, Learner


def test_the_newest_of_several_checkpoints_counts_and_the_next_one_removes_them(make_model, tmp_path) -> None:
    def make(seed: int) -> Learner:
        return Learner(make_model(seed=seed), OptimizerConfig(learning_rate=1e-2), 20, Accelerator(cpu=True), 17)

    def update(learner: Learner) -> None:
        learner.update([Example(np.array([1, 2]), np.array([3, 15]))], lambda b, v: nll(b, v, 2), learner.steps)

    learner, folder = make(0), tmp_path / "training"
    assert load_checkpoint(learner, None) == load_checkpoint(learner, folder) == {}
    assert load_tensors(folder) == {}
    while learner.steps < 9:
        update(learner)
    save_checkpoint(learner, folder, {"name": "ninth"}, {"best": torch.full((2,), 9.0)})
    shutil.copytree(folder / "step-9", tmp_path / "kept")
    update(learner)
    save_checkpoint(learner, folder, {"name": "tenth"}, {"best": torch.full((2,), 10.0)})
    assert [path.name for path in folder.iterdir()] == ["step-10"]
    # Killed between writing the new one and removing the old one, or while it removed one before.
    shutil.copytree(tmp_path / "kept", folder / "step-9")
    (folder / ".step-8.old").mkdir()

    other = make(1)
    assert load_checkpoint(other, folder) == {"steps": 10, "name": "tenth"}
    assert other.steps == 10
    assert load_tensors(folder)["best"].tolist() == [10, 10]
    for each in (learner, other):
        update(each)
    assert all(map(torch.equal, learner.base.parameters(), other.base.parameters()))
    save_checkpoint(other, folder)
    assert [path.name for path in folder.iterdir()] == ["step-11"]
    assert load_tensors(folder) == {}
