"""Array types that signatures name, and the numbers that functions of users return."""

from collections.abc import Sized

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


def as_floats(found: object) -> FloatArray | None:
    """What a function returned, as float64 of its own shape; `None` if it is no numbers, or NumPy cannot read them.

    PyTorch's tensors are numbers to NumPy if they are on the CPU, in single or double precision and without gradients.
    """
    try:
        return np.asarray(found, np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor that requires gradients
        return None


def finite_scores(found: object, count: int) -> FloatArray | None:
    """What a function returned, as `count` numbers `[count]`; `None` if it is something else or not finite."""
    scores = as_floats(found)
    return scores if scores is not None and scores.shape == (count,) and np.isfinite(scores).all() else None


def described(found: object) -> str:
    """A value in one line of a message; of a long one its beginning, and how many items it has."""
    text = " ".join(repr(found).split())
    if len(text) > 200:
        text = f"{text[:200]}..." + (f" ({len(found)} items)" if isinstance(found, Sized) else "")
    return f"{text} (of a tensor, give .detach().float().cpu())" if "tensor(" in text else text


def name_of(function: object) -> str:
    """Name of a function, or of the class of what is called like one."""
    return getattr(function, "__qualname__", type(function).__name__)
