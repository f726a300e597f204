"""Settings of backtranslation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from ...settings import Count, CountOrZero, FinitePositive
from .optimizer import FineTuneConfig


@dataclass(frozen=True)
class BacktranslationConfig(FineTuneConfig):
    """Settings of `Backtranslation`.

    Attributes:
        base: Model that the proposer and the writer are fine-tuned from; `None` uses the agent's `model`, the student.
        demonstrations: Number of problems with solutions to learn from, the first of the split; `None` uses all, or 256
            where they never end.
        neighbors: Number of known solutions, each other's nearest, that a new one is modeled
            on. [Havrilla et al. 2024]
        proposals: Number of new solutions to write, each with a question. [choice]
        samples_per_problem: Attempts of the student at each new question. [choice]
        temperature: Sampling temperature of new solutions, questions and attempts. [choice]
    """

    renamed: ClassVar[Mapping[str, str]] = {"neighbours": "neighbors", "attempts": "samples_per_problem"}

    base: str | None = None
    demonstrations: CountOrZero | None = None
    neighbors: Count = 7
    proposals: Count = 1000
    samples_per_problem: Annotated[int, Ge(2)] = 8
    temperature: FinitePositive = 1.0
