"""A model with sliding windows is evaluated as transformers' own `generate` decodes it, far past its window."""

import copy
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from tokengym.agents.evaluation.evaluate import evaluate
from tokengym.agents.rollouts.conditioned_policy import load_policy
from tokengym.agents.rollouts.slots import make_rollout_env
from tokengym.models import load

PROBLEMS, WINDOW = 16, 48


@pytest.fixture(scope="module")
def windowed(tmp_path_factory) -> Path:
    """The built-in model's weights, each token seeing the last 48 alone: it still solves some problems."""
    model, tokenizer = load("tokengym/tiny")
    config = {**model.config.to_dict(), "sliding_window": WINDOW}
    for name in ("model_type", "architectures", "attention_bias", "mlp_bias", "pretraining_tp"):
        config.pop(name, None)
    other = MistralForCausalLM(MistralConfig(**config))
    other.load_state_dict(model.state_dict())
    folder = tmp_path_factory.mktemp("windowed")
    other.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_greedy_decoding_and_its_accuracy_are_those_of_generate(windowed: Path) -> None:
    policy = load_policy(windowed, device="cpu")
    spec = copy.deepcopy(gym.spec("tokengym/Arithmetic-v0"))
    spec.kwargs["steps"] = [1, 2]
    env = make_rollout_env(spec, policy, 12, split="test")
    completions: list[list[int]] = []
    result = evaluate(
        policy, env, problems=PROBLEMS, on_problem=lambda group: completions.append(group[0].completion.tolist())
    )
    right = 0
    lengths: list[int] = []
    for index, completion in enumerate(completions):
        problem = env.problems[index]
        prompt = torch.tensor(env.encode_prompt(problem))[None]
        generated = policy.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=env.max_new_tokens
        )
        assert generated[0, prompt.shape[1] :].tolist() == completion
        right += env.problems.grade(env.decode(generated[0, prompt.shape[1] :].numpy()), problem).correct
        lengths.append(generated.shape[1])
    assert result.metrics["maj@1"].value == right / PROBLEMS
    assert 0 < right < PROBLEMS
    assert sum(length > WINDOW for length in lengths) > PROBLEMS / 2
