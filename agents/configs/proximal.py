"""Settings that GRPO and PPO share."""

from dataclasses import dataclass
from typing import Literal

from ...settings import Count, NonNegative, Positive
from .policy_gradient import PolicyGradientConfig


@dataclass(frozen=True)
class ProximalConfig(PolicyGradientConfig):
    """Settings that GRPO and PPO share.

    Attributes:
        epochs: Passes over the attempts of each iteration. [choice]
        clip: PPO clipping range: the probability ratio is clipped to [1 - clip, 1 + clip]. [Schulman et al. 2017]
        clip_high: Upper clipping range where it differs from the lower one: the ratio is clipped to at most 1 +
            clip_high. `None` uses `clip`. [Yu et al. 2025: 0.28]
        dual_clip: Upper bound of the probability ratio where the advantage is negative; `None` sets
            none. [Ye et al. 2020: 3]
        entropy_coef: Weight of the bonus for the policy's entropy, averaged over the trained tokens; 0 turns it
            off. [choice]
        kl_coef: Weight of the penalty for KL divergence from the reference, which is the policy before learning; 0
            needs no reference. [choice]
        kl_estimator: Estimator of the KL divergence (Schulman 2020): "k1", log(pi / pi_ref), is unbiased; "k2" is half
            its square; "k3" is unbiased and never negative. [Shao et al. 2024]
        kl_in: Place of the KL penalty: in the "reward" of each token, or in the "loss", where "k1" has no expected
            gradient. [Shao et al. 2024]
        reference_refresh: Iterations after which the current policy becomes the reference; `None` keeps the first
            reference. [choice]
    """

    epochs: Count = 1
    clip: Positive = 0.2
    clip_high: Positive | None = None
    dual_clip: float | None = None
    entropy_coef: NonNegative = 0.0
    kl_coef: NonNegative = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    kl_in: Literal["loss", "reward"] = "loss"
    reference_refresh: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip > self.upper_clip:
            raise ValueError(f"clip is {self.clip}, above clip_high, {self.clip_high}: lower it, or raise clip_high")
        if self.dual_clip is not None and not self.dual_clip > 1 + self.upper_clip:
            raise ValueError(f"dual_clip must be above 1 + clip_high = {1 + self.upper_clip}, got {self.dual_clip}")
        if self.reference_refresh is not None and not self.kl_coef:
            raise ValueError("reference_refresh is set, but kl_coef is 0: there is no reference to refresh")

    @property
    def upper_clip(self) -> float:
        """Upper clipping range: `clip_high`, or `clip` if it is `None`."""
        return self.clip if self.clip_high is None else self.clip_high
