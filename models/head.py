"""The output head in float32, whatever precision the rest of a language model is computed in.

A logit of 20 has neighbors 0.125 away in bfloat16, so that rounding alone would move ratios, KL and clip fractions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn


@contextmanager
def float32_head(head: nn.Module) -> Iterator[None]:
    """Within the block, `head` gives float32 logits, from float32 weights also under autocast.

    Heads that are no linear layers, nor one of which only some rows are trained, stay as they are.

    Args:
        head: the output embeddings of a language model.
    """
    layer = cast(Any, head).get_base_layer() if hasattr(head, "get_merged_weights") else head
    if type(layer) is not nn.Linear:
        yield
        return

    def forward(hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            bias = None if layer.bias is None else layer.bias.float()
            return nn.functional.linear(hidden.float(), _weight(head).float(), bias)

    before = head.__dict__.get("forward")
    head.forward = forward  # hooks and modeling code call it as ever
    try:
        yield
    finally:
        del head.forward
        if before is not None:
            head.forward = before


def _weight(head: Any) -> Tensor:
    """The weights, with the rows that adapters have trained."""
    if not hasattr(head, "get_merged_weights"):
        return head.weight
    return head.base_layer.weight if head.disable_adapters else head.get_merged_weights(head.active_adapters)
