"""Settings of preference models."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from ...settings import Count, NonNegative
from .outcome_models import OutcomeModelConfig
from .step_pairs import StepPairsConfig


@dataclass(frozen=True)
class PreferenceModelConfig(OutcomeModelConfig, StepPairsConfig):
    """Settings of `PreferenceModel`.

    Attributes:
        samples_per_problem: Attempts at each problem, of which all pairs of a right and a wrong one count. [choice]
        center_coef: Weight of the mean squared sum of the rewards of a pair, which keeps rewards around 0 and changes
            no order. [Eisenstein et al. 2023]
        batch_size: Problems per optimizer step, each with all pairs of its attempts (Ouyang et al. 2022); 8 of 16
            attempts are as many sequences as an ORM's batch has. With pairs of steps, shared beginnings instead of
            problems. [choice]
    """

    samples_per_problem: Annotated[int, Ge(2)] = 16
    center_coef: NonNegative = 0.01
    batch_size: Count = 8
