"""Settings of search."""

from dataclasses import dataclass
from typing import Literal

from ...registry import unknown_name
from ...settings import Count, Positive, check_settings, check_unused

Aggregate = Literal["last", "min", "product"]
"""Score of a solution so far: that of its last step, or the least or the product of those of all steps."""

SEARCH_SUMMARIES = {
    "best_of_n": "Every candidate continues to its end and is scored there.",
    "beam": "The candidates with the best scores are copied, the others dropped (Snell et al. 2024).",
    "tot": "A beam of candidates that differ (tree of thoughts, Yao et al. 2023).",
    "dvts": "The best candidate of each of several groups is copied (Beeching et al. 2024).",
    "rebase": "Candidates get slots in proportion to the softmax of their scores (Wu et al. 2024).",
    "resample": "Candidates are drawn towards the policy that is optimal under a KL penalty.",
    "evolution": "Different solutions found before are continued from one of their steps; no judge guides it.",
}
"""What each search does, by its name."""

SEARCHES = (*SEARCH_SUMMARIES,)
"""Names of searches: the rules of a search that is guided by a judge, and evolution, which is not."""

RULES = SEARCHES[:-1]
"""Names of the rules of a search that is guided by a judge."""

KEEPING = ("beam", "tot", "dvts")
"""Search rules that keep some candidates, or have some groups."""


@dataclass(frozen=True)
class SearchConfig:
    """Settings of a search.

    Attributes:
        rule: Search rule: "best_of_n", "beam", "tot", "dvts", "rebase" or "resample". [choice]
        width: Candidates for each problem, and attempts that a search ends with. [choice]
        keep: Candidates that survive each step of "beam" and "tot", or groups of "dvts"; it must divide `width`.
            [choice]
        temperature: Sampling temperature of the steps. [choice]
        judge_temperature: Number that "rebase" divides scores by before the softmax, and weight lambda of the KL
            penalty in "resample", where small values pull strongly towards success. [choice]
        aggregate: Score of a candidate by an outcome model: that of its last step, or the least ("min") or
            the "product" of those of all its steps; `None` uses the product for models that judge single steps, and
            else the last. [choice]
    """

    rule: str = "beam"
    width: int = 16
    keep: int = 4
    temperature: float = 1.0
    judge_temperature: Positive = 0.2
    aggregate: Aggregate | None = None

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise unknown_name("search rule", self.rule, RULES)
        if self.width < 2:
            raise ValueError(f"a search needs a width of at least 2, got {self.width}")
        if self.rule in KEEPING and (not 1 <= self.keep <= self.width or self.width % self.keep):
            raise ValueError(f"keep must divide the width of {self.width}, got {self.keep}")
        check_settings(self)
        if self.rule not in KEEPING:
            check_unused(self, ("keep",), 'the search rules "beam", "tot" and "dvts"')
        if self.rule not in ("rebase", "resample"):
            check_unused(self, ("judge_temperature",), 'the search rules "rebase" and "resample"')
        if self.rule == "resample" and self.aggregate not in (None, "last"):
            raise ValueError(
                f'the search rule "resample" needs p(correct), which {self.aggregate!r} of step scores is not: set '
                'aggregate to "last"'
            )


@dataclass(frozen=True)
class EvolutionConfig:
    """Settings of an evolutionary search.

    Attributes:
        width: Attempts at each problem. [choice]
        generations: Generations that they are spread over; it must divide `width`, and 1 is plain sampling. [choice]
        temperature: Sampling temperature. [choice]
    """

    width: Count = 16
    generations: Count = 4
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_settings(self)
        if self.width % self.generations:
            raise ValueError(f"generations must divide the width of {self.width}, got {self.generations}")
