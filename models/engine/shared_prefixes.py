"""Attention of a step that reads what several rows have in common once for all of them.

Attempts at one problem begin with the same prompt, and few-shot prompts with the same worked examples. A step has one
query for each row. Its attention is computed over a shared prefix for all rows of a group in one product, and over the
rest of each row apart; the two are joined by their normalizers, which gives what one softmax over both gives (Juravsky
et al. 2024, "Hydragen", arXiv 2402.05099). A step of many rows mostly waits for keys and values, so it takes as much
less time as it reads less.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from ...arrays import IntArray
from ..attention import uses_sdpa, using
from .cache import SlotCache
from .self_check import differ

_SHARES: "WeakKeyDictionary[PreTrainedModel, bool]" = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class PrefixGroups:
    """Rows of a batch by the prefix that they begin with.

    Attributes:
        length: Tokens of each prefix.
        rows: `[G, M]` rows of each group; a group of fewer rows than the largest is filled up with row 0.
        places: `[R]` place of each row in the flattened `rows`.
    """

    length: int
    rows: IntArray
    places: IntArray

    @property
    def saved(self) -> int:
        """Columns of the cache that need not be read."""
        return self.length * (len(self.places) - len(self.rows))


def find_groups(prefixes: IntArray, least: int) -> PrefixGroups | None:
    """Groups of rows that save most; None if they save less than `least` columns.

    All prefixes are of one length: longer ones may leave fewer rows in a group. A group of more than twice the mean
    number of rows is cut into several, so that filling up stays cheap.

    Args:
        prefixes: `[R, W]` tokens that each row begins with, and -1 behind them.
        least: Columns that must be saved.
    """
    count = len(prefixes)
    whole = int((prefixes >= 0).sum(1).min())
    if whole * (count - 1) < max(least, 1):
        return None
    heads = np.ascontiguousarray(prefixes[:, :whole])
    texts = [head.tobytes() for head in heads]
    order = np.array(sorted(range(count), key=texts.__getitem__))
    # In this order rows with a common prefix are neighbors, however long it is.
    differs = heads[order[1:]] != heads[order[:-1]]
    common = np.where(differs.any(1), differs.argmax(1), whole)
    found = max((_cut(order, common, int(length)) for length in np.unique(common)), key=lambda groups: groups.saved)
    return found if found.saved >= max(least, 1) else None


def _cut(order: IntArray, common: IntArray, length: int) -> PrefixGroups:
    """Groups of rows with `length` tokens in common, from an order of rows and what neighbors in it have in common."""
    starts = np.flatnonzero(np.concatenate([[True], common < length]))
    sizes = np.diff(np.append(starts, len(order)))
    most = min(int(sizes.max()), 2 * -(-len(order) // len(starts)))
    starts = np.concatenate([np.arange(start, start + size, most) for start, size in zip(starts, sizes, strict=True)])
    group = np.searchsorted(starts, np.arange(len(order)), "right") - 1
    places = group * most + np.arange(len(order)) - starts[group]
    rows, place_of_row = np.zeros(len(starts) * most, np.int64), np.empty(len(order), np.int64)
    rows[places] = order
    place_of_row[order] = places
    return PrefixGroups(length, rows.reshape(len(starts), most), place_of_row)


class SharedPrefixes:
    """The prefixes that rows of a cache share at present, kept a second time, in one piece.

    Args:
        model: Model whose steps are computed; on a CPU, and with PyTorch's attention, prefixes are shared.
        cache: Key-value cache of the model.
    """

    worth = 2**21
    """Bytes of a layer's keys and values that sharing must save: joining the two parts has a cost of its own."""

    def __init__(self, model: PreTrainedModel, cache: SlotCache) -> None:
        self.model, self.cache = model, cache
        self.length = 0
        """Tokens of the shared prefixes; 0 if it is not worth while."""
        self._kept = np.empty((0, 0), np.int64)  # tokens of the prefixes whose keys and values are kept
        self._rows = self._places = torch.empty(0, dtype=torch.int64)

    def regroup(self, prefixes: IntArray) -> None:
        """Finds what rows share now.

        Args:
            prefixes: `[R, W]` tokens that the cache's first R rows begin with, and -1 behind them.
        """
        size = self.cache.column_bytes
        usable = size > 0 and self.model.device.type == "cpu" and uses_sdpa(self.model)
        groups = find_groups(prefixes, -(-self.worth // size)) if usable and _SHARES.get(self.model, True) else None
        if groups is None:
            self.length, self._kept = 0, self._kept[:0]
            self.cache.forget_shared()
            return
        first = groups.rows[:, 0]
        kept = prefixes[first, : groups.length]
        if not np.array_equal(kept, self._kept):
            self.cache.share(torch.from_numpy(first), groups.length)
        self.length, self._kept = groups.length, kept
        self._rows, self._places = torch.from_numpy(groups.rows), torch.from_numpy(groups.places)

    def outputs(self, compute: Callable[[int], Any]) -> Any:
        """Outputs of a step in which prefixes are shared, if they are.

        A model's first such step is computed without sharing, too; if they differ, its prefixes are shared no more.
        What is returned, and left in the cache, does not depend on whether a step is the first one: a run that was
        stopped and resumed draws the same.

        Args:
            compute: Step of the model for all rows, given the first column that its attention reads.
        """
        if not self.length:
            return compute(0)
        expected = None if self.model in _SHARES else compute(0)
        found = None
        try:
            with using(self.model, _SHARED), self._read():
                found = compute(self.length)
        except _HiddenError:
            self.length = 0  # until other rows are live
            return compute(0)
        except Exception:
            if expected is None:
                raise
        if expected is not None:
            _SHARES[self.model] = found is not None and not differ(
                [(found.logits[:, -1], expected.logits[:, -1])], self.model
            )
        if found is not None and _SHARES[self.model]:
            return found
        self.length = 0
        return compute(0)

    @contextmanager
    def _read(self) -> Iterator[None]:
        token = _READ.set(self)
        try:
            yield
        finally:
            _READ.reset(token)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None
    ) -> Tensor:
        """Attention `[R, H, 1, D]` of one query for each row.

        Args:
            layer: Number of the layer.
            query: `[R, H, 1, D]` queries.
            key: `[R, K, L, D]` keys of the columns behind the prefix, for K heads.
            value: `[R, K, L, D]` their values.
            mask: `[R, 1, 1, L]` float mask of those columns.
            scale: Factor of scores; None for one over the square root of D.
        """
        shared_key, shared_value = self.cache.shared(layer)
        (count, heads, _, size), kept = query.shape, key.shape[1]
        (groups, most), each = self._rows.shape, heads // kept
        query = query.reshape(count, kept, each, size).to(key.dtype)  # heads that share keys are further queries
        own, own_norm = _attend(query, key, value, attn_mask=mask.to(key.dtype), scale=scale)
        grouped = query[self._rows.flatten()].view(groups, most, kept, each, size).transpose(1, 2)
        grouped = grouped.reshape(groups, kept, most * each, size)
        shared, shared_norm = _attend(grouped, shared_key, shared_value, scale=scale)
        shared = shared.view(groups, kept, most, each, size).transpose(1, 2).reshape(-1, kept, each, size)
        shared_norm = shared_norm.view(groups, kept, most, each).transpose(1, 2).reshape(-1, kept, each)
        weight = torch.sigmoid(shared_norm[self._places] - own_norm)[..., None].to(own.dtype)
        return torch.lerp(own, shared[self._places], weight).view(count, heads, 1, size)


class _HiddenError(Exception):
    """A layer does not see all of a shared prefix."""


_READ: ContextVar[SharedPrefixes] = ContextVar("shared prefixes")
# `scaled_dot_product_attention` on a CPU, with the logarithm of each query's normalizer.
_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _shared_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **arguments: Any
) -> tuple[Tensor, None]:
    """Attention for transformers' registry, within `SharedPrefixes.outputs`.

    Raises:
        ValueError: Scores are not those of queries and keys alone.
    """
    if arguments.get("position_bias") is not None or arguments.get("softcap") is not None:
        raise ValueError("scores are changed between product and softmax")
    output = _READ.get().attend(module.layer_idx, query, key, value, attention_mask, arguments.get("scaling"))
    return output.transpose(1, 2).contiguous(), None


def _mask_of_rest(*positional: Any, **arguments: Any) -> Tensor:
    """Mask of the columns behind the prefix.

    Raises:
        _HiddenError: A column of the prefix is masked, by a window, say.
    """
    mask = _whole_mask(*positional, **arguments)
    length = _READ.get().length
    if mask[..., :length].any():
        raise _HiddenError
    return mask[..., length:]


_SHARED = "tokengym|shared"
_whole_mask = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
AttentionInterface.register(_SHARED, _shared_attention)
AttentionMaskInterface.register(_SHARED, _mask_of_rest)
