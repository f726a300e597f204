"""Curricula: which problem the next attempt starts from, and how much of its solution is given."""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..registry import Registry
from ..settings import kinds_checked

CURRICULA: "Registry[Callable[..., Curriculum]]" = Registry("curriculum", base=f"{__name__}:Curriculum")
"""Curricula by name; third parties join through the entry-point group `tokengym.curriculums`."""


NO_STAGE = -1
"""Stage of attempts that the caller of `reset` chose, or that had no room for the prefix of the curriculum."""


class _Problem(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def solution(self) -> str | None: ...


class Curriculum(ABC):
    """Chooses the problem of each attempt, in the order in which attempts begin.

    One that learns from how attempts end makes the order depend on the number of slots. Agents that compare runs go
    through a `Batch` of it at a time, in which it learns nothing, and tell it how the attempts ended afterwards.
    """

    @abstractmethod
    def next(self, rng: np.random.Generator, size: int) -> int | str:
        """The next attempt's problem, as an index in `[0, size)` or as the id of one that has begun before.

        Draws from `rng` and from no other random state.
        """

    def prefix(self, problem: _Problem) -> str:
        """Part of the reference solution that an attempt at `problem` starts with, if `max_new_tokens` leaves room."""
        return ""

    @property
    def stage(self) -> int:
        """The stage that an attempt which begins now belongs to; most curricula have one."""
        return 0

    def ended(self, problem: _Problem, is_success: bool, stage: int) -> None:  # noqa: B027 (most do not learn)
        """An attempt at `problem` has ended; it began at `stage`, or at `NO_STAGE`."""

    def metrics(self) -> dict[str, float]:
        """Metrics of its present state to log."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """State that `next` and `prefix` depend on besides their arguments, as JSON values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (stateless curricula need none)
        """Continues from what `state_dict` returned; an empty mapping is the beginning."""


@CURRICULA.register("uniform")
class Uniform(Curriculum):
    """All problems in a random order, each `repeats` times in a row, and then in another order.

    From endless sources, and from those of more than four million problems, draws are independent.

    Args:
        repeats: K >= 1, attempts at each problem drawn; group methods compare the K.

    Raises:
        ValueError: `repeats` is below 1.
    """

    @kinds_checked
    def __init__(self, repeats: int = 1) -> None:
        self.repeats = _check_repeats(repeats)
        self.load_state_dict({})

    def next(self, rng: np.random.Generator, size: int) -> int:
        if self._left == 0 or self._index >= size:  # the source may have become another
            self._index, self._left = self._draw(rng, size), self.repeats
        self._left -= 1
        return self._index

    def _draw(self, rng: np.random.Generator, size: int) -> int:
        if size > _LARGEST_ORDER:
            return int(rng.integers(size))
        if self._size != size or self._place == size:
            self._seed, self._size, self._place = int(rng.integers(2**63)), size, 0
        self._place += 1
        return int(_order(self._seed, size)[self._place - 1])

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, f"_{name}") for name in _UNIFORM_STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._index, self._left, self._seed, self._size, self._place = (
            int(state.get(name, 0)) for name in _UNIFORM_STATE
        )


_UNIFORM_STATE = ("index", "left", "seed", "size", "place")
_LARGEST_ORDER = 2**22


