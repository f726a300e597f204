"""vLLM as the decoder of rollouts: with a stand-in for its engine here, and with vLLM itself where it is installed."""

import copy
import importlib.util
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from tokengym.__main__ import main
from tokengym.agents import GRPO, ExpertIteration
from tokengym.agents.rollouts.collect import collect
from tokengym.agents.rollouts.conditioned_policy import ConditionedPolicy
from tokengym.agents.rollouts.policy import CausalLMPolicy
from tokengym.models import load
from tokengym.models.engine.sampling import SamplingConfig
from tokengym.models.engine.vllm_decoder import VLLM, EngineRequests, VLLMDecoder, max_lora_rank, merged_weights
from tokengym.models.forward import token_logprobs

SLOTS = 4


@pytest.fixture(scope="module")
def policy() -> CausalLMPolicy:
    return CausalLMPolicy(*load("tokengym/tiny", device="cpu"))


# ------------------------------------------------------------------------------------------------------------ stand-in


class Engine:
    """Greedy decoding of a transformers model behind the methods of vLLM's engine, at an uneven pace."""

    def __init__(self, model: Any, seed: int = 0) -> None:
        self.model = model
        self.rng = np.random.default_rng(seed)
        self.running: dict[str, list[int]] = {}
        self.prompts: dict[str, list[int]] = {}
        self.params: dict[str, Any] = {}
        self.aborted: list[str] = []

    def add_request(self, name: str, prompt: dict[str, list[int]], params: Any, lora_request: Any = None) -> None:
        assert name not in self.params, "a name is given to one request"
        self.prompts[name] = prompt["prompt_token_ids"]
        self.running[name] = list(self.prompts[name])
        self.params[name] = params

    def abort_request(self, names: list[str]) -> None:
        self.aborted += names
        for name in names:
            del self.running[name]

    def ended(self, name: str) -> bool:
        completion, params = self.running[name][len(self.prompts[name]) :], self.params[name]
        return len(completion) >= params.max_tokens or completion[-1:] in [[token] for token in params.stop_token_ids]

    @torch.inference_mode()
    def step(self) -> list[Any]:
        outputs = []
        going = [name for name in self.running if not self.ended(name)]
        for name in [name for name in going if self.rng.random() < 0.6]:
            tokens, logprobs = [], []
            for _ in range(self.rng.integers(1, 4)):
                if self.ended(name):
                    break
                logits = self.model(torch.tensor([self.running[name]])).logits[0, -1]
                token = int(logits.argmax())
                tokens.append(token)
                logprobs.append({token: SimpleNamespace(logprob=float(logits.log_softmax(-1)[token]))})
                self.running[name].append(token)
            completion = SimpleNamespace(token_ids=tokens, logprobs=logprobs)
            prompt = self.prompts[name]
            outputs.append(
                SimpleNamespace(request_id=name, outputs=[completion], prompt_token_ids=prompt, num_cached_tokens=1)
            )
        return outputs


