"""A stand-in for vLLM servers, and what tests of vLLM as a decoder share."""

import copy
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tokengym.agents.rollouts.attempts import Attempt
from tokengym.agents.rollouts.policy import CausalLMPolicy
from tokengym.agents.rollouts.slots import make_rollout_env
from tokengym.envs.curriculum import Sequential
from tokengym.models import load

SLOTS = 4
LOADING = threading.Lock()  # transformers loads models in one thread at a time


@pytest.fixture
def env(policy: CausalLMPolicy) -> Any:
    env = make_rollout_env(gym.spec("tokengym/Arithmetic-v0"), policy, SLOTS, max_new_tokens=12, reward="dense")
    env.curriculum = Sequential(repeats=2)
    return env


@pytest.fixture(scope="session")
def same() -> Callable[[Attempt, Attempt], bool]:
    """Compares attempts but for their log-probabilities."""

    def same(one: Attempt, other: Attempt) -> bool:
        fields = ("problem", "index", "is_success", "verdict", "answer", "terminated")
        return all(getattr(one, name) == getattr(other, name) for name in fields) and all(
            np.array_equal(getattr(one, name), getattr(other, name)) for name in ("prompt", "completion", "rewards")
        )

    return same


class StandIn(ThreadingHTTPServer):
    """A server with the paths of vLLM 0.32 that are used, and a transformers model behind them."""

    daemon_threads = True

    def __init__(self, model: Any, **model_config: Any) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.model, self.lock = copy.deepcopy(model), threading.Lock()
        self.model_config = {"dtype": "torch.float32", "max_model_len": 900, "logprobs_mode": "processed_logprobs"}
        self.model_config |= {"hf_overrides": {}, **model_config}
        self.lora_config: Any = None
        self.device = "cuda"
        self.version, self.adapters, self.paused = "default", dict[str, Any](), False
        self.requests: list[dict[str, Any]] = []
        self.streams = 0
        self.disabled = set[str]()
        self.reloads, self.takes_weights = 0, True
        self.change: Any = lambda request, event: event  # of what is streamed
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandIn  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None: ...

    def reply(self, content: Any, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def refuse(self, message: str, status: int) -> None:
        self.reply({"error": {"message": message, "type": "", "param": None, "code": status}}, status)

    def do_GET(self) -> None:
        server = self.server
        config = {"model_config": server.model_config, "lora_config": server.lora_config}
        config["device_config"] = {"device": server.device}
        names = [{"id": name} for name in ("base", *server.adapters)]
        replies = {
            "/server_info?config_format=json": {
                "vllm_config": config,
                "vllm_env": {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": server.lora_config is not None},
            },
            "/weight_info": {"weight_version": server.version},
            "/v1/models": {"data": names},
            "/health": {},
        }
        if self.path in server.disabled or self.path not in replies:
            self.refuse("Not Found", 404)
        else:
            self.reply(replies[self.path])

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or "{}")
        match self.path:
            case "/pause?mode=abort":
                server.paused = True
                self.reply({"status": "paused"})
            case "/resume":
                server.paused = False
                self.reply({"status": "resumed"})
            case "/collective_rpc":
                assert server.paused
                assert body["method"] == "reload_weights"
                files = sorted(Path(body["kwargs"]["weights_path"]).glob("*.safetensors"))
                if not files:
                    self.refuse("Worker failed with error 'no weights'", 500)
                    return
                given = {name: weight for file in files for name, weight in load_file(file).items()}
                server.reloads += 1
                if server.takes_weights:
                    server.model.load_state_dict(given)
                self.reply({"results": [None]})
            case "/reset_prefix_cache":
                self.reply({"success": True})
            case "/update_weight_version":
                server.version = body["new_version"]
                self.reply({"success": True})
            case "/v1/load_lora_adapter":
                with LOADING:
                    server.adapters[body["lora_name"]], _ = load(body["lora_path"], device="cpu", dtype="bfloat16")
                self.reply("Success")
            case "/v1/unload_lora_adapter":
                del server.adapters[body["lora_name"]]
                self.reply("Success")
            case "/inference/v1/generate" if self.path in server.disabled:
                self.refuse("Scale-out endpoints are disabled.", 403)
            case "/inference/v1/generate" if "token_ids" not in body:
                self.refuse("Field required", 400)
            case "/inference/v1/generate":
                self.generate(body)
            case _:
                self.refuse("Not Found", 404)

    def generate(self, body: dict[str, Any]) -> None:
        server, params = self.server, body["sampling_params"]
        assert not server.paused
        assert params["ignore_eos"]
        server.requests.append(body)
        model = server.adapters[body["model"]] if "model" in body else server.model
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("connection", "close")
        self.end_headers()
        server.streams += 1
        try:
            for event in events(model, body["token_ids"], params, server):
                changed = server.change(body, event)
                if changed is None:
                    return
                self.wfile.write(f"data: {json.dumps(changed)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            pass  # the client has closed the connection
        finally:
            server.streams -= 1


def events(model: Any, prompt: list[int], params: dict[str, Any], server: StandIn) -> Iterator[dict[str, Any]]:
    """Chunks of one token, then three at a time; greedy, or drawn by the request's seed."""
    sequence, count, chunk = list(prompt), 0, []
    stop, generator = set(params.get("stop_token_ids", ())), torch.Generator().manual_seed(params["seed"] % 2**31)
    while True:
        with server.lock, torch.inference_mode():
            logits = model(torch.tensor([sequence])).logits[0, -1].float()
        logprobs = (logits / (params["temperature"] or 1.0)).log_softmax(-1)
        greedy = params["temperature"] == 0
        token = int(logits.argmax() if greedy else torch.multinomial(logprobs.exp(), 1, generator=generator))
        sequence.append(token)
        chunk.append({"token_id": token, "logprob": float(logprobs[token]), "rank": 1, "top_logprobs": []})
        count += 1
        reason = "stop" if token in stop else "length" if count == params["max_tokens"] else None
        if reason or count % 3 == 1:
            spans = [{"version": server.version, "start": 0, "end": count}] if reason else None
            choice = {"index": 0, "finish_reason": reason, "token_ids": [one["token_id"] for one in chunk]}
            choice |= {"weight_versions": spans, "logprobs": {"content": chunk}}
            yield {"request_id": "generate-tokens-0", "output_mode": "tokens", "choices": [choice]}
            chunk = []
        if reason:
            return


@pytest.fixture
def servers(policy: CausalLMPolicy) -> Iterator[list[StandIn]]:
    made = [StandIn(policy.model) for _ in range(2)]
    yield made
    for server in made:
        server.shutdown()
        server.server_close()
