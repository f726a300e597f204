"""Parity with rare long and common short answers (Tsilivis et al. 2025).

The bits x_1..x_d are a string of 0 and 1 (1 for -1 in Tsilivis et al. 2025), so products of signs are exclusive ors. A
long response is the chain of running parities, x_1, x_1 x_2, ..., x_1...x_d; a short one is the last of them alone.
"""

import operator
from collections.abc import Mapping, Sequence
from itertools import accumulate
from operator import xor
from typing import Any

from ...registry import unknown_name
from ...rewards.grading.numbers import Verdict
from ...settings import kinds_checked
from .base import Problem
from .procedural import Draws, ProceduralSource

GRADINGS = ("cot", "e2e")
MAX_BITS = 4096


class Parity(ProceduralSource):
    """The parity of d random bits: "0111" has the chain "0101" and the answer "1".

    A problem's solution is drawn with it: the chain with probability `p_cot`, else the short answer. So next-token
    prediction on solutions sees that mixture, which nothing in a question gives away.

    An attempt is correct by `grading="e2e"` if its last bit is the parity, whatever comes before; by `"cot"` if it is
    the whole chain, without an error, or the short answer and nothing else. The verdict is `correct`; `wrong`, the last
    bit is not the parity; `wrong_chain`, it is, but by way of something else than the chain (cot only); `unparsed`,
    the last character is no bit; or `no_answer`.

    Registered as tokengym/Parity-v0 with one token per bit, nothing in the prompt but the bits, and room for the chain
    of all of them.

    Args:
        split: Split of the problems: "train", "validation" or "test"; no bits are in two splits.
        seed: Seed in [0, 2**63), which chooses among endless streams of problems.
        d: Number of bits; the source has 50, and 25 for many comparisons. [Tsilivis et al. 2025]
        p_cot: Share of long solutions. [Tsilivis et al. 2025]
        leap: Distance of the running parities in the chain: every leap-th one, and the last; 2 makes partial chains.
            [Tsilivis et al. 2025]
        grading: Part of the response that is graded: all of it ("cot") or its answer ("e2e").

    Raises:
        UnknownNameError: There is no such split or grading.
        ValueError: An argument is out of range, or so few bits leave none for this split.
    """

    name = "parity"
    remedy = "raise d"

    @kinds_checked
    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        d: int = 50,
        p_cot: float = 0.25,
        leap: int = 1,
        grading: str = "cot",
    ) -> None:
        super().__init__(split, seed)
        self.d, self.leap = operator.index(d), operator.index(leap)
        if not 1 <= self.d <= MAX_BITS:
            raise ValueError(f"d must be in [1, {MAX_BITS}], not {d}")
        if not 1 <= self.leap <= self.d:
            raise ValueError(f"leap must be in [1, d] = [1, {self.d}], not {leap}")
        self.p_cot = check_p_cot(p_cot)
        self.grading = check_grading(grading)
        self[0]  # a split without problems fails here, not in the middle of training

    def draw(self, draws: Draws) -> tuple[str, Any] | None:
        bits = f"{draws.bits(self.d):0{self.d}b}"
        return bits, bits

    def tell(self, draws: Draws, drawn: Any) -> tuple[str, str, str]:
        chain = self.chain(drawn)
        return drawn, chain[-1], chain if draws.chance(self.p_cot) else chain[-1]

    def chain(self, bits: str) -> str:
        """The long response to `bits`: the parity of the first `leap` bits, of the first 2 `leap`, ..., of all."""
        parities = "".join(map(str, accumulate(map(int, bits), xor)))
        chain = parities[self.leap - 1 :: self.leap]
        return chain if self.d % self.leap == 0 else chain + parities[-1]

    def grade(self, completion: str, problem: Problem) -> Verdict:
        last = completion[-1:]
        if not last:
            return Verdict(False, "no_answer", None)
        if last not in "01":
            return Verdict(False, "unparsed", None)
        if last != problem.answer:
            return Verdict(False, "wrong", last)
        if self.grading == "cot" and len(completion) > 1 and completion != self.chain(problem.question):
            return Verdict(False, "wrong_chain", last)
        return Verdict(True, "correct", last)

    def check_steps(self, steps: Sequence[str], problem: Problem) -> list[bool]:
        """True if a response is the chain so far, or the short answer; it is one step."""
        whole = self.chain(problem.question), problem.answer
        return [any(response.startswith(step) for response in whole) for step in steps]

    @property
    def instruction(self) -> str:
        return ""

    @property
    def env_settings(self) -> Mapping[str, Any]:
        limits = {"max_prompt_tokens": self.d, "max_new_tokens": self.d + 1}
        return {"tokenizer": "chars:01", "prompt": "{question}", **limits}

    def __repr__(self) -> str:
        return (
            f"Parity(split={self.split!r}, seed={self.seed}, d={self.d}, p_cot={self.p_cot}, leap={self.leap}, "
            f"grading={self.grading!r})"
        )


def check_p_cot(p_cot: float) -> float:
    """`p_cot` itself when it is a probability; raises `ValueError` otherwise."""
    if not 0 <= p_cot <= 1:
        raise ValueError(f"p_cot is the share of long solutions, in [0, 1], not {p_cot}")
    return float(p_cot)


def check_grading(grading: str) -> str:
    """`grading` itself when it is one of `GRADINGS`; raises `UnknownNameError` otherwise."""
    if grading not in GRADINGS:
        raise unknown_name("grading", grading, GRADINGS)
    return grading
