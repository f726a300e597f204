"""Settings of REINFORCE."""

from dataclasses import dataclass
from typing import Literal

from ...settings import Count
from .policy_gradient import PolicyGradientConfig


@dataclass(frozen=True)
class ReinforceConfig(PolicyGradientConfig):
    """Settings of `Reinforce`.

    Attributes:
        problems_per_iteration: Problems drawn anew in each iteration; one attempt at each makes updates of 1024
            attempts. [choice]
        baseline: Value that returns are compared with: "none", the gradient of E[r log pi]; "mean", the batch's mean
            return; or "rloo", the mean of the other attempts at the same problem, which
            needs `samples_per_problem` >= 2. [Tsilivis et al. 2025]
    """

    problems_per_iteration: Count = 1024
    baseline: Literal["none", "mean", "rloo"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.baseline == "rloo" and self.samples_per_problem < 2:
            raise ValueError('baseline="rloo" compares attempts at one problem: set samples_per_problem to 2 or more')
