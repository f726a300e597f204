"""Checks, on a few short rows, that a model computes the same in training and decoding as on one row alone.

No list of architectures knows what a new one does, so each model is tried, once. The measure is the relative error of
its logits: rounding leaves 1e-6 of it in float32, and what is computed wrong is off by 1e-3 and more, mostly by 1.
"""

import inspect
import logging
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...arrays import IntArray
from ..attention import ATTENTION
from ..layers import evaluating, model_name, without_adapters
from .cache import SlotModel
from .row_decoder import CachedRow

Decoding = Literal["slots", "rows"]

_logger = logging.getLogger(__name__)

_LENGTHS = (11, 7)
_STEPS = 3
# Kinds of layers that keep something else than the keys and values of each token.
_STATES = {"conv", "hybrid", "hybrid_sliding", "linear_attention"}
_COMPRESSED = {"compressed_sparse_attention", "heavily_compressed_attention"}
# Windows and chunks are made this small meanwhile, so that short rows reach past them.
_WINDOW = 4
# Tokens this far, in nats, below the likeliest one are masked by the model: their logits are no numbers to compare.
_MASKED = 100.0
# Tokens are drawn from the first so many.
_TOKENS = 1000
# In half precision, ties between a router's experts break either way, so the worst token says nothing there.
_TOLERANCE, _HALF_TOLERANCE = 1e-4, 0.1

_Compute = Callable[[PreTrainedModel, list[IntArray], list[Tensor]], Iterator[tuple[Tensor, Tensor]]]

_TRAINING: "WeakKeyDictionary[PreTrainedModel, str]" = WeakKeyDictionary()
_SLOTS: "WeakKeyDictionary[PreTrainedModel, str]" = WeakKeyDictionary()
_DECODING: "WeakKeyDictionary[PreTrainedModel, Decoding | str]" = WeakKeyDictionary()


def check_training(model: PreTrainedModel) -> None:
    """Makes sure that right-padded batches, which models learn from, are computed as their rows alone; once per model.

    Raises:
        ValueError: Outputs in padded batches differ from those of single rows, a token sees later ones, or the outputs
            are not finite.
    """
    base = without_adapters(model)
    if base not in _TRAINING:
        _TRAINING[base] = _training_fault(base)
    if fault := _TRAINING[base]:
        raise ValueError(
            f"{model_name(base)}, of type {base.config.model_type!r}, cannot be trained or scored: {fault}"
        )


def fits_slots(model: PreTrainedModel) -> bool:
    """True if a cache with a row for each slot computes what a full pass computes; tried once per model.

    Raises:
        ValueError: The model does not pass `check_training`.
    """
    check_training(model)
    return not _slots_fault(without_adapters(model))


def decoding(model: PreTrainedModel) -> Decoding:
    """The way to decode a model: all slots in one batch, or each row on its own; tried once per model.

    Raises:
        ValueError: Neither computes what a full pass computes.
    """
    check_training(model)
    base = without_adapters(model)
    if base not in _DECODING:
        _DECODING[base] = _find_decoding(base)
    found = _DECODING[base]
    if found not in ("slots", "rows"):
        raise ValueError(f"{model_name(base)}, of type {base.config.model_type!r}, cannot be decoded: {found}")
    return found


def _training_fault(model: PreTrainedModel) -> str:
    if model.config.model_type == "reformer":
        return "its reversible layers have gradients in training mode only, where they compute other things"
    with _trial(model) as rows:
        try:
            alone = [_alone(model, row) for row in rows]
            early = _alone(model, rows[0][:_WINDOW])
            width = len(rows[0])
            ids, mask = np.zeros((2, len(rows), width), np.int64)
            for i, row in enumerate(rows):
                ids[i, : len(row)], mask[i, : len(row)] = row, 1
            batch = model(input_ids=_tensor(model, ids), attention_mask=_tensor(model, mask), use_cache=False).logits
        except Exception as error:
            return f"its forward pass fails with {cause(error)}"
        if any(bool(logits.isneginf().any()) and not bool(logits.isnan().any()) for logits in alone):
            return (
                "it masks tokens by logits of -inf, which leave entropies undefined; a large negative number does not"
            )
        if not all(bool(logits.isfinite().all()) for logits in alone):
            return "its outputs are not finite, so the weights are broken, or too large for their precision"
        if differ([(early, alone[0][:_WINDOW])], model):
            return "its tokens see later ones, as an encoder's do"
        if differ([(batch[i, : len(row)], alone[i]) for i, row in enumerate(rows)], model):
            return "padding on the right, which no token should see, changes its outputs"
    return ""


def _slots_fault(model: PreTrainedModel) -> str:
    if model not in _SLOTS:
        with _trial(model) as rows:
            alone = [_alone(model, row) for row in rows]
            _SLOTS[model] = _not_by_slots(model) or _fault(
                _by_slots, "a cache with a row for each slot", model, rows, alone
            )
    return _SLOTS[model]


def _find_decoding(model: PreTrainedModel) -> "Decoding | str":
    if not (batch := _slots_fault(model)):
        return "slots"
    with _trial(model) as rows:
        alone = [_alone(model, row) for row in rows]
        single = _not_by_rows(model) or _fault(_by_rows, "a cache for one row", model, rows, alone)
    if single:
        return f"{batch}, and {single}. vLLM may sample it: set vllm_memory"
    _logger.warning(
        "%s is decoded one row at a time, which is right but slow: %s. vLLM may sample it in batches: set vllm_memory",
        model_name(model),
        batch,
    )
    return "rows"


