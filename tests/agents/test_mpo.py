"""MPO: DPO's weights where all pairs are easy, PPO's where none is, and between them a reference of its own."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokengym.agents import DPO, MPO, PPO
from tokengym.agents.mpo import EasyPairs, reward_gaps
from tokengym.agents.training.learner import Example
from tokengym.agents.training.pairs import Pair
from tokengym.agents.training.rounds import Round
from tokengym.models import load_tokenizer
from tokengym.models.outcome import OutcomeModel

LETTERS = load_tokenizer("chars:ab?")


@pytest.fixture(scope="module")
def folders(make_model, tmp_path_factory) -> tuple[Path, Path]:
    """A policy, and an outcome model of random weights."""
    path, judge = tmp_path_factory.mktemp("letters"), tmp_path_factory.mktemp("judge")
    ids = {"eos_token_id": LETTERS.eos_token_id, "pad_token_id": LETTERS.pad_token_id}
    model = make_model("llama", vocab_size=len(LETTERS), **ids)
    model.save_pretrained(path)
    LETTERS.save_pretrained(path)
    OutcomeModel.from_causal_lm(model, LETTERS, "preference", 3).save(judge)
    return path, judge


PPO_PART = {
    "iterations": 2, "problems_per_iteration": 5, "samples_per_problem": 4, "minibatch_size": 10, "epochs": 1,
    "learning_rate": 3e-3, "validation_problems": 5, "critic_layers": 1, "save_iterations": 1, "keep_best": False,
}  # fmt: skip
PAIRS = {"pair_samples": 12, "pairs_per_problem": 6, "dpo_batch_size": 8, "dpo_learning_rate": 3e-3}
DPO_PART = {"rounds": 1, "samples_per_problem": 12, "pairs_per_problem": 6, "batch_size": 8, "learning_rate": 3e-3}


@pytest.fixture
def make(folders, letters, slots):
    def make(cls: type = MPO, **settings: Any) -> Any:
        mixed = {"orm": str(folders[1]), **PAIRS, **PPO_PART} if cls is MPO else {}
        validation = slots(letters("validation"))
        return cls(slots(letters()), folders[0], validation_env=validation, device="cpu", **(mixed | settings))

    return make


def test_all_pairs_easy_is_dpo(make, tmp_path, weights, same) -> None:
    plain = make(DPO, validation_problems=5, run=tmp_path / "dpo", **DPO_PART).learn()
    trained = Round.load(tmp_path / "dpo" / "round-1", 1)
    assert trained is not None
    mixed = make(threshold=-math.inf, run=tmp_path / "mpo").learn()
    assert same(weights(mixed), dict(trained.weights))
    assert mixed.num_attempts == plain.num_attempts == 60
    assert not same(weights(mixed), weights(make()))
    again = make(threshold=-math.inf, run=tmp_path / "mpo", resume=True).learn()
    assert same(weights(again), weights(mixed))
    assert same(weights(again.learn()), weights(mixed))  # no problem is left for PPO


def test_no_pair_easy_is_ppo(make, tmp_path, weights, same) -> None:
    mixed, plain = make(threshold=math.inf).learn(), make(PPO, **PPO_PART).learn()
    assert same(weights(mixed), weights(plain))
    assert mixed.num_attempts == plain.num_attempts + 60


def test_between_them_ppo_begins_at_its_reference_on_the_problems_of_hard_pairs(make, tmp_path, weights, same) -> None:
    logged: list[dict[str, float]] = []
    agent = make(run=tmp_path / "run", kl_coef=0.3)
    agent.learn(callback=lambda _, metrics: logged.append(dict(metrics)))
    stage = agent.preferences
    assert stage is not None
    assert stage.trained is not None
    assert stage.hard
    first = next(line for line in logged if "train/reference_kl" in line)
    assert first["train/reference_kl"] == pytest.approx(0, abs=1e-6)
    assert agent.num_attempts == 60 + 40
    again = make(run=tmp_path / "run", resume=True, kl_coef=0.3).learn()
    assert same(weights(again), weights(agent))
    assert again.num_attempts == agent.num_attempts
    problems = agent._progress.problems
    assert {agent.env.problems[index].id for index in problems} == set(stage.hard)


def test_gaps_are_of_rewards_and_flipped_pairs_are_below_the_median(make) -> None:
    """A judge that knows the right letter leaves pairs with flipped labels to PPO."""
    agent = make()
    encode = lambda text: np.array(LETTERS.encode(text, add_special_tokens=False))  # noqa: E731
    pairs = [Pair(*(Example(encode("a?"), encode(text)) for text in texts), "p") for texts in (("a", "b"), ("ab", "b"))]
    gaps = reward_gaps(agent._judge, pairs)
    for pair, gap in zip(pairs, gaps, strict=True):
        logits = []
        for example in (pair.chosen, pair.rejected):
            tokens = torch.from_numpy(np.concatenate([example.prompt, example.completion]))[None]
            with torch.no_grad():
                logits.append(agent._judge.model(tokens).logits[0, -1, 0].item())
        assert gap == pytest.approx(logits[0] - logits[1], abs=1e-5)
    flipped = [Pair(pair.rejected, pair.chosen, "p") for pair in pairs]
    np.testing.assert_allclose(reward_gaps(agent._judge, flipped), -gaps, atol=1e-6)


def test_bad_settings(make, folders) -> None:
    for settings, message in (
        ({"orm": None}, "mpo splits pairs by the rewards"),
        ({"threshold": math.nan}, "threshold must be a number, got nan"),
        ({"min_pass_rate": 0.1}, "mpo chooses its problems by their pairs"),
        ({"lora_rank": 2}, "leave out lora_rank"),
        ({"pair_samples": 1}, "pair_samples must be at least 2"),
        ({"pair_temperature": math.inf}, "pair_temperature must be above 0 and finite"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**settings)
    with pytest.raises(ValueError, match="pairs take 60 attempts, and total_episodes=60 leaves none"):
        make().learn(60)


@pytest.mark.parametrize("when", [1, 2])
def test_a_run_killed_in_either_stage_ends_as_a_whole_one(make, tmp_path, monkeypatch, when, weights, same) -> None:
    whole = make(run=tmp_path / "whole").learn()
    agent = make(run=tmp_path / "killed")

    def kill(agent: Any, metrics: dict[str, float]) -> None:
        raise KeyboardInterrupt

    if when == 1:  # after the pairs were sampled, while the preferences are learned
        train = DPO.train_round

        def killed(self: Any, number: int, *others: Any) -> None:
            train(self, number, *others)
            if number:
                raise KeyboardInterrupt

        monkeypatch.setattr(EasyPairs, "train_round", killed)
        with pytest.raises(KeyboardInterrupt):
            agent.learn()
        monkeypatch.undo()
    else:
        with pytest.raises(KeyboardInterrupt):
            agent.learn(callback=kill)
    again = make(run=tmp_path / "killed", resume=True).learn()
    assert same(weights(again), weights(whole))
    assert again.num_attempts == whole.num_attempts
