"""Supervised fine-tuning: what a checkpoint holds, and what a killed process loses."""

import math
import shutil
import warnings

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from tokengym.agents.configs.optimizer import FineTuneConfig
from tokengym.agents.training import fine_tuning
from tokengym.agents.training.fine_tuning import fine_tune, restore, snapshot
from tokengym.agents.training.learner import Example

ACCELERATOR = Accelerator(cpu=True)
EXAMPLES = [Example(np.array([i % 10, 10, 11]), np.array([i % 7, i % 10, 15])) for i in range(13)]
CONFIG = FineTuneConfig(learning_rate=1e-2, epochs=4, batch_size=4, save_steps=3)  # 16 steps


class Killed(BaseException):
    """Not an Exception: nothing may catch it and tidy up."""


def train(model, checkpoints=None, config=CONFIG, examples=EXAMPLES, seed=0, kill_after=None):
    steps = []

    def on_step(step, total, metrics):
        steps.append((step, total, metrics["loss"]))
        if step == kill_after:
            raise Killed

    fine_tune(
        model, examples, config, accelerator=ACCELERATOR, seed=seed, vocab_size=17, checkpoints=checkpoints,
        on_step=on_step,
    )  # fmt: skip
    return steps


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("killed_after", [3, 4, 9, 15])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_stopped_and_resumed_equals_never_stopped_bit_for_bit(
    make_model, tmp_path, architecture: str, killed_after: int
) -> None:
    whole = make_model(architecture)
    steps = train(whole)
    with pytest.raises(Killed):
        train(make_model(architecture), tmp_path / "training", kill_after=killed_after)
    torch.manual_seed(killed_after)  # the global stream has no say
    # All that counts is in the checkpoint, once there is one.
    again = make_model(architecture, seed=int(killed_after > 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = train(again, tmp_path / "training")
    # The step during which it was killed, after its update and before its checkpoint, is done again.
    assert resumed == steps[3 * ((killed_after - 1) // 3) :]
    assert same(whole, again)
    finished = make_model(architecture, seed=2)
    assert train(finished, tmp_path / "training") == steps[-1:]  # told how it ended, not trained again
    assert same(whole, finished)


def test_dropout_is_on_in_training_follows_the_seed_and_is_off_afterwards(make_model) -> None:
    models = [make_model("gpt2") for _ in range(4)]
    for model, seed in zip(models[:3], (0, 0, 1), strict=True):
        train(model, seed=seed)
    assert same(models[0], models[1])
    assert not same(models[0], models[2])
    for module in models[3].modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attn_dropout"):
            module.attn_dropout.p = 0.0
    train(models[3])
    assert not same(models[0], models[3])
    assert not models[0].training


def test_every_example_is_seen_once_in_each_epoch_and_the_loss_is_the_mean_over_its_batchs_tokens(
    make_model, monkeypatch
) -> None:
    batches, denominators = [], []

    class Spy(fine_tuning.Learner):
        def update(self, examples, loss, seed):
            batches.append([id(example) for example in examples])
            denominators.append(loss.keywords["denominator"])
            return super().update(examples, loss, seed)

    monkeypatch.setattr(fine_tuning, "Learner", Spy)
    model = make_model()
    steps = train(model)
    assert [step for step, _, _ in steps] == list(range(1, 17))
    assert {total for _, total, _ in steps} == {16}
    assert [len(batch) for batch in batches] == [4, 4, 4, 1] * 4
    epochs = [[seen for batch in batches[i : i + 4] for seen in batch] for i in range(0, 16, 4)]
    assert all(sorted(epoch) == sorted(map(id, EXAMPLES)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4  # each in an order of its own
    assert denominators == [3 * len(batch) for batch in batches]
    # A uniform guess costs log 17 per token; the model has learnt more than that.
    assert steps[-1][2] < math.log(17) / 2


def test_one_batch_and_one_epoch_train(make_model) -> None:
    model, before = make_model(), make_model()
    train(model, config=FineTuneConfig(learning_rate=1e-3, epochs=1))
    assert not same(model, before)


def test_snapshot_and_restore_put_trainable_weights_back(make_model) -> None:
    model = make_model()
    model.lm_head.requires_grad_(False)
    weights = snapshot(model)
    assert "lm_head.weight" not in weights
    train(model)
    assert not same(model, make_model())
    restore(model, weights)
    assert same(model, make_model())


def test_nothing_to_train_on_is_an_error(make_model) -> None:
    with pytest.raises(ValueError, match="nothing to fine-tune on"):
        train(make_model(), examples=[])


# ----------------------------------------------------------------------------------------------------- being killed

KILLED_WHILE_SAVING = """
    import os, sys
    import numpy as np
    import torch
    from accelerate import Accelerator
    from pathlib import Path
    from transformers import GPT2LMHeadModel
    from tokengym.agents.training import fine_tuning, learner
    from tokengym.agents.configs.optimizer import FineTuneConfig
    from tokengym.agents.training.learner import Example

    torch.set_num_threads(1)
    saved, write = 0, learner.save_file

    def half_a_save(tensors, path):
        global saved
        saved += 1
        write(tensors, path)
        if saved == 2:
            os.truncate(path, os.path.getsize(path) // 2)
            os._exit(9)

    learner.save_file = half_a_save
    examples = [Example(np.array([i % 10, 10, 11]), np.array([i % 7, i % 10, 15])) for i in range(13)]
    fine_tuning.fine_tune(
        GPT2LMHeadModel.from_pretrained(sys.argv[1]), examples,
        FineTuneConfig(learning_rate=1e-2, epochs=4, batch_size=4, save_steps=3),
        accelerator=Accelerator(cpu=True), seed=0, vocab_size=17, checkpoints=Path(sys.argv[2]))
"""


def test_a_process_killed_in_the_middle_of_a_save_loses_nothing(make_model, run_script, tmp_path) -> None:
    make_model("gpt2").save_pretrained(tmp_path / "model")
    run_script(KILLED_WHILE_SAVING, tmp_path / "model", tmp_path / "training", code=9)
    assert {path.name for path in (tmp_path / "training").iterdir()} == {"step-3", ".step-6.partial"}
    whole, resumed = make_model("gpt2"), make_model("gpt2", seed=1)
    steps = train(whole)
    assert train(resumed, tmp_path / "training") == steps[3:]
    assert same(whole, resumed)


@pytest.mark.parametrize("victim", ["state.json", "learner.safetensors"])
@pytest.mark.parametrize("removed", ["step-3", "step-15"])
def test_a_process_killed_while_it_tidies_up_loses_nothing(
    make_model, tmp_path, monkeypatch, removed: str, victim: str
) -> None:
    """Removing a folder takes several steps; what is half removed must not pass for a checkpoint."""
    remove = shutil.rmtree

    def half_a_removal(folder, **options):
        if removed in folder.name and folder.exists():
            next(folder.rglob(victim)).unlink()
            raise Killed
        remove(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", half_a_removal)
    with pytest.raises(Killed):
        train(make_model(), tmp_path / "training")
    monkeypatch.undo()
    whole, resumed = make_model(), make_model()
    train(whole)
    train(resumed, tmp_path / "training")
    assert same(whole, resumed)
    assert [path.name for path in (tmp_path / "training").glob("step-*")] == ["step-16"]
