"""Losses as pure functions on `[B, T]` tensors with a mask.

Each gives a value per action, 0 outside the mask whatever is there, NaN included, with gradient 0 too. Only
`masked_aggregate` adds up, with an explicit denominator, so no loss depends on how a batch is cut.
"""

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


def policy_gradient(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """-A log pi, `[B, T]`: the loss whose gradient is the policy gradient (Williams 1992).

    Args:
        logprobs: `[B, T]` of the actions.
        advantages: `[B, T]`, or `[B, 1]` for one of each attempt.
        mask: `[B, T]` bool, true at actions.
    """
    logprobs, advantages = _select(mask, logprobs, advantages)
    return -advantages * logprobs


def clipped_surrogate(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float) -> Tensor:
    """-min(rho A, clip(rho, 1 - eps, 1 + eps) A), `[B, T]`, with rho = pi / pi_old (Schulman et al. 2017).

    Args:
        logprobs: `[B, T]` of the actions.
        old_logprobs: `[B, T]`, under the policy that acted; without gradient.
        advantages: `[B, T]`, or `[B, 1]` for one of each attempt.
        mask: `[B, T]` bool, true at actions.
        clip: eps.
    """
    logprobs, old_logprobs, advantages = _select(mask, logprobs, old_logprobs, advantages)
    ratio = (logprobs - old_logprobs).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def clipped(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, clip: float) -> Tensor:
    """Where, `[B, T]` bool, the ratio is further than `clip` from 1; its mean is Stable-Baselines3's clip fraction."""
    logprobs, old_logprobs = _select(mask, logprobs, old_logprobs)
    return ((logprobs - old_logprobs).exp() - 1).abs() > clip


def k3_divergence(logprobs: Tensor, other_logprobs: Tensor, mask: Tensor) -> Tensor:
    """q/p - 1 - log(q/p), `[B, T]`, for actions drawn from p: unbiased for KL(p || q), never negative (Schulman 2020).

    Args:
        logprobs: `[B, T]` of the actions under p.
        other_logprobs: `[B, T]` under q.
        mask: `[B, T]` bool, true at actions.
    """
    logprobs, other_logprobs = _select(mask, logprobs, other_logprobs)
    difference = other_logprobs - logprobs
    return difference.exp() - 1 - difference


def k1_divergence(logprobs: Tensor, other_logprobs: Tensor, mask: Tensor) -> Tensor:
    """log(p/q), `[B, T]`, for actions drawn from p: unbiased for KL(p || q), of either sign (Schulman 2020).

    Arguments as of `k3_divergence`.
    """
    logprobs, other_logprobs = _select(mask, logprobs, other_logprobs)
    return logprobs - other_logprobs


def value_error(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float | None) -> Tensor:
    """Half the squared error of values, `[B, T]`, at most `clip` from the old values, whichever error is larger.

    (Schulman et al. 2017's authors' code, as in trlx.)

    Args:
        values: `[B, T]`.
        old_values: `[B, T]`, when the attempts were sampled; without gradient.
        returns: `[B, T]`, what the values should have been.
        mask: `[B, T]` bool, true at actions.
        clip: how far from the old values; `None` does not clip.
    """
    values, old_values, returns = _select(mask, values, old_values, returns)
    error = (values - returns) ** 2
    if clip is not None:
        near = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (near - returns) ** 2)
    return error / 2


def _select(mask: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    # Before any arithmetic: a NaN times a gradient of zero is NaN again.
    return tuple(torch.where(mask, tensor, 0) for tensor in tensors)
