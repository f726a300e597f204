"""Decoding by vLLM servers, on other GPUs or machines than the training.

Every attempt is a request to one of the servers, whose tokens arrive as vLLM draws them. Weights travel through a
folder that this process and the servers see, from which vLLM reloads them. Adapters of a model in lower precision than
float32 are handed over themselves, a small file.
"""

import hashlib
import operator
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import httpx2
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from ...files import naming
from ..adapters import merged_weights
from ..forward import token_logprobs
from ..layers import evaluating, without_adapters
from ..tokenizers import TINY, locate
from .vllm_decoder import BaseVLLM, Requests, max_lora_rank
from .vllm_http import ADAPTER, RefusedError, ServerRequests, Servers

TOLERANCE = {"float32": 0.01, "bfloat16": 0.1}
"""Mean difference of log-probabilities between a server and the model, by data type, above which the server is refused.
[choice]"""
_MODE = "processed_logprobs"  # of the distribution that is drawn from
_SHARD = 2**32  # bytes of a file of weights


class VLLMServers(BaseVLLM):
    """vLLM servers, with the weights that a model has whenever a rollout begins.

    Servers serve one run at a time. Requests go to the server that has the fewest. Of several processes each makes its
    own requests, and the first that needs new weights on the servers hands them over.

    Args:
        model: Model that the servers were started with.
        urls: Addresses of servers, such as "http://10.0.0.2:8000".
        num_slots: Largest number of attempts at the same time.
        length: Largest number of tokens of an attempt, prompt included.
        folder: Folder in which weights are handed over, which the servers see by the same path; by default a temporary
            one, for servers on this machine.
        dtype: Data type that the servers compute in; by default the model's.

    Raises:
        ValueError: An address is no URL, or a server was not started as it must be; the message gives the command.
        ConnectionError: A server cannot be reached.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        urls: Sequence[str],
        num_slots: int,
        length: int,
        *,
        folder: str | Path | None = None,
        dtype: str | None = None,
    ) -> None:
        self._dtype = dtype or str(model.dtype).removeprefix("torch.")
        super().__init__(num_slots, length, hasattr(model, "peft_config") and self._dtype != "float32")
        self._shared = None if folder is None else Path(folder).resolve()
        if self._shared is not None:
            with naming(self._shared):
                self._shared.mkdir(parents=True, exist_ok=True)
        # Of this process: adapters stay there until the next ones are loaded.
        self._folder = tempfile.TemporaryDirectory(prefix="tokengym-", dir=self._shared)
        Path(self._folder.name).chmod(0o755)  # servers may run as another user
        self._version = ""
        self._servers = Servers(_checked_urls(urls))
        self._check_settings(model)

    def close(self) -> None:
        """Ends all requests; no decoder can be made any more. The servers go on."""
        if not self.closed:
            self.closed = True
            self._servers.close()
            self._folder.cleanup()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("these vLLM servers were closed: make them again")

    def _check_settings(self, model: PreTrainedModel) -> None:
        """Raises `ValueError` unless the servers were started as this model needs them."""
        rank = max_lora_rank(model) if self._adapted else 0
        for url in self._servers.urls:
            try:
                info = self._servers.ask(url, "GET", "/server_info?config_format=json")
            except RefusedError as error:
                what = "is no vLLM server of version 0.32 or later in development mode"
                raise ValueError(f"{url} {what}. {self._start(model, url)}") from error
            except ConnectionError as error:
                raise ConnectionError(f"{error}. {self._start(model, url)}") from error
            served, adapters = info["vllm_config"]["model_config"], info["vllm_config"]["lora_config"] or {}
            needs = [
                ("--dtype", served["dtype"].removeprefix("torch."), self._dtype, operator.eq),
                ("--max-model-len", served["max_model_len"], self.length, operator.ge),
                ("--logprobs-mode", served["logprobs_mode"], _MODE, operator.eq),
                ("--max-lora-rank", adapters.get("max_lora_rank", 0), rank, operator.ge),
            ]
            wrong = [f"{name} {found}, not {wanted}" for name, found, wanted, fits in needs if not fits(found, wanted)]
            if self._adapted and not info["vllm_env"].get("VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
                wrong.append("no VLLM_ALLOW_RUNTIME_LORA_UPDATING=1")
            try:
                self._servers.ask(url, "POST", "/inference/v1/generate", {})
            except RefusedError as error:
                if error.status == 403:
                    wrong.append("no --enable-scale-out")
            tied = without_adapters(model).config.get_text_config().tie_word_embeddings
            on_cpu = info["vllm_config"]["device_config"]["device"] == "cpu"
            if tied and on_cpu and served["hf_overrides"].get("tie_word_embeddings") is not False:
                # Of its packed copy of the output head, which reloading the embedding would leave as it was.
                raise ValueError(
                    f"the vLLM server {url} is on a CPU, where vLLM does not follow changes of tied embeddings: serve "
                    """a copy of the model that has them apart, with --hf-overrides '{"tie_word_embeddings": false}'"""
                )
            if wrong:
                raise ValueError(f"the vLLM server {url} has {', '.join(wrong)}. {self._start(model, url)}")

    def _start(self, model: PreTrainedModel, url: str) -> str:
        """A sentence with the command that starts a server as this model needs it."""
        port = httpx2.URL(url).port
        name = without_adapters(model).name_or_path
        served = locate(name)["pretrained_model_name_or_path"] if name == TINY else name or "MODEL"
        parts = [
            "VLLM_SERVER_DEV_MODE=1",
            *(["VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"] if self._adapted else []),
            f"vllm serve {shlex.quote(served)}",
            *([] if port is None else [f"--port {port}"]),
            f"--dtype {self._dtype} --max-model-len {self.length} --logprobs-mode {_MODE}",
            "--enable-scale-out --stream-interval 16",
            *([f"--enable-lora --max-lora-rank {max_lora_rank(model)}"] if self._adapted else []),
        ]
        return f"Start it by: {' '.join(parts)}"

    def _hand_over(self, model: PreTrainedModel) -> None:
        hashes = [hashlib.sha256(repr(part).encode()).hexdigest()[:16] for part in self._hashes(model)]
        version, adapter = hashes[0], ADAPTER + hashes[1] if self._adapted else None
        if (version, adapter) == (self._version, self._adapter):
            for url, found in zip(self._servers.urls, self._servers.versions(), strict=True):
                if found != version:
                    raise ValueError(
                        f"the vLLM server {url} has other weights than it was given: it was started again, or another "
                        "run uses it, too"
                    )
            return
        self._version, self._adapter = version, adapter
        try:
            if not _is_first(f"{version}/{adapter}", " ".join(self._servers.urls)):
                self._servers.wait_for(version, adapter)
                return
            self._load_weights(model)
            if adapter is not None:
                self._load_adapter(model)
            self._check_logprobs(model)
        except BaseException as error:
            self._version, self._adapter = "", None  # nothing is known of what the servers have
            if not isinstance(error, RefusedError):
                raise
            raise ValueError(
                f"the vLLM server {error.url} does not take the weights of this model from {self._folder.name}: it "
                "must see that folder, which vllm_folder chooses, and serve the same model. It says: "
                f"{error.message}. {self._start(model, error.url)}"
            ) from error

    def _load_weights(self, model: PreTrainedModel) -> None:
        versions = zip(self._servers.urls, self._servers.versions(), strict=True)
        stale = [url for url, found in versions if found != self._version]
        if stale:
            with tempfile.TemporaryDirectory(dir=self._folder.name) as folder:
                Path(folder).chmod(0o755)
                _write_weights(model, Path(folder), getattr(torch, self._dtype), leave_out=self._adapted)
                self._servers.load_weights(stale, folder, self._version)

    def _load_adapter(self, model: PreTrainedModel) -> None:
        self._servers.load_adapter(self._adapter, str(self._write_adapter(model, self._adapter)))

    def _requests(self) -> Requests:
        return ServerRequests(self._servers, self._version, self._adapter)

    @torch.no_grad()
    def _check_logprobs(self, model: PreTrainedModel) -> None:
        """Raises `ValueError` if a server's log-probabilities of a short row are not the model's."""
        prompt = np.arange(min(8, self.length // 2)) % model.config.get_text_config().vocab_size
        count, temperature = min(32, self.length - len(prompt)), 0.7
        settings = {"temperature": temperature, "seed": 0, "logprobs": 0, "detokenize": False, "max_tokens": count}
        requests = ServerRequests(self._servers, self._version, self._adapter)
        found: dict[str, list[tuple[int, float]]] = {url: [] for url in self._servers.urls}
        for url in found:
            requests.add(url, prompt, settings, url)
        while any(len(row) < count for row in found.values()):
            for drawn in requests.step():
                found[drawn.request] += zip(drawn.tokens, drawn.logprobs, strict=True)
        requests.abort([*found])
        for url, row in found.items():
            tokens = torch.tensor([*prompt.tolist(), *(token for token, _ in row)], device=model.device)
            with evaluating(model):
                logits = model(tokens[None]).logits[0, len(prompt) - 1 : -1]
            expected = token_logprobs(logits, tokens[len(prompt) :], temperature).cpu()
            error = float((expected - torch.tensor([logprob for _, logprob in row])).abs().mean())
            if not error <= TOLERANCE.get(self._dtype, TOLERANCE["bfloat16"]):
                raise ValueError(
                    f"the log-probabilities of the vLLM server {url} differ from those of the model by {error:.3g} on "
                    f"average: it serves another model, or a quantized one. {self._start(model, url)}"
                )


def _checked_urls(urls: Sequence[str]) -> list[str]:
    checked: list[str] = []
    for text in [urls] if isinstance(urls, str) else urls:
        try:
            url = httpx2.URL(text)
        except httpx2.InvalidURL:
            url = httpx2.URL("")
        if url.scheme not in ("http", "https") or not url.host or url.path not in ("", "/"):
            raise ValueError(f"{text!r} is no address of a vLLM server: give one such as http://10.0.0.2:8000")
        plain = str(url).rstrip("/")
        if plain in checked:
            raise ValueError(f"the vLLM server {plain} is given twice")
        checked.append(plain)
    return checked


def _is_first(state: str, servers: str) -> bool:
    """True on the one of several processes that brings servers into a state: the first that asks."""
    dist = torch.distributed
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return True
    store = cast(Any, dist.distributed_c10d)._get_default_store()
    key, mine = f"tokengym/vllm/{servers}", f"{state} {dist.get_rank()}"
    current = store.get(key).decode() if store.check([key]) else ""
    while current.split(" ")[0] != state:
        current = store.compare_set(key, current, mine).decode()
        if current == mine:
            return True
    return False


def _write_weights(model: PreTrainedModel, folder: Path, dtype: torch.dtype, leave_out: bool) -> None:
    """Writes weights as a checkpoint of vLLM's, tied ones by both names."""
    part: dict[str, Tensor] = {}
    size = number = 0
    with naming(folder):
        for name, weight in merged_weights(model, leave_out):
            part[name] = weight.to("cpu", dtype if weight.is_floating_point() else weight.dtype).clone()
            size += part[name].nbytes
            if size >= _SHARD:
                save_file(part, folder / f"model-{number:05}.safetensors")
                part, size, number = {}, 0, number + 1
        if part:
            save_file(part, folder / f"model-{number:05}.safetensors")
