"""Curricula: which problem the next attempt starts from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..registry import Registry

CURRICULA: "Registry[Callable[..., Curriculum]]" = Registry("curriculum")
"""Curricula by name; third parties join through the entry-point group `tokengym.curriculums`."""


class Curriculum(ABC):
    """Chooses the problem of each attempt, in the order in which attempts begin."""

    @abstractmethod
    def next(self, rng: np.random.Generator, size: int) -> int:
        """Index in `[0, size)` of the next attempt's problem; draws from `rng` and from no other random state."""

    def state_dict(self) -> dict[str, Any]:
        """What `next` depends on beside its arguments, as JSON values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (stateless curricula need none)
        """Continues from what `state_dict` returned; an empty mapping is the beginning."""


@CURRICULA.register("uniform")
class Uniform(Curriculum):
    """Every problem equally likely, drawn anew for every `repeats` attempts in a row.

    Args:
        repeats: K >= 1, attempts at each problem drawn; group methods compare the K.

    Raises:
        ValueError: `repeats` is below 1.
    """

    def __init__(self, repeats: int = 1) -> None:
        self.repeats = _check_repeats(repeats)
        self._index, self._left = 0, 0

    def next(self, rng: np.random.Generator, size: int) -> int:
        if self._left == 0:
            self._index, self._left = int(rng.integers(size)), self.repeats
        self._left -= 1
        return self._index

    def state_dict(self) -> dict[str, Any]:
        return {"index": self._index, "left": self._left}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._index, self._left = int(state.get("index", 0)), int(state.get("left", 0))


@CURRICULA.register("sequential")
class Sequential(Curriculum):
    """The problems in order, each `repeats` times in a row, then from the first again.

    Expert iteration samples each problem exactly K times so; an evaluation goes through a test set so.

    Args:
        repeats: K >= 1, attempts per problem and pass.

    Raises:
        ValueError: `repeats` is below 1.
    """

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


def _check_repeats(repeats: int) -> int:
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    return repeats


def make_curriculum(spec: str | Mapping[str, Any] | Curriculum) -> Curriculum:
    """The curriculum that `spec` names: "uniform", {"name": "sequential", "repeats": 8}, or one already made.

    Raises:
        UnknownNameError: no curriculum has that name.
        ValueError: a mapping without a "name".
        TypeError: the curriculum takes no such argument.
    """
    if isinstance(spec, Curriculum):
        return spec
    if isinstance(spec, str):
        return CURRICULA.get(spec)()
    arguments = dict(spec)
    if "name" not in arguments:
        raise ValueError(f'a curriculum given as a mapping needs a "name", got {arguments}')
    return CURRICULA.get(arguments.pop("name"))(**arguments)
