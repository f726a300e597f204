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
        values: `[B, T]` values.
        mask: `[B, T]` bool, true at the values to add up.
        denominator: Number to divide by, such as the number of action tokens in the whole batch.
    """
    return torch.where(mask, values, 0).sum() / denominator


def policy_gradient(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """-A log pi, `[B, T]`: the loss whose gradient is the policy gradient (Williams 1992).

    Args:
        logprobs: `[B, T]` log-probabilities of the actions.
        advantages: `[B, T]` advantages, or `[B, 1]` with one for each attempt.
        mask: `[B, T]` bool, true at actions.
    """
    logprobs, advantages = _select(mask, logprobs, advantages)
    return -advantages * logprobs


def log_ratios(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Log-ratios, log(pi / pi_old), of each action, `[B, T]`.

    Args:
        logprobs: `[B, T]` log-probabilities of the actions.
        old_logprobs: `[B, T]` log-probabilities under the policy that acted; without gradient.
        mask: `[B, T]` bool, true at actions.
    """
    logprobs, old_logprobs = _select(mask, logprobs, old_logprobs)
    return logprobs - old_logprobs


def sequence_log_ratios(log_ratios: Tensor, mask: Tensor) -> Tensor:
    """Log s of GSPO (Zheng et al. 2025): the mean of an attempt's log-ratios, `[B, T]`, at each of its actions.

    The mean over an attempt of their exponentials is its one ratio, (pi(y) / pi_old(y))^(1/|y|), with its gradient.

    Args:
        log_ratios: `[B, T]` log-ratios of the actions, one attempt in each row.
        mask: `[B, T]` bool, true at actions.
    """
    (log_ratios,) = _select(mask, log_ratios)
    means = log_ratios.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(mask, means, 0)


def importance_weights(log_ratios: Tensor, mask: Tensor, kind: str, floor: float, cap: float) -> Tensor:
    """pi_train / pi_sampled, `[B, T]`, within bounds: corrects a loss for attempts that another engine sampled.

    Truncated weights (TIS, Yao et al. 2025) are clamped to the bounds; masked ones (IcePop, Zhao et al. 2025) are 0
    outside of them. The weight of a sequence is that of its whole probability, the same at each action.

    Args:
        log_ratios: `[B, T]` log pi_train - log pi_sampled of the actions, before any update; without gradient.
        mask: `[B, T]` bool, true at actions.
        kind: Kind of correction: "token_truncate", "token_mask", "sequence_truncate" or "sequence_mask".
        floor: Least weight.
        cap: Largest weight.
    """
    level, rule = kind.split("_")
    (log_ratios,) = _select(mask, log_ratios)
    weights = (log_ratios.sum(-1, keepdim=True).expand_as(mask) if level == "sequence" else log_ratios).exp()
    if rule == "truncate":
        return weights.clamp(floor, cap)
    return torch.where((weights < floor) | (weights > cap), 0, weights)


def clipped_surrogate(
    log_ratios: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float,
    clip_high: float | None = None,
    dual_clip: float | None = None,
) -> Tensor:
    """-min(rho A, clip(rho, 1 - eps, 1 + eps_high) A), `[B, T]`, with rho = pi / pi_old (Schulman et al. 2017).

    A higher upper bound is DAPO's clip-higher (Yu et al. 2025). The dual clip (Ye et al. 2020) bounds the loss of a
    negative advantage too: where A < 0 the objective is max(min(...), c A).

    Args:
        log_ratios: `[B, T]` log rho of the actions.
        advantages: `[B, T]` advantages, or `[B, 1]` with one for each row.
        mask: `[B, T]` bool, true at actions.
        clip: Lower clipping range eps.
        clip_high: Upper clipping range eps_high; `None` uses eps.
        dual_clip: Bound c, above 1 + eps_high; `None` leaves the ratio of negative advantages unbounded.
    """
    log_ratios, advantages = _select(mask, log_ratios, advantages)
    ratio = log_ratios.exp()
    near = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    objective = torch.minimum(ratio * advantages, near * advantages)
    if dual_clip is not None:
        objective = torch.where(advantages < 0, torch.maximum(objective, dual_clip * advantages), objective)
    return -objective


def clipped_importance(
    logprobs: Tensor, log_ratios: Tensor, advantages: Tensor, mask: Tensor, clip: float, clip_high: float
) -> Tensor:
    """-sg(clip(rho, 1 - eps, 1 + eps_high)) A log pi, `[B, T]`: CISPO (MiniMax 2025), which drops no token's gradient.

    Args:
        logprobs: `[B, T]` log-probabilities of the actions.
        log_ratios: `[B, T]` log rho of the actions; no gradient flows through them.
        advantages: `[B, T]` advantages, or `[B, 1]` with one for each row.
        mask: `[B, T]` bool, true at actions.
        clip: Lower clipping range eps; 1 sets no lower bound.
        clip_high: Upper clipping range eps_high.
    """
    logprobs, log_ratios, advantages = _select(mask, logprobs, log_ratios.detach(), advantages)
    return -log_ratios.exp().clamp(1 - clip, 1 + clip_high) * advantages * logprobs


