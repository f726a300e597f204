"""Agents in bfloat16: all weights move, what is saved is the policy, and a reference is the policy before learning."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokengym.agents import make_agent
from tokengym.agents.base import Agent
from tokengym.agents.training.learner import Example
from tokengym.agents.training.masters import join
from tokengym.agents.training.reference import Reference
from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.models import load
from tokengym.models.engine.decoder import SlotDecoder
from tokengym.models.engine.half_copy import HalfCopy
from tokengym.rewards import Verdict

EXAMPLES = [Example(np.array([1, 2, 3]), np.array([4, 5, 16])), Example(np.array([7]), np.array([8, 9]))]


class Digits(ProblemList):
    """Correct is whatever begins with a digit, as about half of what a random model writes does."""

    def __init__(self, split: str = "train") -> None:
        super().__init__([Problem(f"{split}-{i}", f"{i}+", "1", "1") for i in range(10)], split)

    def grade(self, completion: str, problem: Problem) -> Verdict:
        return Verdict(completion[:1].isdigit(), "", completion[:1])


@pytest.fixture
def digits(tokenizer: Any) -> TokenVectorEnv:
    return TokenVectorEnv(
        Digits(), 4, tokenizer=tokenizer, prompt="{question}", max_prompt_tokens=8, max_new_tokens=4,
        autoreset_mode="Disabled", copy=False,
    )  # fmt: skip


def make(kind: str, env: Any, model: Path, **settings: Any) -> Agent:
    small = {"iterations": 2, "problems_per_iteration": 8, "samples_per_problem": 4, "validation_problems": 0}
    if kind == "ppo":
        small |= {"minibatch_size": 8, "critic_layers": 1, "epochs": 2, "keep_best": False, "patience": None}
    if kind == "grpo":
        small |= {"epochs": 2, "minibatches": 4}
    return make_agent(kind, env, model, **{"device": "cpu", "num_envs": 4, **small, **settings})  # pyright: ignore


def test_ppo_moves_as_many_weights_of_policy_and_critic_as_in_float32(digits: Any, folder: Path) -> None:
    """At a rate whose steps bfloat16 does not show."""
    shares = {}
    for dtype in ("float32", "bfloat16"):
        agent = make("ppo", digits, folder, dtype=dtype, learning_rate=1e-6)
        learners = []
        make_learner = agent.make_learner  # pyright: ignore[reportAttributeAccessIssue]
        agent.make_learner = lambda steps, made=learners, make=make_learner: made.append(make(steps)) or made[0]  # pyright: ignore
        before = {name: weight.detach().float().clone() for name, weight in agent.model.named_parameters()}
        before |= {f"critic.{name}": weight.detach().clone() for name, weight in agent.critic.named_parameters()}  # pyright: ignore
        agent.learn()
        changed = {"policy": [0, 0], "critic": [0, 0]}
        for name, weight in learners[0].base.named_parameters():
            assert weight.dtype == getattr(torch, dtype) or name.startswith("critic.head")
            state = learners[0].optimizer.state[weight]
            now = join(weight, state["low"]) if "low" in state else weight.detach()
            moved = now != before[name.removeprefix("policy.")]
            part = changed[name.split(".")[0]]
            part[0] += int(moved.sum())
            part[1] += moved.numel()
        shares[dtype] = {part: moved / total for part, (moved, total) in changed.items()}
    for part, share in shares["float32"].items():
        assert share > 0.3, part
        assert shares["bfloat16"][part] > 0.9 * share, (part, shares)


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_what_an_agent_saves_is_the_policy_that_it_has(digits: Any, folder: Path, tmp_path: Path, kind: str) -> None:
    settings: dict[str, Any] = {"dtype": "bfloat16", "lora_rank": 2, "learning_rate": 1e-5, "run": tmp_path / "run"}
    if kind == "sft":
        agent = make_agent(
            "sft", digits, folder, device="cpu", validation_env=digits, epochs=2, batch_size=4, **settings
        )
    else:
        agent = make(kind, digits, folder, **settings)
    agent.learn()
    ids = torch.tensor([[1, 2, 3, 4, 5, 16]])
    with torch.no_grad():
        expected = agent.model(ids).logits
        adapted = load(tmp_path / "run" / "model" / "adapter", device="cpu", dtype="bfloat16")[0](ids).logits
        merged = load(tmp_path / "run" / "model", device="cpu")[0](ids).logits
        base = load(folder, device="cpu")[0](ids).logits
    assert torch.equal(adapted, expected)
    exact = agent.model.float()(ids).logits.detach()
    assert (merged - exact).abs().max() < 0.01 * (base - exact).abs().max()


def test_a_reference_of_trained_adapters_is_the_policy_with_them(digits: Any, folder: Path, tmp_path: Path) -> None:
    first = make("grpo", digits, folder, lora_rank=2, learning_rate=1e-2).learn()
    first.save(tmp_path / "first")
    agent = make("grpo", digits, tmp_path / "first" / "adapter", learning_rate=1e-2, kl_coef=0.1)
    learner = agent.make_learner(8)  # pyright: ignore[reportAttributeAccessIssue]
    before = np.concatenate(learner.logprobs(EXAMPLES))
    reference = Reference(agent.model)
    agent.learn()
    learned = np.concatenate(learner.logprobs(EXAMPLES))
    assert np.abs(learned - before).max() > 1e-3
    np.testing.assert_array_equal(np.concatenate(reference.logprobs(learner, EXAMPLES, 1.0)), before)
    np.testing.assert_array_equal(np.concatenate(learner.logprobs(EXAMPLES)), learned)


# ------------------------------------------------------------------------------------------- sampling under autocast


def mismatches(agent: Agent) -> list[float]:
    logged: list[dict[str, float]] = []
    agent.learn(callback=lambda _, metrics: logged.append(metrics))
    return [metrics["train/mismatch"] for metrics in logged]


@pytest.mark.parametrize("lora_rank", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_training_in_bfloat16_samples_with_its_newest_weights(
    digits: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, lora_rank: int | None
) -> None:
    """The mismatch shows a copy that is not the policy: the float32 weights, or those of the iteration before."""
    settings: dict[str, Any] = {"bf16": True, "learning_rate": 5e-3, "iterations": 2, "lora_rank": lora_rank}
    found = mismatches(make("grpo", digits, folder, **settings))
    assert max(found) < 2e-3
    monkeypatch.setattr(HalfCopy, "newest", lambda self: self.model.eval())
    assert np.mean(mismatches(make("grpo", digits, folder, **settings))) > 2 * np.mean(found)
    monkeypatch.undo()
    first = HalfCopy.newest
    copies: dict[HalfCopy, Any] = {}
    monkeypatch.setattr(
        HalfCopy, "newest", lambda self: copies[self] if self in copies else copies.setdefault(self, first(self))
    )
    stale = mismatches(make("grpo", digits, folder, **settings))
    assert stale[0] == pytest.approx(found[0], abs=1e-6)
    assert max(stale[1:]) > 5e-3


def test_a_model_in_anothers_place_is_what_decodes(digits: Any, folder: Path) -> None:
    """As outcome-conditioned agents replace theirs when they learn."""
    agent = make("grpo", digits, folder, bf16=True)
    before = agent.policy.decoder(2)
    agent.model = copy.deepcopy(agent.model)
    with torch.no_grad():
        for weight in agent.model.parameters():
            weight += 1
    after = agent.policy.decoder(2)
    assert isinstance(before, SlotDecoder)
    assert isinstance(after, SlotDecoder)
    for name, weight in agent.model.named_parameters():
        assert torch.equal(after.model.get_parameter(name).float(), weight.to(after.model.get_parameter(name)).float())
        assert not torch.equal(after.model.get_parameter(name), before.model.get_parameter(name))


def test_validation_and_what_is_asked_of_a_trained_agent_use_the_copy(digits: Any, folder: Path) -> None:
    settings: dict[str, Any] = {"bf16": True, "validation_problems": 4, "validation_env": digits, "keep_best": True}
    agent = make("ppo", digits, folder, **settings).learn()
    decoder = agent.policy.decoder(2)
    assert isinstance(decoder, SlotDecoder)
    halves = {name for name, weight in decoder.model.named_parameters() if weight.dtype == torch.bfloat16}
    assert halves
    for name, weight in agent.model.named_parameters():
        assert weight.dtype == torch.float32
        if name in halves:
            assert torch.equal(decoder.model.get_parameter(name), weight.to(torch.bfloat16))
    exact = make("ppo", digits, folder, validation_problems=4, validation_env=digits)
    assert exact.policy.decoder(2).model is exact.model
    short = make("ppo", digits, folder, dtype="bfloat16", bf16=True)
    assert short.policy.decoder(2).model is short.model
