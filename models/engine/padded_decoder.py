"""Decoding in few shapes: what is compiled or recorded for one is used again.

Rows are the slots halved some times, and columns come in steps. Rows without an attempt are computed with the others,
and written to where nothing is read.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import create_masks_for_generate

from ..attention import layout
from ..layers import without_adapters
from .cache import SlotCache
from .decoder import SlotDecoder
from .sampling import SamplingConfig, draw

_LEAST_ROWS, _LEAST_COLUMNS = 8, 64


class PaddedDecoder(SlotDecoder):
    """A `SlotDecoder` for steps of few shapes.

    Args:
        model: Causal language model of transformers that `self_check.decoding` accepts for slots.
        num_slots: Largest number of slots that are live at once.
        vocab_size: Vocabulary size of the tokenizer; logits beyond it are dropped before the softmax.
    """

    parts = 2
    """Number of column counts between a power of two and the next."""

    def _shape(self, count: int) -> tuple[int, int]:
        """Rows and columns of a step for the first `count` rows; the other rows are made to write inside of it."""
        rows = padded_rows(count, self.num_slots)
        length = min(padded_columns(int(self._lengths[:count].max()) + 1, self.parts), self.limit)
        self._keep_inside(slice(count, rows), length)
        return rows, length

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


def step(
    model: PreTrainedModel,
    cache: SlotCache,
    arguments: Mapping[str, Any],
    streams: tuple[Tensor, Tensor],
    length: int,
    vocab_size: int,
    config: SamplingConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of the first R rows: forward pass and draw.

    Args:
        model: Causal language model.
        cache: Key-value cache of the model.
        arguments: Arguments of the model: `input_ids` and `position_ids`, `[R, 1]`, and further ones.
        streams: Stream keys `[R]` and the positions in them `[R]`.
        length: Number of columns of the cache that are read.
        vocab_size: Vocabulary size of the tokenizer.
        config: Settings of sampling.

    Returns:
        Tokens `[R]`, log-probabilities `[R]` and logits `[R, vocab_size]` as of `sampling.draw`.
    """
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


def padded_columns(length: int, parts: int) -> int:
    """Number of columns of a step that reads `length` of them: a power of two, or one of `parts` - 1 between two."""
    columns = _LEAST_COLUMNS
    while columns * 2 < length:
        columns *= 2
    if length <= columns:
        return columns
    return columns + -(-(length - columns) * parts // columns) * columns // parts
