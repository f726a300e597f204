"""Settings that policy-gradient agents share."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, Le

from ...settings import Count, CountOrZero, FinitePositive, NonNegative, Share, check_unused
from .optimizer import OptimizerConfig


@dataclass(frozen=True)
class PolicyGradientConfig(OptimizerConfig):
    """Settings that policy-gradient agents share.

    Attributes:
        iterations: Iterations of sampling and updating; 20 take parity from chance to certainty. [Tsilivis et al. 2025]
        problems_per_iteration: Problems drawn anew in each iteration. [choice]
        samples_per_problem: Attempts at each problem of an iteration. [choice]
        temperature: Temperature of sampling, and of the log-probabilities in the update, so that the gradient is the
            sampling policy's; the source compares 0.75, 1 and 1.5. [Tsilivis et al. 2025]
        top_k: Number of most likely tokens that attempts are drawn from; `None` takes all. Truncated sampling, by this,
            `top_p` or `min_p`, trains the truncated policy: probabilities, their ratios, entropies and divergences are
            those among the tokens that each action was drawn from. [choice]
        top_p: Probability that the most likely tokens which attempts are drawn from must reach; `None` takes
            all. [choice]
        min_p: Least probability of a token that is drawn, as a share of the most likely token's; `None` takes
            all. [choice]
        learning_rate: Peak learning rate; `None` uses a twentieth of the model's `recommended_learning_rate` if it has
            one, else 1e-6. [Havrilla et al. 2024]
        min_learning_rate_ratio: Final learning rate as a share of the peak; 1 keeps the rate constant. [choice]
        warmup_ratio: Share of the optimizer steps with linear warm-up. [choice]
        validation_problems: Validation problems that maj@1, pass@1 and response length are measured on; 0 turns
            validation off. [choice]
        validation_iterations: Iterations between validations; the last iteration is always followed by one. [choice]
        save_iterations: Iterations between checkpoints, in runs with a folder. [choice]
        keep_best: End with the policy of the best validation maj@1 instead of the newest policy. [choice]
        patience: Stop after this many validations without improvement; `None` never stops. [choice]
        dynamic_sampling: Largest number of extra sampling rounds that replace groups with equal rewards, which teach
            nothing, by groups at new problems; 0 samples once. [Yu et al. 2025: 10]
        min_pass_rate: Least pass rate of the problems to train on, of attempts made before training; `None` sets no
            lower bound. Problems outside of the bounds are left out of the whole run. [choice]
        max_pass_rate: Largest pass rate of the problems to train on, of attempts made before training; `None` sets no
            upper bound. [choice]
        pass_rate_attempts: Attempts at each problem that its pass rate is measured by, where there are
            bounds. [choice]
        pass_rate_problems: Number of problems whose pass rates are measured, the first of the split; `None` measures
            all, or 256 where they never end. [choice]
        truncated: Treatment of attempts that reach their token limit: "learn" trains on them like on others, "mask"
            leaves them out of the loss (DAPO's overlong filtering). [choice]
        overlong_buffer: Last share of the token limit over which a penalty on the reward grows linearly (DAPO's soft
            overlong punishment); 0 turns it off. [Yu et al. 2025: 0.2]
        overlong_penalty: Penalty on the reward of attempts that use up their token limit, where `overlong_buffer` is
            above 0. [Yu et al. 2025]
        importance: Correction of the loss for sampling and training that give the same action different probabilities:
            the ratio of each token or each sequence is truncated to, or masked outside of, [importance_floor,
            importance_cap]; "none" only logs the mismatch. [choice]
        importance_floor: Lower bound of the importance ratio between training and sampling. [choice]
        importance_cap: Upper bound of the importance ratio between training and sampling. [Yao et al. 2025]
    """

    iterations: Count = 20
    problems_per_iteration: Count = 64
    samples_per_problem: Count = 1
    temperature: FinitePositive = 1.0
    top_k: Count | None = None
    top_p: Annotated[float, Gt(0), Le(1)] | None = None
    min_p: Annotated[float, Gt(0), Le(1)] | None = None
    learning_rate: NonNegative | None = None
    min_learning_rate_ratio: Share = 1.0
    warmup_ratio: Share = 0.0
    validation_problems: CountOrZero = 200
    validation_iterations: Count = 5
    save_iterations: Count = 5
    keep_best: bool = False
    patience: Count | None = None
    dynamic_sampling: CountOrZero = 0
    min_pass_rate: Share | None = None
    max_pass_rate: Share | None = None
    pass_rate_attempts: Count = 8
    pass_rate_problems: Count | None = None
    truncated: Literal["learn", "mask"] = "learn"
    overlong_buffer: Share = 0.0
    overlong_penalty: NonNegative = 1.0
    importance: Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = "none"
    importance_floor: float = 0.0
    importance_cap: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k == 1:
            raise ValueError("top_k must be at least 2 to explore, or None, got 1")
        if self.dynamic_sampling and self.samples_per_problem < 2:
            raise ValueError("dynamic_sampling compares attempts at one problem: set samples_per_problem to 2 or more")
        low, high = self.min_pass_rate, self.max_pass_rate
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_pass_rate is {low}, above max_pass_rate, {high}: lower it, or raise max_pass_rate")
        if not self.filters:
            check_unused(self, ("pass_rate_attempts", "pass_rate_problems"), "min_pass_rate or max_pass_rate")
        if not self.overlong_buffer:
            check_unused(self, ("overlong_penalty",), "an overlong_buffer above 0")
        if not 0 <= self.importance_floor <= 1 <= self.importance_cap:
            raise ValueError(
                "importance_floor must be between 0 and 1 and importance_cap at least 1, got "
                f"{self.importance_floor} and {self.importance_cap}"
            )
        if self.importance == "none":
            check_unused(self, ("importance_floor", "importance_cap"), "a correction, importance")

    @property
    def filters(self) -> bool:
        """True if problems are chosen by their pass rates before training."""
        return self.min_pass_rate is not None or self.max_pass_rate is not None
