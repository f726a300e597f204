"""Decoding one row at a time, for models whose caches take no batch of rows with different lengths."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from ...arrays import IntArray
from ..kept_tokens import KeptTokens
from ..positions import check_length
from ..vocabulary import check_largest_id
from .sampling import SamplingConfig, check_finite, sample, sample_with_kept

# What models call their cache, in their outputs and as an argument.
_CACHES = ("past_key_values", "cache_params", "state")


class CachedRow:
    """A row of tokens and the cache that a model makes for it, empty at first."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._cache: dict[str, Any] = {}

    def advance(self, tokens: IntArray) -> Tensor:
        """Logits `[1, Q, V]` of the next tokens `[Q]`, which the cache holds afterwards.

        Raises:
            ValueError: The model keeps no cache.
        """
        ids = torch.from_numpy(np.ascontiguousarray(tokens))[None].to(self._model.device)
        output = self._model(input_ids=ids, use_cache=True, **self._cache)
        self._cache = {name: output[name] for name in _CACHES if output.get(name) is not None}
        if not self._cache:
            raise ValueError("it keeps no cache from one token to the next")
        return output.logits

    def copy(self) -> Self:
        """Another row with the same tokens."""
        row = copy.copy(self)
        row._cache = copy.deepcopy(self._cache)
        return row


@dataclass(slots=True)
class _Attempt:
    """A row, its last token, which the cache does not hold yet, and what its draws depend on."""

    row: CachedRow
    pending: int
    length: int
    key: int
    drawn: int = 0
    growing: bool = True


class RowDecoder:
    """The interface of `SlotDecoder` over a cache for each slot, of transformers' own making.

    It takes a forward pass for each token of each row, so it is slower than `SlotDecoder` by about the number of slots.
    Recurrent and convolutional layers, which keep a state in place of keys and values, and positions that are counted
    by columns are right here and nowhere else.

    Args:
        model: Causal language model of transformers with a cache.
        num_slots: Largest number of slots that are live at once.
        vocab_size: Vocabulary size of the tokenizer; logits beyond it are dropped before the softmax.
    """

    def __init__(self, model: PreTrainedModel, num_slots: int, vocab_size: int) -> None:
        self.model = model
        self.num_slots = num_slots
        self.vocab_size = vocab_size
        self.slots = np.empty(0, np.int64)
        """The live slots, in the order of what `step` returns."""
        self.prefill_tokens = 0
        """Prompt tokens that were computed; those of a prompt that another slot begins with too count once."""
        self.records_kept = False
        """True if steps leave the tokens that they drew from in `kept`."""
        self.kept: KeptTokens | None = None
        """Tokens that the newest draws were made from, in the order of `slots`, if `records_kept` is set."""
        self._attempts: dict[int, _Attempt] = {}

    @torch.inference_mode()
    def begin(self, slots: IntArray, sequences: Sequence[IntArray], keys: IntArray) -> None:
        """Starts attempts in `slots`, see `SlotDecoder.begin`."""
        if any(len(sequence) == 0 for sequence in sequences):
            raise ValueError("an attempt needs at least one prompt token to decode from")
        check_length(self.model.config, max(len(sequence) for sequence in sequences))
        check_largest_id(self.model, int(max(np.max(sequence) for sequence in sequences)))
        rows: dict[bytes, CachedRow] = {}
        for slot, sequence, key in zip(slots.tolist(), sequences, keys.tolist(), strict=True):
            prefix = np.asarray(sequence[:-1])
            name = prefix.tobytes()
            if name not in rows:
                rows[name] = CachedRow(self.model)
                if len(prefix):
                    rows[name].advance(prefix)
                self.prefill_tokens += len(prefix)
            self._attempts[slot] = _Attempt(rows[name].copy(), int(sequence[-1]), len(sequence), key)
        self.slots = np.concatenate([self.slots, slots[~np.isin(slots, self.slots)]])

    def finish(self, slots: IntArray) -> None:
        """Ends the attempts in `slots`: they wait to begin anew or to retire."""
        for slot in slots.tolist():
            self._attempts[slot].growing = False

    def retire(self, slots: IntArray) -> None:
        """Takes slots out of the batch."""
        for slot in slots.tolist():
            del self._attempts[slot]
        self.slots = self.slots[~np.isin(self.slots, slots)]

    @torch.inference_mode()
    def step(self, config: SamplingConfig) -> tuple[IntArray, NDArray[np.float32]]:
        """Draws the next token of every live slot; of those that have finished, token 0.

        Returns:
            Tokens and log-probabilities (see `sampling.sample`), each `[R]` in the order of `slots`.
        """
        tokens, logprobs = np.zeros(len(self.slots), np.int64), np.zeros(len(self.slots), np.float32)
        live = [self._attempts[slot] for slot in self.slots.tolist()]
        growing = np.flatnonzero([attempt.growing for attempt in live])
        counts = np.zeros(len(self.slots), np.int64)
        self.kept = KeptTokens(counts, np.empty(0, np.int32)) if self.records_kept else None
        if not len(growing):
            return tokens, logprobs
        attempts = [live[i] for i in growing]
        check_length(self.model.config, max(attempt.length for attempt in attempts))
        logits = torch.cat([attempt.row.advance(np.array([attempt.pending]))[:, -1] for attempt in attempts])
        keys, drawn = (
            torch.tensor([getattr(attempt, name) for attempt in attempts], device=logits.device)
            for name in ("key", "drawn")
        )
        logits = logits[:, : self.vocab_size]
        if self.records_kept:
            chosen, chances, kept = sample_with_kept(logits, keys, drawn, config)
            counts[growing] = kept.counts
            self.kept = KeptTokens(counts, kept.tokens)
        else:
            chosen, chances = sample(logits, keys, drawn, config)
        tokens[growing], logprobs[growing] = chosen.cpu().numpy(), chances.cpu().numpy()
        check_finite(logprobs[growing], self.model)
        for attempt, token in zip(attempts, tokens[growing].tolist(), strict=True):
            attempt.pending = token
            attempt.length += 1
            attempt.drawn += 1
        return tokens, logprobs

    def replace_pending(self, tokens: IntArray) -> None:
        """Makes `tokens` `[R]`, in the order of `slots`, the next inputs: what was done in place of what was drawn."""
        for slot, token in zip(self.slots.tolist(), tokens.tolist(), strict=True):
            self._attempts[slot].pending = token
