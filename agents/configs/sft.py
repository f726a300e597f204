"""Settings of supervised fine-tuning."""

from dataclasses import dataclass

from ...settings import CountOrZero
from .optimizer import FineTuneConfig


@dataclass(frozen=True)
class SFTConfig(FineTuneConfig):
    """Settings of `SFT`.

    Attributes:
        demonstrations: Number of reference solutions to train on, the first of the split; `None` uses all, or 256 where
            problems never end.
        validation_problems: Validation problems that maj@1 is measured on after training; 0 turns validation
            off. [choice]
    """

    demonstrations: CountOrZero | None = None
    validation_problems: CountOrZero = 200
