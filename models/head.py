"""The output head in float32, whatever precision the rest of a language model is computed in.

A logit of 20 has neighbors 0.125 away in bfloat16, so that rounding alone would move ratios, KL and clip fractions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from .linear import OneDNNLinear, linear


@contextmanager
def float32_head(head: nn.Module) -> Iterator[None]:
    """Within the block, `head` gives float32 logits, from float32 weights also under autocast.

    Heads that are no linear layers, nor one of which only some rows are trained, stay as they are.

    Args:
        head: Output embeddings of a language model.
    """
    forward = float32_forward(head)
    if forward is None:
        yield
        return
    before = head.__dict__.get("forward")
    head.forward = forward  # hooks and modeling code call it as ever
    try:
        yield
    finally:
        del head.forward
        if before is not None:
            head.forward = before


def float32_forward(head: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The forward pass of a head in float32; `None` if it is no linear layer, nor one of which some rows are trained.

    Args:
        head: Output embeddings of a language model.
    """
    rows = trained_rows(head)
    layer: Any = head if rows is None else rows.get_base_layer()
    if type(layer) not in (nn.Linear, OneDNNLinear):
        return None

    def forward(hidden: Tensor) -> Tensor:
        whole = rows is None or rows.disable_adapters
        weight = layer.weight if whole else cast(Any, rows).get_merged_weights(cast(Any, rows).active_adapters)
        bias = layer.bias if whole else None  # a hook adds it else, see `loading.with_lora`
        with torch.autocast(hidden.device.type, enabled=False):
            product = linear if type(layer) is OneDNNLinear else nn.functional.linear
            return product(hidden.float(), weight.float(), None if bias is None else bias.float())

    return forward


def trained_rows(head: nn.Module) -> Any:
    """The adapter of a layer of which only some rows are trained; `None` for others."""
    return getattr(head, "token_adapter", None)