def clipped(log_ratios: Tensor, mask: Tensor, clip: float, clip_high: float | None = None) -> tuple[Tensor, Tensor]:
    """Bools `[B, T]`, true where the ratio lies under 1 - clip, and where over 1 + clip_high.

    The mean of both together is Stable-Baselines3's clip fraction.
    """
    (log_ratios,) = _select(mask, log_ratios)
    difference = log_ratios.exp() - 1
    return difference < -clip, difference > (clip if clip_high is None else clip_high)


def k3_divergence(logprobs: Tensor, other_logprobs: Tensor, mask: Tensor) -> Tensor:
    """q/p - 1 - log(q/p), `[B, T]`, for actions drawn from p: unbiased for KL(p || q), never negative (Schulman 2020).

    Args:
        logprobs: `[B, T]` log-probabilities of the actions under p.
        other_logprobs: `[B, T]` log-probabilities of the actions under q.
        mask: `[B, T]` bool, true at actions.
    """
    logprobs, other_logprobs = _select(mask, logprobs, other_logprobs)
    difference = other_logprobs - logprobs
    return difference.exp() - 1 - difference


def k1_divergence(logprobs: Tensor, other_logprobs: Tensor, mask: Tensor) -> Tensor:
    """log(p/q), `[B, T]`, for actions drawn from p: unbiased for KL(p || q), of either sign (Schulman 2020).

    Arguments as of `k3_divergence`. As a loss it does nothing: its expected gradient is 0 under p.
    """
    logprobs, other_logprobs = _select(mask, logprobs, other_logprobs)
    return logprobs - other_logprobs


def k2_divergence(logprobs: Tensor, other_logprobs: Tensor, mask: Tensor) -> Tensor:
    """log(p/q)^2 / 2, `[B, T]`, for actions drawn from p: biased for KL(p || q), never negative (Schulman 2020).

    Arguments as of `k3_divergence`. As a loss its expected gradient under p is that of KL(p || q) in each state, where
    `k3_divergence` has that of KL(q || p).
    """
    return k1_divergence(logprobs, other_logprobs, mask) ** 2 / 2


DIVERGENCES = {"k1": k1_divergence, "k2": k2_divergence, "k3": k3_divergence}
"""Estimators of KL(p || q) from actions drawn from p, by Schulman's names."""


PREFERENCE_LOSSES = ("sigmoid", "ipo")


def preference_loss(margins: Tensor, beta: float, kind: str = "sigmoid", label_smoothing: float = 0.0) -> Tensor:
    """Loss of each pair, `[P]`, of a policy that should prefer the chosen completion to the rejected one.

    "sigmoid" is DPO's (Rafailov et al. 2023), -log sigmoid(beta h); with label smoothing e it is cDPO's (Mitchell
    2023), for labels that are wrong with probability e: (1 - e) of it and e of -log sigmoid(-beta h). "ipo" is
    (h - 1 / (2 beta))^2 (Azar et al. 2024), for log-ratios averaged over tokens.

    Args:
        margins: `[P]` h = log(pi / pi_ref)(chosen) - log(pi / pi_ref)(rejected).
        beta: Strength of the divergence from the reference that the optimum trades against preference.
        kind: Kind of loss: "sigmoid" or "ipo".
        label_smoothing: Share e of swapped labels, in [0, 0.5), for "sigmoid" only.
    """
    if kind == "ipo":
        return (margins - 1 / (2 * beta)) ** 2
    log_sigmoid = torch.nn.functional.logsigmoid
    return -(1 - label_smoothing) * log_sigmoid(beta * margins) - label_smoothing * log_sigmoid(-beta * margins)


def pairwise_loss(right: Tensor, wrong: Tensor, center_coef: float) -> Tensor:
    """Mean of -log sigmoid(r_i - r_j) + center_coef (r_i + r_j)^2 over pairs of completions of one prompt.

    The first term is the negative log-likelihood of the preferences under Bradley and Terry's model, all pairs at a
    prompt together as in Ouyang et al. 2022; the second keeps rewards around 0 (Eisenstein et al. 2023).

    Args:
        right: `[P]` rewards r_i of the better one of each pair.
        wrong: `[P]` rewards r_j of the worse one.
        center_coef: Weight of the second term.
    """
    return -torch.nn.functional.logsigmoid(right - wrong).mean() + center_coef * ((right + wrong) ** 2).mean()


def value_error(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float | None) -> Tensor:
    """Half the squared error of values, `[B, T]`, at most `clip` from the old values, whichever error is larger.

    (Schulman et al. 2017's authors' code, as in trlx.)

    Args:
        values: `[B, T]` values of the critic.
        old_values: `[B, T]` values when the attempts were sampled; without gradient.
        returns: `[B, T]` targets of the values.
        mask: `[B, T]` bool, true at actions.
        clip: Clipping range around the old values; `None` does not clip.
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
