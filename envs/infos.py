"""Infos: what an environment says about its slots, as dictionaries of arrays, each `key` with a mask `_key`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import FloatArray, IntArray
from ..rewards import Verdict
from .problems.base import Problem

Infos = dict[str, Any]


def start_infos(problems: Sequence[Problem], prompt_lengths: IntArray, attempts: IntArray) -> Infos:
    """Infos of `n` attempts that start, as arrays `[n]`."""
    return {
        "problem_id": objects([problem.id for problem in problems]),
        "prompt_length": prompt_lengths,
        "attempt": attempts,
    }


def end_infos(
    problems: Sequence[Problem],
    verdicts: Sequence[Verdict],
    attempts: IntArray,
    returns: FloatArray,
    lengths: IntArray,
    components: Mapping[str, FloatArray],
) -> Infos:
    """Infos of `n` attempts that end, as arrays `[n]` and dictionaries of them."""
    infos: Infos = {
        "is_success": np.array([verdict.correct for verdict in verdicts], dtype=np.bool_),
        "verdict": objects([verdict.reason for verdict in verdicts]),
        "answer": objects([verdict.answer for verdict in verdicts]),
        "problem_id": objects([problem.id for problem in problems]),
        "attempt": attempts,
        "episode_return": returns,
        "episode_length": lengths,
    }
    if components:
        infos["reward_components"] = dict(components)
    return infos


def add_infos(infos: Infos, num_envs: int, slots: IntArray, values: Mapping[str, Any]) -> Infos:
    """Adds to `infos` the values of some slots, in the layout of `VectorEnv._add_info`, all slots at once.

    Args:
        infos: Infos to change in place and return.
        num_envs: Number of slots N.
        slots: Slots `[n]` that the values belong to.
        values: Arrays `[n]`, dictionaries of them, or under "final_info" infos that are laid out over N slots already.
    """
    for key, value in values.items():
        if key == "final_info":
            array = value
        elif isinstance(value, dict):
            array = add_infos(infos.get(key, {}), num_envs, slots, value)
        else:
            array = infos.get(key)
            if array is None:
                empty = None if value.dtype == object else 0
                array = np.full(num_envs, empty, dtype=value.dtype)
            array[slots] = value
        mask = infos.setdefault(f"_{key}", np.zeros(num_envs, dtype=np.bool_))
        mask[slots] = True
        infos[key] = array
    return infos


def slot_info(infos: Mapping[str, Any], slot: int) -> dict[str, Any]:
    """Infos of one slot out of vectorized `infos`, as plain Python values."""
    info: dict[str, Any] = {}
    for key, value in infos.items():
        if key.startswith("_") or not infos[f"_{key}"][slot]:
            continue
        if isinstance(value, dict):
            info[key] = slot_info(value, slot)
        else:
            info[key] = value[slot].item() if isinstance(value[slot], np.generic) else value[slot]
    return info


def objects(values: Sequence[Any]) -> NDArray[Any]:
    """An array of Python objects, one each, whatever they are."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
