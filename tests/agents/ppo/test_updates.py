"""The first ratio and the old values, and what may not change a step."""

import numpy as np
import pytest
import torch

from tokengym.agents import ppo
from tokengym.agents.ppo import PPO
from tokengym.agents.rollouts.attempts import Attempt
from tokengym.agents.training import learner as learner_module
from tokengym.agents.training.learner import Example, Learner
from tokengym.agents.training.losses import clipped_surrogate, value_error
from tokengym.models import load_tokenizer
from tokengym.models.critics import ActorCritic
from tokengym.models.forward import logits_of
from tokengym.models.packing import pack

LETTERS = load_tokenizer("chars:ab?")
EOS = LETTERS.eos_token_id


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", ["branch", "head", "model"])
def test_the_first_ratio_is_exactly_one_and_so_are_the_values(
    attempts_of, disturb, make, monkeypatch, architecture: str, kind: str
) -> None:
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


def test_old_values_and_log_probabilities_are_those_of_every_attempt_alone(attempts_of, disturb, make) -> None:
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
def test_attempts_that_share_a_prompt_have_the_gradient_of_each_alone(
    attempts_of, disturb, make, monkeypatch, architecture, kind
) -> None:
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
def test_cutting_a_minibatch_into_micro_batches_changes_nothing(attempts_of, disturb, make, kind: str) -> None:
    found = []
    for budget in (10_000, 60, 30, 1):
        agent = make(architecture="llama", critic=kind, micro_batch_tokens=budget, learning_rate=0.0, entropy_coef=0.01)
        disturb(agent)
        found.append(gradient(agent, attempts_of(agent)))
    for cut in found[1:]:
        assert torch.linalg.norm(cut - found[0]) <= 1e-5 * found[0].norm()


@pytest.mark.parametrize("kind", ["branch", "head"])
def test_nan_wherever_there_is_no_action_leaves_gradients_bit_equal(
    attempts_of, disturb, make, monkeypatch, kind: str
) -> None:
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