@functools.lru_cache(maxsize=4)
def _order(seed: int, size: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(size)


@CURRICULA.register("sequential")
class Sequential(Curriculum):
    """The problems in order, each `repeats` times in a row, then from the first again.

    Expert iteration samples each problem exactly K times so; an evaluation goes through a test set so.

    Args:
        repeats: K >= 1, attempts per problem and pass.

    Raises:
        ValueError: `repeats` is below 1.
    """

    @kinds_checked
    def __init__(self, repeats: int = 1) -> None:
        self.repeats = _check_repeats(repeats)
        self._begun = 0

    def next(self, rng: np.random.Generator, size: int) -> int:
        index = self._begun // self.repeats % size
        self._begun += 1
        return index

    def state_dict(self) -> dict[str, Any]:
        return {"begun": self._begun}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._begun = int(state.get("begun", 0))


@CURRICULA.register("backtracking")
class Backtracking(Curriculum):
    """Attempts begin near the end of the reference solution, then ever earlier (Salimans & Chen 2018).

    As in the appendix of Havrilla et al. 2024, which found no gain. Of a solution with L steps before the line
    of its answer, ceil(tau * L) are given; tau falls by `decrement` as soon as a `window` of attempts that began at it
    has succeeded often enough, down to 0. Steps are lines. Problems without a solution begin at their beginning.

    Args:
        start: Initial value of tau, in [0, 1], probably that of Havrilla et al. 2024. [choice]
        decrement: Decrement of tau, above 0. [choice]
        threshold: Share of successes at which tau falls, in (0, 1]. [choice]
        window: Number of recent attempts whose successes are counted. [choice]

    Raises:
        ValueError: An argument is out of its range.
    """

    @kinds_checked
    def __init__(self, start: float = 0.9, decrement: float = 0.1, threshold: float = 0.7, window: int = 256) -> None:
        if not (0 <= start <= 1 and decrement > 0 and 0 < threshold <= 1 and window >= 1):
            raise ValueError(
                "backtracking needs start in [0, 1], decrement above 0, threshold in (0, 1] and window >= 1, got "
                f"{start}, {decrement}, {threshold} and {window}"
            )
        self.start, self.decrement, self.threshold, self.window = start, decrement, threshold, window
        self._problems = Uniform()
        self._level, self._seen, self._successes = 0, 0, 0

    @property
    def stage(self) -> int:
        return self._level

    @property
    def tau(self) -> float:
        """Share of the steps that is given."""
        return max(0.0, round(self.start - self._level * self.decrement, 9))

    def next(self, rng: np.random.Generator, size: int) -> int:
        return self._problems.next(rng, size)

    def prefix(self, problem: _Problem) -> str:
        *steps, _ = [line for line in (problem.solution or "").split("\n") if line.strip()] or [""]
        return "".join(f"{step}\n" for step in steps[: math.ceil(self.tau * len(steps))])

    def ended(self, problem: _Problem, is_success: bool, stage: int) -> None:
        if stage != self._level:
            return  # it was given something else than attempts are now
        self._seen += 1
        self._successes += is_success
        if self._seen == self.window:
            self._level += self._successes >= self.threshold * self.window and self.tau > 0
            self._seen = self._successes = 0

    def metrics(self) -> dict[str, float]:
        return {"tau": self.tau}

    def state_dict(self) -> dict[str, Any]:
        counts = {"level": self._level, "seen": self._seen, "successes": self._successes}
        return counts | {"problems": self._problems.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._problems.load_state_dict(state.get("problems", {}))
        self._level, self._seen, self._successes = (int(state.get(key, 0)) for key in ("level", "seen", "successes"))


@CURRICULA.register("prioritized_replay")
class PrioritizedReplay(Curriculum):
    """Prioritized level replay (Jiang et al. 2021): problems that are neither solved nor hopeless come again.

    Havrilla et al. 2024 found no gain, either. An attempt is at a new problem with probability `new`, else at one that
    has begun before, drawn from (1 - rho) P_score + rho P_staleness. P_score is proportional to 1 / rank^(1/beta) of
    the score p (1 - p), p being the problem's share of successes with one success and one failure added, which needs
    no critic; equal scores share their mean rank. P_staleness is proportional to 1 plus the draws since it came last,
    the present one included. Where every problem has begun, all draws are of those.

    Args:
        new: Probability of a new problem, while there is one.
        staleness: Weight rho of the staleness.
        temperature: Temperature beta. At the source's 0.1 nearly all draws of a batch would be of one problem. [choice]
        capacity: Number of problems remembered; beyond it the problem with the lowest score is dropped, the stalest of
            equal ones. [choice]
        memory: Weight of a problem's earlier visits at the next one, in [0, 1], because the policy has changed; the
            source keeps none. [choice]

    Raises:
        ValueError: An argument is out of its range.
    """

    @kinds_checked
    def __init__(
        self,
        new: float = 0.5,
        staleness: float = 0.1,
        temperature: float = 1.0,
        capacity: int = 4096,
        memory: float = 0.5,
    ) -> None:
        if not (0 < new <= 1 and 0 <= staleness <= 1 and temperature > 0 and capacity >= 1 and 0 <= memory <= 1):
            raise ValueError(
                "prioritized_replay needs new in (0, 1], staleness and memory in [0, 1], temperature above 0 and "
                f"capacity >= 1, got {new}, {staleness}, {memory}, {temperature} and {capacity}"
            )
        self.new, self.staleness, self.temperature = new, staleness, temperature
        self.capacity, self.memory = capacity, memory
        self.load_state_dict({})

    def next(self, rng: np.random.Generator, size: int) -> int | str:
        self._draws += 1
        begins_new = rng.random() < self.new and (self._num_new < size or self.capacity < size)
        if begins_new or not self._levels:
            self._num_new += 1
            return self._problems.next(rng, size)
        ids = list(self._levels)
        chosen = ids[int(rng.choice(len(ids), p=self.probabilities()))]
        self._levels[chosen][2] = self._draws
        return chosen

    def probabilities(self) -> NDArray[np.float64]:
        """Probabilities of the remembered problems, `[M]`, in the order in which they were first attempted."""
        levels = np.array(list(self._levels.values()))
        ranks = _mean_ranks(-self._scores(levels))
        weights = (ranks / ranks.min()) ** (-1 / self.temperature)  # or all could be 0 at a low temperature
        ages = self._draws - levels[:, 2] + 1.0
        return (1 - self.staleness) * weights / weights.sum() + self.staleness * ages / ages.sum()

    @staticmethod
    def _scores(levels: NDArray[np.float64]) -> NDArray[np.float64]:
        attempts, successes = levels[:, 0], levels[:, 1]
        return (successes + 1) * (attempts - successes + 1) / (attempts + 2) ** 2

    def ended(self, problem: _Problem, is_success: bool, stage: int) -> None:
        if stage == NO_STAGE:
            return  # the caller may have given a part of the solution
        level = self._levels.setdefault(problem.id, [0.0, 0.0, self._draws, self._draws])
        if level[3] != self._draws:  # another visit
            level[:2] = self.memory * level[0], self.memory * level[1]
            level[2] = level[3] = self._draws
        level[0] += 1
        level[1] += is_success
        if len(self._levels) > self.capacity:
            levels = np.array(list(self._levels.values()))
            del self._levels[list(self._levels)[int(np.lexsort((levels[:, 2], self._scores(levels)))[0])]]

    def metrics(self) -> dict[str, float]:
        return {"remembered": float(len(self._levels))}

    def state_dict(self) -> dict[str, Any]:
        levels = {key: list(level) for key, level in self._levels.items()}
        return {
            "levels": levels,
            "draws": self._draws,
            "new": self._num_new,
            "problems": self._problems.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # By id: attempts and successes, faded, the draws that it came last at, and those at which it was last counted.
        self._levels: dict[str, list[float]] = {key: list(level) for key, level in state.get("levels", {}).items()}
        self._draws, self._num_new = int(state.get("draws", 0)), int(state.get("new", 0))
        self._problems = Uniform()
        self._problems.load_state_dict(state.get("problems", {}))


class Subset(Curriculum):
    """Another curriculum, over some of a source's problems.

    Args:
        curriculum: Curriculum that chooses among them.
        indices: Indices of the problems, one at least.

    Raises:
        ValueError: There are no indices.
    """

    @kinds_checked
    def __init__(self, curriculum: Curriculum, indices: Sequence[int]) -> None:
        if not indices:
            raise ValueError("a subset needs at least one problem")
        self.curriculum = curriculum
        self.indices = indices

    def next(self, rng: np.random.Generator, size: int) -> int | str:
        key = self.curriculum.next(rng, len(self.indices))
        return key if isinstance(key, str) else self.indices[key]

    def prefix(self, problem: _Problem) -> str:
        return self.curriculum.prefix(problem)

    @property
    def stage(self) -> int:
        return self.curriculum.stage

    def ended(self, problem: _Problem, is_success: bool, stage: int) -> None:
        self.curriculum.ended(problem, is_success, stage)

    def metrics(self) -> dict[str, float]:
        return self.curriculum.metrics()

    def state_dict(self) -> dict[str, Any]:
        return self.curriculum.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.curriculum.load_state_dict(state)


class Batch(Curriculum):
    """A batch of another curriculum's problems, `repeats` attempts at each in a row, which learns nothing meanwhile.

    However often the environment goes back to its beginning, it is the same batch, so several processes can each sample
    a part of it.

    Args:
        curriculum: Curriculum that chooses the problems.
        repeats: K >= 1.

    Raises:
        ValueError: `repeats` is below 1.
    """

    @kinds_checked
    def __init__(self, curriculum: Curriculum, repeats: int = 1) -> None:
        self.curriculum = curriculum
        self.repeats = _check_repeats(repeats)
        self._before = curriculum.state_dict()
        self._key: int | str = 0
        self._left = 0

    def next(self, rng: np.random.Generator, size: int) -> int | str:
        if self._left == 0:
            self._key, self._left = self.curriculum.next(rng, size), self.repeats
        self._left -= 1
        return self._key

    def prefix(self, problem: _Problem) -> str:
        return self.curriculum.prefix(problem)

    def state_dict(self) -> dict[str, Any]:
        return {"curriculum": self.curriculum.state_dict(), "key": self._key, "left": self._left}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.curriculum.load_state_dict(state.get("curriculum", self._before))
        self._key, self._left = state.get("key", 0), int(state.get("left", 0))


def _mean_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, ascending, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _check_repeats(repeats: int) -> int:
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    return repeats


def make_curriculum(spec: str | Mapping[str, Any] | Curriculum) -> Curriculum:
    """The curriculum that `spec` names: "uniform", {"name": "sequential", "repeats": 8}, or one already made.

    Raises:
        UnknownNameError: No curriculum has that name.
        ValueError: The spec is none of these, its arguments do not fit the curriculum, or another package's curriculum
            cannot be used.
    """
    return CURRICULA.make(spec)
