"""Verdicts that are not there yet: slots that stand still before their last token while the others go on."""

from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arrays import BoolArray, IntArray
from ..rewards import Verdict


class _Pending(NamedTuple):
    """An attempt whose last token waits for its verdict."""

    token: int
    due: int
    """Number of the step in which the verdict is waited for at last."""
    verdict: Future[Verdict]


class PendingVerdicts:
    """Slots whose last token was taken back until its verdict is there; see `TokenVectorEnv.step_on`.

    Args:
        num_envs: Number of slots N.
    """

    def __init__(self, num_envs: int) -> None:
        self._num_envs = num_envs
        self._pending: dict[int, _Pending] = {}
        self._steps = 0

    def __len__(self) -> int:
        return len(self._pending)

    def __contains__(self, slot: int) -> bool:
        return slot in self._pending

    @property
    def mask(self) -> BoolArray:
        """`[N]` bool, true for the slots that wait."""
        waiting = np.zeros(self._num_envs, dtype=np.bool_)
        waiting[list(self._pending)] = True
        return waiting

    def begin_step(self) -> None:
        """Counts a step."""
        self._steps += 1

    def add(self, slot: int, token: int, patience: int, verdict: Future[Verdict]) -> None:
        """Lets a slot wait for the verdict on its last token, for at most `patience` steps."""
        self._pending[slot] = _Pending(token, self._steps + patience, verdict)

    def take(self, slot: int) -> Verdict:
        """The verdict of a slot that waits no longer; waits for it if need be."""
        return self._pending.pop(slot).verdict.result()

    def drop(self, slots: Iterable[int]) -> None:
        """Forgets the verdicts of those slots that wait."""
        for slot in slots:
            if (pending := self._pending.pop(slot, None)) is not None:
                pending.verdict.cancel()

    def with_due(
        self, tokens: NDArray[Any], lengths: IntArray, finished: BoolArray, patience: int
    ) -> tuple[NDArray[Any], IntArray]:
        """Tokens and lengths in which waiting slots take no other token than their last, and that one when it is due.

        It is due when the slot's patience is at its end, when no other slot runs, or if nobody is patient.

        Args:
            tokens: Token ids `[N, K]` of a step.
            lengths: Number of tokens of each slot `[N]`, changed in place.
            finished: Bool `[N]`, true for slots whose attempts have ended.
            patience: Number of steps that slots wait; 0 waits for none.
        """
        waiting = self.mask
        running = (~(finished | waiting)).any()
        lengths[waiting] = 0
        tokens = tokens.copy()
        for slot, pending in self._pending.items():
            if not patience or not running or self._steps >= pending.due:
                tokens[slot, 0] = pending.token
                lengths[slot] = 1
        return tokens, lengths
