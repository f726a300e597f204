"""PPO: one update of Stable-Baselines3's, the first ratio, what may not change a step, a bandit, and going on."""

import itertools
import json
import math
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.logger import configure

from tokengym.agents import on_policy, ppo
from tokengym.agents.ppo import PPO
from tokengym.agents.rollouts.attempts import Attempt
from tokengym.agents.rollouts.collect import collect
from tokengym.agents.sb3 import SB3CausalLMPolicy
from tokengym.agents.training import learner as learner_module
from tokengym.agents.training.learner import Example, Learner
from tokengym.agents.training.losses import clipped_surrogate, value_error
from tokengym.agents.training.reference import shuffled
from tokengym.envs import Problem, ProblemList, SB3VecEnv, TokenVectorEnv
from tokengym.envs.curriculum import Uniform
from tokengym.models import OutcomeModel, load, load_tokenizer
from tokengym.models.critics import ActorCritic
from tokengym.models.forward import logits_of
from tokengym.models.packing import pack
from tokengym.rewards import Reward, SparseReward, Verdict

LETTERS = load_tokenizer("chars:ab?")
EOS = LETTERS.eos_token_id


class Bandit(ProblemList):
    """One question, one right completion among all: "b"."""

    def __init__(self, split: str = "train") -> None:
        super().__init__([Problem("bandit", "?", "b", "b")], split)

    def grade(self, completion: str, problem: Problem) -> Verdict:
        return Verdict(completion == "b", "correct" if completion == "b" else "wrong", completion)


class Letters(ProblemList):
    """Correct is whatever begins with the question's last letter, or with a question."""

    def __init__(self, split: str = "train") -> None:
        super().__init__([Problem(f"{split}-{q}", q + "?", q[-1]) for q in ("a", "b", "ab", "ba", "aab")], split)

    def grade(self, completion: str, problem: Problem) -> Verdict:
        correct = completion.startswith((problem.answer, "?"))
        return Verdict(correct, "correct" if correct else "wrong", completion[:1] or None)


class PerToken(Reward):
    """A dense reward: half for the "b" and half for the end behind it, each at once."""

    def score(self, lengths, ended, verdicts):
        places = (["b"], [LETTERS.eos_token, LETTERS.pad_token])
        paid = np.zeros((len(lengths), max(int(lengths.max()), 1)))
        for slot in np.flatnonzero(lengths):  # one token at a time, as rollouts step
            tokens = LETTERS.convert_ids_to_tokens(self.view.completion(slot).tolist())
            paid[slot, 0] = (len(tokens) <= 2 and tokens[-1] in places[len(tokens) - 1]) / 2
        return paid


def slots(problems: ProblemList, num_envs: int = 16, **settings: Any) -> TokenVectorEnv:
    settings = {"autoreset_mode": "Disabled", "max_new_tokens": 4} | settings
    return TokenVectorEnv(
        problems, num_envs, tokenizer=LETTERS, prompt="{question}", max_prompt_tokens=8,
        copy=False, eos_token_ids=[LETTERS.pad_token_id], **settings,
    )  # fmt: skip


@pytest.fixture(scope="session")
def letters_folders(make_model, tmp_path_factory) -> dict[str, Path]:
    """GPT-2 has dropout 0.1 here, and the pad token is an end of sequence too."""
    folders = {}
    for architecture in ("gpt2", "llama"):
        folders[architecture] = path = tmp_path_factory.mktemp(f"letters-{architecture}")
        ids = {"eos_token_id": [EOS, LETTERS.pad_token_id], "pad_token_id": LETTERS.pad_token_id}
        make_model(architecture, vocab_size=len(LETTERS), **ids).save_pretrained(path)
        LETTERS.save_pretrained(path)
    return folders


FAST = {
    "iterations": 4, "problems_per_iteration": 6, "samples_per_problem": 4, "minibatch_size": 10, "epochs": 2,
    "learning_rate": 3e-3, "validation_problems": 0, "save_iterations": 2, "critic_layers": 1,
}  # fmt: skip


@pytest.fixture
def make(letters_folders):
    def make(problems: type[ProblemList] = Letters, architecture: str = "gpt2", reward: Any = "sparse", **settings):
        return PPO(
            slots(problems(), reward=reward),
            letters_folders[architecture],
            validation_env=slots(problems("validation")),
            device="cpu",
            **(FAST | settings),
        )

    return make


