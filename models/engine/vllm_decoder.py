"""Decoding by vLLM, which samples large models on GPUs many times faster than a loop over transformers.

vLLM's engine runs in this process, on the same device as the model that is being trained, or behind servers (see
`vllm_servers`), and every attempt is a request of it. A step of the decoder hands the environment the next token of
every attempt, so rollouts, per-step rewards and evaluation are those of the built-in decoder. Where vLLM has no memory
for all attempts at once, it goes ahead with some of them, and what it has drawn waits for the environment.
"""

import copy
import os
import shutil
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from ...arrays import IntArray
from ...extras import need
from ..adapters import merged_weights
from .sampling import SamplingConfig

if TYPE_CHECKING:
    from vllm import LLMEngine  # pyright: ignore[reportMissingImports]  # an extra


class Drawn(NamedTuple):
    """What vLLM has drawn for a request since the last time.

    Attributes:
        request: Name of the request.
        tokens: Tokens `[T]`.
        logprobs: Log-probabilities `[T]` of the tokens, in the distributions that they were drawn from.
        prefill_tokens: Prompt tokens that were computed for it; 0 but for the first tokens of a request.
    """

    request: str
    tokens: Sequence[int]
    logprobs: Sequence[float]
    prefill_tokens: int


class Requests(Protocol):
    """Requests to vLLM that are under way."""

    def add(self, name: str, sequence: IntArray, settings: Mapping[str, Any]) -> None:
        """Makes a request to continue a sequence `[T]` by settings of vLLM's `SamplingParams`."""
        ...

    def abort(self, names: Sequence[str]) -> None:
        """Ends requests, whether vLLM is done with them or not."""
        ...

    def step(self) -> Iterable[Drawn]:
        """What was drawn, of one request or more; it waits for that."""
        ...


class BaseVLLM(ABC):
    """vLLM, wherever it runs, with the weights that a model has whenever a rollout begins.

    Attempts draw from random streams of their own, seeded by their keys. But vLLM's kernels do not compute a row in
    the same way in every batch, so an attempt can depend, in rare draws, on what shares the batch with it.

    Args:
        num_slots: Largest number of attempts at the same time.
        length: Largest number of tokens of an attempt, prompt included.
        adapted: Hand over the adapters themselves: in lower precision than float32 merging would round them away.
    """

    closed = False
    """True after `close`."""

    def __init__(self, num_slots: int, length: int, adapted: bool) -> None:
        self.num_slots, self.length = num_slots, length
        self._adapted = adapted
        self._folder = tempfile.TemporaryDirectory()  # of adapters
        self._weights: tuple[int, ...] = ()  # hashes of what the engine has
        self._adapter_weights: tuple[int, ...] = ()
        self._adapter: Any = None
        self._decoders = 0
        self._decoder: VLLMDecoder | None = None

    def decoder(
        self,
        model: PreTrainedModel,
        num_slots: int,
        vocab_size: int,
        eos_token_ids: Collection[int],
        max_new_tokens: int,
    ) -> "VLLMDecoder":
        """A decoder with the model's weights as they are now; ends what the last one had still under way.

        Weights that vLLM has already are not handed over again.

        Args:
            model: Model of the architecture that this was made for.
            num_slots: Largest number of slots that are live at once.
            vocab_size: Vocabulary size of the tokenizer; tokens beyond it are never drawn.
            eos_token_ids: Tokens that end an attempt.
            max_new_tokens: Largest number of tokens of an attempt, without its prompt.

        Raises:
            ValueError: More slots than this was made for, or it has ended.
        """
        self._check_open()
        if num_slots > self.num_slots:
            raise ValueError(
                f"vLLM was made for {self.num_slots} attempts at the same time, and the environment has {num_slots} "
                "slots: make both with the same num_envs"
            )
        if self._decoder is not None:
            self._decoder.close()
        self._hand_over(model)
        self._decoders += 1
        padded = model.config.get_text_config().vocab_size > vocab_size
        limits = {
            "max_tokens": max_new_tokens,
            # Ahead of the environment vLLM has to know, too, when an attempt ends, or it would never stop.
            "stop_token_ids": sorted(eos_token_ids),
            "allowed_token_ids": list(range(vocab_size)) if padded else None,
        }
        self._decoder = VLLMDecoder(self._requests(), self.length, limits, self._decoders)
        return self._decoder

    def _hand_over(self, model: PreTrainedModel) -> None:
        """Gives vLLM what has changed since the last time, weights or adapters; most rollouts change nothing."""
        weights, adapters = self._hashes(model)
        if weights != self._weights:
            self._load_weights(model)
            self._weights = weights
        if adapters != self._adapter_weights:
            self._load_adapter(model)
            self._adapter_weights = adapters

    def _hashes(self, model: PreTrainedModel) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Hashes of all parameters; where adapters are handed over, of the weights and of the adapters."""
        parts: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for name, parameter in model.named_parameters():
            parts[self._adapted and ".lora_" in name].append(torch.hash_tensor(parameter.detach()))
        weights, adapters = (tuple(torch.stack(part).tolist()) if part else () for part in parts)
        return weights, adapters

    def _write_adapter(self, model: PreTrainedModel, name: str) -> Path:
        """Writes the model's adapters as they are now to a folder of that name, in place of those before."""
        for before in Path(self._folder.name).iterdir():
            shutil.rmtree(before)
        folder = Path(self._folder.name) / name
        cast(Any, model).save_pretrained(folder, save_embedding_layers=False)
        return folder

    @abstractmethod
    def _check_open(self) -> None:
        """Raises `ValueError` if no decoder can be made any more."""

    @abstractmethod
    def _load_weights(self, model: PreTrainedModel) -> None:
        """Gives vLLM the model's weights, with what adapters add unless these are handed over themselves."""

    @abstractmethod
    def _load_adapter(self, model: PreTrainedModel) -> None:
        """Gives vLLM the model's adapters."""

    @abstractmethod
    def _requests(self) -> Requests:
        """The requests that a decoder makes, by the weights and adapters that were handed over last."""


