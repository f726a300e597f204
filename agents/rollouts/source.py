"""What agents accept as their environment, and how they notice that its problems have changed."""

import copy
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from ...arrays import described
from ...envs.problems.base import ProblemSource
from ...envs.token_vector_env import TokenVectorEnv
from ...registry import unknown_name

Environment = str | EnvSpec | gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any]
"""An environment's id, its spec or a `gym.make` product, or slots made by hand."""


def find_source(env: Environment) -> EnvSpec | TokenVectorEnv:
    """What to make slots from: the environment's spec, or the slots themselves where they were made by hand.

    Raises:
        TypeError: `env` is no environment, is wrapped, or has no spec.
        UnknownNameError: No environment has this id, and the nearest is suggested.
    """
    if isinstance(env, str):
        try:
            return gym.spec(env)
        except gym.error.Error as error:
            known = [name for name in gym.registry if name.startswith("tokengym/")]
            raise unknown_name("environment", env, known) from error
    if isinstance(env, EnvSpec):
        return env
    if not isinstance(env, gym.Env | gym.vector.VectorEnv):
        raise TypeError(
            f"{env!r} is no environment: give the id of one, its spec or a gym.make product, or make slots of problems "
            'by TokenVectorEnv(problems, num_envs, autoreset_mode="Disabled")'
        )
    if isinstance(env, gym.vector.VectorWrapper) or (env.spec is not None and env.spec.additional_wrappers):
        raise TypeError(
            f"{env} is wrapped, and an agent makes slots of its own, without the wrapper: give the environment itself, "
            "and what the wrapper does as a reward, a curriculum or a setting of it"
        )
    if env.spec is not None:
        return env.spec
    if isinstance(env, TokenVectorEnv):
        return env
    raise TypeError(f"{env} has no spec to make slots from: give its id, or a TokenVectorEnv")


def env_record(source: EnvSpec | TokenVectorEnv) -> str:
    """An environment as runs and models record it: its spec as JSON, of which it can be made again.

    For slots made by hand it is the text of their problems, and for a spec with objects among its arguments their
    texts, the same in every process.
    """
    if isinstance(source, TokenVectorEnv):
        return repr(source.problems)
    spec = copy.copy(source)
    spec.kwargs = _plain(source.kwargs)
    try:
        return spec.to_json()
    except (TypeError, ValueError):
        arguments = ", ".join(f"{name}={described(value)}" for name, value in spec.kwargs.items())
        return re.sub(r" at 0x[0-9a-f]+", "", f"{spec.id}: {arguments}")


def _plain(value: Any) -> Any:
    """A value with paths as text and numbers of NumPy as Python's, which JSON has."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, Path) else value


def fingerprint(problems: ProblemSource) -> str:
    """A digest of a source's first problems, by which a run notices that its data changed.

    An endless source that has a text of its own, with all of its settings, is known by that.
    """
    if problems.size is None and type(problems).__repr__ is not ProblemSource.__repr__:
        return repr(problems)
    digest = hashlib.sha256(str(problems.size).encode())
    for index in range(100 if problems.size is None else min(problems.size, 10_000)):
        problem = problems[index]
        digest.update(repr((problem.id, problem.question, problem.answer, problem.solution)).encode())
    return digest.hexdigest()[:16]
