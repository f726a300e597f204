"""A key-value cache with one row per environment slot.

The cache is a layer around the unmodified Hugging Face forward. Every row has its own length, so there is no left
padding; what a row shares with another resident one (a prompt that many attempts start from, a few-shot header, the
prefix of a solution) is copied, not computed.
"""

# pyright: reportIncompatibleVariableOverride=false
# transformers declares a layer's tensors as optional; here they are there from the first update on.

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from ...arrays import IntArray
from ..attention import layout
from ..positions import check_length, position_limit

# A prefix shared by all new prompts is computed once, before the others, from this many tokens on.
_SHARED_HEADER = 16
_GROW = 64


class _Place:
    """Positions that the next forward pass writes and reads, for all layers; see `SlotCache.place`.

    Layers refer to it and not to their cache: without that circle a cache is freed when its decoder is, and not at some
    later garbage collection, while an update already needs the memory.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.capacity = self.room = 0  # columns to read, and columns that are allocated
        self.rows: slice | Tensor = slice(0)
        self.index: tuple[Tensor, slice, Tensor]
        self.start = self.length = 0


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, `[rows, heads, room, head_dim]`, written at each row's own positions."""

    is_sliding = False

    def __init__(self, place: _Place) -> None:
        super().__init__()
        self.place = place
        self.keys: Tensor
        self.values: Tensor
        self.shared: tuple[Tensor, Tensor] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Under autocast attention rounds what it reads: kept rounded, it takes half of the memory.
        device = key_states.device.type
        half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        shape = (self.place.num_slots, key_states.shape[1], self.place.room)
        self.keys = key_states.new_empty((*shape, key_states.shape[-1]), dtype=half)
        self.values = value_states.new_empty((*shape, value_states.shape[-1]), dtype=half)
        self._clear(0, self.place.capacity)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        place = self.place
        self.keys[place.index] = key_states.transpose(1, 2).to(self.keys.dtype)
        self.values[place.index] = value_states.transpose(1, 2).to(self.values.dtype)
        read = slice(place.start, place.length)
        return self.keys[place.rows, :, read], self.values[place.rows, :, read]

    def move(self, target: Tensor, source: Tensor, length: int) -> None:
        if self.is_initialized:
            self.keys[target, :, :length] = self.keys[source, :, :length]
            self.values[target, :, :length] = self.values[source, :, :length]

    def grow(self, old: int, new: int) -> None:
        """Adds the columns from `old` to `new`."""
        if self.is_initialized:
            self.keys, self.values = self._with_room(self.keys, old), self._with_room(self.values, old)
            self._clear(old, new)

    def _with_room(self, kept: Tensor, columns: int) -> Tensor:
        if kept.shape[2] == self.place.room:
            return kept
        roomy = kept.new_empty((*kept.shape[:2], self.place.room, kept.shape[3]))
        roomy[:, :, :columns] = kept[:, :, :columns]
        return roomy

    def _clear(self, start: int, stop: int) -> None:
        # Masked columns still enter scores and weighted sums: memory that was never written must not hold NaN.
        self.keys[:, :, start:stop] = 0
        self.values[:, :, start:stop] = 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.place.length, 0

    def get_seq_length(self) -> int:
        return self.place.length - self.place.index[2].shape[1]

    def get_max_length(self) -> int:
        return self.place.capacity


