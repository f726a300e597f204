"""Losses as pure functions on `[B, T]` tensors with a mask."""

import torch
from torch import Tensor


def masked_aggregate(values: Tensor, mask: Tensor, denominator: float) -> Tensor:
    """Sum of `values` where `mask`, over a denominator of the *whole* batch.

    With an explicit global denominator, micro-batches and ranks add up to the same loss however the batch is cut.
    Masked values are selected away, not multiplied by zero, so that not even NaN in a padded position reaches loss or
    gradient.

    Args:
        values: `[B, T]`.
        mask: `[B, T]` bool.
        denominator: for instance the number of action tokens in the whole batch.
    """
    return torch.where(mask, values, 0).sum() / denominator
