"""Settings of ARES."""

from dataclasses import dataclass

from ...settings import Count, CountOrZero, NonNegative, check_unused
from .ppo import PPOConfig


@dataclass(frozen=True)
class ARESConfig(PPOConfig):
    """Settings of `ARES`; those of `PPO` are of each round's first stage. Byun et al. 2024 is arXiv 2407.00087.

    Attributes:
        rounds: Rounds of PPO and of fine-tuning on corrections. [choice]
        judge: Judge of steps in environments that name no reward: "reference", the reference solution, or the folder of
            an outcome model or process reward model, or "tokengym/tiny-orm"; see `JudgedReward`. [choice]
        problems: Number of problems whose attempts are corrected in each round, the first of the split; `None` uses
            all, or 256 where they never end.
        proposer: Model that continues attempts from their last right step, of the policy's tokenizer; `None` takes
            the rest of the reference solution.
        proposals: Continuations that the proposer draws for each attempt, the first right one of which counts. [choice]
        sft_epochs: Passes over the corrections; 0 trains by PPO alone. [Byun et al. 2024]
        sft_learning_rate: Peak learning rate on corrections; `None` uses the model's `recommended_learning_rate` if it
            has one, else 2e-5. [Byun et al. 2024: 8e-5]
        sft_batch_size: Corrections per optimizer step. [choice]
        iterations: Iterations of PPO in each round. [choice]
        kl_coef: Weight of the penalty for KL divergence from the reference, which is the policy before the round; 0
            needs no reference. [Byun et al. 2024]
        validation_problems: Validation problems that maj@1 is measured on before the first round and after
            each. [choice]
        keep_best: End each round's PPO with the policy of its best validation maj@1 instead of the newest
            policy. [choice]
        patience: Stop after this many rounds without a better validation maj@1. [choice]
    """

    rounds: Count = 2
    judge: str = "reference"
    problems: Count | None = None
    proposer: str | None = None
    proposals: Count = 4
    sft_epochs: CountOrZero = 20
    sft_learning_rate: NonNegative | None = None
    sft_batch_size: Count = 64
    iterations: Count = 20
    kl_coef: NonNegative = 1e-4
    validation_problems: Count = 200
    keep_best: bool = False
    patience: Count = 2  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.proposer is None:
            check_unused(self, ("proposals",), "a proposer")
        if self.filters:
            raise ValueError("ares trains on all problems: leave out min_pass_rate and max_pass_rate")