class VLLM(BaseVLLM):
    """vLLM in this process, with the weights that a model has whenever a rollout begins.

    vLLM serves one model of a process at a time: what is made later ends what was made before.

    Args:
        model: Model whose architecture is built, with adapters or without. In lower precision than float32 vLLM gets
            the adapters themselves, because merging would round them away.
        num_slots: Largest number of attempts at the same time.
        length: Largest number of tokens of an attempt, prompt included.
        memory: Share of the GPU's memory for vLLM's weights and cache, between 0 and 1; on a CPU, of the machine's
            memory.
        arguments: Arguments of vLLM's `EngineArgs` that take precedence over those chosen here, such as `dtype`, by
            default the model's, or `enforce_eager`.

    Raises:
        ImportError: vLLM is not installed.
        ValueError: `memory` is out of range, or one of several processes has such an engine already.
    """

    def __init__(self, model: PreTrainedModel, num_slots: int, length: int, *, memory: float, **arguments: Any) -> None:
        if not 0 < memory < 1:
            raise ValueError(f"vLLM's share of the memory must be between 0 and 1, got {memory}")
        need("vllm", "sampling with vLLM")
        from vllm import EngineArgs, LLMEngine  # pyright: ignore[reportMissingImports]

        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are handed over inside one process
        ranks = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
        # When an engine ends, by whatever way, vLLM ends the process groups of all of them, and PyTorch's own.
        for other in tuple(_OPEN):
            if ranks:
                raise ValueError(
                    "vLLM serves one model of a process, and this process of several has one already: make one agent "
                    "that samples with vLLM, or launch another run"
                )
            other.close()
        with tempfile.TemporaryDirectory() as folder:
            # Architecture alone: the weights are handed over, wherever the model came from. Tied embeddings become two,
            # for vLLM may have packed the second at first, and would not pack it again when the first is handed over.
            config = copy.deepcopy(model.config)
            config.get_text_config().tie_word_embeddings = config.tie_word_embeddings = False
            config.save_pretrained(folder)
            chosen = {
                "skip_tokenizer_init": True,
                "load_format": "dummy",
                "dtype": str(model.dtype).removeprefix("torch."),
                "max_model_len": length,
                "max_num_seqs": num_slots,
                "gpu_memory_utilization": memory,
                "logprobs_mode": "processed_logprobs",  # of the distribution that is drawn from
                "generation_config": "vllm",  # the model's own would change how tokens are drawn
                # With several ranks each has an engine of its own, in the process group that is there already.
                "distributed_executor_backend": "external_launcher" if ranks else "uni",
                "disable_log_stats": True,
            }
            chosen |= arguments
            # In float32 they are merged, which loses nothing, and costs nothing per token.
            adapted = hasattr(model, "peft_config") and chosen["dtype"] != "float32"
            if adapted:
                chosen |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": max_lora_rank(model)}
            self._engine: LLMEngine = LLMEngine.from_engine_args(EngineArgs(model=folder, **chosen))
        _OPEN.add(self)
        super().__init__(num_slots, length, adapted)

    def close(self) -> None:
        """Ends vLLM and frees its memory; no decoder can be made any more."""
        self.closed = True
        _OPEN.discard(self)
        self._engine.engine_core.shutdown()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(
                "vLLM has ended here, for it serves one model of a process at a time: another was made later. Make "
                "this agent or policy again"
            )

    def _load_weights(self, model: PreTrainedModel) -> None:
        given = merged_weights(model, leave_out=self._adapted)
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": given})
        self._engine.reset_prefix_cache()

    def _load_adapter(self, model: PreTrainedModel) -> None:
        from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

        # Under a name of their own each time: vLLM keeps what it has read.
        number = 1 if self._adapter is None else self._adapter.lora_int_id + 1
        self._adapter = LoRARequest(str(number), number, str(self._write_adapter(model, str(number))))

    def _requests(self) -> Requests:
        return EngineRequests(self._engine, self._adapter)


