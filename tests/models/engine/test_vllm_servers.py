"""vLLM servers as the decoder of rollouts: with a stand-in that speaks their protocol, and with vLLM where it is."""

import copy
import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import httpx2
import numpy as np
import pytest
import torch

from tokengym.__main__ import main
from tokengym.agents import GRPO
from tokengym.agents.rollouts.attempts import Attempt
from tokengym.agents.rollouts.collect import collect
from tokengym.agents.rollouts.policy import CausalLMPolicy
from tokengym.agents.rollouts.slots import make_vllm_servers
from tokengym.models import load
from tokengym.models.engine import VLLMServers, vllm_http, vllm_servers
from tokengym.models.forward import token_logprobs

SLOTS = 4
VERSION = "default"


@pytest.fixture(scope="module")
def loaded() -> Any:
    return load("tokengym/tiny", device="cpu")


@pytest.fixture
def policy(loaded: Any) -> CausalLMPolicy:
    model, tokenizer = loaded
    return CausalLMPolicy(copy.deepcopy(model), tokenizer)


def urls(servers: list[Any]) -> list[str]:
    return [server.url for server in servers]


def until(condition: Any) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_attempts_are_those_of_the_built_in_decoder_and_spread_over_servers(
    policy: CausalLMPolicy, env: Any, servers: list[Any], same: Any
) -> None:
    greedy = policy.with_sampling(temperature=0.0)
    own = list(collect(greedy, env, 7, seed=0))
    vllm = make_vllm_servers(policy, env, urls(servers))
    rollout = collect(greedy.with_vllm(vllm), env, 7, seed=0)
    assert all(same(a, b) for a, b in zip(own, rollout, strict=True))
    assert len(own) == 7
    assert rollout.prefill_tokens == sum(len(attempt.prompt) for attempt in own)
    counts = [len(server.requests) - 1 for server in servers]  # but for the first check
    assert sum(counts) == 7
    assert min(counts) >= 3
    seeds = [body["sampling_params"]["seed"] for server in servers for body in server.requests[1:]]
    assert len({*seeds}) == 7, "every attempt has a random stream of its own"
    assert set(vllm._servers.load.values()) == {0}
    until(lambda: not any(server.streams for server in servers))


def test_weights_are_handed_over_to_all_servers_when_they_have_changed(
    policy: CausalLMPolicy, env: Any, servers: list[Any]
) -> None:
    vllm = make_vllm_servers(policy, env, urls(servers))
    model = policy.model
    for change in range(3):
        for _ in range(2):
            policy.with_vllm(vllm).rollout_decoder(env)
            assert [server.reloads for server in servers] == [change + 1] * 2
            assert not any(server.paused for server in servers)
            for server in servers:
                given = server.model.state_dict()
                assert all(torch.equal(given[name], weight) for name, weight in model.state_dict().items())
        with torch.no_grad():
            model.get_input_embeddings().weight[change, 0] += 1e-2
    assert not list(Path(vllm._folder.name).iterdir()), "weights that servers have read are removed"
    model.get_input_embeddings().weight.data[2, 0] = model.get_input_embeddings().weight.data[2, 0] - 1e-2
    make_vllm_servers(policy, env, urls(servers))._hand_over(model)
    again = make_vllm_servers(policy, env, urls(servers))
    reloads = servers[0].reloads
    policy.with_vllm(again).rollout_decoder(env)
    assert servers[0].reloads == reloads, "another run finds the weights that it needs"
    folder = Path(vllm._folder.name)
    vllm.close()
    assert not folder.exists()
    with pytest.raises(ValueError, match="were closed"):
        collect(policy.with_vllm(vllm), env, 1, seed=0)


