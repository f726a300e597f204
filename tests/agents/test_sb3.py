"""Stable-Baselines3's own PPO on our models and environments, and its evaluation on our agents."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy

from tokengym.agents import make_agent
from tokengym.agents.sb3 import SB3CausalLMPolicy
from tokengym.envs import SB3VecEnv
from tokengym.rewards import AttemptReward

# One-digit sums of one-digit numbers: two tokens, the digit and end-of-sequence.
ADDITION = {
    "style": "equation", "operations": "+", "steps": 1, "max_value": 9, "prompt": "{question}", "max_prompt_tokens": 16,
    "max_new_tokens": 3,
}  # fmt: skip


class Longer(AttemptReward):
    """Pays all attempts, of which a random model's are hardly ever correct."""

    def attempt_reward(self, attempt):
        return len(attempt.tokens) / 3


def make(tokenizer, **settings) -> SB3VecEnv:
    settings = {"tokenizer": tokenizer, "autoreset_mode": "SameStep"} | ADDITION | settings
    return SB3VecEnv(gym.make_vec("tokengym/Arithmetic-v0", 4, **settings))


@pytest.fixture
def envs(tokenizer) -> SB3VecEnv:
    return make(tokenizer)


@pytest.mark.parametrize("critic", ["head", "branch"])
@pytest.mark.parametrize("folder", ["llama", "gpt2"], indirect=True)
def test_sb3_trains_saves_and_loads_a_language_model(tokenizer, folder, tmp_path, critic: str) -> None:
    envs = make(tokenizer, reward=Longer())
    settings = {"model": str(folder), "critic": critic, "critic_layers": 1, "temperature": 0.9}
    sb3 = PPO(
        SB3CausalLMPolicy, envs, n_steps=8, batch_size=16, n_epochs=2, policy_kwargs=settings, seed=0, device="cpu"
    )
    before = {name: p.detach().clone() for name, p in sb3.policy.named_parameters()}
    sb3.learn(64)
    changed = {name for name, p in sb3.policy.named_parameters() if not torch.equal(p, before[name])}
    assert any(name.startswith("actor_critic.policy") for name in changed)
    assert any(name.startswith("actor_critic.critic") for name in changed)
    assert not sb3.policy.training  # no dropout, in updates neither

    sb3.save(tmp_path / "sb3.zip")
    loaded = PPO.load(tmp_path / "sb3.zip", envs, device="cpu")
    observation = envs.reset()
    np.testing.assert_array_equal(
        loaded.predict(observation, deterministic=True)[0], sb3.predict(observation, deterministic=True)[0]
    )
    sb3.policy.save(str(tmp_path / "policy"))
    policy = SB3CausalLMPolicy.load(str(tmp_path / "policy"), "cpu")
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), sb3.policy.parameters(), strict=True))


def test_distributions_are_those_of_the_model_at_the_temperature(envs, folder, make_model) -> None:
    policy = SB3CausalLMPolicy(
        envs.observation_space, envs.action_space, lambda _: 1e-3, model=str(folder), temperature=0.7
    )
    observation = {key: torch.from_numpy(array) for key, array in envs.reset().items()}
    values, logprobs, entropy = policy.evaluate_actions(observation, torch.arange(4))
    assert values.shape == (4, 1)
    for row in range(4):
        ids = observation["input_ids"][row][observation["attention_mask"][row].bool()]
        logits = policy.actor_critic.policy(ids[None].long()).logits[0, -1, : envs.action_space.n] / 0.7
        theirs = torch.distributions.Categorical(logits=logits)
        torch.testing.assert_close(logprobs[row], theirs.log_prob(torch.tensor(row)), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(entropy[row], theirs.entropy(), atol=1e-5, rtol=1e-5)
    actions, _, _ = policy(observation, deterministic=True)
    np.testing.assert_array_equal(policy.predict(envs.reset(), deterministic=True)[0].shape, actions.shape)


def test_other_spaces_than_those_of_a_token_environment_are_refused() -> None:
    with pytest.raises(ValueError, match="needs the spaces of a token environment, not Box"):
        PPO(SB3CausalLMPolicy, "CartPole-v1", policy_kwargs={"model": "tokengym/tiny"})
    with pytest.raises(ValueError, match="needs the spaces of a token environment"):
        SB3CausalLMPolicy(spaces.Dict({"input_ids": spaces.Discrete(2)}), spaces.Discrete(2), lambda _: 1e-3)


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_sb3_evaluates_our_agents(envs, folder, name: str) -> None:
    critic = {"critic_layers": 1} if name == "ppo" else {}
    agent = make_agent(name, gym.make("tokengym/Arithmetic-v0", tokenizer=str(folder), **ADDITION), folder, **critic)
    returns, lengths = evaluate_policy(agent, envs, n_eval_episodes=12, return_episode_rewards=True)  # pyright: ignore
    assert len(returns) == len(lengths) == 12
    assert set(returns) <= {0.0, 1.0}
    assert all(1 <= length <= 3 for length in lengths)
    # Deterministic attempts at the same problems have the success of greedy decoding.
    envs.seed(5)
    first = evaluate_policy(agent, envs, n_eval_episodes=8, return_episode_rewards=True)
    envs.seed(5)
    assert evaluate_policy(agent, envs, n_eval_episodes=8, return_episode_rewards=True) == first


def test_bfloat16_weights_have_masters_that_are_saved_too(tokenizer, make_model, tmp_path) -> None:
    envs = make(tokenizer, reward=Longer())
    settings = {"model": make_model().bfloat16()}
    sb3 = PPO(SB3CausalLMPolicy, envs, 1e-6, n_steps=8, batch_size=16, policy_kwargs=settings, seed=0, device="cpu")
    sb3.learn(64)
    lows = [state["low"] for state in sb3.policy.optimizer.state.values() if "low" in state]
    assert len(lows) == len(list(settings["model"].parameters()))
    assert all(low.any() for low in lows), "steps of 1e-6 are kept below the weights' precision"
    sb3.save(tmp_path / "sb3.zip")
    loaded = PPO.load(tmp_path / "sb3.zip", envs, device="cpu").policy.optimizer.state.values()
    assert all(
        torch.equal(value, other[name]) and value.dtype == other[name].dtype
        for one, other in zip(sb3.policy.optimizer.state.values(), loaded, strict=True)
        for name, value in one.items()
    )
    with pytest.raises(ValueError, match=r"SGD would round its steps away in weights of torch\.bfloat16"):
        PPO(SB3CausalLMPolicy, envs, policy_kwargs={**settings, "optimizer_class": torch.optim.SGD})


def test_a_model_of_another_vocabulary_is_refused():
    from gymnasium import spaces

    from tokengym.models import load

    observations = spaces.Dict(input_ids=spaces.Box(0, 13, (8,), np.int64), attention_mask=spaces.MultiBinary(8))
    for model in ("tokengym/tiny", load("tokengym/tiny", device="cpu")[0]):
        with pytest.raises(ValueError, match=r"the model has \d+ tokens and the environment 14: make the environment"):
            SB3CausalLMPolicy(observations, spaces.Discrete(14), lambda _: 1e-3, model=model)
