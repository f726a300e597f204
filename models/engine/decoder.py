"""Decoding: one forward pass per token over the live slots of an environment; slots that retire leave the batch."""

import inspect
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from ...arrays import IntArray
from ..kept_tokens import KeptTokens
from ..layers import without_adapters
from ..linear import PackedWeights
from ..vocabulary import check_largest_id
from .cache import SlotModel
from .sampling import SamplingConfig, check_finite, draw
from .shared_prefixes import SharedPrefixes

# Below this share of live rows the batch is compacted: moving rows costs less than carrying them along.
COMPACT_BELOW = 0.9


class SlotDecoder(SlotModel):
    """One forward pass per token over the live slots of a vector environment.

    Every row of the batch has a pending token: the last one of its sequence, not yet in the cache. `step` runs the
    model on the pending tokens and draws the next ones, which become pending. So a new slot caches all but its prompt's
    last token, and no other pass is ever needed for it.

    Args:
        model: Causal language model of transformers that `self_check.decoding` accepts for slots.
        num_slots: Largest number of slots that are live at once.
        vocab_size: Vocabulary size of the tokenizer; logits beyond it are dropped before the softmax.
    """

    def __init__(self, model: PreTrainedModel, num_slots: int, vocab_size: int) -> None:
        takes = inspect.signature(without_adapters(model).forward).parameters
        super().__init__(model, num_slots, **({"logits_to_keep": 1} if "logits_to_keep" in takes else {}))
        self.vocab_size = vocab_size
        self.slots = np.empty(0, np.int64)
        """The slot of each row of the batch."""
        self.records_kept = False
        """True if steps leave the tokens that they drew from in `kept`."""
        self.kept: KeptTokens | None = None
        """Tokens that the newest draws were made from, in the order of `slots`, if `records_kept` is set."""
        self.shared = SharedPrefixes(model, self.cache)
        """Prefixes that rows share, which a step reads once."""
        self._packed = PackedWeights()
        self._regrouped = False  # False if other rows are live than when prefixes were last compared
        self._row = np.full(num_slots, -1)  # row of each slot in the batch
        self._pending = np.zeros(num_slots, np.int64)
        self._keys = np.zeros(num_slots, np.int64)
        self._drawn = np.zeros(num_slots, np.int64)
        self._growing = np.zeros(num_slots, np.int64)  # 1 for each row whose attempt goes on

    def begin(self, slots: IntArray, sequences: Sequence[IntArray], keys: IntArray) -> None:
        """Starts attempts in `slots`: those in the batch begin anew, the others join it.

        Args:
            slots: `[M]` indices of the slots.
            sequences: Token sequences to continue, M of them with at least one token each.
            keys: `[M]` int64 stream keys of `sampling.stream_key`.

        Raises:
            ValueError: A sequence is empty, longer than the model's positions, or has an id that the model lacks.
        """
        if any(len(sequence) == 0 for sequence in sequences):
            raise ValueError("an attempt needs at least one prompt token to decode from")
        self._check_length(max(len(sequence) for sequence in sequences))
        check_largest_id(self.model, int(max(np.max(sequence) for sequence in sequences)))
        fresh = slots[self._row[slots] < 0]
        self._row[fresh] = len(self.slots) + np.arange(len(fresh))
        self.slots = np.concatenate([self.slots, fresh])
        rows = self._row[slots]
        self.prefill(rows, [sequence[:-1] for sequence in sequences])
        self._pending[rows] = [sequence[-1] for sequence in sequences]
        self._keys[rows] = keys
        self._drawn[rows] = 0
        self._growing[rows] = 1
        self._regrouped = False

    def finish(self, slots: IntArray) -> None:
        """Ends the attempts in `slots`: their rows grow no more, and wait to begin anew or to retire."""
        self._growing[self._row[slots]] = 0

    @torch.inference_mode()
    def retire(self, slots: IntArray) -> None:
        """Takes slots out of the batch; the last rows move into the gaps."""
        gone = self._row[slots]
        self._row[slots] = -1
        live = len(self.slots) - len(gone)
        keep = np.ones(len(self.slots), bool)
        keep[gone] = False
        target = np.sort(gone[gone < live])
        source = np.flatnonzero(keep[live:]) + live
        if len(target):
            self.cache.move(self._tensor(target), self._tensor(source), int(self._lengths[source].max()))
            for column in self._columns():
                column[target] = column[source]
            self._row[self.slots[target]] = target
        self.slots = self.slots[:live]
        self._regrouped = False

    @torch.inference_mode()
    def step(self, config: SamplingConfig) -> tuple[IntArray, NDArray[np.float32]]:
        """Draws the next token of every row in the batch.

        Returns:
            Tokens and log-probabilities (see `sampling.sample`), each `[R]` in the order of `slots`.
        """
        count = len(self.slots)
        self._check_length(int(self._lengths[:count].max()) + 1)
        tokens, logprobs, logits = self._draw(count, config)
        if self.records_kept:
            self.kept = KeptTokens.of(logits > -torch.inf)
        drawn, chances = tokens.cpu().numpy(), logprobs.cpu().numpy()
        check_finite(chances, self.model)
        self._lengths[:count] += self._growing[:count]
        self._drawn[:count] += 1
        self._pending[:count] = drawn
        return drawn, chances

    def _draw(self, count: int, config: SamplingConfig) -> tuple[Tensor, Tensor, Tensor]:
        """What `sampling.draw` returns for the first `count` rows; logits perhaps only if kept tokens are recorded."""
        if not self._regrouped:
            self.shared.regroup(self._prefixes[:count])
            self._regrouped = True
        rows = (slice(count), np.arange(count), self._pending[:count, None], self._lengths[:count, None])
        # Steps are many, and have few rows: passes over prompts would not make up for copies of the weights.
        with self._packed.read():
            output = self.shared.outputs(lambda start: self.forward(*rows, start))
        streams = self._tensor(self._keys[:count]), self._tensor(self._drawn[:count])
        return draw(output.logits[:, -1, : self.vocab_size], *streams, config)

    def replace_pending(self, tokens: IntArray) -> None:
        """Makes `tokens` `[R]`, in the order of `slots`, the next inputs: what was done in place of what was drawn."""
        self._pending[: len(self.slots)] = tokens

    def _columns(self) -> tuple[IntArray, ...]:
        """All that is kept per row."""
        state = (self._lengths, self._pending, self._keys, self._drawn, self._growing)
        return (*state, self._prefixes, self.slots)
