"""Settings of process reward models."""

from dataclasses import dataclass
from typing import Literal

from ...settings import check_unused
from .outcome_models import SORMConfig


@dataclass(frozen=True)
class PRMConfig(SORMConfig):
    """Settings of `PRM`.

    Attributes:
        labels: Source of the labels of steps: "mean", the share of continuations that succeed; "any", whether one of
            them does; "exact", what the problems themselves say of each step; or "file". [Wang et al. 2024]
        labels_file: File of labeled solutions to learn from, for the labels "file": JSON lines or Parquet, with a
            `prompt`, a list of steps, `completions`, and a list of their `labels`, as in TRL's data of stepwise
            supervision.
        after_errors: Label steps after the first wrong one, too, for the labels "exact"; else they are left
            out. [Lightman et al. 2023]
        rollouts_per_step: Continuations that are sampled from the end of each step, for the labels "mean" and
            "any". [Wang et al. 2024]
        consistent: Count a continuation only if it uses the results of its prefix, as far as equations show it (GLoRe).
        balance: Train on as many labels above 0.5 as others at each number of steps, drawn at random. [choice]
    """

    labels: Literal["mean", "any", "exact", "file"] = "mean"
    labels_file: str | None = None
    after_errors: bool = False
    balance: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.labels == "file") != (self.labels_file is not None):
            raise ValueError(
                'labels="file" needs labels_file, a file of labeled solutions'
                if self.labels_file is None
                else f'labels_file is for labels="file", not {self.labels!r}: leave it out'
            )
        if self.labels == "file" and self.pool is not None:
            raise ValueError("pool and labels_file both give solutions to learn from: leave out one")
        if self.labels != "exact":
            check_unused(self, ("after_errors",), 'labels="exact"')
        if self.labels not in ("mean", "any"):
            check_unused(self, ("rollouts_per_step", "consistent"), 'labels="mean" or "any"')
