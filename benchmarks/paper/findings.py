"""What becomes of the paper's findings here: stated rules on differences between systems, decided together.

A finding is one or more claims that a difference between two systems, with the same seeds and on the same problems, is
above a bound. It holds if every claim does, and does not hold if any claim's opposite does; the p-value of the first is
the largest of its claims' (an intersection-union test), of the second the smallest times their number (Bonferroni).
Twice the smaller one is the finding's own p-value, and Holm's procedure adjusts those of all findings for how many
there are. A finding is decided where the adjusted one is at most 0.05.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...arrays import FloatArray
from ..reports.content import CheckedClaim, Outcome
from ..statistics import LEVEL, Estimate, crossed_mean, holm, ratio_difference
from .jobs import SOLUTIONS
from .results import Results, system_of

MARGIN = 0.02
"""Differences up to this much count as none, where a finding says that there is none [choice]."""
NOVELTY_MARGIN = 0.1
"""Likewise of shares of solutions [choice]."""
EFFECT = 0.05
"""Distance of the true difference from its bound that power is stated for [choice]."""


@dataclass(frozen=True)
class Claim:
    """That a difference is above a bound.

    Attributes:
        text: Name of the difference: what is subtracted from what, such as "EI less PPO, maj@1".
        estimate: Difference over seeds and problems; `None` where no seed has both systems.
        by_seed: Difference in each seed.
        bound: Value that the difference is claimed to be above.
    """

    text: str
    estimate: Estimate | None
    by_seed: Mapping[int, float]
    bound: float = 0.0

    @property
    def p_holds(self) -> float:
        """One-sided p-value of the claim."""
        return 1.0 if self.estimate is None else self.estimate.p_above(self.bound)

    @property
    def p_fails(self) -> float:
        """One-sided p-value of its opposite."""
        return 1.0 if self.estimate is None else self.estimate.p_below(self.bound)

    def __str__(self) -> str:
        if self.estimate is None:
            return f"{self.text}: no seed has both"
        low, high = self.estimate.interval
        agree = sum(value > self.bound for value in self.by_seed.values())
        text = (
            f"{self.text}: {self.estimate.mean:+.3f} [{low:+.3f}, {high:+.3f}], claimed to be above {self.bound:+.2f}, "
            f"as it is in {agree} of {len(self.by_seed)} seeds"
        )
        if self.estimate.seeds < 2:
            return text
        return f"{text}; power {self.estimate.power(EFFECT):.2f} at {EFFECT} from there"


@dataclass(frozen=True)
class Question:
    """A finding of the paper with its claims here."""

    text: str
    claims: Sequence[Claim]

    @property
    def p_holds(self) -> float:
        """P-value of the finding."""
        return max(claim.p_holds for claim in self.claims)

    @property
    def p_fails(self) -> float:
        """P-value of its opposite."""
        return min(1.0, len(self.claims) * min(claim.p_fails for claim in self.claims))

    @property
    def p_value(self) -> float:
        """Two-sided, of this finding alone."""
        return min(1.0, 2 * min(self.p_holds, self.p_fails))


def decide(questions: Sequence[Question]) -> list[CheckedClaim]:
    """What the claims make of the findings, all taken together."""
    adjusted = holm([question.p_value for question in questions])
    return [_finding(question, p, len(questions)) for question, p in zip(questions, adjusted, strict=True)]


def _finding(question: Question, adjusted: float, count: int) -> CheckedClaim:
    verdict: Outcome = "undecided"
    if adjusted <= 1 - LEVEL:
        verdict = "holds" if question.p_holds < question.p_fails else "does not hold"
    evidence = "; ".join(map(str, question.claims)) + "."
    return CheckedClaim(question.text, verdict, evidence, _certainty(verdict, question, adjusted, count))


def _certainty(verdict: Outcome, question: Question, adjusted: float, count: int) -> str:
    deciding = (
        [min(question.claims, key=lambda claim: claim.p_fails)] if verdict == "does not hold" else question.claims
    )
    seeds = min(0 if claim.estimate is None else claim.estimate.seeds for claim in deciding)
    if seeds < 2:
        return f"none: {'one seed tells' if seeds else 'without a result there is'} nothing about other seeds."
    p = f"p = {question.p_value:.2g}, and {adjusted:.2g} by Holm's procedure for {count} findings at once"
    if verdict != "undecided":
        return f"{p}, over {seeds} seeds."
    if question.p_value <= 1 - LEVEL:
        towards = "in its favor" if question.p_holds < question.p_fails else "against it"
        return f"low: {p}; taken alone the finding would be decided {towards}."
    return f"low: {p}."


def difference(text: str, results: Results, system: str, other: str, metric: str, bound: float = 0.0) -> Claim:
    """The claim that one system's metric less another's is above a bound, over the seeds that have both."""
    ours, theirs = results.outcomes(system, metric), results.outcomes(other, metric)
    values = {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}
    estimate = crossed_mean(np.stack(list(values.values())), (-1.0, 1.0)) if values else None
    return Claim(text, estimate, {seed: float(value.mean()) for seed, value in values.items()}, bound)


def findings(results: Results) -> list[CheckedClaim]:
    """All findings whose systems are in the plan."""
    planned = set(map(system_of, results.jobs))
    return decide(
        [Question(text, list(claims(results))) for text, needed, claims in _FINDINGS if planned.issuperset(needed)]
    )


def _above(system: str, other: str, *metrics: str, margin: float | None = None) -> Callable[[Results], Iterator[Claim]]:
    """A system is above another, or with a margin no worse than it."""

    def claims(results: Results) -> Iterator[Claim]:
        for metric in metrics:
            text = f"{results.title(system)} less {results.title(other)}, {results.metric_name(metric)}"
            yield difference(text, results, system, other, metric, -margin if margin is not None else 0.0)

    return claims


def _all(*parts: Callable[[Results], Iterator[Claim]]) -> Callable[[Results], Iterator[Claim]]:
    return lambda results: (claim for part in parts for claim in part(results))


Solutions = Mapping[str, Sequence[str | None]]


def novelty(solutions: Solutions, known: Solutions) -> tuple[FloatArray, FloatArray]:
    """Distinct correct solutions in the second half of the samples at each problem, and those that `known` lacks.

    `known` is looked up in the first half of its own samples, so that a pool can be compared with itself: what another
    half of the same policy's samples would lack, too, is chance and no exploration. Only problems that this half solves
    count, for at others everything is new. A condition on all of `known`'s samples would not be the same for its own
    second half as for another policy's, and make the same policy look less new than itself.

    Args:
        solutions: Equation sequences of the samples by problem, `None` where incorrect.
        known: Sequences of the policy that may have known them already, at the same problems.

    Returns:
        New solutions and all solutions, `[P]` each.
    """
    new, total = np.zeros(len(solutions)), np.zeros(len(solutions))
    for i, (problem, samples) in enumerate(solutions.items()):
        found = set(samples[len(samples) // 2 :]) - {None}
        before = set(known[problem][: len(known[problem]) // 2]) - {None}
        if before:
            total[i] = len(found)
            new[i] = len(found - before)
    return new, total


def novelties(results: Results, system: str, known: str = "sft") -> dict[int, tuple[FloatArray, FloatArray]]:
    """`novelty` against another system's pool, by seed, where both have one."""
    found: dict[int, tuple[FloatArray, FloatArray]] = {}
    for seed in results.seeds:
        pools = [results.file(results.stands_for(name, seed), seed, "evaluate", SOLUTIONS) for name in (system, known)]
        if None not in pools:
            found[seed] = novelty(*pools)
    return found


