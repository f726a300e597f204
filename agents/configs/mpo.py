"""Settings of mixed preference optimization."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from ...settings import Count, FinitePositive, NonNegative, Positive
from .ppo import PPOConfig


@dataclass(frozen=True)
class MPOConfig(PPOConfig):
    """Settings of `MPO`. The source's thresholds and weights are not known.

    Attributes:
        orm: Outcome model or preference model that says how far apart the attempts of a pair are: the `model` folder of
            its run, or "tokengym/tiny-orm".
        threshold: Least reward of the chosen attempt above that of the rejected one, in logits, with which a pair
            counts as easy; `None` uses the median of all pairs. [choice]
        pair_problems: Number of problems that pairs are made at, the first of the split; `None` uses all, or 256 where
            they never end.
        pair_samples: Attempts at each problem that pairs are made of. [choice]
        pairs_per_problem: Largest number of pairs from one problem. [Pang et al. 2024]
        pair_temperature: Sampling temperature of the attempts that pairs are made of. [choice]
        pool: Attempts of an earlier run to make pairs of instead of sampling: a file or the folder of a run.
        beta: Weight of the divergence from the reference in the preference loss. [Rafailov et al. 2023]
        nll_coef: Weight of the negative log-likelihood per token of the chosen completion. [Pang et al. 2024]
        dpo_learning_rate: Peak learning rate on easy pairs; `None` uses that of DPO. [choice]
        dpo_epochs: Passes over the easy pairs. [choice]
        dpo_batch_size: Pairs per optimizer step. [Rafailov et al. 2023]
    """

    orm: str | None = None
    threshold: float | None = None
    pair_problems: Count | None = None
    pair_samples: Annotated[int, Ge(2)] = 8
    pairs_per_problem: Count = 10
    pair_temperature: FinitePositive = 1.0
    pool: str | None = None
    beta: Positive = 0.1
    nll_coef: NonNegative = 1.0
    dpo_learning_rate: NonNegative | None = None
    dpo_epochs: Count = 1
    dpo_batch_size: Count = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_pass_rate is not None or self.max_pass_rate is not None:
            raise ValueError("mpo chooses its problems by their pairs: leave out min_pass_rate and max_pass_rate")
