"""Settings of direct preference optimization."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Lt

from ...settings import Count, FinitePositive, NonNegative, Positive
from .step_pairs import StepPairsConfig


@dataclass(frozen=True)
class DPOConfig(StepPairsConfig):
    """Settings of `DPO`.

    Attributes:
        rounds: Rounds of sampling and training; each starts from the last round's policy, which is its reference. 1 is
            plain DPO. [Pang et al. 2024]
        samples_per_problem: Attempts at each problem in a round. [Pang et al. 2024]
        pairs_per_problem: Largest number of pairs from one problem in a round. [Pang et al. 2024]
        temperature: Sampling temperature of the attempts. [choice]
        problems: Number of problems that attempts are sampled at, the first of the split; `None` uses all, or 256
            where they never end.
        pool: Attempts of an earlier run to learn from instead of sampling (offline DPO, in one round): a file or the
            folder of a run.
        beta: Weight of the divergence from the reference. [Rafailov et al. 2023]
        loss: Preference loss: "sigmoid" (DPO), or "ipo" (Azar et al. 2024), which averages log-ratios over
            tokens. [Rafailov et al. 2023]
        label_smoothing: Assumed share of pairs that are labeled the wrong way round, for the "sigmoid" loss (cDPO,
            Mitchell 2023).
        nll_coef: Weight of the negative log-likelihood per token of the chosen completion; 0 is plain
            DPO. [Pang et al. 2024]
        learning_rate: Peak learning rate; `None` uses a twentieth of the model's `recommended_learning_rate` if it has
            one, else 1e-6. [choice]
        epochs: Passes over the pairs of a round. [choice]
        batch_size: Pairs per optimizer step. [Rafailov et al. 2023]
        validation_problems: Validation problems that maj@1 is measured on before the first round and after
            each. [choice]
        patience: Stop after this many rounds without a better validation maj@1. [choice]
    """

    rounds: Count = 4
    samples_per_problem: Annotated[int, Ge(2)] = 30
    pairs_per_problem: Count = 10
    temperature: FinitePositive = 1.0
    problems: Count | None = None
    pool: str | None = None
    beta: Positive = 0.1
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    label_smoothing: Annotated[float, Ge(0), Lt(0.5)] = 0.0
    nll_coef: NonNegative = 1.0
    learning_rate: NonNegative | None = None
    epochs: Count = 1
    batch_size: Count = 64
    validation_problems: Count = 200
    patience: Count = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_smoothing and self.loss == "ipo":
            raise ValueError('label_smoothing is for loss="sigmoid": leave it out with "ipo"')
        if self.pool is not None and self.rounds != 1:
            raise ValueError(f"a pool is learned from in one round: set rounds=1, not {self.rounds}")
