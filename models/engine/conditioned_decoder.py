"""Decoding under labels: they go into the cache before each step, or before the attempt, and are nobody's action."""

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from ...arrays import IntArray
from ..condition_tokens import Labels
from .decoder import SlotDecoder
from .sampling import SamplingConfig, sample

# The labels that a model draws have random streams of their own, so those of its actions stay as they are without.
_LABEL_STREAM = 0x5851F42D4C957F2D


class ConditionedDecoder(SlotDecoder):
    """Puts a label before each step of every row; what is drawn, and what the environment sees, are actions alone.

    Where a step begins, one more pass over the rows concerned caches their pending token, and the label becomes pending
    in its place. So the cache continues across steps, and a label costs its row as much as one token.

    A sequence that an attempt continues is taken as it is: labels stand before what is drawn after it.

    Args:
        model: Causal language model with embeddings for the labels.
        num_slots: Largest number of slots that are live at once.
        vocab_size: Vocabulary size of the tokenizer without labels.
        labels: Labels of the model.
        label: Id of the label to place; `None` lets the model draw it.
        ends_step: `[vocab_size]` bool, true for tokens that end a step.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        num_slots: int,
        vocab_size: int,
        labels: Labels,
        label: int | None,
        ends_step: NDArray[np.bool_],
    ) -> None:
        super().__init__(model, num_slots, vocab_size)
        self.labels = labels
        self.label = label
        self.placed = np.zeros(len(labels.tokens), np.int64)
        """Number of times that each label was placed."""
        self._ends_step = ends_step

    def step(self, config: SamplingConfig) -> tuple[IntArray, NDArray[np.float32]]:
        """Places the labels that are due, then draws the next token of every row in the batch: see `SlotDecoder`."""
        count = len(self.slots)
        due = self._drawn[:count] == 0
        if self.labels.granularity == "step":
            due |= self._ends_step[self._pending[:count]]
        rows = np.flatnonzero(due & (self._growing[:count] > 0))
        if len(rows):
            self._place(rows, config)
        return super().step(config)

    @torch.inference_mode()
    def _place(self, rows: IntArray, config: SamplingConfig) -> None:
        lengths = self._lengths[rows]
        self._check_length(int(lengths.max()) + 1)
        index = self._tensor(rows)
        output = self.forward(index, rows, self._pending[rows, None], lengths[:, None])
        self._lengths[rows] += 1
        if self.label is None:
            logits = output.logits[:, -1, self.labels.first : self.labels.stop]
            keys = self._tensor(self._keys[rows] ^ _LABEL_STREAM)
            drawn, _ = sample(logits, keys, self._tensor(self._drawn[rows]), SamplingConfig(config.temperature))
            chosen = drawn.cpu().numpy() + self.labels.first
        else:
            chosen = np.full(len(rows), self.label)
        self._pending[rows] = chosen
        np.add.at(self.placed, chosen - self.labels.first, 1)
