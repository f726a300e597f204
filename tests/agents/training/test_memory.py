"""The memory plan beside what PyTorch's allocator is asked for."""

import gc
import itertools
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tokengym.__main__ import main
from tokengym.agents import AGENTS, GRPO, PPO, SFT, make_agent
from tokengym.agents.configs.optimizer import OptimizerConfig
from tokengym.agents.planning import Planned, _choices, describe, propose
from tokengym.agents.rollouts.collect import collect
from tokengym.agents.training import memory
from tokengym.agents.training.learner import Example
from tokengym.agents.training.memory import GIB, Limits, MemoryPlan, NotEnoughMemoryError, plan_memory
from tokengym.models import linear
from tokengym.models.dry_run import dry_run, without_weights
from tokengym.models.engine.cache import SlotCache
from tokengym.models.forward import default_micro_batch_tokens
from tokengym.models.loading import load, with_lora
from tokengym.models.tokenizers import load_tokenizer

CONFIG = LlamaConfig(
    hidden_size=64, intermediate_size=160, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=300, max_position_embeddings=128,
)  # fmt: skip
SHALLOW = LlamaConfig(**{**CONFIG.to_dict(), "num_hidden_layers": 1})
LIMITS = Limits(num_envs=16, max_prompt_tokens=40, max_new_tokens=40)
SMALL = {"micro_batch_tokens": 1000}
CPU = torch.device("cpu")