def test_low_precision_gets_adapters_as_they_are(env: Any, servers: list[Any]) -> None:
    servers = servers[:1]  # for the time that this takes
    model, tokenizer = load("tokengym/tiny", device="cpu", dtype="bfloat16", lora_rank=2)
    adapted = CausalLMPolicy(model, tokenizer).with_sampling(temperature=1.0)
    for server in servers:
        server.model.to(torch.bfloat16)
        server.model_config["dtype"], server.lora_config = "torch.bfloat16", {"max_lora_rank": 8}
    vllm = make_vllm_servers(adapted, env, urls(servers))
    names = set()
    for _ in range(2):
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        for attempt in collect(adapted.with_vllm(vllm), env, 2, seed=0):
            with torch.inference_mode():
                logits = model(torch.from_numpy(attempt.tokens)[None]).logits[0, len(attempt.prompt) - 1 : -1]
            expected = token_logprobs(logits, torch.from_numpy(attempt.completion).long())
            assert np.abs(attempt.logprobs - expected.numpy()).mean() < 0.02
        assert len(servers[0].adapters) == 1, "the last one's alone are kept"
        names |= {*servers[0].adapters}
    assert len(names) == 2, "vLLM keeps what it has computed by an adapter's name"
    assert servers[0].reloads == 1, "what is frozen is handed over once"
    assert all(body["model"] in names for body in servers[0].requests)


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("settings", "disabled", "message"),
    [
        (
            {"dtype": "torch.bfloat16"},
            (),
            "has --dtype bfloat16, not float32. Start it by: VLLM_SERVER",
        ),
        ({"max_model_len": 64}, (), "has --max-model-len 64, not "),
        ({"logprobs_mode": "raw_logprobs"}, (), "has --logprobs-mode raw_logprobs, not processed_logprobs"),
        ({}, ("/inference/v1/generate",), "has no --enable-scale-out. Start it by"),
        ({}, ("/server_info?config_format=json",), "is no vLLM server of version 0.32 or later in development mode"),
    ],
)
def test_a_server_that_was_not_started_as_it_must_be(
    policy: CausalLMPolicy, env: Any, servers: list[Any], settings: Any, disabled: Any, message: str
) -> None:
    servers[1].model_config |= settings
    servers[1].disabled |= {*disabled}
    with pytest.raises(ValueError, match="Start it by: VLLM_SERVER_DEV_MODE=1 vllm serve ") as caught:
        make_vllm_servers(policy, env, urls(servers))
    assert message in str(caught.value)
    assert servers[1].url in str(caught.value)
    length = env.max_prompt_tokens + env.max_new_tokens
    assert f"--port {servers[1].server_port} --dtype float32 --max-model-len {length}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_on_a_cpu_that_would_keep_its_output_head(
    policy: CausalLMPolicy, env: Any, servers: list[Any]
) -> None:
    servers[0].device = "cpu"
    with pytest.raises(ValueError, match=r"is on a CPU, where vLLM does not follow changes of tied embeddings"):
        make_vllm_servers(policy, env, urls(servers))
    servers[0].model_config["hf_overrides"] = {"tie_word_embeddings": False}
    make_vllm_servers(policy, env, urls(servers))


