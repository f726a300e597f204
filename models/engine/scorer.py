"""Scoring attempts while they are written: an outcome model that reads each token of an environment's slots once."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ...arrays import FloatArray, IntArray
from ..forward import head_at, sigmoid
from .cache import SlotModel

# What a forward pass costs beside its tokens, in tokens: more padding than that is worth a pass of its own. Measured
# with a model of a million parameters on one core; on a GPU tokens cost next to nothing.
_PASS_TOKENS = {"cpu": 64}
_PASS_TOKENS_ELSEWHERE = 4096
# Tokens of one pass, padding included; bounds memory.
_MAX_TOKENS = 16_384


class SlotScorer(SlotModel):
    """p(correct) of the attempts in an environment's slots, from a key-value cache with a row for each slot.

    Every token is run once, with the others that were written since the slot was last scored, and the slots that are
    scored together share forward passes. Prompts are run when the first score is asked for, each distinct one once.

    Args:
        model: Causal transformer with a head of one logit that `self_check.fits_slots` accepts.
        head: Head of one logit of the model.
        num_slots: Number of slots of the environment.
    """

    def __init__(self, model: PreTrainedModel, head: nn.Module, num_slots: int) -> None:
        super().__init__(model, num_slots)
        self._head = head
        self._waiting: dict[int, IntArray] = {}  # prompts, by slot, that have not been run yet

    def begin(self, slots: IntArray, prompts: Sequence[IntArray]) -> None:
        """New sequences begin in `slots` `[M]`, each with its prompt.

        Raises:
            ValueError: A prompt is longer than the model's positions.
        """
        self._check_length(max(len(prompt) for prompt in prompts))
        self._waiting.update((slot, np.array(prompt)) for slot, prompt in zip(slots.tolist(), prompts, strict=True))

    @torch.inference_mode()
    def score(self, slots: IntArray, sequences: Sequence[IntArray], positions: Sequence[IntArray]) -> list[FloatArray]:
        """p(correct) at chosen tokens of the sequences in some slots.

        Args:
            slots: `[M]` indices of the slots, each once.
            sequences: Tokens in each slot, including the prompt that it began with.
            positions: Indices `[P]` of the tokens of each sequence after which to read the score, at least one. Tokens
                that have been run are run again from the first of these on, if it is among them.

        Returns:
            Scores `[P]` of each sequence.

        Raises:
            ValueError: A position is past the model's positions.
        """
        if self._waiting:
            self.prefill(np.array(list(self._waiting)), list(self._waiting.values()))
            self._waiting.clear()
        begins = np.minimum(self._lengths[slots], [wanted.min() for wanted in positions])
        ends = np.maximum(self._lengths[slots], [wanted.max() + 1 for wanted in positions])
        self._check_length(int(ends.max()))
        scores: list[FloatArray] = [np.empty(0)] * len(slots)
        for batch in _batches(ends - begins, _PASS_TOKENS.get(self.device.type, _PASS_TOKENS_ELSEWHERE)):
            where = begins[batch, None] + np.arange((ends - begins)[batch].max())
            tokens = np.zeros_like(where)
            for row, i in enumerate(batch.tolist()):
                new = sequences[i][begins[i] : ends[i]]
                tokens[row, : len(new)] = new
            reads = [positions[i] - begins[i] for i in batch.tolist()]
            counts = [len(read) for read in reads]
            index = self._tensor(np.repeat(np.arange(len(batch)), counts)), self._tensor(np.concatenate(reads))
            # Padding is written behind each sequence, where its next tokens overwrite it.
            with head_at(self._head, index):
                output = self.forward(self._tensor(slots[batch]), slots[batch], tokens, where)
            found = sigmoid(output.logits[:, 0].float().cpu().numpy())
            for i, part in zip(batch.tolist(), np.split(found, np.cumsum(counts)[:-1]), strict=True):
                scores[i] = part
        self._lengths[slots] = ends
        return scores


def _batches(counts: IntArray, pass_tokens: int) -> Iterator[IntArray]:
    """Cuts sequences of `counts` `[M]` tokens into padded batches of similar length, by the least cost.

    A batch costs its tokens, padding included, and `pass_tokens`.
    """
    widths, members, sizes = np.unique(counts, return_inverse=True, return_counts=True)
    up_to = np.concatenate([[0], np.cumsum(sizes)])  # sequences of the first so many widths
    costs, cuts = [0.0], [0]  # of the cheapest way to run them, and where its last batch begins
    for i, width in enumerate(widths):
        choices = np.array(costs) + (up_to[i + 1] - up_to[: i + 1]) * width
        cuts.append(int(choices.argmin()))
        costs.append(float(choices.min()) + pass_tokens)
    end = len(widths)
    while end:
        rows = np.flatnonzero((members >= cuts[end]) & (members < end))
        most = max(1, _MAX_TOKENS // int(widths[end - 1]))
        yield from (rows[start : start + most] for start in range(0, len(rows), most))
        end = cuts[end]
