"""Agents that train adapters on weights in 4 bits (QLoRA)."""

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokengym.__main__ import main
from tokengym.agents import evaluate, load_policy, make_agent
from tokengym.agents.rollouts.slots import make_rollout_env
from tokengym.models.quantized import is_in_4bit

pytest.importorskip("bitsandbytes")

SMALL: dict[str, Any] = {"device": "cpu", "num_envs": 4, "load_in_4bit": True, "lora_rank": 2}
ON_POLICY = {"iterations": 1, "problems_per_iteration": 4, "samples_per_problem": 4, "validation_problems": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"demonstrations": 8, "epochs": 1, "validation_problems": 2},
    "ei": {"demonstrations": 8, "rounds": 1, "problems": 2, "samples_per_problem": 2, "epochs": 1,
           "validation_problems": 2},
    "grpo": {**ON_POLICY, "kl_coef": 0.1, "scale": "none"},
    "ppo": {**ON_POLICY, "minibatch_size": 8, "epochs": 1, "critic_layers": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A model whose rows blocks of 64 divide."""
    path = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("name", SETTINGS)
def test_agents_train_adapters_on_weights_in_4_bits(name: str, tmp_path: Path, sums: Any, folder: Path) -> None:
    settings = {**SMALL, **SETTINGS[name], "run": tmp_path / "run", "learning_rate": 1e-2}
    agent = make_agent(name, sums, folder, **settings, optimizer="adamw_8bit")
    before = {key: parameter.detach().clone() for key, parameter in agent.model.named_parameters()}
    agent.learn()
    changed = {key for key, parameter in agent.model.named_parameters() if not torch.equal(parameter, before[key])}
    assert all(".lora_" in key for key in changed)
    assert changed or name in ("grpo", "ppo"), "where a random policy may solve nothing"
    # What it leaves in its folder is the policy: in 4 bits bit for bit, and as a plain model.
    ids = torch.arange(12)[None]
    policy = load_policy(tmp_path / "run" / "model" / "adapter", device="cpu", load_in_4bit=True)
    assert is_in_4bit(policy.model)
    with torch.no_grad():
        assert torch.equal(policy.model(ids).logits, agent.model.eval()(ids).logits)
        whole = load_policy(tmp_path / "run" / "model", device="cpu").model
        assert torch.allclose(whole(ids).logits, agent.model(ids).logits, atol=1e-4)
    env = make_rollout_env(sums.spec, policy, 2)
    assert evaluate(policy, env, problems=2, n=2).problems == 2
    with pytest.raises(ValueError, match="load_in_4bit"):
        make_agent(name, sums, folder, **{**settings, "load_in_4bit": False}, optimizer="adamw_8bit", resume=True)


def test_a_run_in_4_bits_continues_from_its_checkpoint(tmp_path: Path, sums: Any, folder: Path) -> None:
    settings = {**SMALL, **SETTINGS["sft"], "epochs": 2, "save_steps": 1, "batch_size": 4}
    whole = make_agent("sft", sums, folder, **settings, optimizer="adamw_8bit").learn()

    class Stopped(Exception): ...

    def stop(agent: Any, metrics: dict[str, float]) -> None:
        raise Stopped

    half = make_agent("sft", sums, folder, **settings, optimizer="adamw_8bit", run=tmp_path / "run")
    with pytest.raises(Stopped):
        half.learn(callback=stop)
    del half
    again = make_agent("sft", sums, folder, **settings, optimizer="adamw_8bit", run=tmp_path / "run", resume=True)
    again.learn()
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, whole.model.get_parameter(name)), name


def test_a_missing_package_is_said_before_anything_is_sampled(sums: Any, folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        ImportError, match=r'moments in 8 bits needs bitsandbytes.*pip install "tokengym\[quantization\]"'
    ):
        make_agent("ei", sums, folder, device="cpu", num_envs=4, optimizer="adamw_8bit")


def test_what_cannot_be_is_one_line(sums: Any, folder: Path, caplog: pytest.LogCaptureFixture, capsys: Any) -> None:
    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "weights in 4 bits are frozen, and adapters on them are trained: give lora_rank": ("sft", {"lora_rank": None}),
        "trains weights as a whole: leave out load_in_4bit": ("orm", {}),
        'compute in bfloat16 by dtype="bfloat16": leave out bf16': ("grpo", {"bf16": True}),
    }
    for message, (name, settings) in cases.items():
        with pytest.raises(ValueError, match=message):
            make_agent(name, sums, folder, **{**SMALL, **settings})
    with caplog.at_level(logging.ERROR):
        assert main(["train", "sft", "--load-in-4bit", "--device", "cpu"]) == 1
    assert capsys.readouterr().err == (
        "tokengym: weights in 4 bits are frozen, and adapters on them are trained: give lora_rank, too\n"
    )