class Stub(VLLM):
    """A `VLLM` around an engine that is there."""

    def __init__(self, engine: Engine, limits: Any = None) -> None:
        self.engine, self.limits, self.made = engine, limits, 0

    def decoder(self, model: Any, num_slots: int, vocab_size: int, eos_token_ids: Any, max_new: int) -> VLLMDecoder:
        self.made += 1
        limits = self.limits or {"max_tokens": max_new, "stop_token_ids": list(eos_token_ids)}
        return VLLMDecoder(EngineRequests(self.engine), 400, limits, self.made)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def sampling_params(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the decoder imports from vLLM."""
    package, module = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    package.SamplingParams = SimpleNamespace  # pyright: ignore[reportAttributeAccessIssue]
    module.RequestOutputKind = SimpleNamespace(DELTA="delta")  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", module)


@pytest.mark.usefixtures("sampling_params")
@pytest.mark.parametrize("seed", range(2))
def test_attempts_are_those_of_the_built_in_decoder(policy: CausalLMPolicy, env: Any, seed: int, same: Any) -> None:
    greedy = policy.with_sampling(temperature=0.0)
    own = list(collect(greedy, env, 7, seed=0))
    engine = Engine(policy.model, seed)
    rollout = collect(greedy.with_vllm(Stub(engine)), env, 7, seed=0)
    assert all(same(a, b) for a, b in zip(own, rollout, strict=True))
    assert len(own) == 7
    assert not engine.running, "requests of ended attempts go on"
    assert len(engine.aborted) == len(set(engine.aborted)) == 7
    assert rollout.prefill_tokens == sum(len(attempt.prompt) - 1 for attempt in own)


@pytest.mark.usefixtures("sampling_params")
def test_requests_say_how_tokens_are_drawn(policy: CausalLMPolicy, env: Any) -> None:
    engine = Engine(policy.model)
    settings = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.05}
    limits = {"max_tokens": 390, "stop_token_ids": [3], "allowed_token_ids": [1, 2, 3]}
    list(collect(policy.with_sampling(**settings).with_vllm(Stub(engine, limits)), env, 4, seed=0))
    params = list(engine.params.values())
    assert {name: getattr(params[0], name) for name in settings} == settings
    assert len({each.seed for each in params}) == 4, "every attempt has a random stream of its own"
    assert all(each.stop_token_ids == [3] and each.allowed_token_ids == [1, 2, 3] for each in params)
    assert [each.max_tokens for each in params] == [400 - len(prompt) for prompt in engine.prompts.values()]


@pytest.mark.usefixtures("sampling_params")
def test_a_sequence_without_room_behind_it(policy: CausalLMPolicy) -> None:
    decoder = VLLMDecoder(EngineRequests(Engine(policy.model)), 5, {}, 0)  # pyright: ignore[reportArgumentType]
    for length in (0, 5):
        with pytest.raises(ValueError, match=f"sequences of 5 tokens, and has no room to continue one of {length}"):
            decoder.begin(np.array([0]), [np.ones(length, np.int64)], np.array([0]))


# -------------------------------------------------------------------------------------------------------------- weights


def test_merged_weights_are_those_of_the_merged_model() -> None:
    model, _ = load("tokengym/tiny", device="cpu", lora_rank=2)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    merged = dict(merged_weights(model))
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    expected = dict(model.merge_and_unload().named_parameters(remove_duplicate=False))  # pyright: ignore
    assert merged.keys() == expected.keys()
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= merged.keys()
    for name, weight in expected.items():
        assert torch.allclose(merged[name], weight, atol=1e-6), name


class Recorder:
    """What vLLM's engine is given of a model: weights, adapters, requests."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}
        self.handed_over = 0
        self.adapters: list[Any] = []

    def collective_rpc(self, name: str, kwargs: dict[str, Any]) -> None:
        assert name == "reload_weights"
        self.weights = dict(kwargs["weights_iterator"])
        self.handed_over += 1

    def reset_prefix_cache(self) -> None: ...

    def add_request(self, name: str, prompt: Any, params: Any, lora_request: Any) -> None:
        self.adapters.append(lora_request)

    def step(self) -> list[Any]:
        token = SimpleNamespace(token_ids=[1], logprobs=[{1: SimpleNamespace(logprob=-1.0)}])
        output = {"outputs": [token], "prompt_token_ids": [1], "num_cached_tokens": 0}
        return [SimpleNamespace(request_id=f"{self.adapters[-1].lora_int_id}/0", **output)]

    def abort_request(self, names: list[str]) -> None: ...


def around(vllm: Any, engine: Any) -> Any:
    """Gives a `VLLM` that was not initialized an engine that is there; returns the engine."""
    vllm._decoders, vllm._decoder, vllm._folder, vllm._engine = 0, None, TemporaryDirectory(), engine
    vllm._weights, vllm._adapter_weights, vllm._adapter = (), (), None
    return engine


@pytest.mark.usefixtures("sampling_params")
def test_low_precision_gets_adapters_as_they_are_and_the_weights_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Which together are the trained policy, at every rollout; merged in bfloat16 it would be the untrained one."""
    module = ModuleType("vllm.lora.request")
    module.LoRARequest = lambda name, number, path: SimpleNamespace(  # pyright: ignore[reportAttributeAccessIssue]
        lora_int_id=number, files={file.name: file.read_bytes() for file in Path(path).iterdir()}
    )
    monkeypatch.setitem(sys.modules, "vllm.lora.request", module)
    model, tokenizer = load("tokengym/tiny", device="cpu", dtype="bfloat16", lora_rank=2)
    plain, _ = load("tokengym/tiny", device="cpu", dtype="bfloat16")
    vllm = object.__new__(VLLM)
    vllm.num_slots, vllm.length, vllm._adapted = 1, 64, True
    engine: Any = around(vllm, Recorder())
    for number in range(3):
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        decoder = vllm.decoder(model, 1, len(tokenizer), [0], 8)
        decoder.begin(np.array([0]), [np.array([5, 6])], np.array([0]))
        decoder.step(SamplingConfig())
        assert len(engine.adapters) == number + 1
        expected = dict(plain.named_parameters(remove_duplicate=False))
        assert engine.weights.keys() == expected.keys()
        assert all(torch.equal(weight, expected[name]) for name, weight in engine.weights.items())
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, content in engine.adapters[-1].files.items():
            (folder / name).write_bytes(content)
        ids = torch.tensor([[5, 6, 7]])
        again, _ = load(folder, device="cpu", dtype="bfloat16")
        assert torch.equal(again(ids).logits, model(ids).logits)
        assert not torch.equal(plain(ids).logits, model(ids).logits)
    assert len(list(Path(vllm._folder.name).iterdir())) == 1, "the last rollout's alone is kept"
    assert engine.handed_over == 1, "what is frozen is handed over once"


class Handed(Engine):
    """The stand-in for vLLM's engine with weights of its own, which have to be handed over."""

    def __init__(self, model: Any) -> None:
        super().__init__(copy.deepcopy(model))
        self.handed_over = 0

    def collective_rpc(self, name: str, kwargs: dict[str, Any]) -> None:
        assert name == "reload_weights"
        self.model.load_state_dict(dict(kwargs["weights_iterator"]))
        self.handed_over += 1

    def reset_prefix_cache(self) -> None: ...


@pytest.mark.usefixtures("sampling_params")
def test_weights_are_handed_over_once_an_iteration(policy: CausalLMPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """At first and after each update; not for every collection of dynamic sampling, nor twice for validation and the
    rollouts after it. What vLLM samples with is always the newest policy.
    """
    spec = copy.deepcopy(gym.spec("tokengym/Arithmetic-v0"))
    spec.kwargs["max_new_tokens"] = 2  # too short for an answer, so that sampling goes on as long as it may
    agent = GRPO(
        spec, device="cpu", num_envs=4, iterations=3, problems_per_iteration=2, samples_per_problem=2,
        dynamic_sampling=3, validation_problems=2, validation_iterations=1,
    )  # fmt: skip
    vllm: Any = object.__new__(VLLM)
    vllm.num_slots, vllm.length, vllm._adapted = 4, 400, False
    engine = around(vllm, Handed(policy.model))
    agent._vllm = vllm

    def improve(learner: Any, attempts: Any, iteration: int) -> dict[str, float]:
        if iteration != 1:
            with torch.no_grad():
                agent.model.get_input_embeddings().weight[iteration, 0] += 1e-4
        return {"trained_attempts": 1.0}

    monkeypatch.setattr(agent, "improve", improve)
    counts: list[int] = []

    def validated(agent: Any, metrics: dict[str, float]) -> None:
        given, weights = engine.model.state_dict(), agent.model.state_dict()
        assert all(torch.equal(given[name], weights[name]) for name in weights)
        counts.append(engine.handed_over)

    agent.learn(callback=validated)
    assert counts == [2, 2, 3], "one for the start, and one after each of the two updates"
    assert vllm._decoders > 3 * (3 + 1), "dynamic sampling collects three times and more in each iteration"


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_one_error_says_how_to_install_it(policy: CausalLMPolicy, capsys: Any) -> None:
    with pytest.raises(ImportError, match=r'pip install "tokengym\[vllm\]"'):
        VLLM(policy.model, 4, 64, memory=0.5)
    assert main(["eval", "--problems", "1", "--vllm-memory", "0.5", "--device", "cpu"]) == 1
    assert (
        capsys.readouterr().err == 'tokengym: sampling with vLLM needs vllm, an extra: pip install "tokengym[vllm]"\n'
    )


def test_a_share_of_the_memory_out_of_range(policy: CausalLMPolicy) -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        VLLM(policy.model, 4, 64, memory=1.5)


def test_a_rank_beyond_what_vllm_takes() -> None:
    def ranked(rank: int) -> Any:
        return SimpleNamespace(peft_config={"default": SimpleNamespace(r=rank)})

    assert max_lora_rank(ranked(512)) == 512
    with pytest.raises(ValueError, match=r"rank 512 at most, and these have 513: lower lora_rank"):
        max_lora_rank(ranked(513))


def test_more_slots_than_it_was_made_for(policy: CausalLMPolicy, env: Any) -> None:
    vllm = object.__new__(VLLM)
    vllm.num_slots = SLOTS - 1
    with pytest.raises(ValueError, match="made for 3 attempts at the same time, and the environment has 4 slots"):
        collect(policy.with_vllm(vllm), env, 1, seed=0)


def test_a_second_engine_ends_the_first(policy: CausalLMPolicy, env: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for vLLM, whose engines share what the end of one takes away."""
    ended: list[Any] = []

    def from_engine_args(arguments: Any) -> Any:
        core = SimpleNamespace(shutdown=lambda: ended.append(core))
        return SimpleNamespace(engine_core=core)

    package: Any = ModuleType("vllm")
    package.EngineArgs, package.LLMEngine = SimpleNamespace, SimpleNamespace(from_engine_args=from_engine_args)
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setattr("tokengym.models.engine.vllm_decoder.need", lambda *_: None)
    monkeypatch.setattr("tokengym.models.engine.vllm_decoder._OPEN", set())
    first, second = (VLLM(policy.model, SLOTS, 400, memory=0.1) for _ in range(2))
    assert (first.closed, second.closed) == (True, False)
    assert len(ended) == 1
    with pytest.raises(ValueError, match="another was made later"):
        collect(policy.with_vllm(first), env, 1, seed=0)

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="this process of several has one already"):
        VLLM(policy.model, SLOTS, 400, memory=0.1)


def test_labels_and_vllm_do_not_go_together() -> None:
    conditioned = object.__new__(ConditionedPolicy)
    with pytest.raises(ValueError, match="acts under labels"):
        conditioned.with_vllm(object.__new__(VLLM))
    assert conditioned.with_vllm(None) is conditioned


# ---------------------------------------------------------------------------------------------------------- vLLM itself


@pytest.fixture(scope="module")
def vllm(policy: CausalLMPolicy) -> VLLM:
    pytest.importorskip("vllm")
    return VLLM(policy.model, SLOTS, 400, memory=0.1, enforce_eager=True)


@pytest.mark.slow
def test_vllm_decodes_greedily_what_transformers_does_and_follows_the_weights(
    policy: CausalLMPolicy, env: Any, vllm: VLLM, same: Any
) -> None:
    greedy = policy.with_sampling(temperature=0.0)
    before = [parameter.detach().clone() for parameter in policy.model.parameters()]
    own = [list(collect(greedy, env, 10, seed=0))]
    theirs = [list(collect(greedy.with_vllm(vllm), env, 10, seed=0))]
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.05)
    try:
        own.append(list(collect(greedy, env, 10, seed=0)))
        theirs.append(list(collect(greedy.with_vllm(vllm), env, 10, seed=0)))
    finally:
        with torch.no_grad():
            for parameter, value in zip(policy.model.parameters(), before, strict=True):
                parameter.copy_(value)
    assert not all(same(a, b) for a, b in zip(*own, strict=True)), "other weights, other attempts"
    for mine, other in zip(own, theirs, strict=True):
        assert all(same(a, b) for a, b in zip(mine, other, strict=True))
        assert max(np.abs(a.logprobs - b.logprobs).max() for a, b in zip(mine, other, strict=True)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_vllm_gives_log_probabilities_of_the_distribution_it_draws_from(
    policy: CausalLMPolicy, env: Any, vllm: VLLM, temperature: float, same: Any
) -> None:
    sampled = policy.with_sampling(temperature=temperature).with_vllm(vllm)
    attempts = list(collect(sampled, env, 10, seed=0))
    again = list(collect(sampled, env, 10, seed=0))
    other = list(collect(sampled, env, 10, seed=1))
    assert all(same(a, b) for a, b in zip(attempts, again, strict=True)), "a seed decides what is drawn"
    assert not any(np.array_equal(a.completion, b.completion) for a, b in zip(attempts, other, strict=True))
    for attempt in attempts:
        with torch.inference_mode():
            logits = policy.model(torch.from_numpy(attempt.tokens)[None]).logits[0, len(attempt.prompt) - 1 : -1]
        expected = token_logprobs(logits, torch.from_numpy(attempt.completion).long(), temperature).numpy()
        assert np.abs(attempt.logprobs - expected).max() < 1e-4


@pytest.mark.slow
def test_an_agent_samples_with_vllm(tmp_path: Any) -> None:
    pytest.importorskip("vllm")
    agent = ExpertIteration(
        gym.spec("tokengym/Arithmetic-v0"),
        run=tmp_path / "run",
        device="cpu",
        num_envs=8,
        vllm_memory=0.1,
        demonstrations=8,
        problems=16,
        samples_per_problem=2,
        rounds=1,
        validation_problems=8,
        epochs=1,
    )
    agent.learn()
    assert agent.num_attempts == 32
    assert (tmp_path / "run" / "model" / "config.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vllm_samples_the_policy_that_adapters_have_become(env: Any, dtype: str) -> None:
    pytest.importorskip("vllm")
    model, tokenizer = load("tokengym/tiny", device="cpu", dtype=dtype, lora_rank=4)
    adapted = CausalLMPolicy(model, tokenizer)
    engine = VLLM(model, SLOTS, 400, memory=0.1, enforce_eager=True)

    def error(other: Any) -> float:
        """Mean distance of log-probabilities from vLLM's at what it sampled."""
        attempts = list(collect(adapted.with_sampling(temperature=1.0).with_vllm(engine), env, 16, seed=0))
        with torch.inference_mode():
            logits = [other(torch.from_numpy(a.tokens)[None]).logits[0, len(a.prompt) - 1 : -1] for a in attempts]
        found = [
            token_logprobs(x, torch.from_numpy(a.completion).long()) for x, a in zip(logits, attempts, strict=True)
        ]
        theirs = np.concatenate([attempt.logprobs for attempt in attempts])
        return float(np.abs(np.concatenate([values.numpy() for values in found]) - theirs).mean())

    before = error(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    ids = torch.arange(64).reshape(2, 32) + 5
    for _ in range(16):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = error(model)
    with model.disable_adapter():  # pyright: ignore[reportCallIssue]
        stale = error(model)
    assert max(before, after) < (1e-4 if dtype == "float32" else 0.02)
    assert stale > 3 * after
    print(f"{dtype}: before {before:.2g}, after {after:.2g}, against weights without adapters {stale:.2g}")  # noqa: T201