def _fault(compute: _Compute, what: str, model: PreTrainedModel, rows: list[IntArray], alone: list[Tensor]) -> str:
    """Fault of a way to decode; empty if there is none."""
    try:
        if not differ(compute(model, rows, alone), model):
            return ""
        why = "" if "position_ids" in inspect.signature(model.forward).parameters else ", for it takes no position_ids"
        return f"{what} changes its outputs{why}"
    except Exception as error:
        return f"{what} fails with {cause(error)}"


def _not_by_slots(model: PreTrainedModel) -> str:
    """Why a cache with a row for each slot is wrong for a model, where that is known; empty for all others."""
    config = model.config.get_text_config()
    if config.model_type == "gpt_neo" and "local" in config.attention_layers:  # short rows do not show it
        return f"its local layers hide a window of {config.window_size} columns"
    if kinds := sorted({*(getattr(config, "layer_types", None) or ())} & _STATES):
        return f"its layers of type {', '.join(kinds)} keep a state in place of keys and values"
    if getattr(model, "_is_stateful", False):
        return "its recurrent layers keep a state in place of keys and values"
    if config._attn_implementation not in ATTENTION:
        return f"its attention, {config._attn_implementation}, takes no mask of every query and key; sdpa or eager does"
    return ""


def _not_by_rows(model: PreTrainedModel) -> str:
    """Why a cache of transformers is wrong for a model although short rows do not show it; empty for all others."""
    kinds = sorted({*(getattr(model.config.get_text_config(), "layer_types", None) or ())} & _COMPRESSED)
    return f"the cache of its {', '.join(kinds)} layers depends on how its tokens were cut" if kinds else ""


def _by_slots(model: PreTrainedModel, rows: list[IntArray], alone: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of what a slot cache and one pass compute for the last tokens of each row."""
    slots = SlotModel(model, len(rows))
    index = np.arange(len(rows))
    starts = np.array([len(row) for row in rows]) - _STEPS
    slots.prefill(index, [row[:start] for row, start in zip(rows, starts, strict=True)])
    for step in range(_STEPS - 1):  # the last token has none after it, so it could not show that later ones are seen
        tokens = np.array([row[start + step] for row, start in zip(rows, starts, strict=True)])
        logits = slots.forward(slice(len(rows)), index, tokens[:, None], (starts + step)[:, None]).logits[:, -1:]
        for i, start in enumerate(starts):
            yield logits[i], alone[i][start + step][None]


def _by_rows(model: PreTrainedModel, rows: list[IntArray], alone: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """The same for each row on its own, with the cache of transformers."""
    for row, expected in zip(rows, alone, strict=True):
        cache = CachedRow(model)
        start = len(row) - _STEPS
        cache.advance(row[:start])
        for position in range(start, len(row) - 1):
            yield cache.advance(row[position : position + 1])[0], expected[position][None]


def _alone(model: PreTrainedModel, row: IntArray) -> Tensor:
    """Logits `[T, ...]` of a row, by one pass without a cache, a mask or padding."""
    return model(input_ids=_tensor(model, row[None]), use_cache=False).logits[0]


def differ(pairs: Iterable[tuple[Tensor, Tensor]], model: PreTrainedModel) -> bool:
    """True if outputs `[T, ...]` differ from the expected ones by more than rounding leaves."""
    errors: list[float] = []
    for found, expected in pairs:
        found, expected = found.float().flatten(1), expected.float().flatten(1)
        floor = expected.amax(1, keepdim=True) - _MASKED
        found, expected = found.maximum(floor), expected.maximum(floor)
        scale = expected[expected > floor].square().mean().sqrt().clamp(min=1e-6)
        errors += ((found - expected).square().mean(1).sqrt() / scale).tolist()
    single = all(weight.dtype in (torch.float32, torch.float64) for weight in model.parameters())
    rounded = torch.is_autocast_enabled(model.device.type) or torch.get_float32_matmul_precision() != "highest"
    exact = single and not rounded
    return not (max(errors) <= _TOLERANCE if exact else float(np.median(errors)) <= _HALF_TOLERANCE)


@contextmanager
def _trial(model: PreTrainedModel) -> Iterator[list[IntArray]]:
    """Rows of random tokens, and a model without dropout whose windows and chunks they reach past."""
    config = model.config.get_text_config()
    rng = np.random.default_rng(0)
    special = [
        value for name, value in config.to_dict().items() if name.endswith("token_id") and isinstance(value, int)
    ]
    ordinary = np.setdiff1d(np.arange(min(config.vocab_size, _TOKENS)), special)
    padding = getattr(config, "pad_token_id", None)
    sizes = {name: getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")}
    sizes = {name: size for name, size in sizes.items() if isinstance(size, int) and size > _WINDOW}
    for name in sizes:
        setattr(config, name, _WINDOW)
    try:
        with evaluating(model), torch.inference_mode():
            rows = [rng.choice(ordinary, length) for length in _LENGTHS]
            if isinstance(padding, int) and 0 <= padding < config.vocab_size:
                for row in rows:
                    row[-_STEPS] = padding  # some take it for no token, and others write it
            yield rows
    finally:
        for name, size in sizes.items():
            setattr(config, name, size)


def _tensor(model: PreTrainedModel, array: IntArray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(model.device)


def cause(error: Exception) -> str:
    return f"{type(error).__name__}: {textwrap.shorten(str(error), 200).rstrip('.')}"