def test_the_policy_that_learns_is_the_truncated_one_that_samples(make) -> None:
    logged: list[dict[str, float]] = []
    settings = {"epochs": 1, "minibatch_size": 24, "bootstrap_truncated": True, "entropy_coef": 0.01}
    agent = make(architecture="llama", temperature=0.8, top_p=0.7, iterations=2, **settings)
    agent.learn(callback=lambda _, metrics: logged.append(metrics))
    for metrics in logged:
        assert metrics["train/mismatch_max"] < 1e-5
        assert (metrics["train/clip_fraction"], metrics["train/approx_kl"]) == (0, 0)
        assert 1 < metrics["rollout/kept_tokens"] < len(LETTERS)
        assert 0 < metrics["train/entropy"] < math.log(len(LETTERS))
    assert logged[0]["train/reference_kl"] == pytest.approx(0, abs=1e-9)


def weights(agent: PPO) -> dict[str, torch.Tensor]:
    pair = ActorCritic(agent.model, agent.critic)
    return {name: parameter.detach().clone() for name, parameter in pair.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def attempts_of(agent: PPO, seed: int = 0) -> list[Attempt]:
    config = agent.config
    agent.env.curriculum = Uniform(repeats=config.samples_per_problem)
    policy = agent.policy.with_sampling(temperature=config.temperature)
    return list(collect(policy, agent.env, config.problems_per_iteration * config.samples_per_problem, seed=seed))


def disturb(agent: PPO, scale: float = 0.05) -> None:
    """Moves policy and critic, so that values are not zero and the reference is another policy."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (*agent.model.parameters(), *agent.critic.parameters()):
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator)


# ------------------------------------------------------------------------------------------------ SB3 as an oracle


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
def test_a_phase_of_updates_equals_that_of_stable_baselines3(make, letters_folders, kind: str, settings: dict) -> None:
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

    env = SB3VecEnv(slots(Letters(), 1, autoreset_mode="SameStep"))
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


# ------------------------------------------------------------------------------------------------ the first ratio


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", ["branch", "head", "model"])
def test_the_first_ratio_is_exactly_one_and_so_are_the_values(make, monkeypatch, architecture: str, kind: str) -> None:
    """Dropout 0.1, pad and end-of-sequence the same token, two end-of-sequence tokens, several micro-batches."""
    agent = make(architecture=architecture, critic=kind, micro_batch_tokens=12, learning_rate=0.05)
    disturb(agent)
    ratios, moves, first = [], [], []

    def surrogate(log_ratios, advantages, mask, *clips):
        ratios.append(log_ratios[mask].exp().detach())
        return clipped_surrogate(log_ratios, advantages, mask, *clips)

    def error(values, old, returns, mask, clip):
        moves.append((values - old)[mask].detach())
        return value_error(values, old, returns, mask, clip)

    real = Learner.update

    def update(self, *args):
        start = len(ratios)
        metrics = real(self, *args)
        first.append((torch.cat(ratios[start:]), torch.cat(moves[start:]), metrics))
        return metrics

    monkeypatch.setattr(ppo, "clipped_surrogate", surrogate)
    monkeypatch.setattr(ppo, "value_error", error)
    monkeypatch.setattr(Learner, "update", update)
    attempts = attempts_of(agent)
    assert {attempt.completion[-1] for attempt in attempts} >= {EOS, LETTERS.pad_token_id}
    agent.model.train()  # learn() puts it back; so does every rollout
    agent.model.eval()
    agent.improve(agent.make_learner(9), attempts, 0)
    assert len(first) == 2 * 3
    assert len(ratios) > len(first)
    ones, zeros, metrics = first[0]
    assert (ones == 1).all()
    assert (zeros == 0).all()
    assert (metrics["clip_fraction"], metrics["approx_kl"]) == (0, 0)
    assert (metrics["ratio_min"], metrics["ratio_max"]) == (1, 1)
    for values, _, metrics in first[1:]:
        assert metrics["ratio_max"] == values.max().item() > 1
        assert metrics["ratio_min"] == values.min().item() < 1
        assert metrics["clip_fraction"] == pytest.approx(((values - 1).abs() > 0.2).float().mean().item(), abs=1e-6)


def test_old_values_and_log_probabilities_are_those_of_every_attempt_alone(make) -> None:
    agent = make(architecture="llama", temperature=0.8)
    disturb(agent)
    attempts = attempts_of(agent)
    examples = [Example(attempt.prompt, attempt.completion) for attempt in attempts]
    logprobs, values = agent.make_learner(1).evaluate(examples, 0.8)
    pair = ActorCritic(agent.model, agent.critic)
    for i, example in enumerate(examples):
        ids = torch.from_numpy(np.concatenate([example.prompt, example.completion]))[None]
        at = torch.arange(ids.shape[1]) >= len(example.prompt) - 1
        at[-1] = False
        with torch.no_grad():
            states, theirs = pair(ids, torch.ones_like(ids), at[None])
            logits = logits_of(agent.model, states)
        distribution = torch.distributions.Categorical(logits=logits / 0.8)
        np.testing.assert_allclose(logprobs[i], distribution.log_prob(ids[0, len(example.prompt) :]), atol=1e-5)
        np.testing.assert_allclose(logprobs[i], attempts[i].logprobs, atol=1e-5)
        np.testing.assert_allclose(values[i], theirs, atol=1e-5)


# ------------------------------------------------------------------------------------------ what may not change a step


def gradient(agent: PPO, attempts: list[Attempt]) -> torch.Tensor:
    """Of the last of a phase's updates, caught where it is applied."""
    learner = agent.make_learner(99)
    caught = []
    learner.optimizer.register_step_pre_hook(
        lambda *_: caught.append(torch.cat([p.grad.flatten() for p in learner.parameters]))
    )
    agent.improve(learner, attempts, 0)
    return torch.stack(caught)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", ["branch", "head", "model"])
def test_attempts_that_share_a_prompt_have_the_gradient_of_each_alone(make, monkeypatch, architecture, kind) -> None:
    settings = {"architecture": architecture, "critic": kind, "learning_rate": 0.0, "entropy_coef": 0.01}
    together, alone = make(**settings), make(**settings)
    disturb(together)
    disturb(alone)
    attempts, sizes = attempts_of(together), []

    def spy(rows, *args, **named):
        sizes.extend(map(len, rows))
        return pack(rows, *args, **named)

    monkeypatch.setattr(learner_module, "pack", spy)
    ours = gradient(together, attempts)
    assert max(sizes) > 1
    sizes.clear()
    monkeypatch.setattr(learner_module, "takes_shared_prompts", lambda _: False)
    theirs = gradient(alone, attempts)
    assert max(sizes) == 1
    assert torch.linalg.norm(ours - theirs) <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("kind", ["branch", "head", "model"])
def test_cutting_a_minibatch_into_micro_batches_changes_nothing(make, kind: str) -> None:
    found = []
    for budget in (10_000, 60, 30, 1):
        agent = make(architecture="llama", critic=kind, micro_batch_tokens=budget, learning_rate=0.0, entropy_coef=0.01)
        disturb(agent)
        found.append(gradient(agent, attempts_of(agent)))
    for cut in found[1:]:
        assert torch.linalg.norm(cut - found[0]) <= 1e-5 * found[0].norm()


@pytest.mark.parametrize("kind", ["branch", "head"])
def test_nan_wherever_there_is_no_action_leaves_gradients_bit_equal(make, monkeypatch, kind: str) -> None:
    clean_agent = make(architecture="llama", critic=kind, learning_rate=0.0, entropy_coef=0.01)
    disturb(clean_agent)
    attempts = attempts_of(clean_agent)
    clean = gradient(clean_agent, attempts)

    agent = make(architecture="llama", critic=kind, learning_rate=0.0, entropy_coef=0.01)
    disturb(agent)
    real = ppo.PPOLearner.forward

    def forward(self, batch, temperature):
        return tuple(torch.where(batch.action_mask, output, torch.nan) for output in real(self, batch, temperature))

    def spread(self, values):
        return torch.where(self.action_mask, real_spread(self, values), torch.nan)

    real_spread = ppo.MicroBatch.spread
    monkeypatch.setattr(ppo.PPOLearner, "forward", forward)
    monkeypatch.setattr(ppo.MicroBatch, "spread", spread)

    def collate(*args):
        batch = real_collate(*args)
        padding = ~batch.inputs.is_token
        assert batch.inputs.shared
        assert padding.any() or len(padding) == 1
        batch.inputs.input_ids[padding] = torch.randint(0, len(LETTERS), (int(padding.sum()),))
        return batch

    real_collate = learner_module.collate
    monkeypatch.setattr(learner_module, "collate", collate)
    assert torch.equal(gradient(agent, attempts), clean)


# ------------------------------------------------------------------------------------------------ learning


BANDIT = {
    "iterations": 30, "problems_per_iteration": 32, "minibatch_size": 64, "learning_rate": 3e-3, "temperature": 1.0,
    "validation_problems": 1, "validation_iterations": 30, "kl_coef": 0.001, "architecture": "llama",
}  # fmt: skip


@pytest.fixture(scope="session")
def judge(letters_folders) -> OutcomeModel:
    """An outcome model that has seen every completion of the bandit's question, and knows the right one."""
    orm = OutcomeModel.from_causal_lm(*load(letters_folders["llama"], device="cpu"), "orm")
    question, right = LETTERS.encode("?"), LETTERS.encode("b")
    letters = LETTERS.encode("ab?")
    written = [list(text) for length in range(4) for text in itertools.product(letters, repeat=length)]
    rows = [(question + text + [end], text == right) for text in written for end in (EOS, LETTERS.pad_token_id)]
    ids = torch.tensor([row + [EOS] * (5 - len(row)) for row, _ in rows])
    lengths, labels = torch.tensor([len(row) for row, _ in rows]), torch.tensor([float(label) for _, label in rows])
    mask, last = torch.arange(5) < lengths[:, None], torch.arange(5) == lengths[:, None] - 1
    optimizer = torch.optim.Adam(orm.model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(orm.logits(ids, mask.long(), last), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    return orm


REWARDS: dict[str, Any] = {
    "sparse": lambda judge: "sparse",
    "dense": lambda judge: PerToken(),
    "sparse_orm": lambda judge: {"name": "sparse_orm", "orm": judge},
    "dense_orm": lambda judge: {"name": "dense_orm", "orm": judge},
}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["branch", "head", "model"])
@pytest.mark.parametrize("reward", REWARDS)
def test_the_best_arm_is_found_with_every_critic_and_reward(make, judge, kind: str, reward: str, seed: int) -> None:
    told: list[dict[str, float]] = []
    agent = make(Bandit, reward=REWARDS[reward](judge), critic=kind, seed=seed, **BANDIT)
    agent.learn(callback=lambda _, metrics: told.append(metrics))
    assert told[0]["rollout/success_rate"] < 0.3
    assert told[-1]["rollout/success_rate"] > 0.9
    assert told[-1]["eval/maj@1"] == 1


def test_the_penalty_holds_the_policy_back_also_with_adapters(make) -> None:
    for settings in ({}, {"lora_rank": 2}, {"trained_layers": 1}):
        distances = []
        for kl_coef in (1e-6, 1.0):
            told: list[dict[str, float]] = []
            agent = make(Bandit, **(BANDIT | {"iterations": 5, "kl_coef": kl_coef} | settings))
            agent.learn(callback=lambda _, metrics, told=told: told.append(metrics))
            assert told[0]["train/reference_kl"] == pytest.approx(0, abs=1e-9)
            distances.append(told[-1]["train/reference_kl"])
        assert distances[1] < 0.5 * distances[0], settings


def test_an_adaptive_coefficient_follows_the_divergence_of_each_iteration(make) -> None:
    told: list[dict[str, float]] = []
    settings = {"adaptive_kl": 0.05, "kl_horizon": 200, "kl_coef": 0.1, "learning_rate": 0.01, "iterations": 8}
    make(**settings).learn(callback=lambda _, metrics: told.append(metrics))
    coefficients = [metrics["train/kl_coef"] for metrics in told]
    divergences = [metrics["train/reference_kl_per_attempt"] for metrics in told]
    assert coefficients[0] == 0.1
    for before, after, divergence in zip(coefficients, coefficients[1:], divergences, strict=False):
        assert after == pytest.approx(before * (1 + np.clip(divergence / 0.05 - 1, -0.2, 0.2) * 24 / 200))
    assert min(coefficients) < 0.1 < coefficients[-1]


def test_the_best_of_the_attempts_at_each_problem_are_kept(make) -> None:
    agent = make(best_of=2, minibatch_size=12)
    attempts = attempts_of(agent)
    kept = agent._best(attempts)
    assert len(kept) == 12
    for group in range(6):
        own, chosen = attempts[4 * group : 4 * group + 4], kept[2 * group : 2 * group + 2]
        assert all(any(attempt is other for other in own) for attempt in chosen)
        worst = min(attempt.total_reward for attempt in chosen)
        assert sum(attempt.total_reward > worst for attempt in own) < 2
    assert agent.improve(agent.make_learner(9), attempts, 0)["updates"] == 2


def test_partial_fine_tuning_leaves_the_lower_layers_alone(make) -> None:
    agent = make(trained_layers=1, kl_coef=0.0)
    before = weights(agent)
    agent.learn()
    changed = {name for name, tensor in weights(agent).items() if not torch.equal(tensor, before[name])}
    policy = {name for name in changed if name.startswith("policy.")}
    assert policy
    assert all(name.startswith(("policy.transformer.h.1.", "policy.transformer.ln_f")) for name in policy)
    with pytest.raises(ValueError, match="choose one"):
        make(trained_layers=1, lora_rank=2)


def test_the_rate_is_a_twentieth_of_that_of_fine_tuning(make) -> None:
    agent = make(learning_rate=None)
    assert agent.make_learner(1).learning_rate == pytest.approx(1e-6)
    agent.model.config.recommended_learning_rate = 1e-3
    assert agent.make_learner(1).learning_rate == pytest.approx(5e-5)


def test_rewards_are_clipped_and_returned_in_full(make) -> None:
    class Generous(SparseReward):
        def attempt_reward(self, attempt):
            return 100.0

    agent = make(reward=Generous(), kl_coef=0.0, reward_clip=3.0)
    told: list[dict[str, float]] = []
    agent.learn(callback=lambda _, metrics: told.append(metrics))
    assert {metrics["rollout/mean_reward"] for metrics in told} == {100}
    assert {metrics["train/mean_return"] for metrics in told} == {3}


# ------------------------------------------------------------------------------------------------ logs


def test_logs_let_a_person_see_trouble(make, tmp_path) -> None:
    agent = make(run=tmp_path / "run", validation_problems=5, validation_iterations=2)
    agent.learn()
    start, *lines = metrics_of(tmp_path / "run", times=True)
    assert start.keys() == {"step", "eval/maj@1", "eval/pass@1", "eval/median_response_length"}
    assert len(lines) == 4
    names = {
        "train/approx_kl", "train/clip_fraction", "train/ratio_max", "train/ratio_min", "train/explained_variance",
        "train/entropy", "train/value_loss", "train/policy_loss", "train/grad_norm", "train/reference_kl",
        "train/kl_coef", "rollout/mean_length", "rollout/truncation_rate", "rollout/success_rate",
        "rollout/mean_reward", "time/tokens_per_second", "time/rollout_share", "time/train_share",
    }  # fmt: skip
    for line in lines:
        assert names <= set(line)
        assert all(math.isfinite(value) for value in line.values())
        assert 0 < line["time/rollout_share"] + line["time/train_share"] <= 1
    assert [line.get("eval/maj@1") is not None for line in lines] == [False, True, False, True]


# ------------------------------------------------------------------------------------------------ going on


def metrics_of(run: Path, times: bool = False) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if times or not name.startswith("time/")} for line in lines]


