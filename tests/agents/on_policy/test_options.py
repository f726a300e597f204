"""Dynamic sampling, masks, penalties, aggregations, references, corrections and presets."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tokengym.agents.on_policy import PolicyGradientAgent
from tokengym.agents.presets import PRESETS
from tokengym.agents.rollouts.attempts import Attempt
from tokengym.agents.training.advantages import group_advantages
from tokengym.agents.training.learner import Example
from tokengym.envs import Problem
from tokengym.rewards import Verdict


def caught_gradient(agent: PolicyGradientAgent, attempts: list[Attempt]) -> tuple[torch.Tensor, dict[str, float]]:
    """Of the last update of `improve`, at a learning rate of 0, and the metrics."""
    learner = agent.make_learner(1)
    caught = []
    learner.optimizer.register_step_pre_hook(
        lambda *_: caught.append(torch.cat([parameter.grad.flatten() for parameter in learner.parameters]))
    )
    metrics = agent.improve(learner, attempts, 0)
    return caught[-1], metrics


PLAIN = {"max_grad_norm": 1e9, "learning_rate": 0.0, "architecture": "llama"}


def test_groups_of_equal_rewards_are_replaced_within_their_budget_and_all_attempts_are_counted(make) -> None:
    told: list[dict[str, float]] = []
    settings = {"iterations": 2, "samples_per_problem": 2}
    once = make("grpo", **settings).learn(callback=lambda _, metrics: told.append(metrics))
    seen: list[list[Attempt]] = []
    agent = make("grpo", dynamic_sampling=20, **settings)
    improve = agent.improve
    agent.improve = lambda learner, attempts, iteration: seen.append(attempts) or improve(learner, attempts, iteration)
    again: list[dict[str, float]] = []
    agent.learn(callback=lambda _, metrics: again.append(metrics))
    assert told[0]["rollout/uniform_groups"] == again[0]["rollout/uniform_groups"] > 0
    assert again[0]["rollout/replaced_groups"] == 6 * told[0]["rollout/uniform_groups"]
    assert again[0]["rollout/unreplaced_groups"] == 0
    assert again[0]["train/trained_attempts"] == 12
    assert (agent.returns(seen[0]).min(1) < agent.returns(seen[0]).max(1)).all()
    assert agent.num_attempts > once.num_attempts
    budgeted = make("grpo", dynamic_sampling=20, iterations=50, samples_per_problem=2)
    budgeted.learn(total_episodes=61)
    assert 61 - 12 < budgeted.num_attempts <= 61


def test_a_spent_budget_of_dynamic_sampling_leaves_what_there_is(letters, make) -> None:
    class Hopeless(letters):
        def grade(self, completion: str, problem: Problem) -> Verdict:
            return Verdict(False, "wrong", None)

    told: list[dict[str, float]] = []
    agent = make("grpo", problems=Hopeless, dynamic_sampling=2, iterations=1)
    agent.learn(callback=lambda _, metrics: told.append(metrics))
    assert agent.num_attempts == 3 * 24
    assert (told[0]["rollout/replaced_groups"], told[0]["rollout/unreplaced_groups"]) == (0, 6)


@pytest.mark.parametrize("kind", ["reinforce", "grpo"])
def test_masked_attempts_have_no_loss_but_count_in_their_groups(attempts_of, plain_gradient, make, kind: str) -> None:
    agent = make(kind, truncated="mask", problems_per_iteration=30, **PLAIN)
    attempts = attempts_of(agent)
    ended = np.array([attempt.terminated for attempt in attempts])
    assert 10 < ended.sum() < len(attempts) - 4
    returns = agent.returns(attempts)
    signals = returns.ravel() if kind == "reinforce" else group_advantages(returns, "group").ravel()
    lengths = 1 if kind == "reinforce" else np.array([len(attempt.completion) for attempt in attempts])
    found, metrics = caught_gradient(agent, attempts)
    expected = plain_gradient(agent, attempts, signals * ended / lengths)
    assert metrics["trained_attempts"] == np.count_nonzero(signals * ended)
    assert torch.linalg.norm(found - expected) <= 1e-5 * expected.norm()


def test_long_attempts_are_fined_on_their_last_token(attempts_of, make) -> None:
    agent = make("grpo", overlong_buffer=0.5, overlong_penalty=2.0)
    attempts = attempts_of(agent)
    for attempt, rewards in zip(attempts, agent.rewards(attempts), strict=True):
        fine = {1: 0, 2: 0, 3: -1, 4: -2}[len(attempt.completion)]  # of a budget of 4
        np.testing.assert_allclose(rewards, attempt.rewards + fine * (np.arange(len(rewards)) == len(rewards) - 1))
    assert {len(attempt.completion) for attempt in attempts} >= {3, 4}
    (long,) = [attempt for attempt in attempts if len(attempt.completion) == 4][:1]
    given = replace(long, prompt=long.tokens[:-3], completion=long.completion[1:], rewards=np.zeros(3, np.float32))
    assert agent.rewards([given])[0].tolist() == [0, 0, -2]  # the budget holds what the curriculum gave, too
    short = make("grpo", overlong_buffer=0.1, overlong_penalty=2.0)  # less than a token
    for attempt, rewards in zip(attempts, short.rewards(attempts), strict=True):
        assert rewards.sum() == attempt.total_reward - 2 * (len(attempt.completion) == 4)


@pytest.mark.parametrize("aggregation", ["attempts", "tokens", "constant"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3)])
def test_aggregations_are_those_of_whole_batches_however_they_are_cut(
    attempts_of, make, aggregation: str, shape
) -> None:
    epochs, minibatches = shape
    settings = {"aggregation": aggregation, "epochs": epochs, "minibatches": minibatches, **PLAIN}
    found = []
    for budget in (10_000, 20):
        agent = make("grpo", micro_batch_tokens=budget, entropy_coef=0.05, kl_coef=0.1, **settings)
        found.append(caught_gradient(agent, attempts_of(agent))[0])
    assert torch.linalg.norm(found[0] - found[1]) <= 1e-5 * found[0].norm() > 0


def test_a_penalty_in_the_reward_changes_the_returns(attempts_of, plain_gradient, make) -> None:
    agent = make("grpo", kl_coef=0.3, kl_in="reward", kl_estimator="k1", **PLAIN)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in agent.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    attempts = attempts_of(agent)
    learner = agent.make_learner(1)
    examples = [Example(attempt.prompt, attempt.completion) for attempt in attempts]
    reference = learner.logprobs(examples, 1.0, agent._reference._copy)
    penalty = np.array([(a.logprobs - q).sum() for a, q in zip(attempts, reference, strict=True)])
    returns = agent.returns(attempts) - 0.3 * penalty.reshape(-1, 4)
    lengths = np.array([len(attempt.completion) for attempt in attempts])
    found, metrics = caught_gradient(agent, attempts)
    expected = plain_gradient(agent, attempts, group_advantages(returns, "group").ravel() / lengths)
    assert metrics["trained_attempts"] == 24
    assert metrics["reference_kl"] > 1e-4
    assert torch.linalg.norm(found - expected) <= 1e-3 * expected.norm()


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 2}])
def test_a_refreshed_reference_is_the_policy_of_that_time_also_after_a_resume(
    killed, metrics_of, same, weights, make, tmp_path, settings: dict
) -> None:
    settings = {"reference_refresh": 2, "kl_coef": 0.1, "learning_rate": 3e-3, "save_iterations": 1, **settings}
    told: list[dict[str, float]] = []
    whole = make(run=tmp_path / "whole", **settings).learn(callback=lambda _, metrics: told.append(metrics))
    # A refresh before an iteration's update: its first minibatches see no distance.
    assert told[2]["train/reference_kl"] < told[1]["train/reference_kl"]

    def kill(agent, metrics):
        if agent.num_attempts == 72:
            raise killed

    with pytest.raises(killed):
        make(run=tmp_path / "cut", **settings).learn(callback=kill)
    resumed = make(run=tmp_path / "cut", resume=True, **settings).learn()
    assert same(weights(whole), weights(resumed))
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "cut")


@pytest.mark.parametrize("kind", ["reinforce", "grpo", "grpo-all"])
def test_the_mismatch_of_sampling_and_training_is_logged_and_corrected(attempts_of, make, kind: str) -> None:
    agent = make(kind, architecture="llama", learning_rate=0.0)
    attempts = attempts_of(agent)
    quiet = agent.improve(agent.make_learner(9), attempts, 0)
    assert quiet["mismatch_max"] < 1e-5
    rng = np.random.default_rng(0)
    noise = [rng.normal(scale=0.1, size=len(attempt.completion)).astype(np.float32) for attempt in attempts]
    for attempt, shift in zip(attempts, noise, strict=True):
        attempt.logprobs += shift
    loud = make(kind, architecture="llama", learning_rate=0.0, importance="token_mask", importance_cap=1.05)
    metrics = loud.improve(loud.make_learner(9), attempts, 0)
    returns = agent.returns(attempts)
    trained = {"reinforce": returns, "grpo": group_advantages(returns, "group"), "grpo-all": np.ones(returns.shape)}
    shifts = np.concatenate([noise[i] for i in np.flatnonzero(trained[kind])])
    near = {"rel": 0.04} if kind == "grpo-all" else {"rel": 1e-3}  # there over minibatches, which weigh the same
    assert metrics["mismatch"] == pytest.approx(np.abs(shifts).mean(), **near)
    assert metrics["mismatch_max"] == pytest.approx(np.abs(shifts).max(), rel=1e-3)
    assert metrics["mismatch_kl"] == pytest.approx((np.exp(-shifts) - 1 + shifts).mean(), **near)
    assert metrics["importance"] < 0.9  # some are masked
    unweighted, weighted = (
        caught_gradient(make(kind, **PLAIN, **correction), attempts)[0]
        for correction in ({}, {"importance": "token_mask", "importance_cap": 1.05})
    )
    assert torch.linalg.norm(weighted - unweighted) > 0.01 * unweighted.norm()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip": 0.3, "clip_high": 0.2}, r"clip is 0\.3, above clip_high, 0\.2"),
        ({"dual_clip": 1.1}, r"dual_clip must be above 1 \+ clip_high = 1\.2"),
        ({"aggregation": "mean"}, "aggregation must be one of attempts, tokens, constant, got 'mean'"),
        ({"reference_refresh": 2, "kl_coef": 0.0}, "there is no reference to refresh"),
        ({"importance_cap": 0.5}, "importance_cap at least 1"),
        ({"overlong_buffer": 20}, "overlong_buffer must be between 0 and 1"),
        ({"surrogate": "cispo", "dual_clip": 3.0}, "leave it out"),
        ({"dynamic_sampling": -1}, "dynamic_sampling must be at least 0"),
        ({"preset": "rloo"}, "preset 'rloo' is for the agent 'reinforce'; presets of 'grpo': grpo, dr-grpo, dapo"),
        ({"preset": "dappo"}, "did you mean 'dapo'"),
    ],
)
def test_options_that_make_no_sense_are_named(make, settings: dict, message: str) -> None:
    with pytest.raises((ValueError, LookupError), match=message):
        make("grpo", **settings)


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.agent == "grpo"])
def test_every_preset_learns_and_what_is_given_wins(make, caplog, name: str) -> None:
    told: list[dict[str, float]] = []
    agent = make("grpo", preset=name, iterations=1)
    assert {key: getattr(agent.config, key) for key in PRESETS[name].settings} == PRESETS[name].settings
    agent.learn(callback=lambda _, metrics: told.append(metrics))
    assert told[0]["train/trained_attempts"] > 0
    assert "preset" not in caplog.text
    setting, value = next(
        (key, value) for key, value in PRESETS[name].settings.items() if isinstance(value, float | str)
    )
    other = {"scale": "group", "ratio": "token", "surrogate": "clip"}.get(setting, 0.1)
    assert getattr(make("grpo", preset=name, **{setting: other}).config, setting) == other
    assert f"preset {name!r} sets {setting} to {value!r}; {other!r} was given and is used" in caplog.text
