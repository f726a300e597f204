"""Decoding by a compiled step: forward pass and draw as one graph of `torch.compile`.

A small model's step takes as long as it takes to launch its kernels one by one. Compiled, they are fused, and on CUDA
recorded as CUDA graphs that are replayed. Each shape is recorded by itself, so there are few of them: rows are the
slots halved some times, and columns come in steps of at most a half. Rows without an attempt are computed with the
others, and written to where nothing is read.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import create_masks_for_generate

from ..attention import layout
from ..layers import model_name, without_adapters
from .cache import SlotCache
from .decoder import SlotDecoder
from .sampling import SamplingConfig, draw
from .self_check import cause, differ

_LEAST_ROWS, _LEAST_COLUMNS = 8, 64
# A few graphs for each model and way of sampling: the default of 8 is for code that should have one.
_GRAPHS = 256
_CHECKED: "WeakSet[PreTrainedModel]" = WeakSet()


class CompiledDecoder(SlotDecoder):
    """A `SlotDecoder` whose steps are compiled; it draws the same tokens up to rounding.

    A model's first step takes the time of compilation, up to some minutes, once in each process; it is computed
    uncompiled, too, and the two are compared.

    Args:
        model: Causal language model of transformers that `self_check.decoding` accepts for slots.
        num_slots: Largest number of slots that are live at once.
        vocab_size: Vocabulary size of the tokenizer; logits beyond it are dropped before the softmax.
    """

    def _draw(self, count: int, config: SamplingConfig) -> tuple[Tensor, Tensor, Tensor]:
        if self.model in _CHECKED:
            return self._replay(count, config)
        try:
            found = self._replay(count, config)
        except Exception as error:
            raise ValueError(
                f"the decoder of {model_name(self.model)} cannot be compiled: {cause(error)}. Leave out compile_decoder"
            ) from error
        expected = super()._draw(count, config)
        kept = found[2].isfinite() & expected[2].isfinite()  # truncation may cut at ties
        if differ([(found[2].where(kept, 0), expected[2].where(kept, 0))], self.model):
            raise ValueError(
                f"the compiled decoder of {model_name(self.model)} changes its outputs: leave out compile_decoder"
            )
        _CHECKED.add(self.model)
        return found

    def _replay(self, count: int, config: SamplingConfig) -> tuple[Tensor, Tensor, Tensor]:
        """What `_draw` returns, by the compiled step."""
        rows = padded_rows(count, self.num_slots)
        length = min(padded_columns(int(self._lengths[:count].max()) + 1), self.limit)
        self._keep_inside(slice(count, rows), length)
        where = self._tensor(self._lengths[:rows, None])
        self.cache.place(slice(rows), self._tensor(np.arange(rows)), where, length)
        for tensor in self.cache.tensors():
            torch._dynamo.mark_static_address(tensor)  # or CUDA graphs would copy them
        inputs = {"input_ids": self._tensor(self._pending[:rows, None]), "position_ids": where}
        streams = self._tensor(self._keys[:rows]), self._tensor(self._drawn[:rows])
        with torch._dynamo.config.patch(recompile_limit=_GRAPHS):
            tokens, logprobs, logits = compiled_step(self.device.type)(
                self.model,
                self.cache,
                {**inputs, "attention_mask": self._masks(where, length), **self._arguments},
                streams,
                length,
                self.vocab_size,
                config,
            )
        return tokens[:count], logprobs[:count], logits[:count]

    def _keep_inside(self, idle: slice, length: int) -> None:
        """Makes rows without an attempt write into the first `length` columns; what they overwrite is forgotten."""
        if (self._lengths[idle] >= length).any():
            self._lengths[idle] = np.minimum(self._lengths[idle], length - 1)
            lost = np.arange(self._prefixes.shape[1]) >= self._lengths[idle, None]
            self._prefixes[idle] = np.where(lost, -1, self._prefixes[idle])

    def _masks(self, where: Tensor, length: int) -> Tensor | dict[str, Tensor] | None:
        """Masks of each kind of layer, as transformers makes them for a cache."""
        base = without_adapters(self.model)
        embeddings: Any = base.get_input_embeddings()
        make = getattr(base, "create_masks_for_generate", create_masks_for_generate)
        with layout(where, torch.arange(length, device=self.device)[None]):
            return make(
                config=base.config,
                inputs_embeds=embeddings.weight.new_empty(len(where), 1, 1),
                attention_mask=None,
                past_key_values=self.cache,
                position_ids=where,
            )


@functools.cache
def compiled_step(device: str) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """The compiled step for a kind of device; on CUDA it is replayed from CUDA graphs."""
    return torch.compile(_step, fullgraph=True, dynamic=True, mode="reduce-overhead" if device == "cuda" else None)


def _step(
    model: PreTrainedModel,
    cache: SlotCache,
    arguments: Mapping[str, Any],
    streams: tuple[Tensor, Tensor],
    length: int,
    vocab_size: int,
    config: SamplingConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    where = arguments["position_ids"]
    count = where.shape[0]
    cache.place(slice(count), torch.arange(count, device=where.device), where, length)
    logits = model(**arguments, past_key_values=cache, use_cache=True).logits
    return draw(logits[:, -1, :vocab_size], *streams, config)


def padded_rows(count: int, num_slots: int) -> int:
    """Number of rows of a step for `count` attempts: the slots, halved while there is room."""
    rows = num_slots
    while rows > _LEAST_ROWS and -(-rows // 2) >= count:
        rows = -(-rows // 2)
    return rows


def padded_columns(length: int) -> int:
    """Number of columns of a step that reads `length` of them: a power of two, or one and a half times one."""
    columns = _LEAST_COLUMNS
    while columns < length:
        columns = columns * 3 // 2 if columns & (columns - 1) == 0 else columns * 4 // 3
    return columns