class Killed(Exception):
    pass


@pytest.mark.parametrize("killed_at", [1, 2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"adaptive_kl": 0.1, "kl_horizon": 50},
        {"lora_rank": 2, "critic": "head", "keep_best": False},
        {"trained_layers": 1, "critic": "model", "best_of": 2},
    ],
)
def test_killed_and_resumed_equals_never_stopped_bit_for_bit(make, tmp_path, settings: dict, killed_at: int) -> None:
    settings = {"validation_problems": 5, "validation_iterations": 1} | settings
    whole = make(run=tmp_path / "whole", **settings).learn()
    told = []

    def kill(agent, metrics):
        told.append(metrics)
        if len(told) == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(run=tmp_path / "cut", **settings).learn(callback=kill)
    resumed = make(run=tmp_path / "cut", resume=True, **settings).learn()
    assert same(weights(whole), weights(resumed))
    assert whole.kl_coef == resumed.kl_coef
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "cut")
    (one,), (other,) = ((tmp_path / run / "training").glob("step-*") for run in ("whole", "cut"))
    assert one.name == other.name
    ours, theirs = load_file(one / "learner.safetensors"), load_file(other / "learner.safetensors")
    assert same(ours, theirs)
    assert any(name.startswith("exp_avg/critic.") for name in ours)
    again = make(run=tmp_path / "cut", resume=True, **settings).learn()  # nothing is left to do
    assert same({k: v for k, v in weights(whole).items() if "policy" in k}, weights(again))