class SlotCache(Cache):
    """A key-value cache with rows of different lengths; `place` says where the next forward pass writes and reads."""

    reserves = True
    """Allocate room to grow on a CPU, where it takes no memory before it is touched, and saves moving the cache."""

    def __init__(self, num_layers: int, num_slots: int) -> None:
        self._place = _Place(num_slots)
        super().__init__(layers=[_SlotLayer(self._place) for _ in range(num_layers)])

    @property
    def capacity(self) -> int:
        """Tokens that a row has room for now."""
        return self._place.capacity

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        while len(self.layers) <= layer_idx:
            self.layers.append(_SlotLayer(self._place))
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    @property
    def column_bytes(self) -> int:
        """Memory of one token's keys and values in a layer; 0 before anything is in the cache."""
        first = self._slot_layers()[0]
        if not first.is_initialized:
            return 0
        return sum(kept.shape[1] * kept.shape[3] * kept.element_size() for kept in (first.keys, first.values))

    def place(self, rows: slice | Tensor, row_index: Tensor, positions: Tensor, length: int, start: int = 0) -> None:
        """Directs the next forward pass.

        Args:
            rows: Rows that take part, as the cache reads them.
            row_index: Rows that take part, as an index `[R]`.
            positions: `[R, Q]` position of each new token.
            length: End of the columns that the pass reads; every position is below it.
            start: First column that the pass reads.
        """
        place = self._place
        if length > place.capacity:
            old, reserves = place.capacity, self.reserves and positions.device.type == "cpu"
            if length > place.room:
                place.room = _whole(2 * length + _GROW if reserves else max(length, old * 3 // 2))
            place.capacity = _whole(length) if reserves else place.room
            for layer in self._slot_layers():
                layer.grow(old, place.capacity)
        place.rows, place.start, place.length = rows, start, length
        place.index = (row_index[:, None], slice(None), positions)

    def move(self, target: Tensor, source: Tensor, length: int) -> None:
        """Copies the first `length` columns of the rows `source` to the rows `target`."""
        for layer in self._slot_layers():
            layer.move(target, source, length)

    def share(self, rows: Tensor, length: int) -> None:
        """Keeps the first `length` columns of `rows` `[G]` a second time, in one piece; see `shared`."""
        for layer in self._slot_layers():
            if layer.is_initialized:  # some layers read those of others
                layer.shared = (layer.keys[rows, :, :length], layer.values[rows, :, :length])

    def shared(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values `[G, heads, length, head_dim]` of a layer that `share` has kept."""
        kept = self._slot_layers()[layer].shared
        if kept is None:
            raise ValueError(f"layer {layer} shares no columns")
        return kept

    def forget_shared(self) -> None:
        """Frees what `share` has kept."""
        for layer in self._slot_layers():
            layer.shared = None

    def _slot_layers(self) -> list[_SlotLayer]:
        return self.layers  # pyright: ignore[reportReturnType]  # all are made in __init__


class SlotModel:
    """A causal transformer whose cache has a row for each slot: base of what decodes and of what scores.

    Args:
        model: Causal transformer of transformers that `self_check.decoding` finds right for slots.
        num_slots: Largest number of slots that are live at once.
        arguments: Arguments for every forward pass.
    """

    def __init__(self, model: PreTrainedModel, num_slots: int, **arguments: Any) -> None:
        config = model.config.get_text_config()
        self.model = model
        self.num_slots = num_slots
        self.cache = SlotCache(config.num_hidden_layers, num_slots)
        self.limit, _ = position_limit(model.config)
        self.device = model.device
        self.prefill_tokens = 0
        """Prompt tokens whose keys and values were computed; those copied from another row do not count."""
        self._arguments = arguments
        self._prefixes = np.full((num_slots, _GROW), -1, np.int64)  # the prefix that each row still holds, then -1
        self._lengths = np.zeros(num_slots, np.int64)  # cached tokens of each row

    @torch.inference_mode()
    def prefill(self, rows: IntArray, prefixes: list[IntArray]) -> None:
        """Fills the cache of `rows`: computes each token once, and only where no resident row shares it."""
        owner = _owners(prefixes)
        first = np.unique(owner)
        heads = [prefixes[i] for i in first]
        header = min(_common(heads[0], other) for other in heads)
        waves = [first[:1], first[1:]] if len(first) > 1 and header >= _SHARED_HEADER else [first]
        for wave in waves:
            self._compute(rows[wave], [prefixes[i] for i in wave])
        copies = np.flatnonzero(owner != np.arange(len(rows)))
        if len(copies):
            length = max(len(prefixes[i]) for i in copies)
            self.cache.move(self._tensor(rows[copies]), self._tensor(rows[owner[copies]]), length)
        self._record_prefixes(rows, prefixes)

    def _record_prefixes(self, rows: IntArray, prefixes: list[IntArray]) -> None:
        """Writes down what the cache of `rows` now holds."""
        missing = max(len(prefix) for prefix in prefixes) - self._prefixes.shape[1]
        if missing > 0:
            self._prefixes = np.pad(self._prefixes, ((0, 0), (0, missing)), constant_values=-1)
        for row, prefix in zip(rows, prefixes, strict=True):
            self._prefixes[row, : len(prefix)] = prefix
            self._prefixes[row, len(prefix) :] = -1
            self._lengths[row] = len(prefix)

    def _compute(self, rows: IntArray, prefixes: list[IntArray]) -> None:
        """Computes distinct prefixes, each from where the resident row that shares most of it ends."""
        if not len(rows):
            return
        shared = [self._resident(prefix) for prefix in prefixes]
        starts = np.array([length for _, length in shared])
        if starts.max() > 0:
            # One gather before any row is overwritten: a source may itself be about to begin anew.
            sources = np.array([source for source, _ in shared])
            self.cache.move(self._tensor(rows), self._tensor(sources), int(starts.max()))
        self._record_prefixes(rows, prefixes)
        width = max(len(prefix) - start for prefix, start in zip(prefixes, starts, strict=True))
        if width == 0:
            return
        tokens = np.zeros((len(rows), width), np.int64)
        for i, (prefix, start) in enumerate(zip(prefixes, starts, strict=True)):
            tokens[i, : len(prefix) - start] = prefix[start:]
            self.prefill_tokens += len(prefix) - int(start)
        # Padding is written behind each prefix, where later tokens overwrite it before anything attends to it.
        self.forward(self._tensor(rows), rows, tokens, starts[:, None] + np.arange(width))

    def _resident(self, prefix: IntArray) -> tuple[int, int]:
        """The row whose cached prefix shares most tokens with `prefix`, and how many."""
        width = min(len(prefix), self._prefixes.shape[1])
        if width == 0:
            return 0, 0
        differs = self._prefixes[:, :width] != prefix[:width]
        shared = np.where(differs.any(1), differs.argmax(1), width)
        row = int(shared.argmax())
        return row, int(shared[row])

    def forward(
        self, rows: slice | Tensor, row_index: IntArray, tokens: IntArray, positions: IntArray, start: int = 0
    ) -> Any:
        """Outputs of the model for `tokens` `[R, Q]`, which are written at `positions` `[R, Q]`.

        Attention finds the keys and values of columns from `start` on in its arguments.
        """
        length = int(positions.max()) + 1
        where = self._tensor(positions)
        self.cache.place(rows, self._tensor(row_index), where, length, start)
        columns = torch.arange(length, device=self.device)
        position_ids = where.clamp(max=self.limit - 1) if length > self.limit else where  # padding may lie beyond
        with layout(where, columns[None]):
            return self.model(
                input_ids=self._tensor(tokens),
                position_ids=position_ids,
                past_key_values=self.cache,
                use_cache=True,
                **self._arguments,
            )

    def _check_length(self, longest: int) -> None:
        if longest > self.limit:
            check_length(self.model.config, longest)

    def _tensor(self, array: IntArray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)


def _whole(length: int) -> int:
    return -(-length // _GROW) * _GROW


def _owners(prefixes: list[IntArray]) -> IntArray:
    """Number of a prefix that begins with each prefix; its own if no longer one does."""
    texts = [prefix.tobytes() for prefix in prefixes]
    owner = np.arange(len(prefixes))
    # In this order all that begin with a prefix come right behind it, and of equal ones the first comes last.
    order = sorted(owner, key=lambda i: (texts[i], -i))
    for i, following in zip(order[-2::-1], order[:0:-1], strict=True):
        if texts[following].startswith(texts[i]):
            owner[i] = owner[following]
    return owner


def _common(a: IntArray, b: IntArray) -> int:
    """Length of the longest common prefix."""
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if len(different) else size
