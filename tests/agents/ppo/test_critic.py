"""Options of the critic: its rate, warm-up, returns, bootstrap and start."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tokengym.agents.ppo import PPO
from tokengym.agents.training.learner import Example
from tokengym.models.critics import ActorCritic


def test_the_critic_has_a_rate_of_its_own_ten_times_the_policys_by_default(make) -> None:
    def rates(**settings) -> list[float]:
        learner = make(learning_rate=1e-3, warmup_ratio=0.0, **settings).make_learner(10)
        return [learner.learning_rate * group["ratio"] for group in learner.optimizer.param_groups]

    assert rates() == pytest.approx([1e-3, 1e-2])
    assert rates(critic_learning_rate=5e-4) == pytest.approx([1e-3, 5e-4])
    with pytest.raises(ValueError, match="critic_learning_rate needs a learning_rate above 0"):
        make(learning_rate=0.0, critic_learning_rate=1e-3).make_learner(10)


@pytest.mark.parametrize("kind", ["branch", "head", "model"])
def test_in_the_warmup_only_the_critic_learns(weights, make, kind: str) -> None:
    agent = make(critic=kind, critic_warmup=2, iterations=3, entropy_coef=0.1, weight_decay=0.1)
    before, seen = weights(agent), []

    def callback(agent: PPO, metrics: dict[str, float]) -> None:
        moved = {name for name, weight in weights(agent).items() if not torch.equal(weight, before[name])}
        seen.append({name.split(".")[0] for name in moved})

    agent.learn(callback=callback)
    assert seen == [{"critic"}, {"critic"}, {"critic", "policy"}]


def test_the_critics_returns_take_a_lambda_of_their_own(attempts_of, disturb, make) -> None:
    agent = make(gae_lambda=0.5, critic_lambda=1.0, kl_coef=0.0, whiten=False)
    disturb(agent)
    attempts = attempts_of(agent)
    examples = [Example(attempt.prompt, attempt.completion) for attempt in attempts]
    learner = agent.make_learner(1)
    found, _ = agent._experience(learner, attempts, examples, None, [np.arange(len(attempts))])
    agent.config = replace(agent.config, critic_lambda=None)
    without, _ = agent._experience(learner, attempts, examples, None, [np.arange(len(attempts))])
    for i, attempt in enumerate(attempts):
        np.testing.assert_allclose(found.returns[i], attempt.rewards[::-1].cumsum()[::-1], atol=1e-5)
        np.testing.assert_array_equal(found.advantages[i], without.advantages[i])
    assert any((a != b).any() for a, b in zip(found.returns, without.returns, strict=True))


def test_cut_off_attempts_are_paid_what_the_critic_still_expects(attempts_of, disturb, make) -> None:
    agent = make(bootstrap_truncated=True, gae_lambda=1.0, kl_coef=0.0, whiten=False, architecture="llama")
    disturb(agent)
    attempts = attempts_of(agent)
    assert 0 < sum(attempt.terminated for attempt in attempts) < len(attempts)
    examples = [Example(attempt.prompt, attempt.completion) for attempt in attempts]
    found, _ = agent._experience(agent.make_learner(1), attempts, examples, None, [np.arange(len(attempts))])
    pair = ActorCritic(agent.model, agent.critic)
    for attempt, returns in zip(attempts, found.returns, strict=True):
        ids = torch.from_numpy(attempt.tokens)[None]
        with torch.no_grad():
            _, values = pair(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool))
        expected = attempt.total_reward + (0.0 if attempt.terminated else values[-1].item())
        assert returns[0] == pytest.approx(expected, abs=1e-5)


def test_a_saved_critic_goes_on_and_one_of_another_shape_is_refused(
    disturb, same, weights, make, letters_folders, tmp_path
) -> None:
    agent = make(architecture="llama")
    disturb(agent)
    agent.save(tmp_path / "saved")
    again = PPO.load(tmp_path / "saved", agent.env, device="cpu")
    assert same(weights(agent), weights(again))
    fresh = make(architecture="llama", critic_from=str(tmp_path / "saved"))
    assert same(agent.critic.state_dict(), fresh.critic.state_dict())
    with pytest.raises(ValueError, match=r"critic.safetensors is of another critic: .* give the `critic`"):
        make(architecture="llama", critic="head", critic_from=str(tmp_path / "saved"))
    with pytest.raises(FileNotFoundError, match="holds no critic: PPO saves"):
        make(critic_from=str(letters_folders["gpt2"]))
