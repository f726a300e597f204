"""Attention masks that hold between the positions of tokens in their sequences, wherever the tokens are stored.

transformers builds masks by columns: a query in column i sees the keys of columns up to i, within a window, a chunk, or
whatever else its kind of layer says. In a key-value cache whose rows have lengths of their own, or in a row that holds
several sequences, columns are not positions. Inside `layout` every mask that a model makes for itself, one for each
kind of its layers, is worked out at the positions given there. So no kind of mask is written down twice.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
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
        return mask.masked_fill_(~allowed, torch.finfo(dtype).min)


for _name in ATTENTION:
    ALL_MASK_ATTENTION_FUNCTIONS[_name] = _LayoutMask(ALL_MASK_ATTENTION_FUNCTIONS[_name])


# Leading columns of a mask in which each query sees the columns up to its own, by mask.
_CAUSAL = WeakTensorKeyDictionary()
# With fewer, two products take no less time than one.
_LEAST_CAUSAL = 32


def declare_causal(mask: Tensor, columns: int) -> None:
    """Says of a mask `[B, 1, W, W]` that each of the first `columns` queries sees the columns up to its own.

    "sdpa" then leaves the mask out for those, and with it half of their products.
    """
    if columns >= _LEAST_CAUSAL:
        _CAUSAL[mask] = columns


# All that PyTorch has, but cuDNN's.
_WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **arguments: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention as of "sdpa", on a GPU by kernels that need no plan for each shape.

    With a mask PyTorch takes cuDNN's on Hopper, which first makes a plan for the shape: by a profile, 64 of the 81 ms
    of a step of 28 layers on an H200, with PyTorch 2.11. Micro-batches, and steps of a growing cache, have ever new
    shapes. Columns that `declare_causal` knows are computed apart.
    """
    if attention_mask is None or torch.compiler.is_compiling():
        return sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)
    with sdpa_kernel(_WITHOUT_PLANS) if _on_gpu(query) else nullcontext():
        columns = _CAUSAL.get(attention_mask, 0)
        if not columns or arguments.get("position_bias") is not None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)
        first, rest = slice(columns), slice(columns, None)
        causal = {**arguments, "is_causal": True}
        outputs = [
            sdpa_attention_forward(module, query[:, :, first], key[:, :, first], value[:, :, first], None, **causal)[0],
            sdpa_attention_forward(module, query[:, :, rest], key, value, attention_mask[:, :, rest], **arguments)[0],
        ]
    return torch.cat(outputs, 1), None


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


_BY_GROUPS = "tokengym|by_groups"  # a bar is for names that are nobody's to choose, as in "paged|sdpa"
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