def test_the_best_checkpoint_is_kept_and_patience_ends_learning(make, tmp_path, monkeypatch) -> None:
    script = [0.1, 0.2, 0.6, 0.6, 0.4, 0.5, 0.9, 0.9, 0.9]  # the start first
    seen: list[dict[str, torch.Tensor]] = []

    def validate(policy, env, problems, ranks):
        seen.append({f"policy.{name}": weight.detach().clone() for name, weight in policy.model.named_parameters()})
        return {"eval/maj@1": script[len(seen) - 1]}

    monkeypatch.setattr("tokengym.agents.on_policy.validate", validate)
    settings = {"iterations": 8, "validation_problems": 5, "validation_iterations": 1, "patience": 3}
    agent = make(run=tmp_path / "run", **settings).learn()
    assert len(seen) == 6
    policy = seen[2]
    assert same(policy, weights(agent))
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert torch.equal(saved["transformer.wte.weight"], policy["policy.transformer.wte.weight"])
    again = make(run=tmp_path / "run", resume=True, **settings).learn()
    assert len(seen) == 6  # it had ended
    assert same(policy, weights(again))


def test_a_resumed_run_with_another_configuration_says_which_field(make, tmp_path) -> None:
    make(run=tmp_path / "run", iterations=1).learn()
    with pytest.raises(ValueError, match=r"another configuration.*clip: 0\.2 -> 0\.3"):
        make(run=tmp_path / "run", iterations=1, clip=0.3, resume=True)


