"""Settings of expert iteration, and of RFT and STaR, which are expert iteration with other defaults."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, Le

from ...registry import unknown_name
from ...settings import Count, CountOrZero, FinitePositive, Share, check_unused
from .optimizer import FineTuneConfig
from .search import KEEPING, SEARCHES, EvolutionConfig, SearchConfig


@dataclass(frozen=True)
class ExpertIterationConfig(FineTuneConfig):
    """Settings of `ExpertIteration`.

    Attributes:
        rounds: Largest number of rounds of sampling and fine-tuning; from an SFT checkpoint the source sees a plateau
            after 2. [Havrilla et al. 2024]
        samples_per_problem: Attempts at each problem in a round; the source's cheap variant
            has 4. [Havrilla et al. 2024]
        temperature: Sampling temperature of the attempts. [Havrilla et al. 2024]
        top_k: Number of most likely tokens that attempts are drawn from; `None` takes all.
        top_p: Probability that the most likely tokens which attempts are drawn from must reach; `None` takes all.
        min_p: Least probability of a token that is drawn, as a share of the most likely token's; `None` takes all.
        threshold: Least return of an attempt that is kept; 1 keeps only correct attempts. [Havrilla et al. 2024]
        orm: Outcome model that filters attempts too: "tokengym/tiny-orm" or the `model` folder of a `tokengym train
            orm` run.
        orm_filter: Say of the outcome model: "replace" keeps attempts by its score alone, "and" by both its score and
            the return. [choice]
        orm_threshold: Least p(correct) of an attempt that the outcome model keeps. [choice]
        search: Search that finds a problem's attempts, `samples_per_problem` of them, instead of sampling: by an
            outcome model "beam", "tot", "dvts", "rebase", "resample" or "best_of_n"; without one "evolution".
        search_orm: Outcome model that guides the search: "tokengym/tiny-orm" or the `model` folder of a `tokengym train
            orm` run.
        search_keep: Candidates of "beam" and "tot" that survive a step, or groups of "dvts"; it must divide
            `samples_per_problem`. [choice]
        search_generations: Generations of "evolution", each of which continues solutions of those before; it must
            divide `samples_per_problem`. [choice]
        deduplicate: Key by which two solutions of a problem are the same: their sequence of equations, or their exact
            text. [Havrilla et al. 2024]
        keep: Choice among solutions that are the same: the "first" one, or the most "distant" one, by the sum of its
            edit distances to the problem's other solutions, as in RFT. [choice]
        reject_wrong_equations: Leave out correct attempts with an equation whose sides differ by more than 0.001 or
            that cannot be read, as RFT does. [choice]
        accumulate: Train each round on the attempts kept in all rounds so far instead of in the newest one
            alone. [Havrilla et al. 2024]
        restart: Checkpoint that each round trains from: the "base" model, which the source calls crucial, or
            the "previous" round's policy. [Havrilla et al. 2024]
        demonstrations: Number of reference solutions in the training data, the first of the split, on which the policy
            is fine-tuned before the first round. `None` uses all, or 256 where problems never end; with 0 the first
            round samples from the model as it is.
        shots: Number of worked examples in the first round's prompts, for a model that starts without
            demonstrations. [choice]
        problems: Number of problems that attempts are sampled at, the first of the split; `None` uses all, or 256
            where they never end; there STaR draws new ones in each round.
        validation_problems: Validation problems that maj@1, pass@1 and response length are measured on after each
            round. [choice]
        patience: Stop after this many rounds without a better validation maj@1. [choice]
    """

    rounds: Count = 2
    samples_per_problem: Count = 96
    temperature: FinitePositive = 1.0
    top_k: Count | None = None
    top_p: Annotated[float, Gt(0), Le(1)] | None = None
    min_p: Annotated[float, Gt(0), Le(1)] | None = None
    threshold: float = 1.0
    orm: str | None = None
    orm_filter: Literal["replace", "and"] = "replace"
    orm_threshold: Share = 0.5
    search: str | None = None
    search_orm: str | None = None
    search_keep: Count = 4
    search_generations: Count = 4
    deduplicate: Literal["equation_sequence", "exact_text"] = "equation_sequence"
    keep: Literal["first", "distant"] = "first"
    reject_wrong_equations: bool = False
    accumulate: bool = True
    restart: Literal["base", "previous"] = "base"
    demonstrations: CountOrZero | None = None
    shots: CountOrZero = 0
    problems: Count | None = None
    validation_problems: Count = 200
    patience: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.orm is None:
            check_unused(self, ("orm_filter", "orm_threshold"), "an outcome model, orm")
        elif self.orm_filter == "replace":
            check_unused(self, ("threshold",), 'orm_filter="and"')
        if self.search not in KEEPING:
            check_unused(self, ("search_keep",), 'search="beam", "tot" or "dvts"')
        if self.search != "evolution":
            check_unused(self, ("search_generations",), 'search="evolution"')
        if self.search == "evolution":
            if self.search_orm is not None:
                raise ValueError("no outcome model guides an evolution: leave out search_orm, or choose another search")
            EvolutionConfig(self.samples_per_problem, self.search_generations, self.temperature)
            return
        if self.search is not None and self.search not in SEARCHES:
            raise unknown_name("search rule", self.search, SEARCHES)
        if (self.search is None) != (self.search_orm is None):
            raise ValueError("a search is guided by an outcome model: set search and search_orm together, or neither")
        if self.search is not None:
            SearchConfig(self.search, self.samples_per_problem, self.search_keep, self.temperature)


@dataclass(frozen=True)
class RFTConfig(ExpertIterationConfig):
    """Settings of `RFT`, those of its authors' public script.

    Attributes:
        rounds: Largest number of rounds of sampling and fine-tuning. [Yuan et al. 2023]
        samples_per_problem: Attempts at each problem in a round. [Yuan et al. 2023]
        temperature: Sampling temperature of the attempts. [Yuan et al. 2023]
        keep: Choice among solutions that are the same: the "first" one, or the most "distant" one, by the sum of its
            edit distances to the problem's other solutions. [Yuan et al. 2023, public script]
        reject_wrong_equations: Leave out correct attempts with an equation whose sides differ by more than 0.001 or
            that cannot be read. [Yuan et al. 2023, public script]
        epochs: Passes over the training data. [Yuan et al. 2023, public script]
    """

    rounds: Count = 1
    samples_per_problem: Count = 100
    temperature: FinitePositive = 0.7
    keep: Literal["first", "distant"] = "distant"
    reject_wrong_equations: bool = True
    epochs: Count = 3


@dataclass(frozen=True)
class STaRConfig(ExpertIterationConfig):
    """Settings of `STaR`, as in Algorithm 1 of Tsilivis et al. 2025.

    Attributes:
        rounds: Largest number of rounds of sampling and fine-tuning. [choice]
        samples_per_problem: Attempts at each problem in a round. [choice]
        deduplicate: Key by which two solutions of a problem are the same: their sequence of equations, or their exact
            text. [Tsilivis et al. 2025]
        accumulate: Train each round on the attempts kept in all rounds so far instead of in the newest one
            alone. [Tsilivis et al. 2025]
        restart: Checkpoint that each round trains from: the "base" model, or the "previous" round's
            policy. [Tsilivis et al. 2025]
        epochs: Passes over the training data. [choice]
        patience: Stop after this many rounds without a better validation maj@1. [choice]
    """

    rounds: Count = 8
    samples_per_problem: Count = 1
    deduplicate: Literal["equation_sequence", "exact_text"] = "exact_text"
    accumulate: bool = False
    restart: Literal["base", "previous"] = "previous"
    epochs: Count = 1
    patience: Count = 8
