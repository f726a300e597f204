"""Decoding by CUDA graphs: the kernels of a step are recorded once for each shape, and replayed.

A step of a model launches hundreds of kernels, most of which take less time than their launch. Recorded, they are
launched as one, from inputs that are kept in one place.
"""

import logging
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..attention import by_groups, layout
from ..layers import model_name
from .compiled_decoder import GRAPHS, changed, compiled_step
from .padded_decoder import PaddedDecoder, step
from .sampling import SamplingConfig
from .self_check import cause

_Drawn = tuple[Tensor, Tensor, Tensor]

_logger = logging.getLogger(__name__)

_FAULTS: "WeakKeyDictionary[PreTrainedModel, dict[bool, str]]" = WeakKeyDictionary()


class GraphDecoder(PaddedDecoder):
    """A `SlotDecoder` whose steps are replayed from CUDA graphs; it draws the same tokens up to rounding.

    A model's first step is computed without a graph, too, and the two are compared. A model whose step cannot be
    recorded, such as one that waits for the device to choose its experts, is decoded without graphs, with a warning.

    Args:
        model: Causal language model of transformers on a GPU that `self_check.decoding` accepts for slots.
        num_slots: Largest number of slots that are live at once.
        vocab_size: Vocabulary size of the tokenizer; logits beyond it are dropped before the softmax.
        compiled: Record a step that `torch.compile` has compiled, which takes some minutes at first. A model whose step
            cannot be compiled, or changes its outputs, raises `ValueError`.
    """

    parts = 4

    def __init__(self, model: PreTrainedModel, num_slots: int, vocab_size: int, compiled: bool = False) -> None:
        super().__init__(model, num_slots, vocab_size)
        self.compiled = compiled
        pinned = self.device.type == "cuda"  # what is copied while the host goes on
        self._host = torch.zeros((4, num_slots), dtype=torch.int64, pin_memory=pinned)
        self._state = torch.zeros((4, num_slots), dtype=torch.int64, device=self.device)
        self._recorded: dict[tuple[Any, ...], Callable[[], _Drawn]] = {}
        self._capacity = 0  # of the cache that the graphs read: one that grows is another
        self._pool = torch.cuda.graph_pool_handle() if pinned else None

    def _draw(self, count: int, config: SamplingConfig) -> _Drawn:
        faults = _FAULTS.setdefault(self.model, {})
        if self.compiled not in faults:
            faults[self.compiled] = self._fault(count, config)
            self._recorded.clear()  # the graph of the comparison keeps its logits
            if faults[self.compiled]:
                _logger.warning(
                    "%s is decoded without CUDA graphs, which is right but slow: %s",
                    model_name(self.model),
                    faults[self.compiled],
                )
        return super()._draw(count, config) if faults[self.compiled] else self._replay(count, config)

    def _fault(self, count: int, config: SamplingConfig) -> str:
        """Why a model's steps cannot be replayed; empty if they can.

        Raises:
            ValueError: Its compiled steps cannot be.
        """
        records_kept, self.records_kept = self.records_kept, True
        try:
            found = self._replay(count, config)[2]
        except Exception as error:
            fault = f"its step cannot be recorded: {cause(error)}"
        else:
            expected = super()._draw(count, config)[2]
            fault = "replayed, its step changes its outputs" if changed(found, expected, self.model) else ""
        finally:
            self.records_kept = records_kept
        if fault and self.compiled:
            raise ValueError(
                f"the compiled decoder of {model_name(self.model)} is of no use: {fault}. Leave out compile_decoder"
            )
        return fault

    def _replay(self, count: int, config: SamplingConfig) -> _Drawn:
        """What `_draw` returns, by a graph."""
        rows, length = self._shape(count)
        self._host.numpy()[:, :rows] = [
            column[:rows] for column in (self._pending, self._lengths, self._keys, self._drawn)
        ]
        self._state.copy_(self._host, non_blocking=True)
        if length > self.cache.capacity:
            where = self._state[1, :rows, None]
            self.cache.place(slice(rows), torch.arange(rows, device=self.device), where, length)
        if self.cache.capacity != self._capacity:
            self._recorded.clear()
            self._capacity = self.cache.capacity
        key = rows, length, config, self.records_kept
        if key not in self._recorded:
            self._recorded[key] = record(lambda: self._step(rows, length, config), self._pool)
        tokens, logprobs, logits = self._recorded[key]()
        return tokens[:count], logprobs[:count], logits[:count]

    def _step(self, rows: int, length: int, config: SamplingConfig) -> _Drawn:
        """A step that reads nothing but tensors that stay where they are."""
        pending, lengths, keys, drawn = self._state[:, :rows]
        where = lengths[:, None]
        with (
            torch._dynamo.config.patch(recompile_limit=GRAPHS),
            by_groups(self.model),
            layout(where, torch.arange(length, device=self.device)[None]),
        ):
            tokens, logprobs, logits = (compiled_step() if self.compiled else step)(
                self.model,
                self.cache,
                {
                    "input_ids": pending[:, None],
                    "position_ids": where,
                    "attention_mask": self._masks(where, length) if self.compiled else None,
                    **self._arguments,
                },
                (keys, drawn),
                length,
                self.vocab_size,
                config,
            )
        # Logits that stay would take most of the memory of a graph.
        return tokens, logprobs, logits if self.records_kept else logits.new_empty((0, self.vocab_size))


def record(run: Callable[[], _Drawn], pool: Any) -> Callable[[], _Drawn]:
    """Records the kernels of `run`, and returns what replays them; tensors that it returns are overwritten each time.

    Args:
        run: Function to record. It runs once before, for what happens at first only, such as a choice of kernels.
        pool: Memory that graphs share which never run at the same time.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        drawn = run()

    def replay() -> _Drawn:
        graph.replay()
        return drawn

    return replay
