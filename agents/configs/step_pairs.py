"""Settings of agents that learn preferences between whole attempts or between single steps."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, Le

from ...settings import Count, check_unused
from .optimizer import FineTuneConfig


@dataclass(frozen=True)
class StepPairsConfig(FineTuneConfig):
    """What the two sides of a pair are.

    Attributes:
        pairs: Sides of a pair: whole "attempts" at a problem, a right and a wrong one, or single "steps" that follow
            the same beginning of attempts, one of which leads to the answer more often (Lai et al. 2024,
            Step-DPO). [choice]
        step_labels: Labels of the steps that pairs are made of: "mean", the share of continuations that succeed
            (Math-Shepherd), or "exact", what the problems themselves say of each step. [choice]
        rollouts_per_step: Continuations that are sampled from the end of each step that may be in a pair, for the
            labels "mean". [Wang et al. 2024]
        step_margin: Least difference between the labels of the two steps of a pair. [choice]
    """

    pairs: Literal["attempts", "steps"] = "attempts"
    step_labels: Literal["mean", "exact"] = "mean"
    rollouts_per_step: Count = 8
    step_margin: Annotated[float, Gt(0), Le(1)] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs != "steps":
            check_unused(self, ("step_labels", "rollouts_per_step", "step_margin"), 'pairs="steps"')
        if self.step_labels != "mean":
            check_unused(self, ("rollouts_per_step",), 'step_labels="mean"')