def novelty_shares(results: Results, system: str) -> dict[int, float]:
    """The share of a system's solutions that SFT's samples lack, by seed."""
    found = novelties(results, system)
    return {seed: float(new.sum() / total.sum()) for seed, (new, total) in found.items() if total.any()}


def _little_exploration(results: Results) -> Iterator[Claim]:
    own = novelties(results, "sft")
    for system in ("ei", "sparse_ppo"):
        theirs = novelties(results, system)
        seeds = [seed for seed in theirs if seed in own and theirs[seed][1].any() and own[seed][1].any()]
        text = f"share of solutions that SFT's samples lack, SFT less {results.title(system)}"
        if not seeds:
            yield Claim(text, None, {}, -NOVELTY_MARGIN)
            continue
        mine, others = novelty_shares(results, "sft"), novelty_shares(results, system)
        parts = [np.stack([found[seed][part] for seed in seeds]) for found in (own, theirs) for part in (0, 1)]
        by_seed = {seed: mine[seed] - others[seed] for seed in seeds}
        yield Claim(text, ratio_difference(*parts), by_seed, -NOVELTY_MARGIN)


_FINDINGS: tuple[tuple[str, tuple[str, ...], Callable[[Results], Iterator[Claim]]], ...] = (
    (
        "From the SFT checkpoint expert iteration is at least as good as PPO.",
        ("ei", "sparse_ppo"),
        _above("ei", "sparse_ppo", "maj@1", margin=MARGIN),
    ),
    (
        "From the pretrained checkpoint expert iteration is at least as good as PPO.",
        ("pretrained/ei", "pretrained/sparse_ppo"),
        _above("pretrained/ei", "pretrained/sparse_ppo", "maj@1", margin=MARGIN),
    ),
    (
        "Dense rewards do not help PPO.",
        ("sparse_ppo", "dense_ppo"),
        _above("sparse_ppo", "dense_ppo", "maj@1", margin=MARGIN),
    ),
    (
        "ORM rewards do not help PPO.",
        ("sparse_ppo", "sparse_orm_ppo", "dense_orm_ppo"),
        _all(
            _above("sparse_ppo", "sparse_orm_ppo", "maj@1", margin=MARGIN),
            _above("sparse_ppo", "dense_orm_ppo", "maj@1", margin=MARGIN),
        ),
    ),
    (
        "An ORM does not help expert iteration.",
        ("ei", "orm_ei"),
        _above("ei", "orm_ei", "maj@1", margin=MARGIN),
    ),
    (
        "Return-conditioned RL is behind expert iteration.",
        ("ei", "rcrl"),
        _above("ei", "rcrl", "maj@1"),
    ),
    (
        "More supervised fine-tuning trades pass@n for maj@1.",
        ("sft", "sft_2"),
        _all(_above("sft", "sft_2", "maj@1"), _above("sft_2", "sft", "pass@n")),
    ),
    (
        "Reinforcement learning from the SFT checkpoint raises maj@1 and pass@n both.",
        ("ei", "sparse_ppo", "sft"),
        _all(_above("ei", "sft", "maj@1", "pass@n"), _above("sparse_ppo", "sft", "maj@1", "pass@n")),
    ),
    (
        "From the SFT checkpoint expert iteration does not improve after two rounds.",
        ("ei/round_2", "ei/last_round"),
        _above("ei/round_2", "ei/last_round", "maj@1", margin=MARGIN),
    ),
    (
        "From the pretrained checkpoint expert iteration improves after two rounds.",
        ("pretrained/ei/round_2", "pretrained/ei/last_round"),
        _above("pretrained/ei/last_round", "pretrained/ei/round_2", "maj@1"),
    ),
    (
        "Reinforcement learning finds few solutions that the SFT model does not.",
        ("sft", "ei", "sparse_ppo"),
        _little_exploration,
    ),
)
"""Each with the systems that it is about."""
