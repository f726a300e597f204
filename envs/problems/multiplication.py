"""Multiplication of n-digit numbers with worked and short answers (Tsilivis et al. 2025).

The format is that of Deng et al. 2024, which Tsilivis et al. build on; their own text was not at hand. Digits come
from the lowest up, a space between any two, partial products with running sums in parentheses, all zero-padded:

    5 6 3 2 * 7 4 3 4||5 5 5 6 1 + 0 0 6 4 9 0 ( 5 5 1 1 1 1 ) + ... + 0 0 0 0 6 4 9 0 #### 5 5 6 0 8 2 0 1

is 2365 * 4347 = 10280655 by way of 16555, 94600, their sum 111155, and so on.
"""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from ...rewards.grading.numbers import Verdict
from ...settings import kinds_checked
from .base import Problem
from .parity import check_grading, check_p_cot
from .procedural import Draws, ProceduralSource

MAX_DIGITS = 64
MARKER = "####"


class Multiplication(ProceduralSource):
    """Products of two n-digit numbers, with solutions that are worked with probability `p_cot`, else the answer alone.

    An attempt is correct by `grading="e2e"` if what follows its only "####" is the product in the format above; by
    `"cot"` if it is, letter by letter, the worked solution or the short one. The verdict is `correct`; `wrong`;
    `wrong_chain`, the product is right and the way to it is not (cot only); `ambiguous`, several "####"; `unparsed`,
    something else than digits after it; or `no_answer`.

    Registered as tokengym/Multiplication-v0 with one token per character, spaces too, the prompt "{question}||", and
    room for the worked solution.

    Args:
        split: Split of the problems: "train", "validation" or "test"; no two numbers, in either order, are in two
            splits.
        seed: Seed in [0, 2**63), which chooses among endless streams of problems.
        digits: Number n of digits of each factor, the highest of which is not 0. [Tsilivis et al. 2025: 4, 5 and 7]
        p_cot: Share of worked solutions. [Tsilivis et al. 2025: 0.1, 0.25, 0.5 and 1]
        grading: Part of the response that is graded: all of it ("cot") or its answer ("e2e").

    Raises:
        UnknownNameError: There is no such split or grading.
        ValueError: An argument is out of range, or so few digits leave no problem for this split.
    """

    name = "multiplication"
    remedy = "raise digits"

    @kinds_checked
    def __init__(
        self, split: str = "train", seed: int = 0, digits: int = 4, p_cot: float = 0.25, grading: str = "cot"
    ) -> None:
        super().__init__(split, seed)
        self.digits = operator.index(digits)
        if not 1 <= self.digits <= MAX_DIGITS:
            raise ValueError(f"digits must be in [1, {MAX_DIGITS}], not {digits}")
        self.p_cot = check_p_cot(p_cot)
        self.grading = check_grading(grading)
        self[0]  # a split without problems fails here, not in the middle of training

    def draw(self, draws: Draws) -> tuple[str, Any] | None:
        a, b = self._factor(draws), self._factor(draws)
        # Whoever has seen b * a has seen the product of a * b.
        return f"{min(a, b)}*{max(a, b)}", (a, b)

    def _factor(self, draws: Draws) -> int:
        lowest = 10 ** (self.digits - 1)
        # Enough bits that the remainder favors no number by more than 2^-64 of its probability.
        return lowest + draws.bits(64 + lowest.bit_length() + 4) % (9 * lowest)

    def tell(self, draws: Draws, drawn: Any) -> tuple[str, str, str]:
        a, b = drawn
        answer = spaced(a * b, 2 * self.digits)
        solution = f"{MARKER} {answer}"
        if draws.chance(self.p_cot):
            solution = f"{self.worked(a, b)} {solution}"
        return f"{spaced(a, self.digits)} * {spaced(b, self.digits)}", answer, solution

    def worked(self, a: int, b: int) -> str:
        """The partial products of `a` with each digit of `b`, and the running sums between them."""
        terms: list[str] = []
        total = 0
        for place, digit in enumerate(reversed(str(b))):
            product = a * int(digit) * 10**place
            total += product
            width = self.digits + 1 + place
            # The first sum is the first product, and the last is the answer: neither is written twice.
            between = 0 < place < self.digits - 1
            terms.append(spaced(product, width) + (f" ( {spaced(total, width)} )" if between else ""))
        return " + ".join(terms)

    def grade(self, completion: str, problem: Problem) -> Verdict:
        way, marker, answer = completion.rpartition(MARKER)
        if not marker or not answer.strip():
            return Verdict(False, "no_answer", None)
        answer = answer.strip()
        if MARKER in way:
            return Verdict(False, "ambiguous", None)
        if len(answer) > 4 * MAX_DIGITS or not set(answer) <= set("0123456789 "):
            return Verdict(False, "unparsed", None)
        if answer != problem.answer:
            return Verdict(False, "wrong", answer)
        if self.grading == "cot" and completion not in self._responses(problem):
            return Verdict(False, "wrong_chain", answer)
        return Verdict(True, "correct", answer)

    def check_steps(self, steps: Sequence[str], problem: Problem) -> list[bool]:
        """True if a response is the worked solution so far, or the short one; it is one step."""
        return [any(response.startswith(step) for response in self._responses(problem)) for step in steps]

    def _responses(self, problem: Problem) -> tuple[str, str]:
        """The short solution and the worked one."""
        a, b = (int(factor.replace(" ", "")[::-1]) for factor in problem.question.split("*"))
        short = f"{MARKER} {problem.answer}"
        return short, f"{self.worked(a, b)} {short}"

    @property
    def instruction(self) -> str:
        return ""

    @property
    def env_settings(self) -> Mapping[str, Any]:
        factor = 10**self.digits - 1
        question = f"{spaced(factor, self.digits)} * {spaced(factor, self.digits)}||"
        solution = f"{self.worked(factor, factor)} {MARKER} {spaced(factor * factor, 2 * self.digits)}"
        return {
            "tokenizer": "chars:0123456789 *|+()#",
            "prompt": "{question}||",
            "max_prompt_tokens": len(question),
            "max_new_tokens": len(solution) + 1,
        }

    def __repr__(self) -> str:
        return (
            f"Multiplication(split={self.split!r}, seed={self.seed}, digits={self.digits}, p_cot={self.p_cot}, "
            f"grading={self.grading!r})"
        )


def spaced(number: int, width: int) -> str:
    """`number` from its lowest digit up, filled with zeros to `width` digits, with spaces between them."""
    return " ".join(reversed(str(number).zfill(width)))
