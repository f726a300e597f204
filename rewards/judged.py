"""Rewards by a judge of steps: what it thinks of each step is paid (LMGT, arXiv 2409.04744; ARES, arXiv 2407.00087)."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike

from ..arrays import FloatArray, IntArray, described, finite_scores, name_of
from ..registry import check_known
from ..settings import kinds_checked
from .base import AttemptView, ProblemLike, RewardError, Step, StepReward, check_shaping
from .dense import ReferenceMatcher
from .grading.solutions import exact_text
from .outcome import OutcomeScores

if TYPE_CHECKING:
    from ..models import OutcomeModel

StepJudge = Callable[[Sequence[Step]], ArrayLike]
"""Function that scores steps `[S]`, each by itself: scores `[S]`."""
Form = Literal["shift", "centered"]

_RANGES: dict[Form, tuple[float, float]] = {"shift": (-1, 1), "centered": (0, 1)}
REFERENCE = "reference"


class JudgedReward(StepReward):
    """What a judge thinks of each step, paid at its last token; the answer's line is judged as well.

    The grader's word is no part of it: add the sparse reward by a sum. More steps that please the judge earn more,
    which may change the best policy unless payments are shaped.

    Args:
        judge: Judge of steps. `"reference"` scores 1 for a step that makes the match with the reference solution longer
            (see `DenseReward`) and for the right answer's line, else 0. An outcome model, the folder of one or
            "tokengym/tiny-orm" scores p(correct) after the step; a process reward model scores the step. A function is
            handed a list of `Step`s and returns one score for each, which must depend on that step alone.
        form: Payment for a score: `"shift"` pays `weight` times the score, which lies in [-1, 1], as in LMGT;
            `"centered"` pays `weight` times score - 0.5, the score lying in [0, 1], and nothing for a step whose text
            the attempt has written before, as in ARES.
        weight: Weight of the scores; the difference that LMGT adds is 1 here. [choice]
        shaping: Shaping by potential, or `None`: with `"potential"` all payments are taken back at the attempt's last
            token. The potential of a state is what was paid up to there, 0 at the start and at the end (Ng et al.
            1999), for a discount of 1: a return is 0, or that of the other terms of a sum, and only credit comes
            earlier. An attempt that is cut off by its token budget ends in this sense too.
        device: Device of a model that is read from a folder; by default a GPU if there is one.

    Raises:
        UnknownNameError: There is no such `form` or `shaping`.
        ValueError: `weight` is not finite, or `judge` is no judge.
    """

    @kinds_checked
    def __init__(
        self,
        judge: "Literal['reference'] | str | Path | OutcomeModel | StepJudge" = REFERENCE,
        form: Form = "shift",
        weight: float = 1.0,
        shaping: Literal["potential"] | None = None,
        device: str | None = None,
    ) -> None:
        check_known("form", (form,), _RANGES)
        check_shaping(shaping)
        if not math.isfinite(weight):
            raise ValueError(f"weight must be finite, got {weight}")
        self.judge = judge
        self.form: Form = form
        self.weight = weight
        self.shaping = shaping
        self._function: StepJudge | None = judge if callable(judge) else None
        self._model: OutcomeScores | None = None
        if not callable(judge) and judge != REFERENCE:
            try:
                self._model = OutcomeScores(judge, device)
            except ValueError:
                raise ValueError(
                    f'a judge is "{REFERENCE}", an OutcomeModel, the folder of one or a function, not {judge!r}'
                ) from None

    def bind(self, view: AttemptView) -> None:
        """Reads the model, if the judge is the folder of one or its name.

        Raises:
            FileNotFoundError: There is no such folder.
            UnknownNameError: There is no such built-in outcome model.
            ValueError: The folder holds no outcome model, the model was trained with another tokenizer than the
                environment's, or its scores have no middle, and `form` is "centered".
        """
        super().bind(view)
        if self._model is not None:
            try:
                model = self._model.bind(view)
            except FileNotFoundError:
                raise FileNotFoundError(
                    f'there is no judge {self.judge!r}: give "{REFERENCE}", an outcome model\'s folder or '
                    '"tokengym/tiny-orm"'
                ) from None
            if self.form == "centered" and model.kind == "preference":
                model.check_probability("a centered reward")
        self._matcher = ReferenceMatcher(view) if self.judge == REFERENCE else None
        self._paid = np.zeros(view.num_envs)

    def begin(self, slots: IntArray, problems: Sequence[ProblemLike], prefix_lengths: IntArray) -> None:
        super().begin(slots, problems, prefix_lengths)
        self._paid[slots] = 0
        if self._model is not None:
            self._model.begin(slots)
        if self._matcher is not None:
            for slot, problem in zip(slots.tolist(), problems, strict=True):
                self._matcher.begin(slot, problem, self._progress[slot].steps)

    def step_rewards(self, steps: Sequence[Step]) -> ArrayLike:
        centered = self.form == "centered"
        judged = [i for i, step in enumerate(steps) if step.text and not (centered and _is_repeated(step))]
        rewards = np.zeros(len(steps))
        rewards[judged] = self.weight * (self._scored([steps[i] for i in judged]) - 0.5 * centered)
        if self.shaping == "potential":
            for i, step in enumerate(steps):
                if step.verdict is None:
                    self._paid[step.slot] += rewards[i]
                else:
                    rewards[i] = -self._paid[step.slot]  # what the last step is paid is taken back at once
        return rewards

    def _scored(self, steps: Sequence[Step]) -> FloatArray:
        """The judge's scores of steps."""
        if not steps:
            return np.zeros(0)
        if self._matcher is not None:
            return np.array([float(self._agrees(step, self._matcher)) for step in steps])
        if self._model is not None:
            return self._model.after([step.slot for step in steps], [len(step.tokens) for step in steps])
        assert self._function is not None  # noqa: S101
        found, (low, high) = self._function(steps), _RANGES[self.form]
        scores = finite_scores(found, len(steps))
        if scores is None or not ((scores >= low) & (scores <= high)).all():
            raise RewardError(
                f"the judge {name_of(self._function)} must give {len(steps)} scores in [{low}, {high}], one for each "
                f"step, and gave {described(found)}"
            )
        return scores

    def _agrees(self, step: Step, matcher: ReferenceMatcher) -> bool:
        """True for a step that makes the match longer, and for the right answer's line where it is new."""
        if matcher.add(step.slot, step.text):
            return True
        if _is_repeated(step):
            return False
        if step.verdict is not None and step.verdict.correct and self.view.is_answer(step.text):
            return True
        lines = [line.strip() for line in (step.problem.solution or "").split("\n")]
        answers = [line for line in lines if self.view.is_answer(line) or line == step.problem.answer]
        return exact_text(step.text) in map(exact_text, answers)


def _is_repeated(step: Step) -> bool:
    """True if the attempt has written the same before."""
    return exact_text(step.text) in map(exact_text, step.previous)
