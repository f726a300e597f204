"""Base classes of rewards, which follow the tokens appended to every slot and pay at tokens.

`Reward` is the whole interface and is vector-native. Most rewards need only one of its two subclasses: `AttemptReward`
pays once, when an attempt ends; `StepReward` pays at the end of each step, a step being a line of the completion. The
environment grades each finished attempt once and hands the verdict over: rewards pay, they do not grade.
"""

import inspect
import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from ..arrays import FloatArray, IntArray, as_floats, described
from ..registry import check_known
from .grading.numbers import Verdict
from .steps import OpenLine, decode, newline_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

RUNNING, TERMINATED, TRUNCATED = 0, 1, 2
"""State of an attempt after its newest token: running, ended by end-of-sequence, or cut off by the token budget."""


class ProblemLike(Protocol):
    """Fields of a problem that a reward reads."""

    @property
    def question(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def solution(self) -> str | None: ...


class AttemptView(Protocol):
    """The environment as a reward sees it."""

    @property
    def num_envs(self) -> int: ...
    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase": ...
    def prompt(self, slot: int) -> IntArray:
        """The tokens of the prompt [P]."""
        ...

    def completion(self, slot: int) -> IntArray:
        """All tokens after the prompt so far [T], a reset prefix and an appended end-of-sequence included."""
        ...

    def is_answer(self, line: str) -> bool:
        """True if a line of a completion is the one that shows its answer ("#### 72"), and no step."""
        ...

    def cut(self, text: str) -> str:
        """The part of a completion's text that is graded: what stands before a stop string."""
        ...


def how_to_register(kind: type) -> str:
    """Advice on registering a class of rewards that environments are to make from plain values."""
    needed = [
        f'"{name}": ...'
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    spec = f'{{"name": "mine", {", ".join(needed)}}}' if needed else '"mine"'
    return f'register the class, tokengym.rewards.REWARDS.register("mine")({kind.__name__}), and give reward={spec}'


def check_shaping(shaping: object) -> None:
    """Raises `UnknownNameError` unless it is None or "potential"."""
    if shaping is not None:
        check_known("shaping", (shaping,), ("potential",))


class RewardError(ValueError):
    """A reward returned something else than finite numbers of the right shape."""


class Reward(ABC):
    """Pays attempts token by token, for all slots of one environment at once.

    An instance belongs to the environment that bound it; make one for each.
    """

    _view: AttemptView | None = None

    @property
    def view(self) -> AttemptView:
        """The environment this reward belongs to. Raises `RuntimeError` before `bind`."""
        if self._view is None:
            raise RuntimeError(f"{type(self).__name__} belongs to no environment yet: bind it first")
        return self._view

    def bind(self, view: AttemptView) -> None:
        """Called once, by the environment that owns this reward. Raises `ValueError` if one already does."""
        if self._view is view:
            raise ValueError(f"this {type(self).__name__} is given twice in one environment: make one for each term")
        if self._view is not None:
            raise ValueError(
                f"this {type(self).__name__} already belongs to an environment: make one reward for each, or, for "
                "agents, which make several, " + how_to_register(type(self))
            )
        self._view = view

    def begin(self, slots: IntArray, problems: Sequence[ProblemLike], prefix_lengths: IntArray) -> None:  # noqa: B027
        """Attempts at `problems` [M] begin in `slots` [M].

        The first `prefix_lengths[j]` tokens of the completion of slot `slots[j]` are in place already: given by the
        reset, not by the policy.
        """

    @abstractmethod
    def score(self, lengths: IntArray, ended: IntArray, verdicts: Sequence[Verdict | None]) -> FloatArray:
        """Pay for the tokens just appended: `view.completion(i)[-lengths[i]:]` for each slot i with `lengths[i] > 0`.

        Args:
            lengths: Number of tokens appended to each slot [N]; a slot with 0 was not stepped and earns nothing.
            ended: State after the last of them [N]: `RUNNING`, `TERMINATED` or `TRUNCATED`.
            verdicts: Verdict of each attempt that ended with them [N], None for the others.

        Returns:
            The reward of each appended token, [N, max(1, max(lengths))], 0 beyond `lengths[i]`.
        """

    def components(self) -> Mapping[str, FloatArray]:
        """Sums that the components of this reward have paid each slot [N] since its attempt began, by name."""
        return {}

    def decode(self, tokens: IntArray) -> str:
        """The text of `tokens` [T], special tokens left out."""
        return decode(self.view.tokenizer, tokens)


@dataclass(frozen=True, slots=True)
class FinishedAttempt:
    """A finished attempt."""

    slot: int
    problem: ProblemLike
    tokens: IntArray
    """The whole completion [T]; a view of the environment's buffer, valid during the call."""
    verdict: Verdict


class AttemptReward(Reward):
    """Base of rewards that pay once per attempt, at its last token: override `attempt_reward`."""

    def bind(self, view: AttemptView) -> None:
        super().bind(view)
        self._problems: dict[int, ProblemLike] = {}

    def begin(self, slots: IntArray, problems: Sequence[ProblemLike], prefix_lengths: IntArray) -> None:
        self._problems.update(zip(slots.tolist(), problems, strict=True))

    @abstractmethod
    def attempt_reward(self, attempt: FinishedAttempt) -> float:
        """Reward of a finished attempt. A truncated one has the verdict `truncated`."""

    def score(self, lengths: IntArray, ended: IntArray, verdicts: Sequence[Verdict | None]) -> FloatArray:
        rewards = no_rewards(lengths)
        if not np.count_nonzero(ended):
            return rewards
        for slot in np.flatnonzero((ended != RUNNING) & (lengths > 0)).tolist():
            problem = _begun(self._problems, slot, self)
            attempt = FinishedAttempt(slot, problem, self.view.completion(slot), _verdict(verdicts, slot))
            try:
                reward = self.attempt_reward(attempt)
            except Exception as error:
                error.add_note(_place(error, self, "attempt_reward"))
                raise
            rewards[slot, lengths[slot] - 1] = _finite(reward, (), self)
        return rewards


@dataclass(frozen=True, slots=True)
class Step:
    """A step that has just been finished, in the notation of paper 1: S_i after the prefix P_{i-1}."""

    slot: int
    problem: ProblemLike
    previous: tuple[str, ...]
    """P_{i-1}: the texts of the attempt's earlier steps, those given by a reset prefix included."""
    text: str
    """S_i, stripped; "" where the attempt ended without a further step: on a blank line, or cut off within a line."""
    tokens: IntArray
    """The completion up to the end of this step; a view of the environment's buffer, valid during the call."""
    verdict: Verdict | None
    """The grade of the attempt, if it ended with this step."""


@dataclass(slots=True)
class _AttemptProgress:
    """Progress of a slot's attempt: its finished steps, and its unfinished line."""

    problem: ProblemLike
    steps: list[str] = field(default_factory=list)
    line: OpenLine = field(default_factory=OpenLine)


class StepReward(Reward):
    """Base of rewards that pay at the last token of each step: override `step_rewards`.

    A step ends at a token whose text contains a newline, or where the attempt ends by itself; blank lines are no steps,
    and a stop string is no part of one. Text is decoded at those tokens only. Step texts of a reset prefix appear in
    `Step.previous` and are never paid.
    """

    def bind(self, view: AttemptView) -> None:
        super().bind(view)
        self._ends_step = newline_tokens(view.tokenizer)
        self._progress: dict[int, _AttemptProgress] = {}

    @abstractmethod
    def step_rewards(self, steps: Sequence[Step]) -> ArrayLike:
        """Rewards [S] of `steps` [S]: all steps that ended in this call, of any slots, in one batch.

        Several may be of one slot, in order. Must depend on each step alone, not on which steps share the call, so that
        rewards are the same however many tokens the environment takes at a time. The attempt's own final reward is paid
        here too, where `verdict` is set; such a step may have no text.
        """

    def begin(self, slots: IntArray, problems: Sequence[ProblemLike], prefix_lengths: IntArray) -> None:
        for slot, problem, length in zip(slots.tolist(), problems, prefix_lengths.tolist(), strict=True):
            progress = self._progress[slot] = _AttemptProgress(problem)
            prefix = self.view.completion(slot)[:length]
            for position in np.flatnonzero(self._ends_step[prefix]).tolist():
                text = progress.line.finish(prefix[: position + 1], self.decode)
                if text:
                    progress.steps.append(text)

    def score(self, lengths: IntArray, ended: IntArray, verdicts: Sequence[Verdict | None]) -> FloatArray:
        rewards = no_rewards(lengths)
        slots = np.flatnonzero(lengths)
        if not slots.size:
            return rewards
        counts = lengths[slots]
        completions = [self.view.completion(slot) for slot in slots.tolist()]
        appended = np.concatenate([c[-n:] for c, n in zip(completions, counts.tolist(), strict=True)])
        newline = self._ends_step[appended]
        lasts = np.cumsum(counts) - 1
        boundary = newline.copy()
        boundary[lasts[ended[slots] != RUNNING]] = True

        steps: list[Step] = []
        columns: list[int] = []
        for position in np.flatnonzero(boundary).tolist():
            row = int(np.searchsorted(lasts, position))
            slot, left = int(slots[row]), int(lasts[row]) - position
            tokens = completions[row][: len(completions[row]) - left]
            state = RUNNING if left else int(ended[slot])
            progress = _begun(self._progress, slot, self)
            text = ""
            if state == TERMINATED or newline[position]:
                beyond = self._beyond(tokens) if state == TERMINATED else 0
                text = progress.line.finish(tokens, self.decode, beyond)
            if text or state != RUNNING:
                verdict = None if state == RUNNING else _verdict(verdicts, slot)
                steps.append(Step(slot, progress.problem, tuple(progress.steps), text, tokens, verdict))
                columns.append(int(counts[row]) - 1 - left)
            if text:
                progress.steps.append(text)
        if steps:
            try:
                paid = self.step_rewards(steps)
            except Exception as error:
                error.add_note(_place(error, self, "step_rewards"))
                raise
            rewards[[step.slot for step in steps], columns] = _finite(paid, (len(steps),), self)
        return rewards

    def _beyond(self, completion: IntArray) -> int:
        """Number of characters at the end of a completion that are its stop string."""
        text = self.decode(completion)
        return len(text) - len(self.view.cut(text))


def no_rewards(lengths: IntArray) -> FloatArray:
    """A zero for each appended token, in the shape of what `Reward.score` returns."""
    # argmax and an index are faster than max on so few numbers, and every env step comes through here
    return np.zeros((len(lengths), max(1, int(lengths[lengths.argmax()]))))


def _begun(slots: Mapping[int, T], slot: int, source: Reward) -> T:
    """What a reward keeps of the attempt in a slot."""
    if slot not in slots:
        raise RewardError(
            f"{type(source).__name__} did not keep the attempt that began in slot {slot}: its `begin` must call "
            "super().begin(slots, problems, prefix_lengths)"
        )
    return slots[slot]


def _verdict(verdicts: Sequence[Verdict | None], slot: int) -> Verdict:
    verdict = verdicts[slot]
    if verdict is None:
        raise ValueError(f"slot {slot} ended without a verdict: the environment grades every attempt that ends")
    return verdict


def _place(error: Exception, source: Reward, method: str) -> str:
    """Where a method of a reward raised an error."""
    # The first frame is the caller's, the second the method's own; what it called may lie deep in a library.
    frame = traceback.extract_tb(error.__traceback__, 2)[-1]
    return f"raised by {type(source).__name__}.{method} ({frame.filename}, line {frame.lineno})"


def _finite(rewards: ArrayLike, shape: tuple[int, ...], source: Reward) -> FloatArray:
    """What a reward has returned, as float64 of the shape that it must have.

    Raises:
        RewardError: It is something else, or holds numbers that are not finite; the message names the reward.
    """
    array = as_floats(rewards)
    if array is None or array.shape != shape or not np.isfinite(array).all():
        raise RewardError(
            f"{type(source).__name__} returned {described(rewards)}: expected finite numbers of shape {shape}"
        )
    return array


def as_scores(scored: object, shape: tuple[int, int], source: Reward) -> FloatArray:
    """What `Reward.score` has returned, as float64; numbers that are not finite are for agents to refuse.

    Raises:
        RewardError: It is no numbers, or of another shape; the message names the reward.
    """
    array, name = as_floats(scored), type(source).__name__
    if array is None:
        raise RewardError(f"{name}.score must return numbers, got {described(scored)}")
    if array.shape != shape:
        raise RewardError(f"{name}.score must return shape {shape}, got {array.shape}")
    return array
