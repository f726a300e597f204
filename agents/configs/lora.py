"""Settings of low-rank adapters."""

import dataclasses
from collections.abc import Sequence
from typing import Any

ALL_LINEAR = "all-linear"


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Low-rank adapters to train instead of the weights; the arguments of `models.load` without "lora_".

    Raises:
        ValueError: Settings of adapters are given without a rank.
    """

    rank: int | None = None
    alpha: float | None = None
    targets: str | Sequence[str] = ALL_LINEAR
    rank_stabilized: bool = False

    def __post_init__(self) -> None:
        if tuple(self.targets) == (ALL_LINEAR,):
            object.__setattr__(self, "targets", ALL_LINEAR)  # as command lines give it
        if self.rank is None and (self.alpha, self.targets, self.rank_stabilized) != (None, ALL_LINEAR, False):
            raise ValueError("lora_alpha, lora_targets and lora_rank_stabilized shape adapters: give lora_rank, too")

    def to_dict(self) -> dict[str, Any]:
        """The arguments of `models.load`."""
        return {f"lora_{name}": value for name, value in dataclasses.asdict(self).items()}
