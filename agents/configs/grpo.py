"""Settings of GRPO."""

from dataclasses import dataclass
from typing import Literal

from ...settings import Count, Positive, check_unused
from .proximal import ProximalConfig

Scale = Literal["group", "batch", "none"]
Aggregation = Literal["attempts", "tokens", "constant"]


@dataclass(frozen=True)
class GRPOConfig(ProximalConfig):
    """Settings of `GRPO`.

    Attributes:
        samples_per_problem: Attempts at each problem of an iteration, which form a group. [choice]
        scale: Standard deviation that advantages are divided by: of each "group" (GRPO), of the whole "batch" (Lite
            PPO), or "none" (Dr. GRPO). [Shao et al. 2024]
        aggregation: Average that makes the loss: over "attempts" of each one's mean over tokens (GRPO), over
            all "tokens" of the batch (DAPO), or the sum over tokens divided by the number of attempts and
            a "constant" (Dr. GRPO). [Shao et al. 2024]
        length_constant: Tokens of an attempt that `aggregation="constant"` divides by; `None` uses `max_new_tokens`,
            and 1 gives the policy gradient proper.
        ratio: Unit whose probability ratio is clipped: each "token", or the whole "sequence", to the power of one over
            its length (GSPO). [Shao et al. 2024]
        surrogate: Use of the clipped ratio: "clip" bounds the objective (PPO), "cispo" only its weight, so that all
            tokens keep a gradient. [Shao et al. 2024]
        epochs: Passes over the attempts of each iteration. [Shao et al. 2024]
        minibatches: Optimizer steps in each pass over the attempts; with one step and one epoch the ratio is 1 and
            nothing is clipped. [Shao et al. 2024]
    """

    samples_per_problem: int = 16
    scale: Scale = "group"
    aggregation: Aggregation = "attempts"
    length_constant: Positive | None = None
    ratio: Literal["token", "sequence"] = "token"
    surrogate: Literal["clip", "cispo"] = "clip"
    epochs: Count = 1
    minibatches: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples_per_problem < 2:
            raise ValueError(f"samples_per_problem is {self.samples_per_problem}: a group of one has no advantages")
        if self.surrogate == "cispo" and self.dual_clip is not None:
            raise ValueError('dual_clip bounds the objective of surrogate="clip": with "cispo" leave it out')
        if self.aggregation != "constant":
            check_unused(self, ("length_constant",), 'aggregation="constant"')
        episodes = self.problems_per_iteration * self.samples_per_problem
        if not 1 <= self.minibatches <= episodes:
            raise ValueError(f"minibatches must be between 1 and the {episodes} attempts, got {self.minibatches}")
