"""Agents and policies whose decoder is compiled."""

import functools

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from tokengym.agents.grpo import GRPO
from tokengym.agents.rollouts.conditioned_policy import ConditionedPolicy
from tokengym.agents.rollouts.policy import CausalLMPolicy
from tokengym.files import read_jsonl
from tokengym.models.engine import compiled_decoder, padded_decoder
from tokengym.models.loading import load


def test_a_model_decoded_by_rows_is_refused():
    _, tokenizer = load("tokengym/tiny", device="cpu")
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=16, state_size=4, num_hidden_layers=1)
    policy = CausalLMPolicy(MambaForCausalLM(config), tokenizer)
    policy.check()
    with pytest.raises(
        ValueError, match="MambaForCausalLM is decoded one row at a time, which is neither compiled nor"
    ):
        policy.with_compiled(True).check()


def test_vllm_and_a_compiled_decoder_are_refused_together():
    policy = CausalLMPolicy(*load("tokengym/tiny", device="cpu"))
    with pytest.raises(ValueError, match="vLLM and compile_decoder are two ways to sample: leave one"):
        policy.with_vllm(object()).with_compiled(True).check()


def test_a_policy_under_labels_is_refused():
    policy = object.__new__(ConditionedPolicy)
    assert policy.with_compiled(False) is policy
    with pytest.raises(ValueError, match="acts under labels is not sampled by compiled steps: leave out"):
        policy.with_compiled(True)


@pytest.mark.slow
def test_training_samples_the_same_attempts(monkeypatch, tmp_path):
    step = torch.compile(padded_decoder.step, fullgraph=True, dynamic=True, backend="eager")
    monkeypatch.setattr(compiled_decoder, "compiled_step", functools.cache(lambda: step))
    runs = []
    for compiled in (False, True):
        agent = GRPO(
            "tokengym/Arithmetic-v0", num_envs=16, device="cpu", compile_decoder=compiled, iterations=2,
            problems_per_iteration=8, samples_per_problem=4, validation_problems=8, run=tmp_path / str(compiled),
        )  # fmt: skip
        agent.learn()
        runs.append(read_jsonl(tmp_path / str(compiled) / "metrics.jsonl"))
    for plain, found in zip(*runs, strict=True):
        for name in plain.keys() & {"rollout/success_rate", "rollout/mean_length", "eval/maj@1", "train/grad_norm"}:
            assert found[name] == pytest.approx(plain[name], rel=1e-3)
    assert sum("rollout/mean_length" in line and "train/grad_norm" in line for line in runs[0]) == 2


def test_cuda_graphs_without_a_gpu_are_refused():
    policy = CausalLMPolicy(*load("tokengym/tiny", device="cpu"))
    with pytest.raises(ValueError, match="cuda_graphs needs a GPU, and the model is on cpu: leave it out"):
        policy.with_graphs(True).check()
    with pytest.raises(ValueError, match="cuda_graphs needs a GPU"):
        GRPO("tokengym/Arithmetic-v0", device="cpu", cuda_graphs=True)
    with pytest.raises(ValueError, match="vLLM and cuda_graphs are two ways to sample: leave one"):
        policy.with_vllm(object()).with_graphs(True).check()
    labels = object.__new__(ConditionedPolicy)
    assert labels.with_graphs(False) is labels
    with pytest.raises(ValueError, match="acts under labels is not sampled by CUDA graphs: leave out"):
        labels.with_graphs(True)