class EngineRequests:
    """Requests to vLLM's engine in this process.

    Args:
        engine: Engine of vLLM.
        adapter: Adapters of the model that are not merged, as vLLM's `LoRARequest` for all requests.
    """

    def __init__(self, engine: "LLMEngine", adapter: Any = None) -> None:
        self._engine, self._adapter = engine, adapter
        self._unseen: set[str] = set()  # requests that vLLM has drawn nothing for

    def add(self, name: str, sequence: IntArray, settings: Mapping[str, Any]) -> None:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

        self._unseen.add(name)
        params = SamplingParams(**settings, output_kind=RequestOutputKind.DELTA)
        prompt: Any = {"prompt_token_ids": sequence.tolist()}
        self._engine.add_request(name, prompt, params, lora_request=self._adapter)

    def abort(self, names: Sequence[str]) -> None:
        self._engine.abort_request(list(names))

    def step(self) -> Iterable[Drawn]:
        for output in self._engine.step():
            computed = 0
            if output.request_id in self._unseen:
                self._unseen.discard(output.request_id)
                computed = len(output.prompt_token_ids) - output.num_cached_tokens
            tokens, logprobs = output.outputs[0].token_ids, output.outputs[0].logprobs
            chosen = [drawn[token].logprob for token, drawn in zip(tokens, logprobs, strict=True)]
            yield Drawn(output.request_id, tokens, chosen, computed)


