"""The outcome model as a reward (Havrilla et al. 2024): the learned p(correct), at the end or after every step."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike

from ..arrays import FloatArray, IntArray
from ..registry import check_known
from ..settings import kinds_checked
from .base import TERMINATED, AttemptView, ProblemLike, Step, StepReward, check_shaping, no_rewards
from .grading.numbers import Verdict

if TYPE_CHECKING:
    from ..models import OutcomeModel

_MIXES = ("replace", "add")


class OutcomeReward(StepReward):
    """p(correct) by an outcome model, once per attempt or at every step.

    Sparse, it is paid at the last token of an attempt that ended by itself: p(correct | question, attempt). Dense, it
    is paid at the last token of every step: p(correct | question, prefix up to there). An attempt that ran out of
    tokens has no outcome: neither it nor the line that was cut off is paid. Steps of a reset prefix are read but not
    paid.

    What is paid for whole attempts, sparse or shaped by potential, may come from a preference model, too: the sigmoid
    of its reward. Process reward models judge steps: they can only be paid for each step.

    The model runs on each token once, and only when a score is due: see `models.engine.scorer.SlotScorer`.

    Args:
        orm: Outcome model, the folder that one was saved in, or "tokengym/tiny-orm".
        dense: Pay every step instead of the whole attempt alone.
        shaping: Shaping by potential, or `None`, which pays each step's score, so that more steps earn more, as in
            Havrilla et al. 2024. With "potential" a step is paid what it has added to the score before it, which is 0
            at the start and the score of a reset prefix after one, and an attempt that runs out of tokens pays it back:
            a return is what the sparse reward pays, less the score of the prefix (Ng et al. 1999).
        orm_mix: Use of the score: "replace" pays it instead of the grader's reward, as we read Havrilla et al. 2024;
            "add" pays it on top of the sparse +1.
        device: Device of a model that is read from a folder; by default a GPU if there is one.

    Raises:
        ValueError: `orm` is neither an outcome model nor a folder, or a sparse reward is to be shaped.
        UnknownNameError: There is no such `orm_mix` or `shaping`.
    """

    @kinds_checked
    def __init__(
        self,
        orm: "str | Path | OutcomeModel",
        *,
        dense: bool,
        shaping: Literal["potential"] | None = None,
        orm_mix: Literal["replace", "add"] = "replace",
        device: str | None = None,
    ) -> None:
        check_known("orm_mix", (orm_mix,), _MIXES)
        check_shaping(shaping)
        if shaping is not None and not dense:
            raise ValueError("shaping is of the steps' rewards: leave it out, or set dense")
        self._scores = OutcomeScores(orm, device)
        self.orm = orm
        self.dense = dense
        self.shaping = shaping
        self.orm_mix = orm_mix

    def bind(self, view: AttemptView) -> None:
        """Reads the model, if `orm` is a folder.

        Raises:
            FileNotFoundError: There is no such folder.
            ValueError: The folder holds no outcome model, the model was trained with another tokenizer than the
                environment's, or its kind says nothing of what is paid.
        """
        super().bind(view)
        self._check_kind(self._scores.bind(view).kind)
        self._potentials = np.zeros(view.num_envs)

    def _check_kind(self, kind: str) -> None:
        """Raises `ValueError` unless scores of that kind of model say something of what is paid."""
        each_step = self.dense and self.shaping is None
        if kind == "prm" and not each_step:
            raise ValueError(
                "a process reward model judges single steps, and this reward pays for whole attempts: take dense_orm "
                "without shaping, or train an outcome model with `tokengym train orm`"
            )
        if kind == "preference" and each_step:
            raise ValueError(
                "a preference model compares whole attempts at one problem, and this reward pays for every step: take "
                'sparse_orm, or dense_orm with shaping="potential"'
            )

    def begin(self, slots: IntArray, problems: Sequence[ProblemLike], prefix_lengths: IntArray) -> None:
        if self.dense:
            super().begin(slots, problems, prefix_lengths)
        self._scores.begin(slots)
        if self.shaping == "potential":
            self._potentials[slots] = 0
            given = prefix_lengths > 0
            self._potentials[slots[given]] = self._scores.after(slots[given].tolist(), prefix_lengths[given].tolist())

    def score(self, lengths: IntArray, ended: IntArray, verdicts: Sequence[Verdict | None]) -> FloatArray:
        if self.dense:
            return super().score(lengths, ended, verdicts)
        # No step ends before the attempt does, so most calls are done here.
        rewards = no_rewards(lengths)
        slots = np.flatnonzero((ended == TERMINATED) & (lengths > 0))
        if slots.size:
            ends = [len(self.view.completion(slot)) for slot in slots.tolist()]
            bonus = [self._bonus(verdicts[slot]) for slot in slots.tolist()]
            rewards[slots, lengths[slots] - 1] = self._scores.after(slots.tolist(), ends) + bonus
        return rewards

    def step_rewards(self, steps: Sequence[Step]) -> ArrayLike:
        # A line that was cut off, and nothing but a blank line at the end, have no text.
        rewards = np.array([self._bonus(step.verdict) for step in steps])
        potential = self.shaping == "potential"
        truncated = [step.verdict is not None and step.verdict.reason == "truncated" for step in steps]
        read = [
            i
            for i, step in enumerate(steps)
            if step.text or (potential and step.verdict is not None and not truncated[i])
        ]
        scores = np.zeros(len(steps))
        scores[read] = self._scores.after([steps[i].slot for i in read], [len(steps[i].tokens) for i in read])
        if not potential:
            return rewards + scores
        for i, step in enumerate(steps):
            now = 0.0 if truncated[i] else scores[i]
            rewards[i] += now - self._potentials[step.slot]
            self._potentials[step.slot] = now
        return rewards

    def _bonus(self, verdict: Verdict | None) -> float:
        """Bonus of `orm_mix="add"` at the end of an attempt."""
        return float(self.orm_mix == "add" and verdict is not None and verdict.correct)


class OutcomeScores:
    """Scores of the attempts in an environment's slots by an outcome model, which reads each token once.

    Args:
        orm: Outcome model, or the folder that one was saved in.
        device: Device of a model that is read from a folder; by default a GPU if there is one.

    Raises:
        ValueError: `orm` is neither an outcome model nor a folder.
    """

    def __init__(self, orm: "str | Path | OutcomeModel", device: str | None = None) -> None:
        from ..models import OutcomeModel  # here and not above: `import tokengym` must not import torch

        if not isinstance(orm, str | Path | OutcomeModel):
            raise ValueError(f"orm must be an OutcomeModel or the folder of one, not {orm!r}")
        self._orm, self._device = orm, device

    def bind(self, view: AttemptView) -> "OutcomeModel":
        """Reads the model, if it is a folder, for the slots of `view`.

        Returns:
            The model.

        Raises:
            FileNotFoundError: There is no such folder.
            ValueError: The folder holds no outcome model, or the model was trained with another tokenizer than the
                environment's.
        """
        from ..models import OutcomeModel

        if isinstance(self._orm, str | Path):
            model = OutcomeModel.load(self._orm, view.tokenizer, self._device)
        else:
            model = self._orm
            model.check_tokenizer(view.tokenizer)
        self._view, self._scorer = view, model.scorer(view.num_envs)
        return model

    def begin(self, slots: IntArray) -> None:
        """Attempts begin in `slots` [M]."""
        self._scorer.begin(slots, [self._sequence(slot) for slot in slots.tolist()])

    def after(self, slots: Sequence[int], ends: Sequence[int]) -> FloatArray:
        """Scores after the first `ends[i]` tokens of the completion in `slots[i]`; slots may come repeatedly."""
        reads: dict[int, list[int]] = {}
        for i, slot in enumerate(slots):
            reads.setdefault(slot, []).append(i)
        sequences, positions = [], []
        for slot, indices in reads.items():
            sequences.append(self._sequence(slot))
            positions.append(np.array([len(self._view.prompt(slot)) + ends[i] - 1 for i in indices]))
        probabilities = np.zeros(len(slots))
        if reads:
            scores = self._scorer.score(np.array(list(reads)), sequences, positions)
            for indices, found in zip(reads.values(), scores, strict=True):
                probabilities[indices] = found
        return probabilities

    def _sequence(self, slot: int) -> IntArray:
        """Prompt and completion so far."""
        return np.concatenate([self._view.prompt(slot), self._view.completion(slot)])
