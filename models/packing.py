"""Rows of tokens for one forward pass, in which sequences that begin with the same prompt stand after one copy of it.

Each sequence attends to the prompt and to itself, and its positions continue the prompt's, so its outputs are those
of a row of its own; the prompt's keys and values are computed once, and its gradients add up by themselves.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from ..arrays import IntArray
from .attention import declare_causal
from .forward import micro_batches
from .layers import evaluating

Tokens = NDArray[np.integer[Any]]

# A row this many times as wide as a model's hidden states spends as much time in attention as in the layers' matrices.
_ATTENTION_WIDTH = 2
# Largest difference of logits, over the largest logit, that passes for rounding.
_TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-6}
_HALF_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Right-padded rows for one forward pass of a causal transformer, and where its output is read.

    Attributes:
        input_ids: `[R, W]` tokens of the rows.
        segments: `[R, W]` numbers: 0 at a prompt, 1, 2, ... at the sequences after it, -1 at padding.
        position_ids: `[R, W]` position of each token in its own sequence.
        read: Rows and columns `[A]` of the positions where the output is read.
        prompt: Columns that hold tokens of prompts in every row.
        shared: True if any prompt is followed by more than one sequence.
    """

    input_ids: Tensor
    segments: Tensor
    position_ids: Tensor
    read: tuple[Tensor, Tensor]
    prompt: int
    shared: bool

    @property
    def is_token(self) -> Tensor:
        """`[R, W]` bool, false at padding."""
        return self.segments >= 0

    def arguments(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Arguments of a forward pass: `input_ids`, `attention_mask` and, if prompts are shared, `position_ids`.

        Args:
            dtype: Data type of the attention.
        """
        if not self.shared:
            return {"input_ids": self.input_ids, "attention_mask": self.is_token.long()}
        mask = torch.zeros((), dtype=dtype, device=self.segments.device)
        mask = mask.masked_fill(~self._visible()[:, None], torch.finfo(dtype).min)
        declare_causal(mask, self.prompt)
        return {"input_ids": self.input_ids, "attention_mask": mask, "position_ids": self.position_ids}

    def _visible(self) -> Tensor:
        """`[R, W, W]` bool: which tokens each token attends to. Padding attends to some, so that no softmax is NaN."""
        column = torch.arange(self.segments.shape[1], device=self.segments.device)
        own = self.segments[:, :, None] == self.segments[:, None, :]
        return (own | (self.segments == 0)[:, None, :]) & (column[:, None] >= column)


def pack(
    rows: Sequence[Sequence[tuple[Tokens, Tokens]]], device: torch.device, *, read_after: bool = False
) -> TokenRows:
    """Lays out sequences, and reads the output once for each token of their completions.

    Args:
        rows: Pairs (prompt, completion) in each row; the prompts of one row are equal and not empty.
        device: Device of the tensors.
        read_after: Read after each token of a completion instead of before it, where it is predicted.
    """
    shared = [len(row[0][0]) - 1 + read_after for row in rows]
    shape = len(rows), max(length + sum(len(pair[1]) for pair in row) for length, row in zip(shared, rows, strict=True))
    ids, positions = np.zeros((2, *shape), np.int64)
    segments = np.full(shape, -1, np.int64)
    read_rows: list[int] = []
    read_columns: list[int] = []
    for i, (start, row) in enumerate(zip(shared, rows, strict=True)):
        ids[i, :start] = row[0][0][:start]
        positions[i, :start] = np.arange(start)
        segments[i, :start] = 0
        column = start
        for number, (prompt, completion) in enumerate(row, 1):
            stop = column + len(completion)
            # Before its first token is predicted the prompt's last one is read, so that one stands in each sequence.
            ids[i, column:stop] = completion if read_after else np.append(prompt[-1:], completion[:-1])
            positions[i, column:stop] = start + np.arange(len(completion))
            segments[i, column:stop] = number
            read_rows += [i] * len(completion)
            read_columns += range(column, stop)
            column = stop
    move = lambda array: torch.from_numpy(np.asarray(array)).to(device, non_blocking=True)  # noqa: E731
    return TokenRows(
        input_ids=move(ids),
        segments=move(segments),
        position_ids=move(positions),
        read=(move(read_rows), move(read_columns)),
        prompt=min(shared),
        shared=any(len(row) > 1 for row in rows),
    )


def plan_rows(
    prompts: Sequence[Tokens], lengths: Sequence[int], max_tokens: int, hidden_size: int, *, share: bool = True
) -> list[list[IntArray]]:
    """Cuts sequences into micro-batches of rows: those with the same prompt share rows as far as that saves time.

    Args:
        prompts: Prompt of each sequence.
        lengths: Length of each sequence's completion.
        max_tokens: Tokens in a micro-batch, padding included; a row of one sequence may have more.
        hidden_size: Hidden size of the model, which determines how wide a row its attention can afford.
        share: Allow sequences to share prompts.

    Returns:
        Micro-batches of rows, each row with the numbers of the sequences in it.
    """
    groups: defaultdict[object, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        groups[np.asarray(prompt, np.int64).tobytes() if share else i].append(i)
    rows = [
        row
        for group in groups.values()
        for row in _rows_of(np.array(group), len(prompts[group[0]]), lengths, max_tokens, hidden_size)
    ]
    widths = [len(prompts[row[0]]) + sum(lengths[i] for i in row) for row in rows]
    return [[rows[i] for i in part] for part in micro_batches(widths, max_tokens)]


def _rows_of(group: Tokens, prompt: int, lengths: Sequence[int], max_tokens: int, hidden_size: int) -> list[Tokens]:
    """Cuts sequences that share a prompt into rows of about equal width.

    With P prompt tokens and x others, a row costs (P + x)(1 + (P + x) / w) times a token's way through the layers,
    where w is the width at which attention costs as much as they do. Over x that is least at x^2 = P (P + w).
    """
    if len(group) == 1:
        return [group]
    own = np.array([lengths[i] for i in group])
    room = min(math.sqrt(prompt * (prompt + _ATTENTION_WIDTH * hidden_size)), max_tokens - prompt)
    count = min(len(group), math.ceil(own.sum() / room)) if room > 0 else len(group)
    order = np.argsort(-own, kind="stable")
    while True:
        loads, rows = [0] * count, [[] for _ in range(count)]
        for i in order:
            least = loads.index(min(loads))
            loads[least] += int(own[i])
            rows[least].append(int(group[i]))
        if prompt + max(loads) <= max_tokens or count == len(group):
            return [np.array(sorted(row)) for row in rows]
        count += 1


@torch.no_grad()
def takes_shared_prompts(model: PreTrainedModel) -> bool:
    """True if a model's outputs for sequences after a shared prompt are those of rows of their own.

    It is tried on two short sequences: recurrent layers, attention that knows no masks of one's own and positions that
    are counted by columns all show. What depends on longer distances does not: see `attention_window`.

    Args:
        model: Model with token logits, in training mode or not.
    """
    config = model.config.get_text_config()
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (3, 4))
    pairs = [(tokens[0], tokens[1]), (tokens[0], tokens[2][:3])]
    try:
        with evaluating(model):
            shared, apart = (_read(model, rows) for rows in ([pairs], [pairs[:1], pairs[1:]]))
    except (TypeError, ValueError, RuntimeError, IndexError):  # no masks or positions of one's own in its signature
        return False
    tolerance = _TOLERANCES.get(model.dtype, _HALF_TOLERANCE)
    return bool((shared - apart).abs().max() <= tolerance * apart.abs().max())


def _read(model: PreTrainedModel, pairs: Sequence[Sequence[tuple[Tokens, Tokens]]]) -> Tensor:
    rows = pack(pairs, model.device)
    return model(**rows.arguments(model.dtype), use_cache=False).logits[rows.read].float()


def attention_window(model: PreTrainedModel) -> float:
    """The fewest tokens that any layer's attention reaches back over, itself included; infinite where all see all."""
    config: Any = model.config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    types = getattr(config, "layer_types", None)
    if config.model_type == "gpt_neo" or getattr(config, "attn_temperature_tuning", False):
        return 0  # what it hides, or scales, it counts by columns
    if types is not None and set(types) == {"full_attention"}:
        return math.inf
    return min((window for window in windows if window), default=math.inf)