class VLLMDecoder:
    """Stands in for `SlotDecoder`, with an attempt's tokens from a request to vLLM.

    Args:
        requests: Requests to vLLM.
        length: Largest number of tokens of a sequence.
        limits: Settings of vLLM's `SamplingParams` that hold for all attempts.
        number: Number of the decoder, which is part of its requests' names.
    """

    def __init__(self, requests: Requests, length: int, limits: Mapping[str, Any], number: int) -> None:
        self.slots = np.empty(0, np.int64)
        """The live slots, in the order of what `step` returns."""
        self.prefill_tokens = 0
        """Prompt tokens that vLLM computed; those that it had in its cache do not count."""
        self.kept: None = None
        """vLLM does not say which tokens it drew from."""
        self._source = requests
        self._length, self._limits, self._number = length, limits, number
        self._begun = 0
        self._new: dict[int, tuple[IntArray, int]] = {}  # sequence and key of slots whose request is yet to be made
        self._requests: dict[int, str] = {}  # of the slots whose attempts go on
        self._drawn: dict[str, deque[tuple[int, float]]] = {}  # by request: what vLLM is ahead of the environment

    def begin(self, slots: IntArray, sequences: Sequence[IntArray], keys: IntArray) -> None:
        """Starts attempts in `slots`, see `SlotDecoder.begin`.

        Raises:
            ValueError: A sequence is empty, or as long as sequences may be.
        """
        for slot, sequence, key in zip(slots.tolist(), sequences, keys.tolist(), strict=True):
            if not 0 < len(sequence) < self._length:
                raise ValueError(
                    f"vLLM was made for sequences of {self._length} tokens, and has no room to continue one of "
                    f"{len(sequence)}: a prompt needs one token or more, and room behind it"
                )
            self._new[slot] = sequence, key
        self.slots = np.concatenate([self.slots, slots[~np.isin(slots, self.slots)]])

    def finish(self, slots: IntArray) -> None:
        """Ends the attempts in `slots`."""
        ended = [self._requests.pop(slot) for slot in slots.tolist()]
        self._source.abort(ended)
        for request in ended:
            del self._drawn[request]

    def close(self) -> None:
        """Ends all attempts."""
        self._source.abort(list(self._requests.values()))
        self._requests.clear()
        self._drawn.clear()

    def retire(self, slots: IntArray) -> None:
        """Takes slots out of the batch."""
        self.slots = self.slots[~np.isin(self.slots, slots)]

    def step(self, config: SamplingConfig) -> tuple[IntArray, NDArray[np.float32]]:
        """The next token of every live slot; of those that have finished, some token.

        Returns:
            Tokens and log-probabilities (see `sampling.sample`), each `[R]` in the order of `slots`.
        """
        for slot, (sequence, key) in self._new.items():
            self._request(slot, sequence, key, config)
        self._new.clear()
        while not all(self._drawn.values()):
            for drawn in self._source.step():
                self._take(drawn)
        tokens = np.zeros(len(self.slots), np.int64)
        logprobs = np.zeros(len(self.slots), np.float32)
        for row, slot in enumerate(self.slots.tolist()):
            if slot in self._requests:
                tokens[row], logprobs[row] = self._drawn[self._requests[slot]].popleft()
        return tokens, logprobs

    def _request(self, slot: int, sequence: IntArray, key: int, config: SamplingConfig) -> None:
        name = f"{self._number}/{self._begun}"
        self._begun += 1
        self._requests[slot], self._drawn[name] = name, deque()
        settings = {
            "temperature": config.temperature,
            "top_k": config.top_k or 0,
            "top_p": 1.0 if config.top_p is None else config.top_p,
            "min_p": config.min_p or 0.0,
            "seed": key,
            "logprobs": 0,
            "detokenize": False,
            **self._limits,
            "max_tokens": min(self._limits["max_tokens"], self._length - len(sequence)),
        }
        self._source.add(name, sequence, settings)

    def _take(self, drawn: Drawn) -> None:
        """Keeps what vLLM drew for an attempt, unless that has ended meanwhile."""
        self.prefill_tokens += drawn.prefill_tokens
        queue = self._drawn.get(drawn.request)
        if queue is not None:
            queue.extend(zip(drawn.tokens, drawn.logprobs, strict=True))


def max_lora_rank(model: PreTrainedModel) -> int:
    """The least of the ranks that vLLM takes that has room for a model's adapters.

    Raises:
        ValueError: There is none.
    """
    rank = cast(Any, model).peft_config["default"].r
    if rank > _RANKS[-1]:
        raise ValueError(
            f"vLLM takes adapters of rank {_RANKS[-1]} at most, and these have {rank}: lower lora_rank, or load the "
            "model in float32, in which they are merged before they are handed over"
        )
    return min(each for each in _RANKS if each >= rank)


# Those that have not ended.
_OPEN: weakref.WeakSet[VLLM] = weakref.WeakSet()
# What vLLM takes for `max_lora_rank`.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
