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
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

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
