"""Findings follow from numbers by their rules: made-up numbers, with the verdicts that a person would give."""

import numpy as np
import pytest

from tokengym.benchmarks.paper.findings import Claim, Question, decide, novelty
from tokengym.benchmarks.statistics import crossed_mean


def claim(text: str, by_seed: dict[int, float], bound: float = 0.0) -> Claim:
    """A claim on 50 problems at which every seed's difference is its mean and as much above as below."""
    wobble = np.tile([0.01, -0.01], 25)
    values = np.array([value + wobble for value in by_seed.values()])
    return Claim(text, crossed_mean(values, (-1.0, 1.0)) if by_seed else None, by_seed, bound)


@pytest.mark.parametrize(
    ("values", "bound", "outcome"),
    [
        ((0.10, 0.11, 0.12), 0.0, "holds"),
        ((-0.10, -0.11, -0.12), 0.0, "does not hold"),
        ((0.10, -0.10, 0.01), 0.0, "undecided"),
        ((0.01, 0.10, 0.20), 0.0, "undecided"),  # all above, but three seeds this far apart tell little
        ((-0.010, -0.011, -0.009), -0.02, "holds"),  # within the margin
        ((-0.030, -0.031, -0.029), -0.02, "does not hold"),
        ((0.3,), 0.0, "undecided"),  # one seed
        ((), 0.0, "undecided"),
    ],
)
def test_a_finding_of_one_claim(values: tuple[float, ...], bound: float, outcome: str) -> None:
    (found,) = decide([Question("made up", [claim("made up", dict(enumerate(values)), bound)])])
    assert found.verdict == outcome


def test_a_finding_needs_all_its_claims_and_falls_with_one() -> None:
    yes, no = claim("a", {0: 0.1, 1: 0.11, 2: 0.12}), claim("b", {0: -0.1, 1: -0.11, 2: -0.12})
    open_ = claim("c", {0: 0.1, 1: -0.1, 2: 0.01})
    verdicts = {
        name: decide([Question("f", claims)])[0].verdict
        for name, claims in {"yes": [yes, yes], "no": [yes, no], "fallen": [open_, no], "open": [yes, open_]}.items()
    }
    assert verdicts == {"yes": "holds", "no": "does not hold", "fallen": "does not hold", "open": "undecided"}
    two = Question("f", [yes, no])
    assert (two.p_holds, two.p_fails) == pytest.approx((no.p_holds, 2 * no.p_fails))
    assert no.p_holds == pytest.approx(1 - no.p_fails)


def test_findings_that_are_decided_alone_may_not_be_among_many() -> None:
    close = Question("close", [claim("a", {0: 0.05, 1: 0.07, 2: 0.08})])
    assert 0.01 < close.p_value < 0.05
    assert decide([close])[0].verdict == "holds"
    many = decide([close] * 12)
    assert {finding.verdict for finding in many} == {"undecided"}
    assert "taken alone the finding would be decided in its favor" in many[0].certainty
    assert "by Holm's procedure for 12 findings at once" in many[0].certainty


def test_evidence_and_certainty_in_words() -> None:
    (one,) = decide([Question("f", [claim("EI less PPO", {0: 0.04})])])
    assert one.evidence.startswith("EI less PPO: +0.040 [")
    assert one.evidence.endswith("], claimed to be above +0.00, as it is in 1 of 1 seeds.")
    assert one.certainty.startswith("none: one seed")
    (none,) = decide([Question("f", [claim("EI less PPO", {})])])
    assert "no seed has both" in none.evidence
    assert "without a result" in none.certainty
    (sure,) = decide([Question("f", [claim("EI less PPO", {0: 0.1, 1: 0.1, 2: 0.11})])])
    assert "as it is in 3 of 3 seeds; power 1.00 at 0.05 from there" in sure.evidence
    assert sure.certainty.startswith("p = ")
    assert sure.certainty.endswith("over 3 seeds.")


def test_a_finding_that_one_claim_contradicts_is_as_sure_as_that_claim() -> None:
    (found,) = decide([Question("f", [claim("a", {}), claim("b", {0: -0.1, 1: -0.11, 2: -0.12})])])
    assert found.verdict == "does not hold"
    assert found.certainty.endswith("over 3 seeds.")


def test_novelty_by_hand() -> None:
    known = {"p": ["a", None, "b", "c"], "q": [None, None, "d", "d"], "r": [None] * 4}
    # First half of what is known: a at p, nothing at q and r. The second half has at p b and c, which are not known.
    assert [part.tolist() for part in novelty(known, known)] == [[2, 0, 0], [2, 0, 0]]
    theirs = {"p": ["x", "x", "a", "b"], "q": ["d", "d", "d", None], "r": ["e", "e", "e", "e"]}
    new, total = novelty(theirs, known)
    assert new.tolist() == [1, 0, 0]  # a is known, b is not
    assert total.tolist() == [2, 0, 0]


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_the_same_policy_is_as_new_as_itself(rate: float) -> None:
    """Another pool of one policy has the share of new solutions that its own second half has, however hard problems."""
    rng = np.random.default_rng(0)

    def pool() -> dict[str, list[str | None]]:
        right, which = rng.random((4_000, 8)) < rate, rng.integers(2, size=(4_000, 8))
        return {
            str(i): [f"s{b}" if a else None for a, b in zip(*row, strict=True)]
            for i, row in enumerate(zip(right, which, strict=True))
        }

    known, other = pool(), pool()
    own, others = (new.sum() / total.sum() for new, total in (novelty(known, known), novelty(other, known)))
    assert own == pytest.approx(others, abs=0.07)
