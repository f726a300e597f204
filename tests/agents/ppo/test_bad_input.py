"""Bad settings, and rewards, losses and gradients that are not finite."""

import json
import math

import numpy as np
import pytest
import torch

from tokengym.agents import ppo
from tokengym.agents.training.learner import Learner
from tokengym.agents.training.losses import value_error
from tokengym.rewards import Reward, SparseReward


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"minibatch_size": 25},
            "minibatch_size is 25, but an iteration learns from only 6 problems x 4 attempts = 24",
        ),
        ({"minibatch_size": 13, "best_of": 2}, "minibatch_size is 13, .* 6 problems x 2 attempts = 12"),
        ({"critic_layers": 3}, "critic_layers is 3, but GPT2LMHeadModel .* has 2 layers: choose 1 to 2"),
        ({"trained_layers": 3}, "trained_layers is 3, but GPT2LMHeadModel .* has 2 layers"),
        ({"critic": "oracle"}, "critic must be one of branch, head, model"),
        ({"best_of": 5}, "best_of must be between 1 and samples_per_problem=4, got 5"),
        ({"clip": 0}, "clip must be above 0"),
        ({"value_clip": -1}, "value_clip must be above 0"),
        ({"gamma": 1.1}, "gamma must be between 0 and 1"),
        ({"kl_coef": -1}, "kl_coef must be at least 0"),
        ({"kl_coef": 0, "adaptive_kl": 1.0}, "adaptive_kl multiplies kl_coef, which is 0"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"temperature": 0}, "temperature must be above 0"),
    ],
)
def test_bad_settings(make, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)


def broken_reward(value: float, after: int) -> Reward:
    """Pays as it should until so many attempts have ended."""

    class Broken(SparseReward):
        ended = 0

        def score(self, lengths, ended, verdicts):
            paid = super().score(lengths, ended, verdicts)
            for slot in np.flatnonzero(ended):
                self.ended += 1
                if self.ended == after:
                    paid[slot, lengths[slot] - 1] = value
            return paid

    return Broken()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_stops_with_the_step_and_keeps_batch_and_checkpoint(
    same, weights, make, tmp_path, value
) -> None:
    run = tmp_path / "run"
    good = make(run=tmp_path / "good", iterations=2).learn()
    agent = make(reward=broken_reward(value, 24 * 2 + 5), run=run)
    with pytest.raises(
        ValueError,
        match=rf"iteration 2, before update 13: .*problem 'train-\w+' was paid a reward of {value}; the attempts",
    ):
        agent.learn()
    lines = [json.loads(line) for line in (run / "not-finite-2.jsonl").read_text().splitlines()]
    assert [bool(np.isfinite(line["rewards"][1]).all()) for line in lines] == [True] * (len(lines) - 1) + [False]
    (checkpoint,) = (run / "training").glob("step-*")
    assert checkpoint.name == "step-12"
    assert same(weights(good), weights(agent))
    resumed = make(run=run, resume=True).learn()  # the reward mended
    assert same(weights(make(run=tmp_path / "whole").learn()), weights(resumed))


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_is_not_applied(
    same, weights, make, tmp_path, monkeypatch, what: str
) -> None:
    calls = []

    def poisoned(values, old, returns, mask, clip):
        calls.append(0)
        if len(calls) < 8:
            return value_error(values, old, returns, mask, clip)
        if what == "loss":
            return values * torch.nan
        return torch.where(mask, (values - values.detach()).abs() ** 0.5, 0.0)  # zero, with an infinite slope

    monkeypatch.setattr(ppo, "value_error", poisoned)
    agent = make(run=tmp_path / "run", save_iterations=1)
    kept = []
    real = Learner.update

    def update(self, *args):
        kept.append(weights(agent))
        return real(self, *args)

    monkeypatch.setattr(Learner, "update", update)
    name = "loss nan" if what == "loss" else "grad_norm (nan|inf)"
    with pytest.raises(ValueError, match=rf"iteration 1, before update 8: .*{name}.* not made.*not-finite-1\.jsonl"):
        agent.learn()
    assert len(kept) == 8
    assert same(kept[-1], weights(agent))
    assert all(torch.isfinite(tensor).all() for tensor in weights(agent).values())
    (checkpoint,) = (tmp_path / "run" / "training").glob("step-*")
    assert checkpoint.name == "step-6"


def test_a_reward_that_checks_itself_stops_learning_in_the_same_way(make, tmp_path) -> None:
    class Lost(SparseReward):
        def attempt_reward(self, attempt):
            return math.nan

    with pytest.raises(ValueError, match=r"iteration 0, before update 1: Lost returned nan.*not-finite-0\.jsonl"):
        make(reward=Lost(), run=tmp_path / "run").learn()


def test_a_reward_of_the_wrong_shape_is_named(make) -> None:
    class Flat(SparseReward):
        def score(self, lengths, ended, verdicts):
            return np.zeros(len(lengths))

    with pytest.raises(ValueError, match=r"Flat\.score must return shape \(16, 1\), got \(16,\)"):
        make(reward=Flat()).learn()
