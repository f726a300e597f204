"""Decoding by a compiled step: forward pass and draw as one graph of `torch.compile`, whose kernels are fused."""

import functools
from collections.abc import Callable
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..layers import model_name
from .padded_decoder import PaddedDecoder, step
from .sampling import SamplingConfig
from .self_check import cause, differ

# A few graphs for each model and way of sampling: the default of 8 is for code that should have one.
GRAPHS = 256
_CHECKED: "WeakSet[PreTrainedModel]" = WeakSet()


class CompiledDecoder(PaddedDecoder):
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
        if changed(found[2], super()._draw(count, config)[2], self.model):
            raise ValueError(
                f"the compiled decoder of {model_name(self.model)} changes its outputs: leave out compile_decoder"
            )
        _CHECKED.add(self.model)
        return found

    def _replay(self, count: int, config: SamplingConfig) -> tuple[Tensor, Tensor, Tensor]:
        """What `_draw` returns, by the compiled step."""
        rows, length = self._shape(count)
        where = self._tensor(self._lengths[:rows, None])
        self.cache.place(slice(rows), self._tensor(np.arange(rows)), where, length)
        inputs = {"input_ids": self._tensor(self._pending[:rows, None]), "position_ids": where}
        streams = self._tensor(self._keys[:rows]), self._tensor(self._drawn[:rows])
        with torch._dynamo.config.patch(recompile_limit=GRAPHS):
            tokens, logprobs, logits = compiled_step()(
                self.model,
                self.cache,
                {**inputs, "attention_mask": self._masks(where, length), **self._arguments},
                streams,
                length,
                self.vocab_size,
                config,
            )
        return tokens[:count], logprobs[:count], logits[:count]


@functools.cache
def compiled_step() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """`padded_decoder.step`, compiled."""
    return torch.compile(step, fullgraph=True, dynamic=True)


def changed(found: Tensor, expected: Tensor, model: PreTrainedModel) -> bool:
    """True if logits `[R, V]`, which may be truncated, differ from the expected ones by more than rounding leaves."""
    kept = found.isfinite() & expected.isfinite()  # truncation may cut at ties
    return differ([(found.where(kept, 0), expected.where(kept, 0))], model)
