"""Attention masks that hold between the positions of tokens in their sequences, wherever the tokens are stored.

transformers builds masks by columns: a query in column i sees the keys of columns up to i, within a window, a chunk, or
whatever else its kind of layer says. In a key-value cache whose rows have lengths of their own, or in a row that holds
several sequences, columns are not positions. Inside `layout` every mask that a model makes for itself, one for each
kind of its layers, is worked out at the positions given there. So no kind of mask is written down twice.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = ("eager", "sdpa")
"""Attention implementations whose masks can follow positions; the others take no mask of every query and key."""


@dataclass(frozen=True, slots=True)
class _Layout:
    queries: Tensor
    keys: Tensor
    visible: Tensor | None


_LAYOUT: ContextVar[_Layout | None] = ContextVar("layout", default=None)


@contextmanager
def layout(queries: Tensor, keys: Tensor, visible: Tensor | None = None) -> Iterator[None]:
    """Within the block, masks hold between these positions; call the model without a mask, or with one of `[B, K]`.

    Args:
        queries: `[B, Q]` positions of the tokens that the model is called with.
        keys: `[B, K]` or `[1, K]` positions of the tokens that they attend to, their own columns included.
        visible: `[B, Q, K]` bool, false where a query must not see a key whatever the model says.
    """
    token = _LAYOUT.set(_Layout(queries[:, None, :, None], keys[:, None, None], visible))
    try:
        yield
    finally:
        _LAYOUT.reset(token)


class _LayoutMask:
    """A mask function for transformers' registry: `usual` outside of `layout`."""

    def __init__(self, usual: Callable[..., Tensor | None]) -> None:
        self.usual = usual

    def __call__(self, *positional: Any, **arguments: Any) -> Tensor | None:
        found = _LAYOUT.get()
        if found is None:
            return self.usual(*positional, **arguments)
        rows = torch.arange(len(found.queries), device=found.queries.device)[:, None, None, None]
        allowed = arguments["mask_function"](rows, rows.new_zeros(()), found.queries, found.keys)
        if found.visible is not None:
            allowed = allowed & found.visible[:, None]
        # A float mask serves both kinds of attention, and is made once where a bool one is converted in every layer.
        dtype = arguments["dtype"]
        mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        mask.masked_fill_(~allowed, torch.finfo(dtype).min)
        if _columns_are_positions(found):
            whole = arguments["mask_function"] is causal_mask_function and found.visible is None
            declare_causal(mask, mask.shape[-1] if whole else 0)
        return mask


def _columns_are_positions(found: _Layout) -> bool:
    """True if later columns are later tokens, as where sequences begin in the first one.

    Elsewhere than on a CPU it is not asked: the answer would have to be waited for.
    """
    queries, keys = found.queries[..., 0], found.keys[:, :, 0]
    several = 1 < queries.shape[-1] == keys.shape[-1] and keys.device.type == "cpu"
    return several and bool((queries == keys).all()) and bool((keys.diff() > 0).all())


for _name in ATTENTION:
    ALL_MASK_ATTENTION_FUNCTIONS[_name] = _LayoutMask(ALL_MASK_ATTENTION_FUNCTIONS[_name])


# Leading columns of a mask whose queries see the columns up to their own.
_PROMPTS = WeakTensorKeyDictionary()
# Queries whose attention is computed at once.
_CHUNK = 64


def declare_causal(mask: Tensor, prompt: int) -> None:
    """Says of a mask `[B, 1, W, W]` that no query sees later columns, and the first ones hide nothing else.

    On a CPU "sdpa", given this very tensor, then computes about half of the products.

    Args:
        mask: Mask of the attention.
        prompt: Number of first queries that see all columns up to their own.
    """
    _PROMPTS[mask] = prompt


# All that PyTorch has, but cuDNN's.
_WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **arguments: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention as of "sdpa", on a CPU without later columns of masks that `declare_causal` knows.

    On a GPU it is by kernels that need no plan for each shape: with a mask PyTorch takes cuDNN's on Hopper, which first
    makes one, by a profile 64 of the 81 ms of a step of 28 layers on an H200, with PyTorch 2.11. Micro-batches, and
    steps of a growing cache, have ever new shapes.
    """
    if attention_mask is None or torch.compiler.is_compiling():
        return sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)
    if _on_gpu(query):
        with sdpa_kernel(_WITHOUT_PLANS):
            return sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)
    prompt = _PROMPTS.get(attention_mask)
    if prompt is None or any(arguments.get(name) is not None for name in ("position_bias", "softcap")):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)
    return _causal_attention(query, key, value, attention_mask, prompt, **arguments), None


def _causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    prompt: int,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> Tensor:
    """Attention `[B, W, H, D]` under a mask of `declare_causal`: chunks of queries, with the keys up to their ends."""
    attend = partial(nn.functional.scaled_dot_product_attention, dropout_p=dropout, scale=scaling)
    # Once, and not for each chunk: what is repeated is kept for the backward pass.
    key, value = (repeat_kv(part, query.shape[1] // part.shape[1]) for part in (key, value))
    outputs: list[Tensor] = []
    if prompt < _CHUNK // 2:
        prompt = 0  # two products would take no less time than one
    else:
        outputs.append(attend(query[:, :, :prompt], key[:, :, :prompt], value[:, :, :prompt], is_causal=True))
    for start in range(prompt, query.shape[2], _CHUNK):
        stop = start + _CHUNK
        parts = query[:, :, start:stop], key[:, :, :stop], value[:, :, :stop]
        outputs.append(attend(*parts, attn_mask=mask[:, :, start:stop, :stop]))
    return torch.cat(outputs, 2).transpose(1, 2).contiguous()


def _grouped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **arguments: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention as of "sdpa", by kernels that read the keys and values of a group of heads once.

    transformers repeats them for each head where there is a mask, since few kernels can do without; cuDNN's can, in
    half precision. On an H200 one new token for each of 256 rows, 12 heads on 2, then takes 38 us a layer instead of
    1,045, with 512 columns.
    """
    half = query.dtype in (torch.float16, torch.bfloat16)
    if not half or query.shape[1] == key.shape[1] or query.shape[-1] > 128:
        return _attention(module, query, key, value, attention_mask, **arguments)
    output = nn.functional.scaled_dot_product_attention(
        query, key, value, attention_mask, scale=arguments.get("scaling"), enable_gqa=True
    )
    return output.transpose(1, 2).contiguous(), None


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


_BY_GROUPS = "tokengym|by_groups"  # a bar is for names that are nobody's to choose, as in "paged|eager"
ALL_ATTENTION_FUNCTIONS["sdpa"] = _attention
AttentionInterface.register(_BY_GROUPS, _grouped_attention)
AttentionMaskInterface.register(_BY_GROUPS, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


@contextmanager
def by_groups(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, a model whose attention is "sdpa" reads keys and values once for a group of heads.

    It is for a GPU, and for shapes that come again: each has a plan of its own.
    """
    if uses_sdpa(model):
        with using(model, _BY_GROUPS):
            yield
    else:
        yield


def uses_sdpa(model: PreTrainedModel) -> bool:
    """True if a model's attention is "sdpa"."""
    return model.config.get_text_config()._attn_implementation == "sdpa"


@contextmanager
def using(model: PreTrainedModel, attention: str) -> Iterator[None]:
    """Within the block, a model's attention is another one of transformers' registry."""
    config = model.config.get_text_config()
    usual = config._attn_implementation
    config._attn_implementation = attention
    try:
        yield
    finally:
        config._attn_implementation = usual
