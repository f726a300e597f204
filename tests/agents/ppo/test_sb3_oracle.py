"""A phase of updates equals that of Stable-Baselines3."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.logger import configure

from tokengym.agents.sb3 import SB3CausalLMPolicy
from tokengym.agents.training.reference import shuffled
from tokengym.envs import SB3VecEnv
from tokengym.models import load_tokenizer
from tokengym.models.critics import ActorCritic

LETTERS = load_tokenizer("chars:ab?")


class Orders(DictRolloutBuffer):
    """SB3's buffer, cut into minibatches as it is told."""

    minibatches: list[list[np.ndarray]]

    def get(self, batch_size=None):
        for name in ("actions", "values", "log_probs", "advantages", "returns"):
            if not self.generator_ready:
                self.__dict__[name] = self.swap_and_flatten(self.__dict__[name])
        if not self.generator_ready:
            for key, array in self.observations.items():
                self.observations[key] = self.swap_and_flatten(array)
        self.generator_ready = True
        for rows in self.minibatches.pop(0):
            yield self._get_samples(rows)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("head", {"architecture": "llama"}),
        ("branch", {"architecture": "gpt2", "temperature": 1.3}),
        ("model", {"architecture": "llama", "entropy_coef": 0.05}),
        ("head", {"architecture": "gpt2", "max_grad_norm": 0.01, "gae_lambda": 0.8, "gamma": 0.9}),
        ("branch", {"architecture": "llama", "minibatch_size": 7, "epochs": 3, "whiten": False}),
        ("branch", {"architecture": "llama", "target_kl": 1e-3, "epochs": 6}),
    ],
)
def test_a_phase_of_updates_equals_that_of_stable_baselines3(
    attempts_of, disturb, letters, slots, weights, make, letters_folders, kind: str, settings: dict
) -> None:
    """Same attempts, same minibatches: SB3's buffer, advantages, losses and loop leave the same parameters."""
    defaults = {
        "value_clip": None,
        "kl_coef": 0.3,
        "learning_rate": 1e-3,
        "critic_learning_rate": 1e-3,
        "minibatch_size": 24,
    }
    agent = make(critic=kind, **(defaults | settings))
    config, initial = agent.config, agent._reference._copy
    disturb(agent)
    attempts = attempts_of(agent)

    env = SB3VecEnv(slots(letters(), 1, autoreset_mode="SameStep", copy=True))
    sb3 = SB3PPO(
        SB3CausalLMPolicy, env, n_steps=8, batch_size=8, n_epochs=config.epochs, learning_rate=config.learning_rate,
        clip_range=config.clip, ent_coef=config.entropy_coef, vf_coef=config.value_coef / 2,
        max_grad_norm=config.max_grad_norm, normalize_advantage=config.whiten, target_kl=config.target_kl,
        gamma=config.gamma, gae_lambda=config.gae_lambda, device="cpu",
        policy_kwargs={
            "model": str(letters_folders[settings["architecture"]]), "temperature": config.temperature, "critic": kind,
            "critic_layers": 1,
            "optimizer_kwargs": {"betas": config.betas, "weight_decay": config.weight_decay, "eps": 1e-5},
        },
    )  # fmt: skip
    sb3.policy.actor_critic.load_state_dict(ActorCritic(agent.model, agent.critic).state_dict())
    size = sum(len(attempt.completion) for attempt in attempts)
    assert isinstance(env.action_space, spaces.Discrete)
    buffer = Orders(size, env.observation_space, env.action_space, "cpu", config.gae_lambda, config.gamma)
    rows, width = [], env.observation_space["input_ids"].shape[0]
    for attempt in attempts:
        rows.append(np.arange(buffer.pos, buffer.pos + len(attempt.completion)))
        for t, token in enumerate(attempt.completion):
            seen = np.concatenate([attempt.prompt, attempt.completion[:t]])
            observation = {
                "input_ids": np.pad(seen, (0, width - len(seen)))[None],
                "attention_mask": np.pad(np.ones_like(seen), (0, width - len(seen)))[None],
            }
            with torch.no_grad():
                tensors = {key: torch.from_numpy(array) for key, array in observation.items()}
                value, logprob, _ = sb3.policy.evaluate_actions(tensors, torch.tensor([token]))
                logits = initial(torch.from_numpy(seen)[None]).logits[0, -1, : len(LETTERS)] / config.temperature
            penalty = config.kl_coef * (logprob.item() - logits.log_softmax(-1)[token].item())
            buffer.add(observation, np.array([token]), attempt.rewards[t] - penalty, np.array([t == 0]), value, logprob)
    buffer.compute_returns_and_advantage(torch.zeros(1), np.array([True]))
    parts = shuffled(len(attempts), config.epochs, config.minibatches, [agent.seed, 0], config.kept)
    in_tokens = [np.concatenate([rows[i] for i in part]) for part in parts]
    buffer.minibatches = [in_tokens[i : i + config.minibatches] for i in range(0, len(in_tokens), config.minibatches)]
    sb3.rollout_buffer = buffer
    sb3.set_logger(configure(None, []))

    before = weights(agent)
    learner = agent.make_learner(99)
    # SB3's own epsilon: with a smaller one, Adam makes steps of the rounding where gradients vanish.
    for group in learner.optimizer.param_groups:
        group["eps"] = 1e-5
    told = agent.improve(learner, attempts, 0)
    sb3.train()
    after = weights(agent)
    assert told["reference_kl"] > 1e-4
    theirs = dict(sb3.policy.actor_critic.named_parameters())
    moved = 0.0
    for name, ours in after.items():
        torch.testing.assert_close(ours, theirs[name].data, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
        moved = max(moved, (ours - before[name]).abs().max().item())
    assert moved > 5e-4
    assert (told["updates"] < config.epochs) == (config.target_kl is not None)
    logged = sb3.logger.name_to_value
    assert told["explained_variance"] == pytest.approx(logged["train/explained_variance"], abs=1e-4)
    assert 2 * told["value_loss"] == pytest.approx(logged["train/value_loss"], rel=1e-3)
    assert told["clip_fraction"] == pytest.approx(logged["train/clip_fraction"], abs=1e-6)
    assert told["entropy"] == pytest.approx(-logged["train/entropy_loss"], rel=1e-4)