# ------------------------------------------------------------------------------------------------ bad input


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
def test_a_reward_that_is_not_finite_stops_with_the_step_and_keeps_batch_and_checkpoint(make, tmp_path, value) -> None:
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
def test_a_loss_or_gradient_that_is_not_finite_is_not_applied(make, tmp_path, monkeypatch, what: str) -> None:
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


# ------------------------------------------------------------------------------------------------ two ranks

TWO_RANKS = """
    import sys
    import torch
    from safetensors.torch import save_file
    from tokengym.agents.ppo import PPO
    from tokengym.envs import Problem, ProblemList, TokenVectorEnv
    from tokengym.models import load_tokenizer
    from tokengym.models.critics import ActorCritic
    from tokengym.rewards import Verdict
    from tokengym.rewards.base import AttemptReward

    torch.set_num_threads(1)

    class Dense(AttemptReward):
        def attempt_reward(self, attempt):
            return float(attempt.tokens.sum()) / 10

    class Letters(ProblemList):
        def grade(self, completion, problem):
            return Verdict(completion.startswith(problem.answer), "", completion[:1])

    letters = Letters([Problem(q, q + "?", q[-1], q[-1]) for q in ("a", "b", "ab", "ba", "aab")])
    tokenizer = load_tokenizer("chars:ab?")
    slots = lambda: TokenVectorEnv(letters, 4, reward=Dense(), tokenizer=tokenizer, prompt="{question}",
                                   max_prompt_tokens=4, max_new_tokens=3, autoreset_mode="Disabled",
                                   eos_token_ids=[tokenizer.pad_token_id])
    tensors = {}
    for critic in ("branch", "head", "model"):
        agent = PPO(slots(), sys.argv[2], validation_env=slots(), device="cpu", iterations=2, epochs=2,
                    problems_per_iteration=5, samples_per_problem=3, minibatch_size=5, micro_batch_tokens=20,
                    learning_rate=1e-3, validation_problems=5, critic=critic, critic_layers=1, entropy_coef=0.01,
                    run=f"{sys.argv[3]}-{critic}", keep_best=False)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():  # no gradient may vanish: Adam would make steps of its rounding
            for parameter in (*agent.model.parameters(), *agent.critic.parameters()):
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        told = []
        names = ("loss", "grad_norm", "approx_kl", "ratio_max", "ratio_min", "entropy", "reference_kl")
        agent.learn(callback=lambda _, metrics: told.append([metrics[f"train/{n}"] for n in names]))
        pair = ActorCritic(agent.model, agent.critic)
        tensors |= {f"{critic}.{n}": p.detach().clone() for n, p in pair.named_parameters()}
        tensors[f"{critic}.told"] = torch.tensor(told)
    if agent.accelerator.is_main_process:
        save_file({n: t.contiguous() for n, t in tensors.items()}, sys.argv[1])
    agent.accelerator.end_training()
"""


