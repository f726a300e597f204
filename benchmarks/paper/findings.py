"""What becomes of the paper's findings here: stated rules on differences between systems, seed by seed.

A finding is one or more claims that a difference is above a bound. Over seeds a difference has an interval (Student's
t, 95 %): a claim holds if all of the interval is above the bound, does not hold if all of it is below, and is undecided
in between and where a single seed leaves no interval. A finding holds if all its claims do, and does not hold if one of
them does not.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..reports.content import Cell, Finding, MissingCell, Outcome, cell_over_seeds
from .jobs import SOLUTIONS
from .results import Results

MARGIN = 0.02
"""Differences up to this much count as none, where a finding says that there is none [choice]."""
NOVELTY_MARGIN = 0.1
"""Likewise of shares of solutions [choice]."""

BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Claim:
    """That a difference is above a bound.

    Attributes:
        text: what is subtracted from what, such as "EI less PPO, maj@1".
        values: the difference by seed.
        bound: it is claimed to be above this.
    """

    text: str
    values: BySeed
    bound: float = 0.0

    @property
    def cell(self) -> Cell | MissingCell:
        return cell_over_seeds(self.values, {-1: "no seed has both"} if not self.values else None, bounds=(-1.0, 1.0))

    @property
    def outcome(self) -> Outcome:
        cell = self.cell
        if isinstance(cell, MissingCell) or cell.low is None or cell.high is None:
            return "undecided"
        return "holds" if cell.low > self.bound else "does not hold" if cell.high < self.bound else "undecided"

    def __str__(self) -> str:
        cell = self.cell
        if isinstance(cell, MissingCell):
            return f"{self.text}: {cell.reason}"
        interval = "" if cell.low is None else f" [{cell.low:+.3f}, {cell.high:+.3f}]"
        agree = sum(value > self.bound for value in self.values.values())
        return (
            f"{self.text}: {cell.mean:+.3f}{interval}, claimed to be above {self.bound:+.2f}, as it is in {agree} of "
            f"{len(self.values)} seeds"
        )


def finding(text: str, claims: Sequence[Claim]) -> Finding:
    """What the claims make of a finding."""
    outcomes = [claim.outcome for claim in claims]
    verdict: Outcome = "undecided"
    if "does not hold" in outcomes:
        verdict = "does not hold"
    elif all(outcome == "holds" for outcome in outcomes):
        verdict = "holds"
    return Finding(text, verdict, "; ".join(map(str, claims)) + ".", _certainty(verdict, claims))


def _certainty(verdict: Outcome, claims: Sequence[Claim]) -> str:
    seeds = min(len(claim.values) for claim in claims)
    if seeds < 2:
        return f"none: {'one seed tells' if seeds else 'without a result there is'} nothing about other seeds."
    if verdict != "undecided":
        return f"95 % over {seeds} seeds, on one set of test problems."
    agree = all(value > claim.bound for claim in claims for value in claim.values.values())
    if agree:
        return f"low: all {seeds} seeds agree with it, but the interval over seeds does not exclude the contrary."
    return f"low: the interval over {seeds} seeds reaches to both sides."


def difference(results: Results, system: str, other: str, metric: str) -> dict[int, float]:
    """One system's metric less another's, by seed, where both have it."""
    ours, theirs = results.values(system, metric), results.values(other, metric)
    return {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}


def findings(results: Results) -> list[Finding]:
    """All findings whose systems are in the plan."""
    planned = {name.split("/", 1)[1].rpartition("/")[0] for name in results.jobs}
    return [finding(text, list(claims(results))) for text, needed, claims in _FINDINGS if planned.issuperset(needed)]


def _above(system: str, other: str, *metrics: str, margin: float | None = None) -> Callable[[Results], Iterator[Claim]]:
    """A system is above another, or with a margin no worse than it."""

    def claims(results: Results) -> Iterator[Claim]:
        for metric in metrics:
            text = f"{results.title(system)} less {results.title(other)}, {results.metric_name(metric)}"
            yield Claim(text, difference(results, system, other, metric), -margin if margin is not None else 0.0)

    return claims


def _all(*parts: Callable[[Results], Iterator[Claim]]) -> Callable[[Results], Iterator[Claim]]:
    return lambda results: (claim for part in parts for claim in part(results))


def later_gain(curves: Mapping[int, Sequence[Mapping[str, float]]], after: int = 2) -> dict[int, float]:
    """How much validation maj@1 the best round behind round `after` is above it, by seed with such a round."""
    gains: dict[int, float] = {}
    for seed, curve in curves.items():
        by_round = {round(point["round"]): point["eval/maj@1"] for point in curve}
        later = [value for number, value in by_round.items() if number > after]
        if after in by_round and later:
            gains[seed] = max(later) - by_round[after]
    return gains


def _plateau(results: Results) -> Iterator[Claim]:
    gains = later_gain(results.curves("ei"))
    text = "round 2 less the best later round, validation maj@1, from SFT"
    yield Claim(text, {seed: -gain for seed, gain in gains.items()}, -MARGIN)


def _later_plateau(results: Results) -> Iterator[Claim]:
    gains = later_gain(results.curves("pretrained/ei"))
    yield Claim("the best later round less round 2, validation maj@1, from pretrained", gains)


Solutions = Mapping[str, Sequence[str | None]]


def novelty(solutions: Solutions, known: Solutions) -> float:
    """The share of distinct correct solutions in the second half of the samples that `known` lacks in its first half.

    Halves, so that a pool can be compared with itself: what another half of the same policy's samples would lack, too,
    is chance and no exploration.

    Args:
        solutions: by problem, the samples' equation sequences, `None` where incorrect.
        known: likewise, of the policy that may have known them already.
    """
    new = total = 0
    for problem, samples in solutions.items():
        half = len(samples) // 2
        before = known.get(problem, ())
        found = {item for item in samples[half:] if item is not None}
        total += len(found)
        new += len(found - set(before[: len(before) // 2]))
    return new / total if total else 0.0


def novelties(results: Results, system: str, known: str = "sft") -> dict[int, float]:
    """`novelty` against another system's pool, by seed, where both have one."""
    found: dict[int, float] = {}
    for seed in results.seeds:
        pools = [results.file(name, seed, "evaluate", SOLUTIONS) for name in (system, known)]
        if None not in pools:
            found[seed] = novelty(*pools)
    return found


def _little_exploration(results: Results) -> Iterator[Claim]:
    own = novelties(results, "sft")
    for system in ("ei", "sparse_ppo"):
        theirs = novelties(results, system)
        values = {seed: own[seed] - theirs[seed] for seed in theirs if seed in own}
        yield Claim(
            f"share of solutions that SFT's samples lack, SFT less {results.title(system)}", values, -NOVELTY_MARGIN
        )


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
    ("From the SFT checkpoint expert iteration does not improve after two rounds.", ("ei",), _plateau),
    ("From the pretrained checkpoint expert iteration improves after two rounds.", ("pretrained/ei",), _later_plateau),
    (
        "Reinforcement learning finds few solutions that the SFT model does not.",
        ("sft", "ei", "sparse_ppo"),
        _little_exploration,
    ),
)
"""Each with the systems that it is about."""
