"""Rules of search: which of the candidates at one problem continue, and how often each.

- "best_of_n" lets every candidate continue to its end, and is judged there alone;
- "beam" keeps the best and copies them (Snell et al. 2024, arXiv 2408.03314);
- "tot" keeps the best that differ, for a repetition is worth nothing (tree of thoughts, Yao et al. 2023, arXiv
  2305.10601, breadth first; its judge is `votes.VoteJudge`);
- "dvts" does so in independent groups (diverse verifier tree search, Beeching et al. 2024);
- "rebase" gives each a share of the slots by the softmax of its score (Wu et al. 2024, arXiv 2408.00724);
- "resample" draws candidates with weights whose limit, with many slots and a calibrated judge, is the policy that is
  optimal under a KL penalty, see `log_tilted_weights`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..arrays import FloatArray, IntArray
from ..rewards.steps import OpenLine
from .configs.search import SearchConfig


@dataclass(slots=True, eq=False)
class Candidate:
    """A solution so far.

    Attributes:
        tokens: Tokens of the completion so far.
        logprobs: Log-probabilities of the tokens.
        line: Line that is being written.
        score: Score that the judge gave it last.
        log_weight: Logarithm of the tilted weight of that score, for "resample".
        ended: True if nothing can follow.
        group: Group of "dvts".
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    line: OpenLine = field(default_factory=OpenLine)
    score: float = 0.0
    log_weight: float = 0.0
    ended: bool = False
    group: int = 0

    def copy(self) -> "Candidate":
        """The same solution, to be continued in another way."""
        line = OpenLine(self.line.start, self.line.carried)
        return Candidate(
            self.tokens.copy(), self.logprobs.copy(), line, self.score, self.log_weight, self.ended, self.group
        )


def first_candidates(config: SearchConfig, start: float) -> list[Candidate]:
    """The candidates of a problem before their first step, `config.width` of them.

    Args:
        config: Settings of the search.
        start: Score of the bare prompt, for "resample".
    """
    log_weight = float(log_tilted_weights(np.array([start]), config.judge_temperature)[0])
    return [Candidate(log_weight=log_weight, group=slot * config.keep // config.width) for slot in range(config.width)]


def selected(live: Sequence[Candidate], slots: int, config: SearchConfig) -> list[Candidate]:
    """The candidates of the next step by "beam", "tot", "dvts" or "rebase".

    Args:
        live: Candidates that have not ended, with their scores.
        slots: Number of candidates wanted.
        config: Settings of the search.
    """
    scores = np.array([one.score for one in live])
    if config.rule == "tot":
        first = {tuple(one.tokens): i for i, one in reversed(list(enumerate(live)))}
        scores[[i for i, one in enumerate(live) if first[tuple(one.tokens)] != i]] = -np.inf
    if config.rule in ("beam", "tot"):
        best = np.argsort(-scores, kind="stable")[: config.keep]
        best = best[scores[best] > -np.inf]
        parents = [int(best[i % len(best)]) for i in range(slots)]
    elif config.rule == "dvts":
        groups = sorted({one.group for one in live})
        members = [[i for i, one in enumerate(live) if one.group == group] for group in groups]
        winners = [max(group, key=lambda i: (scores[i], -i)) for group in members]
        parents = [winners[i % len(winners)] for i in range(slots)]
    else:
        parents = np.repeat(np.arange(len(live)), shares(scores / config.judge_temperature, slots)).tolist()
    return [live[parent].copy() for parent in parents]


def resampled(candidates: Sequence[Candidate], config: SearchConfig, rng: np.random.Generator) -> list[Candidate]:
    """Candidates drawn with weights w(now) / w(before), those that ended included: the rule "resample".

    Args:
        candidates: All candidates of a problem, with their scores; their weights become those of the scores.
        config: Settings of the search.
        rng: Source of the draws.
    """
    log_weights = log_tilted_weights(np.array([one.score for one in candidates]), config.judge_temperature)
    log_ratios = log_weights - np.array([one.log_weight for one in candidates])
    for one, log_weight in zip(candidates, log_weights.tolist(), strict=True):
        one.log_weight = log_weight
    return [candidates[i].copy() for i in systematic(np.exp(log_ratios - log_ratios.max()), rng)]


def log_tilted_weights(success: FloatArray, temperature: float) -> FloatArray:
    """Log w, w = 1 + p (e^(1/lambda) - 1), of prefixes from which the policy succeeds with probability p.

    With a reward of 1 for success and a penalty of lambda for each nat of divergence from the policy, the optimal
    policy draws a token with the policy's own probability times w(after) / w(before).

    Args:
        success: Probabilities p of success, of any shape.
        temperature: Temperature lambda; large values leave the policy as it is, small ones condition it on success.
    """
    with np.errstate(divide="ignore"):  # w itself has no number where lambda is small, and log 0 is right
        return np.logaddexp(np.log1p(-success), np.log(success) + 1 / temperature)


def shares(logits: FloatArray, total: int) -> IntArray:
    """Number of `total` slots that each candidate gets, by the softmax of `logits` `[C]`, rounded so that they add up.

    Largest remainders are rounded up; of equal ones the first.
    """
    weights = np.exp(logits - logits.max())
    exact = weights / weights.sum() * total
    counts = np.floor(exact).astype(np.int64)
    order = np.argsort(counts - exact, kind="stable")
    counts[order[: total - counts.sum()]] += 1
    return counts


def systematic(weights: FloatArray, rng: np.random.Generator) -> IntArray:
    """Draws C indices in proportion to their weights `[C]` (systematic resampling)."""
    count = len(weights)
    places = (rng.random() + np.arange(count)) / count
    return np.searchsorted(np.cumsum(weights) / weights.sum(), places).clip(max=count - 1)
