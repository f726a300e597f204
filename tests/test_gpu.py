"""What a GPU computes, against a CPU: `python -m pytest -m gpu` on a machine that has one."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from tokengym.agents import GRPO, make_agent
from tokengym.agents.planning import Planned
from tokengym.agents.rollouts.collect import collect
from tokengym.agents.rollouts.policy import CausalLMPolicy
from tokengym.agents.rollouts.slots import make_rollout_env
from tokengym.agents.training.memory import GIB, Limits
from tokengym.benchmarks.studies.tiny_architectures import tiny_config, tiny_model
from tokengym.models import load
from tokengym.models.engine import graph_decoder
from tokengym.models.engine.decoder import SlotDecoder
from tokengym.models.engine.graph_decoder import GraphDecoder
from tokengym.models.engine.half_copy import HalfCopy
from tokengym.models.engine.sampling import GREEDY, SamplingConfig

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
DEVICE = "cuda"
V = 97


@pytest.fixture(autouse=True)
def no_faults():
    """No model of these tests is decoded without graphs."""
    yield
    assert not any(fault for faults in graph_decoder._FAULTS.values() for fault in faults.values())


def history(decoder, config):
    """Tokens and log-probabilities of attempts that end, retire and begin anew at random, by slots."""
    rng = np.random.default_rng(0)
    slots = np.arange(decoder.num_slots)
    prompt = lambda: rng.integers(3, V, rng.integers(1, 90))  # noqa: E731
    decoder.begin(slots, [prompt() for _ in slots], slots)
    tokens, logprobs = [], []
    for number in range(60):
        drawn = decoder.step(config)
        order = np.argsort(decoder.slots)
        tokens.append(drawn[0][order])
        logprobs.append(drawn[1][order])
        if number in (5, 25):
            decoder.retire(rng.choice(decoder.slots, len(decoder.slots) * 2 // 3, replace=False))
        if number == 35:
            fresh = np.setdiff1d(slots, decoder.slots)[: len(slots) // 2]
            decoder.begin(fresh, [prompt() for _ in fresh], 1000 + fresh)
    return np.concatenate(tokens), np.concatenate(logprobs)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("config", [SamplingConfig(), GREEDY, SamplingConfig(top_k=5)], ids=str)
def test_replayed_steps_draw_what_plain_ones_draw(kind, config):
    model = tiny_model(tiny_config(kind, V)).to(DEVICE)
    tokens, logprobs = history(SlotDecoder(model, 20, V), config)
    found, found_logprobs = history(GraphDecoder(model, 20, V), config)
    same = found == tokens
    assert same.mean() > 0.98  # a draw between two tokens may fall to either side, and all after it differ
    np.testing.assert_allclose(found_logprobs[:20], logprobs[:20], atol=1e-4)


@pytest.mark.parametrize("change", ["adapters", "half", "bfloat16"])
def test_replayed_steps_of_adapters_and_in_half_precision_are_close_to_plain_ones(change):
    model = tiny_model(tiny_config("llama", V)).to(DEVICE)
    if change == "adapters":
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).eval()
    elif change == "half":
        model = HalfCopy(model).newest()
    else:
        model = model.to(torch.bfloat16)
    one, other = (kind(model, 20, V) for kind in (SlotDecoder, GraphDecoder))
    for decoder in (one, other):
        decoder.begin(np.arange(20), [np.arange(3, 5 + 3 * i) % V for i in range(20)], np.arange(20))
    (tokens, logprobs), (found, found_logprobs) = one.step(SamplingConfig()), other.step(SamplingConfig())
    same = tokens == found
    assert same.mean() >= 0.9
    np.testing.assert_allclose(found_logprobs[same], logprobs[same], atol=1e-4 if change == "adapters" else 0.1)


@pytest.mark.parametrize("graphs", [False, True])
def test_attempts_on_a_gpu_are_those_on_a_cpu(graphs):
    found = []
    for number, device in enumerate(("cpu", DEVICE)):
        model, tokenizer = load("tokengym/tiny", device=device)
        policy = CausalLMPolicy(model, tokenizer).with_graphs(graphs and number == 1)
        env = make_rollout_env(gym.spec("tokengym/Arithmetic-v0"), policy, 32)
        found.append([attempt.completion.tolist() for attempt in collect(policy, env, 128, seed=0)])
    assert np.mean([one == other for one, other in zip(*found, strict=True)]) > 0.9


@pytest.mark.parametrize("name", ["sft", "grpo", "ppo", "reinforce", "dpo", "rcrl"])
def test_an_agent_learns_on_a_gpu_what_it_learns_on_a_cpu(name, tmp_path):
    sizes = {
        "sft": {"demonstrations": 64, "epochs": 1},
        "dpo": {"rounds": 1, "problems": 24, "samples_per_problem": 8},
        "rcrl": {"problems": 24, "epochs": 1},
    }.get(name, {"iterations": 2, "problems_per_iteration": 8, "samples_per_problem": 4})
    if name == "ppo":
        sizes["minibatch_size"] = 32
    logs = []
    for number, device in enumerate(("cpu", DEVICE)):
        run = tmp_path / str(number)
        make_agent(
            name, "tokengym/Arithmetic-v0", seed=0, device=device, run=run, validation_problems=16, **sizes
        ).learn()
        logs.append([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()])
    compared = 0
    for one, other in zip(*logs, strict=True):
        for key in (
            one.keys() & other.keys() & {"train/loss", "train/grad_norm", "train/policy_loss", "train/value_loss"}
        ):
            assert other[key] == pytest.approx(one[key], rel=0.05, abs=1e-3)
            compared += 1
    assert compared


@pytest.mark.parametrize("settings", [{"bf16": True}, {"bf16": True, "gradient_checkpointing": True}], ids=str)
def test_half_precision_learns_close_to_single(settings, tmp_path):
    losses = []
    for number, own in enumerate(({}, settings)):
        run = tmp_path / str(number)
        make_agent(
            "sft", "tokengym/Arithmetic-v0", seed=0, device=DEVICE, run=run, demonstrations=64, epochs=1, **own
        ).learn()
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["train/loss"] for line in lines if "train/loss" in line])
    np.testing.assert_allclose(*losses, rtol=0.05)


def test_a_run_on_a_gpu_continues_where_it_was_stopped(tmp_path):
    def agent(run, **settings):
        return make_agent(
            "grpo", "tokengym/Arithmetic-v0", seed=0, device=DEVICE, run=tmp_path / run, problems_per_iteration=4,
            samples_per_problem=4, validation_problems=0, save_iterations=1, **settings,
        )  # fmt: skip

    agent("whole", iterations=2).learn()
    agent("parts", iterations=1).learn()
    agent("parts", iterations=2, resume=True).learn()
    one, other = ((tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("whole", "parts"))
    last = [json.loads(lines[-1]) for lines in (one, other)]
    assert last[1]["rollout/mean_length"] == pytest.approx(last[0]["rollout/mean_length"], rel=0.1)


def test_a_run_takes_no_more_than_its_plan(tmp_path):
    wide = LlamaConfig(
        hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4,
        vocab_size=20_000, max_position_embeddings=512,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(wide).save_pretrained(tmp_path)
    load("tokengym/tiny", device="cpu")[1].save_pretrained(tmp_path)
    settings = {"iterations": 1, "problems_per_iteration": 8, "samples_per_problem": 8, "micro_batch_tokens": 4096}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    agent = make_agent(
        "grpo", "tokengym/Arithmetic-v0", tmp_path, device=DEVICE, num_envs=64, validation_problems=0, **settings
    )
    held = torch.cuda.memory_allocated() - sum(weight.nbytes for weight in agent.model.parameters())
    agent.learn()
    peak = torch.cuda.max_memory_allocated() - held
    limits = Limits(64, agent.env.max_prompt_tokens, agent.env.max_new_tokens)
    planned = Planned(GRPO, agent.config, wide, limits, 80 * GIB).plan.peak
    assert 0.3 * planned < peak < 1.05 * planned
