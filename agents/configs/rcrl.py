"""Settings of return-conditioned reinforcement learning."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from ...settings import Count, CountOrZero, FinitePositive, Share, check_unused
from .optimizer import FineTuneConfig


@dataclass(frozen=True)
class RCRLConfig(FineTuneConfig):
    """Settings of `RCRL`, fine-tuning as that of Havrilla et al. 2024 for SFT.

    Attributes:
        base: Model to train; `None` uses the agent's `model`, which attempts are sampled from. The source samples from
            the best policy of expert iteration and trains the checkpoint that it started from.
        pool: Folder `pool` of an earlier run, whose attempts and labels are used instead of sampling.
        problems: Number of problems that attempts are sampled at, the first of the split; `None` uses all, or 256
            where they never end.
        samples_per_problem: Attempts at each problem. [choice]
        temperature: Sampling temperature of the attempts, and of the continuations that labels are estimated
            from. [choice]
        granularity: Unit that gets a label: each "step", or the whole "attempt" (Srivastava et
            al. 2019). [Havrilla et al. 2024]
        label_source: Value of a step: the share of continuations from its end that succeed ("monte_carlo"), or the
            score of an outcome model ("orm", "sorm"). The value of a whole attempt is its return, or that
            score. [Havrilla et al. 2024]
        orm: Outcome model that scores for the label sources "orm" and "sorm": "tokengym/tiny-orm" or the `model`
            folder of its run.
        rollouts_per_step: Continuations that are sampled from the end of each step, if steps are labeled by
            "monte_carlo". [Havrilla et al. 2024, GLoRe]
        threshold: Least value of a step that is labeled [GOOD]; a tie is good. [Havrilla et al. 2024]
        return_edges: Returns, ascending, that divide attempts into numeric labels, in place of [BAD] and [GOOD].
        return_buckets: Number of numeric labels, with the quantiles of the pool's returns as edges.
        positive_ratio: Share of correct attempts in the training data, reached by leaving out others at random; `None`
            uses all as sampled. The source compares shares, and more was better. [Havrilla et al. 2024]
        training_attempts: Largest number of attempts to train on, to compare ratios at equal size; `None` sets no
            limit.
        train_labels: Include the labels in the loss instead of only reading them; the source's models wrote labels
            unasked, so they were in its loss. [Havrilla et al. 2024]
        validation_problems: Validation problems that maj@1, pass@1 and response length under the best label are
            measured on after training; 0 turns validation off. [choice]
    """

    renamed: ClassVar[Mapping[str, str]] = {"outcome_model": "orm"}

    base: str | None = None
    pool: str | None = None
    problems: Count | None = None
    samples_per_problem: Count = 4
    temperature: FinitePositive = 1.0
    granularity: Literal["step", "attempt"] = "step"
    label_source: Literal["monte_carlo", "orm", "sorm"] = "monte_carlo"
    orm: str | None = None
    rollouts_per_step: Count = 8
    threshold: float = 0.5
    return_edges: tuple[float, ...] | None = None
    return_buckets: Annotated[int, Ge(2)] | None = None
    positive_ratio: Share | None = 0.5
    training_attempts: Count | None = None
    train_labels: bool = True
    validation_problems: CountOrZero = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.return_edges is not None:
            object.__setattr__(self, "return_edges", tuple(self.return_edges))
        if (self.label_source == "monte_carlo") != (self.orm is None):
            raise ValueError(
                f"label_source={self.label_source!r} and orm={self.orm!r} do not go together: an "
                "outcome model is what 'orm' and 'sorm' score by, and 'monte_carlo' needs none"
            )
        self._check_returns()

    def _check_returns(self) -> None:
        edges = self.return_edges
        if edges is None and self.return_buckets is None:
            return
        check_unused(self, ("threshold",), "the labels [BAD] and [GOOD]")
        if edges is not None and self.return_buckets is not None:
            raise ValueError("return_edges and return_buckets both divide the returns: set one of them")
        if self.granularity == "step":
            raise ValueError('numeric labels are of whole attempts: set granularity="attempt" with them')
        if edges is not None and (not edges or any(a >= b for a, b in itertools.pairwise(edges))):
            raise ValueError(f"return_edges must be one or more ascending numbers, got {edges}")