def test_a_server_without_room_for_adapters(env: Any, servers: list[Any]) -> None:
    adapted = CausalLMPolicy(*load("tokengym/tiny", device="cpu", dtype="bfloat16", lora_rank=2))
    servers[0].model_config["dtype"] = "torch.bfloat16"
    with pytest.raises(ValueError, match=r"max-lora-rank 0, not 8, no VLLM_ALLOW.*--enable-lora --max-lora-rank 8"):
        make_vllm_servers(adapted, env, urls(servers))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["localhost:8000"], "is no address of a vLLM server: give one such as http"),
        (["http://localhost:8000/v1"], "is no address of a vLLM server: give one such as http"),
        (["http://"], "is no address of a vLLM server: give one such as http"),
        (["http://a:1", "http://a:1/"], "http://a:1 is given twice"),
    ],
)
def test_addresses_that_are_none(policy: CausalLMPolicy, env: Any, given: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_vllm_servers(policy, env, given)


def test_a_server_out_of_reach(policy: CausalLMPolicy, env: Any, capsys: Any) -> None:
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=rf"{url} does not answer: .*Start it by: VLLM_SERVER_DEV_MODE=1"):
            make_vllm_servers(policy, env, [url])
        assert main(["eval", "--problems", "1", "--vllm-servers", url, "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"tokengym: the vLLM server {url} does not answer")
    assert error.count("\n") == 1


def test_a_server_with_another_model(policy: CausalLMPolicy, env: Any, servers: list[Any]) -> None:
    servers[1].takes_weights = False
    for parameter in servers[1].model.parameters():
        parameter.data.mul_(1.5)
    vllm = make_vllm_servers(policy, env, urls(servers))
    policy.model.train()
    for _ in range(2):  # the second time no weights are new, and the servers are still wrong
        with pytest.raises(ValueError, match=f"vLLM server {servers[1].url} differ from those of the model by"):
            vllm._hand_over(policy.model)
    assert all(part.training for part in policy.model.modules())


@pytest.mark.parametrize(("length", "prompt", "drawn"), [(2, 1, 1), (8, 4, 4), (400, 8, 32)])
def test_the_check_of_a_server_fits_into_the_shortest_attempts(
    policy: CausalLMPolicy, servers: list[Any], length: int, prompt: int, drawn: int
) -> None:
    VLLMServers(policy.model, urls(servers[:1]), SLOTS, length)._hand_over(policy.model)
    (body,) = servers[0].requests
    assert (len(body["token_ids"]), body["sampling_params"]["max_tokens"]) == (prompt, drawn)


def test_a_server_that_does_not_see_the_folder(
    policy: CausalLMPolicy, env: Any, servers: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm = make_vllm_servers(policy, env, urls(servers), tmp_path / "shared")
    monkeypatch.setattr(vllm_servers, "_write_weights", lambda *_, **__: None)
    with pytest.raises(ValueError, match=r"must see that folder, .* It says: Worker failed with error 'no weights'\."):
        collect(policy.with_vllm(vllm), env, 1, seed=0)
    assert not any(server.paused for server in servers)
    assert str(tmp_path / "shared") in vllm._folder.name


def choice_of(event: Any, **changes: Any) -> Any:
    return event | {"choices": [event["choices"][0] | changes]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda event: None, "ended in the middle of a reply|does not answer"),
        (lambda event: {"error": {"message": "the engine is dead"}}, "failed: the engine is dead"),
        (lambda event: choice_of(event, finish_reason="abort"), "ended a request: abort"),
        (lambda event: choice_of(event, logprobs={"content": [{"logprob": -9999.0}]}), "log-probability is nan"),
        (lambda event: choice_of(event, weight_versions=[{"version": "x"}]), "changed during a rollout: another run"),
    ],
)
def test_a_server_that_fails_in_the_middle(
    policy: CausalLMPolicy, env: Any, servers: list[Any], change: Any, message: str
) -> None:
    vllm = make_vllm_servers(policy, env, urls(servers))
    policy.with_vllm(vllm).rollout_decoder(env)
    before = len(servers[1].requests)
    servers[1].change = lambda body, event: change(event) if len(servers[1].requests) > before else event
    with pytest.raises(ConnectionError, match=message) as caught:
        list(collect(policy.with_vllm(vllm), env, 4, seed=0))
    assert servers[1].url in str(caught.value)


def test_a_server_that_falls_silent(
    policy: CausalLMPolicy, env: Any, servers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm = make_vllm_servers(policy, env, urls(servers))
    policy.with_vllm(vllm).rollout_decoder(env)
    silent = threading.Event()
    servers[1].change = lambda body, event: silent.wait(60) and None
    servers[1].disabled.add("/health")
    monkeypatch.setattr(vllm_http, "SILENT_SECONDS", 0.05)
    with pytest.raises(ConnectionError, match=f"{servers[1].url} refuses"):
        list(collect(policy.with_vllm(vllm), env, 4, seed=0))
    servers[1].disabled.clear()
    monkeypatch.setattr(vllm_http, "STALLED_SECONDS", 0.2)
    with pytest.raises(ConnectionError, match=r"have drawn no token for 0 seconds"):
        list(collect(policy.with_vllm(vllm), env, 4, seed=0))
    silent.set()


def test_a_server_that_ends_attempts_too_early(
    policy: CausalLMPolicy, env: Any, servers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_http, "SILENT_SECONDS", 0.05)
    vllm = make_vllm_servers(policy, env, urls(servers))
    policy.with_vllm(vllm).rollout_decoder(env)
    before = policy.with_sampling(temperature=0.0).with_vllm(vllm)
    add = vllm_http.ServerRequests.add

    def shorter(self: Any, name: str, sequence: Any, settings: Any, server: Any = None) -> None:
        add(self, name, sequence, {**settings, "max_tokens": 1}, server)

    monkeypatch.setattr(vllm_http.ServerRequests, "add", shorter)
    with pytest.raises(ValueError, match="ended attempts that the environment goes on with"):
        list(collect(before, env, 1, seed=0))


def test_a_server_that_was_started_again(policy: CausalLMPolicy, env: Any, servers: list[Any]) -> None:
    vllm = make_vllm_servers(policy, env, urls(servers))
    policy.with_vllm(vllm).rollout_decoder(env)
    servers[0].version = VERSION
    with pytest.raises(ValueError, match=f"{servers[0].url} has other weights than it was given: it was started again"):
        collect(policy.with_vllm(vllm), env, 1, seed=0)


def test_two_ways_to_sample(capsys: Any) -> None:
    with pytest.raises(ValueError, match="vllm_memory and vllm_servers are two ways to sample"):
        GRPO("tokengym/Arithmetic-v0", device="cpu", num_envs=2, vllm_memory=0.5, vllm_servers=["http://a:1"])
    assert main(["eval", "--problems", "1", "--vllm-memory", "0.5", "--vllm-servers", "http://a:1"]) == 1
    assert "vllm_memory and vllm_servers are two ways to sample" in capsys.readouterr().err
    with pytest.raises(ValueError, match="where vLLM servers read weights: give vllm_servers, too"):
        GRPO("tokengym/Arithmetic-v0", device="cpu", num_envs=2, vllm_folder="weights")


def test_one_of_several_processes_hands_weights_over(
    policy: CausalLMPolicy, env: Any, servers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first that needs them; others wait, whichever rank they have, and however often they sampled before."""
    store = torch.distributed.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    rank = threading.local()
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: rank.index)
    monkeypatch.setattr("torch.distributed.distributed_c10d._get_default_store", lambda: store)
    rank.index = 0
    first, second = (VLLMServers(policy.model, urls(servers), SLOTS, 400) for _ in range(2))
    embedding = policy.model.get_input_embeddings().weight.data

    def hand_over(index: int, vllm: VLLMServers) -> None:
        rank.index = index
        vllm._hand_over(policy.model)
        assert {server.version for server in servers} == {vllm._version}

    hand_over(0, first)
    hand_over(1, second)
    assert [server.reloads for server in servers] == [1, 1]
    embedding[0, 0] += 1
    hand_over(1, second)  # the other rank has nothing to sample
    assert [server.reloads for server in servers] == [2, 2]
    embedding[0, 0] -= 1
    both = [threading.Thread(target=hand_over, args=(index, vllm)) for index, vllm in enumerate((first, second))]
    both[1].start()  # only this one has other weights than last time
    both[1].join()
    assert [server.reloads for server in servers] == [3, 3]
    embedding[1, 0] += 1
    both = [threading.Thread(target=hand_over, args=(index, vllm)) for index, vllm in enumerate((first, second))]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert [server.reloads for server in servers] == [4, 4]
    assert first._version == second._version == servers[0].version
    embedding[1, 0] += 1
    monkeypatch.setattr(vllm_http, "HAND_OVER_SECONDS", 0.1)
    monkeypatch.setattr(vllm_servers, "_is_first", lambda *_: False)
    with pytest.raises(TimeoutError, match="another process failed, or trains other weights"):
        hand_over(0, first)


# ---------------------------------------------------------------------------------------------------------- vLLM itself


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A function that starts `vllm serve` with a data type and returns its address."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    folder = tmp_path_factory.mktemp("model")
    model, tokenizer = load("tokengym/tiny", device="cpu")
    # On a CPU vLLM does not follow changes of tied embeddings.
    model.config.tie_word_embeddings = False
    model.set_output_embeddings(copy.deepcopy(model.get_output_embeddings()))
    model.get_output_embeddings().weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    started: list[subprocess.Popen[bytes]] = []

    def start(dtype: str, *arguments: str) -> str:
        port = free_port()
        log = folder / f"{port}.log"
        command = [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--dtype", dtype),
            *("--host", "127.0.0.1", "--port", str(port), "--max-model-len", "512", "--max-num-seqs", "8"),
            *("--logprobs-mode", "processed_logprobs", "--enable-scale-out", "--stream-interval", "4"),
            *("--enforce-eager", "--hf-overrides", '{"tie_word_embeddings": false}', *arguments),
        ]
        variables = {
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
        }
        with log.open("wb") as output:
            started.append(
                subprocess.Popen(command, env=os.environ | variables, stdout=output, stderr=subprocess.STDOUT)
            )
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            assert started[-1].poll() is None, log.read_text()[-3000:]
            try:
                if httpx2.get(f"{url}/health", trust_env=False).status_code == 200:
                    return url
            except httpx2.HTTPError:
                time.sleep(0.5)
        raise TimeoutError(log.read_text()[-3000:])

    yield start
    for process in started:
        process.terminate()
    for process in started:
        process.wait(60)


def error_of(model: Any, attempts: list[Attempt], temperature: float = 1.0) -> float:
    """Mean distance of log-probabilities from those that attempts were sampled with."""
    with torch.inference_mode():
        logits = [model(torch.from_numpy(a.tokens)[None]).logits[0, len(a.prompt) - 1 : -1] for a in attempts]
    found = [
        token_logprobs(x, torch.from_numpy(a.completion).long(), temperature)
        for x, a in zip(logits, attempts, strict=True)
    ]
    theirs = np.concatenate([attempt.logprobs for attempt in attempts])
    return float(np.abs(np.concatenate([values.numpy() for values in found]) - theirs).mean())


@pytest.mark.slow
def test_vllm_servers_sample_the_newest_weights(
    policy: CausalLMPolicy, env: Any, real: Any, tmp_path: Path, same: Any
) -> None:
    url = real("float32")
    vllm = make_vllm_servers(policy, env, [url])
    greedy, warm = policy.with_sampling(temperature=0.0), policy.with_sampling(temperature=0.5)
    seen = []
    for _ in range(3):
        own = list(collect(greedy, env, 8, seed=0))
        theirs = list(collect(greedy.with_vllm(vllm), env, 8, seed=0))
        assert all(same(a, b) for a, b in zip(own, theirs, strict=True))
        attempts, again = (list(collect(warm.with_vllm(vllm), env, 8, seed=0)) for _ in range(2))
        assert all(same(a, b) for a, b in zip(attempts, again, strict=True)), "a seed decides what is drawn"
        assert error_of(policy.model, attempts, 0.5) < 1e-4
        seen.append(own)
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.mul_(1.05)
    assert not all(same(a, b) for a, b in zip(seen[0], seen[2], strict=True)), "other weights, other attempts"
    spec = copy.deepcopy(gym.spec("tokengym/Arithmetic-v0"))
    spec.kwargs["max_new_tokens"] = 24
    settings: dict[str, Any] = {
        "device": "cpu", "num_envs": 8, "iterations": 2, "problems_per_iteration": 4, "samples_per_problem": 4,
        "validation_problems": 4, "validation_iterations": 1,
    }  # fmt: skip
    agent = GRPO(spec, run=tmp_path / "run", vllm_servers=[url], vllm_folder=tmp_path / "weights", **settings)
    logged: list[dict[str, float]] = []
    agent.learn(callback=lambda agent, metrics: logged.append(dict(metrics)))
    assert agent.num_attempts == 32
    assert any("eval/maj@1" in metrics for metrics in logged)
    command = ["eval", "--model", str(tmp_path / "run" / "model"), "--env", "tokengym/Arithmetic-v0", "--problems", "4"]
    assert main([*command, "--n", "0", "--num-envs", "8", "--device", "cpu", "--vllm-servers", url]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vllm_servers_sample_the_policy_that_adapters_have_become(env: Any, real: Any, dtype: str) -> None:
    url = real(dtype, *(("--enable-lora", "--max-lora-rank", "8") if dtype == "bfloat16" else ()))
    model, tokenizer = load("tokengym/tiny", device="cpu", dtype=dtype, lora_rank=4)
    adapted = CausalLMPolicy(model, tokenizer).with_sampling(temperature=1.0)
    vllm = make_vllm_servers(adapted, env, [url])
    before = error_of(model, list(collect(adapted.with_vllm(vllm), env, 16, seed=0)))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    ids = torch.arange(64).reshape(2, 32) + 5
    for _ in range(16):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    attempts = list(collect(adapted.with_vllm(vllm), env, 16, seed=0))
    after = error_of(model, attempts)
    with model.disable_adapter():  # pyright: ignore[reportCallIssue]
        stale = error_of(model, attempts)
    assert max(before, after) < (1e-4 if dtype == "float32" else 0.02)
    assert stale > 3 * after
    print(f"{dtype}: before {before:.2g}, after {after:.2g}, against weights without adapters {stale:.2g}")  # noqa: T201
