"""Array types that signatures name, and the numbers that functions of users return."""

from collections.abc import Sized

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


def finite_scores(found: object, count: int) -> FloatArray | None:
    """What a function returned, as `count` numbers `[count]`; `None` if it is something else or not finite."""
    try:
        scores = np.asarray(found, np.float64)
    except (TypeError, ValueError):
        return None
    return scores if scores.shape == (count,) and np.isfinite(scores).all() else None


def described(found: object) -> str:
    """A value in one line of a message; of a long one its beginning, and how many items it has."""
    text = " ".join(repr(found).split())
    if len(text) <= 200:
        return text
    return f"{text[:200]}..." + (f" ({len(found)} items)" if isinstance(found, Sized) else "")


def name_of(function: object) -> str:
    """Name of a function, or of the class of what is called like one."""
    return getattr(function, "__qualname__", type(function).__name__)
