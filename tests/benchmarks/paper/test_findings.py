"""Findings follow from numbers by their rules: made-up numbers, with the verdicts that a person would give."""

import pytest

from tokengym.benchmarks.paper.findings import Claim, finding, later_gain, novelty
from tokengym.benchmarks.reports.content import student_quantile


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
        ((0.0, 0.0, 0.0), 0.0, "undecided"),
    ],
)
def test_claims(values: tuple[float, ...], bound: float, outcome: str) -> None:
    assert Claim("made up", dict(enumerate(values)), bound).outcome == outcome


def test_the_interval_of_a_claim_by_hand() -> None:
    # Mean 0.2, standard deviation 0.1, t of two degrees 4.3027.
    cell = Claim("made up", {0: 0.1, 1: 0.2, 2: 0.3}).cell
    assert student_quantile(2) == pytest.approx(4.3027, abs=1e-4)
    assert (cell.low, cell.high) == pytest.approx((0.2 - 0.24842, 0.2 + 0.24842), abs=1e-4)  # pyright: ignore


def test_a_finding_needs_all_its_claims() -> None:
    yes, no, open_ = Claim("a", {0: 0.1, 1: 0.11}), Claim("b", {0: -0.1, 1: -0.11}), Claim("c", {0: 0.1, 1: -0.1})
    assert finding("f", [yes, yes]).verdict == "holds"
    assert finding("f", [yes, no]).verdict == "does not hold"
    assert finding("f", [open_, no]).verdict == "does not hold"
    assert finding("f", [yes, open_]).verdict == "undecided"


def test_evidence_and_certainty_in_words() -> None:
    one = finding("f", [Claim("EI less PPO", {0: 0.04})])
    assert one.evidence == "EI less PPO: +0.040, claimed to be above +0.00, as it is in 1 of 1 seeds."
    assert one.certainty.startswith("none: one seed")
    none = finding("f", [Claim("EI less PPO", {})])
    assert "no seed has both" in none.evidence
    assert "without a result" in none.certainty
    agreeing = finding("f", [Claim("EI less PPO", {0: 0.01, 1: 0.1, 2: 0.2})])
    assert (agreeing.verdict, agreeing.certainty.split(" agree")[0]) == ("undecided", "low: all 3 seeds")
    sure = finding("f", [Claim("EI less PPO", {0: 0.1, 1: 0.1, 2: 0.11})])
    assert sure.certainty.startswith("95 % over 3 seeds")


def test_gains_of_later_rounds() -> None:
    def curve(*accuracies: float) -> list[dict[str, float]]:
        return [{"round": number, "eval/maj@1": value} for number, value in enumerate(accuracies)]

    curves = {0: curve(0.4, 0.5, 0.6, 0.55, 0.7), 1: curve(0.4, 0.5, 0.6, 0.5), 2: curve(0.4, 0.5, 0.6)}
    assert later_gain(curves) == pytest.approx({0: 0.1, 1: -0.1})


def test_novelty_by_hand() -> None:
    known = {"p": ["a", None, "b", "c"], "q": [None, None, "d", "d"]}
    # First half of what is known: a at p, nothing at q. Second halves have at p b and c, of which neither is known.
    assert novelty(known, known) == 1.0
    theirs = {"p": ["x", "x", "a", "b"], "q": ["d", "d", "d", None]}
    assert novelty(theirs, known) == pytest.approx(2 / 3)  # a is known, b and d are not
    assert novelty({"p": [None, None]}, known) == 0.0
    assert novelty({"r": [None, "a"]}, known) == 1.0  # a problem that was never tried