def test_two_ranks_give_the_parameters_of_one(letters_folders, tmp_path) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(TWO_RANKS))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for ranks in (1, 2):
        command = [sys.executable, *(launch if ranks == 2 else []), script, tmp_path / f"{ranks}"]
        command += [letters_folders["llama"], tmp_path / f"run-{ranks}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, re.sub(r"(?s).*(Traceback)", r"\1", done.stderr)
    one, two = load_file(tmp_path / "1"), load_file(tmp_path / "2")
    for name, tensor in one.items():
        # Adam turns the rounding of a vanishing gradient into a step of its own.
        atol = 1e-3 if name.endswith("told") else 5e-4
        torch.testing.assert_close(two[name], tensor, atol=atol, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


# ---------------------------------------------------------------------------------------------- options of the critic


def test_the_critic_has_a_rate_of_its_own_ten_times_the_policys_by_default(make) -> None:
    def rates(**settings) -> list[float]:
        learner = make(learning_rate=1e-3, warmup_ratio=0.0, **settings).make_learner(10)
        return [learner.learning_rate * group["ratio"] for group in learner.optimizer.param_groups]

    assert rates() == pytest.approx([1e-3, 1e-2])
    assert rates(critic_learning_rate=5e-4) == pytest.approx([1e-3, 5e-4])
    with pytest.raises(ValueError, match="critic_learning_rate needs a learning_rate above 0"):
        make(learning_rate=0.0, critic_learning_rate=1e-3).make_learner(10)


@pytest.mark.parametrize("kind", ["branch", "head", "model"])
def test_in_the_warmup_only_the_critic_learns(make, kind: str) -> None:
    agent = make(critic=kind, critic_warmup=2, iterations=3, entropy_coef=0.1, weight_decay=0.1)
    before, seen = weights(agent), []

    def callback(agent: PPO, metrics: dict[str, float]) -> None:
        moved = {name for name, weight in weights(agent).items() if not torch.equal(weight, before[name])}
        seen.append({name.split(".")[0] for name in moved})

    agent.learn(callback=callback)
    assert seen == [{"critic"}, {"critic"}, {"critic", "policy"}]


def test_the_critics_returns_take_a_lambda_of_their_own(make) -> None:
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


def test_cut_off_attempts_are_paid_what_the_critic_still_expects(make) -> None:
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


def test_a_saved_critic_goes_on_and_one_of_another_shape_is_refused(make, letters_folders, tmp_path) -> None:
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


def test_the_start_counts_for_the_best_checkpoint(make, monkeypatch) -> None:
    accuracies = iter([0.9, 0.1, 0.2])
    validated = lambda *args: {"eval/maj@1": next(accuracies), "eval/pass@1": 0.0, "eval/median_response_length": 1.0}  # noqa: E731
    monkeypatch.setattr(on_policy, "validate", validated)
    agent = make(validation_problems=1, validation_iterations=1, iterations=2, patience=None)
    before = {name: weight.clone() for name, weight in agent.model.named_parameters()}
    agent.learn()
    assert same(before, dict(agent.model.named_parameters()))
    assert next(accuracies, None) is None


def test_a_second_call_of_learn_continues_with_critic_optimizer_and_reference(make, tmp_path) -> None:
    settings = {"iterations": 1, "save_iterations": 1, "keep_best": False, "patience": None, "kl_coef": 0.1}
    whole = make(**settings | {"iterations": 2}).learn()
    halves = make(**settings).learn()
    halves.save(tmp_path / "saved", optimizer=True)
    environments = {"env": slots(Letters()), "validation_env": slots(Letters("validation"))}
    loaded = PPO.load(tmp_path / "saved", device="cpu", **environments).learn()
    plain = PPO.load(tmp_path / "saved", device="cpu", **environments)
    assert same(weights(plain), weights(halves))
    halves.learn()
    assert same(weights(whole), weights(halves))
    assert same(weights(whole), weights(loaded))