def measured_peak(function: Callable[[], object]) -> int:
    """Most bytes that a function holds at a time, by the allocator's own record."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    events = cast(Any, record.profiler).kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return int(np.cumsum([size for _, size in changes]).max())


def plan(kind: Any, config: Any, limits: Limits = LIMITS, **model: Any) -> MemoryPlan:
    return Planned(kind, config, CONFIG, limits, GIB, **model).plan


def size(found: MemoryPlan, phase: str, *names: str) -> int:
    items = (*found.kept, *found.phases[phase])
    return sum(item.size for item in items if not names or item.name in names)


def first_output(batch: Any, output: Any) -> Tensor:
    outputs = output if isinstance(output, tuple) else (output,)
    return sum((part.sum() for part in outputs), torch.zeros(()))


@pytest.mark.parametrize("measured", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_weights_in_4_bits_take_what_the_plan_says(tmp_path: Path, measured: bool) -> None:
    """Planned from a configuration, and counted of a model that is loaded; beside the bytes that it really holds."""
    pytest.importorskip("bitsandbytes")
    wide = LlamaConfig(
        hidden_size=64, intermediate_size=192, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=300,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(wide).save_pretrained(tmp_path)
    load_tokenizer("chars:0123456789").save_pretrained(tmp_path)
    model, _ = load(tmp_path, device="cpu", load_in_4bit=True, lora_rank=4)
    config = SFT.config_class(**SMALL)
    planned = Planned(SFT, config, wide, LIMITS, GIB, lora_rank=4, load_in_4bit=True).plan
    with dry_run() as counter:
        loaded = plan_memory(SFT.work(config, without_weights(model)), config, LIMITS, counter)
    states = [parameter.quant_state for parameter in model.parameters() if hasattr(parameter, "quant_state")]
    scales = sum(state.absmax.nbytes + state.state2.absmax.nbytes for state in states)
    held = sum(parameter.nbytes for parameter in model.parameters()) + scales
    for found in (planned, loaded):
        assert size(found, "learning", "weights", "weights in 4 bits", "adapters") == pytest.approx(held, rel=0.001)
    names = ("gradients", "activations", "logits and backward pass", "expanded weight")
    assert size(planned, "learning", *names) == pytest.approx(size(loaded, "learning", *names), rel=0.01)
    if not measured:
        return
    learner = SFT.work(config, model).make_learner(memory._SingleProcess(), 300)
    rng = np.random.default_rng(0)
    examples = [Example(rng.integers(0, 300, 8), rng.integers(0, 300, LIMITS.max_new_tokens)) for _ in range(32)]
    learner.logprobs(examples[:1])
    peak = measured_peak(lambda: learner.update(examples, first_output, 0))
    assert peak == pytest.approx(size(planned, "learning", *names), rel=0.15)


SETTINGS: dict[Any, dict[str, Any]] = {
    SFT: {},
    GRPO: {"samples_per_problem": 8, "problems_per_iteration": 4},
    PPO: {"kl_coef": 0.0, "critic_layers": 2, "problems_per_iteration": 8, "minibatch_size": 32},
}
# Of all twelve, those that the fast tests try.
FAST = {(GRPO, True, None), (PPO, False, None)}


@pytest.mark.parametrize(
    ("kind", "checkpointing", "lora_rank"),
    [
        pytest.param(*case, marks=() if case in FAST else pytest.mark.slow)
        for case in itertools.product(SETTINGS, (False, True), (None, 4))
    ],
)
def test_updates_take_what_the_plan_says(kind: Any, checkpointing: bool, lora_rank: int | None) -> None:
    config = kind.config_class(**SMALL, **SETTINGS[kind], gradient_checkpointing=checkpointing)
    found = plan(kind, config, lora_rank=lora_rank)
    model = AutoModelForCausalLM.from_config(CONFIG).eval()
    model = model if lora_rank is None else with_lora(model, lora_rank).eval()
    work = kind.work(config, model)
    learner = work.make_learner(memory._SingleProcess(), CONFIG.vocab_size)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 300, LIMITS.max_prompt_tokens) for _ in range(32 // work.samples_per_prompt)]
    examples = [
        Example(prompt, rng.integers(0, 300, LIMITS.max_new_tokens - rng.integers(3)))
        for prompt in prompts
        for _ in range(work.samples_per_prompt)
    ]
    learner.logprobs(examples[:1]) if kind is SFT else learner.evaluate(examples[:1])  # asks the model once
    names = ("optimizer", "gradients", "activations", "logits and backward pass")
    peak = measured_peak(lambda: learner.update(examples, first_output, 0))
    # The optimizer's state is made after the backward pass in this first update.
    expected = size(found, "learning", *names) - size(found, "learning", "optimizer")
    assert peak == pytest.approx(expected, rel=0.15)
    state = sum(value.nbytes for part in learner.optimizer.state.values() for value in part.values())
    assert state == pytest.approx(size(found, "learning", "optimizer"), rel=0.02)
    assert sum(p.nbytes for p in model.parameters()) == pytest.approx(
        size(found, "learning", "weights", "adapters"), rel=0.01
    )


def test_bfloat16_weights_and_autocast_are_counted() -> None:
    whole, half = (plan(SFT, SFT.config_class(**SMALL), dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert 2 * size(half, "learning", "weights") == pytest.approx(size(whole, "learning", "weights"), rel=1e-3)
    assert size(half, "learning", "optimizer") == size(whole, "learning", "optimizer") * 10 // 8
    assert size(half, "learning", "gradients") == size(whole, "learning", "gradients")
    config = SFT.config_class(**SMALL, bf16=True)
    learner_model = AutoModelForCausalLM.from_config(CONFIG)
    learner = SFT.work(config, learner_model).make_learner(memory._SingleProcess(), 300)
    rng = np.random.default_rng(0)
    examples = [Example(np.arange(40) + i, np.arange(40 - rng.integers(3))) for i in range(26)]
    learner.logprobs(examples[:1])
    found = plan(SFT, config)
    expected = size(found, "learning", "gradients", "activations", "logits and backward pass")
    assert measured_peak(lambda: learner.update(examples, first_output, 0)) == pytest.approx(expected, rel=0.15)
    assert size(found, "learning", "activations") < size(whole, "learning", "activations")


def test_the_copy_that_samples_in_bfloat16_is_counted() -> None:
    whole, half = (plan(SFT, SFT.config_class(**SMALL, bf16=bf16)) for bf16 in (False, True))
    model = AutoModelForCausalLM.from_config(CONFIG)
    matrices = sum(weight.numel() for name, weight in model.named_parameters() if "_proj" in name)
    assert size(half, "sampling", "copy for sampling") == 2 * matrices
    cache = "key-value cache"
    assert 2 * size(half, "sampling", cache) == size(whole, "sampling", cache)
    assert "copy for sampling" not in {item.name for item in whole.kept}


def test_copies_of_weights_that_steps_read_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: True)
    config, name = SFT.config_class(**SMALL), "weights packed for sampling"
    model = linear.use_onednn(AutoModelForCausalLM.from_config(CONFIG))
    wide = [layer.weight for layer in model.modules() if isinstance(layer, linear.OneDNNLinear)]
    monkeypatch.setattr(linear, "LEAST", LIMITS.num_envs * max(weight.numel() for weight in wide))
    widest = [weight for weight in wide if LIMITS.num_envs * weight.numel() == linear.LEAST]
    with dry_run() as counter:
        found = plan_memory(SFT.work(config, without_weights(model)), config, LIMITS, counter)
        fewer = plan_memory(SFT.work(config, without_weights(model)), config, LIMITS._replace(num_envs=15), counter)
    assert size(found, "sampling", name) == sum(weight.nbytes for weight in widest)
    assert name not in {item.name for item in fewer.phases["sampling"]}


def test_a_rollout_takes_what_the_plan_says_and_leaves_nothing(
    folder: Path, make_sums: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SlotCache, "reserves", False)  # what is measured is allocated, not touched
    env = {"max_prompt_tokens": 16, "max_new_tokens": 40}
    agent = make_agent("reinforce", make_sums(num_envs=32, **env), folder, num_envs=32)
    agent.policy.check()
    caches: list[SlotCache] = []

    def sample() -> None:
        rollout = collect(agent.policy, agent.env, 32, seed=0)
        caches.append(rollout._decoder.cache)
        assert max(len(attempt.completion) for attempt in rollout) > 20

    limits = Limits(32, 16, 40)
    found = Planned(type(agent), agent.config, agent.model.config, limits, GIB).plan
    gc.disable()
    try:
        peak = measured_peak(sample)
        held = caches[0].layers[0].keys.nbytes * 2 * 2
        assert held == size(found, "sampling", "key-value cache")
        assert peak == pytest.approx(size(found, "sampling", "key-value cache", "prompts, growth, logits"), rel=0.5)
        left = weakref.ref(caches[0])
        caches.clear()
        assert left() is None, "the cache waits for a garbage collection while the update needs its memory"
    finally:
        gc.enable()


@pytest.mark.slow
def test_the_plan_of_a_run_is_what_the_run_takes(folder: Path, make_sums: Any) -> None:
    """PPO with a reference, a branch critic and the best policy kept: everything from nothing to the last update."""
    settings: dict[str, Any] = {
        "iterations": 2, "problems_per_iteration": 16, "samples_per_problem": 4, "minibatch_size": 64, "epochs": 1,
        "critic_layers": 1, "validation_problems": 4, "micro_batch_tokens": 600,
    }  # fmt: skip
    limits, made = Limits(8, 16, 40), []
    config = PPO.config_class(**settings)
    found = Planned(PPO, config, AutoConfig.from_pretrained(folder), limits, GIB).plan
    env = make_sums(num_envs=8, max_new_tokens=40)
    make_agent("ppo", env, folder, num_envs=8, validation_env=env, **settings)  # what is loaded once

    def run() -> None:
        made.append(make_agent("ppo", env, folder, num_envs=8, validation_env=env, **settings))
        made[0].learn()

    peak = measured_peak(run)
    assert peak == pytest.approx(found.peak, rel=0.15)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ("orm", "rcrl") else pytest.mark.slow) for name in sorted(AGENTS.names())],
)
def test_every_agent_has_a_plan(name: str) -> None:
    kind = AGENTS.get(name)
    found = plan(kind, kind.config_class(**SMALL))
    assert found.total("learning") > found.total("sampling") > 0
    assert all(name in str(found) for name in ("weights", "optimizer", "activations", "key-value cache"))


def test_the_guard_stops_what_cannot_fit_and_nothing_else(folder: Path, make_sums: Any) -> None:
    agent = make_agent("ppo", make_sums(), folder, critic_layers=1)
    limits = Limits(4, 16, 4)
    make_work = lambda policy: PPO.work(agent.config, policy)  # noqa: E731
    for free in (None, 2**40):
        memory.check_memory(make_work, agent.model, agent.config, limits, CPU, free)
    needed = Planned(PPO, replace(agent.config, micro_batch_tokens=1), agent.model.config, limits, GIB).plan
    with pytest.raises(
        NotEnoughMemoryError,
        match=r"one sequence of 20 tokens takes .*, and 0\.1 MiB are free on cpu .*lora_rank=16.*bfloat16.*kl_coef=0",
    ):
        memory.check_memory(make_work, agent.model, agent.config, limits, CPU, 2**17)
    memory.check_memory(make_work, agent.model, agent.config, limits, CPU, needed.peak)


def test_micro_batches_are_the_largest_that_fit_unless_their_size_is_given(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory, "_LARGE", 0)
    model = LlamaForCausalLM(SHALLOW)
    chosen = OptimizerConfig()
    make_work = lambda config: lambda policy: SFT.work(config, policy)  # noqa: E731
    check = lambda config, free: memory.check_memory(make_work(config), model, config, LIMITS, CPU, free)  # noqa: E731
    assert check(chosen, None) == default_micro_batch_tokens(CPU)
    gpu = memory.check_memory(make_work(chosen), model, chosen, LIMITS, torch.device("cuda"), None)
    assert gpu > default_micro_batch_tokens(CPU), "a model that is sharded is on the CPU until it is learned from"

    with dry_run() as counter:
        work = SFT.work(chosen, without_weights(model))
        peak = lambda tokens: plan_memory(work, replace(chosen, micro_batch_tokens=tokens), LIMITS, counter).peak  # noqa: E731
        needed = {tokens: peak(tokens) for tokens in (512, 1024, 2048)}
    loaded = sum(p.numel() * p.element_size() for p in model.parameters())
    for tokens, bytes_needed in needed.items():
        assert check(chosen, bytes_needed - loaded) == tokens
    assert not caplog.records
    many = LIMITS._replace(num_envs=1024)  # slots that do not fit, for which micro-batches are not to blame
    assert memory.check_memory(make_work(chosen), model, chosen, many, CPU, needed[1024] - loaded) == 1024
    assert "lower micro_batch_tokens or num_envs" in caplog.text
    caplog.clear()
    assert check(OptimizerConfig(micro_batch_tokens=2048), needed[512] - loaded) == 2048
    assert "lower micro_batch_tokens" in caplog.text


def test_agents_are_guarded_by_the_memory_of_their_device(
    folder: Path, make_sums: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokengym.agents.base.free_memory", lambda device, processes: 2**17)
    with pytest.raises(NotEnoughMemoryError):
        make_agent("sft", make_sums(), folder)


def test_proposals_fit_and_prefer_what_changes_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[int | None, int]] = []

    def count(work: Any, config: Any, limits: Limits, counter: Any) -> MemoryPlan:
        counted.append((config.micro_batch_tokens, limits.num_envs))
        return plan_memory(work, config, limits, counter)

    monkeypatch.setattr("tokengym.agents.planning.plan_memory", count)
    wanted = Planned(SFT, SFT.config_class(), SHALLOW, LIMITS, 2**27)
    text = describe(wanted)
    assert len(counted) == len(set(counted)) > 2, "each size is counted once"
    found = propose(wanted)
    assert found is not None
    assert found.plan.peak <= found.usable
    assert (found.dtype, found.lora_rank, found.config.gradient_checkpointing) == ("float32", None, False)
    assert 80 <= found.config.micro_batch_tokens < 16_384
    assert f"does not fit in 95% of 0.125 GiB; {found.plan.peak / GIB:.2f} GiB with" in text
    assert f"--micro-batch-tokens {found.config.micro_batch_tokens}" in text


@pytest.mark.slow
def test_proposals_end_with_adapters_and_with_nothing() -> None:
    wanted = Planned(SFT, SFT.config_class(**SMALL), CONFIG, LIMITS, 2**30)
    least = wanted.sized(80, 1)
    recomputed = propose(replace(wanted, memory=int(least.plan.peak * 0.99 / 0.95)))
    assert recomputed is not None
    assert recomputed.config.gradient_checkpointing
    half = replace(least, config=replace(least.config, gradient_checkpointing=True), dtype="bfloat16")
    adapted = propose(replace(wanted, memory=int(half.plan.peak * 0.99 / 0.95)))
    assert adapted is not None
    assert (adapted.dtype, adapted.lora_rank) == ("bfloat16", 16)
    assert "take a smaller model" in describe(replace(wanted, memory=2**18))


def test_the_seven_billion_of_llama_have_the_sizes_that_are_known() -> None:
    """A layer of Llama-2 7B in bfloat16 beside the bytes that its equations keep."""
    tokens, hidden, inner, heads = 2048, 4096, 11008, 32
    config, layer = SFT.config_class(micro_batch_tokens=tokens), 4 * hidden**2 + 3 * hidden * inner + 2 * hidden
    shallow, deep = (
        Planned(
            SFT,
            config,
            LlamaConfig(
                hidden_size=hidden, intermediate_size=inner, num_hidden_layers=depth, num_attention_heads=heads,
                vocab_size=32_000,
            ),
            Limits(8, 512, 512),
            GIB,
            "bfloat16",
        ).plan
        for depth in (1, 2)
    )  # fmt: skip
    grown = lambda phase, name: size(deep, phase, name) - size(shallow, phase, name)  # noqa: E731
    assert grown("learning", "weights") == 2 * layer
    assert grown("learning", "gradients") == 4 * layer
    assert grown("learning", "optimizer") == 10 * layer
    # Of each token: both norms keep their input in float32, and their result before and after its weights; attention
    # keeps q, k, v, its result, a sum for each head, and its share of the mask; the rest is the MLP's.
    norms, attention, mlp = 2 * (4 + 2 + 2) * hidden, 2 * 4 * hidden + 4 * heads + 2 * 1024, 2 * 4 * inner
    assert grown("learning", "activations") == pytest.approx(tokens * (norms + attention + mlp), rel=0.01)
    assert grown("sampling", "key-value cache") == 8 * 1024 * 2 * hidden * 2


def test_the_command_prints_a_plan(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    arguments = ["plan", "--agent", "grpo", "--model", str(folder), "--memory", "8", "--gpus", "2"]
    limits = ["--env-args", "max_prompt_tokens=16", "max_new_tokens=16"]
    assert main([*arguments, *limits, "--micro-batch-tokens", "512"]) == 0
    out = capsys.readouterr().out
    for part in ("grpo on llama, each of 2 GPUs", "at most 32 tokens", "buckets of data", "fits in 95% of 8 GiB"):
        assert part in out
    assert "key-value cache" in out
    assert main([*arguments, *limits, "--micro-batch-tokens", "512", "--vllm-servers", "http://10.0.0.2:8000"]) == 0
    out = capsys.readouterr().out
    assert "key-value cache" not in out
    assert "vLLM" not in out
    for wrong, message in (
        (["--memory", "0"], "--memory must be above 0"),
        (["--vllm-memory", "0.4", "--vllm-servers", "http://10.0.0.2:8000"], "are two ways to sample"),
        (["--model", str(folder / "nothing")], "no model "),
        (["--env", "tokengym/Nope-v0"], "unknown environment 'tokengym/Nope-v0'"),
        ([], "an attempt of 512 tokens is longer than the model's 64 positions"),
    ):
        assert main([*arguments, *wrong]) == 1
        assert message in capsys.readouterr().err
    assert main(["plan", "--agent", "nope"]) == 1
    assert "unknown agent 'nope'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attn", "sdpaa"], "unknown attention implementation 'sdpaa': did you mean 'sdpa'?"),
        (["--model", "tokengym/tiny-orm"], "'tokengym/tiny-orm' is an outcome model"),
        (["--lora-rank", "0"], "lora_rank must be at least 1, got 0"),
        (["--agent", "orm", "--lora-rank", "4"], "the agent 'orm' trains weights as a whole: leave out --lora-rank"),
        (["--agent", "mpo", "--lora-rank", "4"], "the agent 'mpo' trains weights as a whole: leave out --lora-rank"),
        (["--agent", "ares", "--vllm-memory", "0.4"], "the agent 'ares' samples with the built-in decoder"),
        (["--gpus", "2", "--fsdp", "--optimizer", "adamw_8bit"], "moments in 8 bits are not sharded"),
        (["--lora-rank", "4", "--load-in-4bit", "--bf16"], "weights in 4 bits compute in bfloat16 by --dtype"),
    ],
)
def test_what_training_refuses_has_no_plan(arguments: list[str], message: str, capsys) -> None:
    assert main(["plan", "--memory", "8", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_no_adapters_are_proposed_to_an_agent_that_trains_none() -> None:
    wanted = Planned(AGENTS.get("orm"), AGENTS.get("orm").config_class(**SMALL), CONFIG, LIMITS, 2**18)
    assert {choice.lora_rank for choice in _choices(wanted)} == {None}
    assert 16 in {choice.lora_rank for choice in _choices(replace(wanted, agent=SFT))}
