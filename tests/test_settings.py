"""Bounds and choices of settings, as their types say them."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from annotated_types import Ge, Lt

from tokengym.agents import AGENTS, SFT, evaluate, make_agent
from tokengym.agents.registry import config_class
from tokengym.envs import Problem, ProblemList
from tokengym.envs.curriculum import Backtracking, Uniform
from tokengym.envs.problems import Arithmetic, Dataset, Parity
from tokengym.models import load
from tokengym.rewards import SparseReward, SumReward, grade
from tokengym.rewards.grading.formats import Marker
from tokengym.settings import Count, CountOrZero, Finite, NonNegative, Positive, Share, check_settings, kinds_checked


@dataclass
class Config:
    steps: Count = 1
    shots: CountOrZero = 0
    limit: Count | None = None
    rate: Positive = 0.5
    weight: NonNegative = 0.0
    ratio: Share | None = 1.0
    smoothing: Annotated[float, Ge(0), Lt(0.5)] = 0.0
    unit: Literal["token", "sequence"] = "token"
    free: float = -1.0
    fast: bool = False
    folder: str | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    seeds: tuple[CountOrZero, ...] = (0,)
    shares: tuple[Share, ...] | None = None
    distances: tuple[Finite, ...] = (-1.0,)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"steps": 7, "shots": 3, "limit": 1, "rate": math.inf, "weight": 1e9, "ratio": None, "unit": "sequence"},
        {"ratio": 0.0, "smoothing": 0.49, "free": math.inf},
        {"steps": np.int64(2), "rate": np.float32(0.5), "weight": 1, "folder": Path("runs")},
    ],
)
def test_values_within_their_bounds_pass(values: dict[str, Any]) -> None:
    check_settings(Config(**values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"shots": -1}, "shots must be at least 0, got -1"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"rate": 0.0}, "rate must be above 0, got 0.0"),
        ({"rate": math.nan}, "rate must be above 0, got nan"),
        ({"weight": -0.1}, "weight must be at least 0 and finite, got -0.1"),
        ({"weight": math.inf}, "weight must be at least 0 and finite, got inf"),
        ({"free": math.nan}, "free must be a number, got nan"),
        ({"ratio": 1.5}, "ratio must be between 0 and 1, got 1.5"),
        ({"ratio": math.nan}, "ratio must be between 0 and 1, got nan"),
        ({"smoothing": 0.5}, "smoothing must be at least 0 and below 0.5, got 0.5"),
        ({"seeds": (0, -1)}, "seeds[1] must be at least 0, got -1"),
        ({"shares": (0.5, math.nan)}, "shares[1] must be between 0 and 1, got nan"),
        ({"distances": (math.inf,)}, "distances[0] must be finite, got inf"),
        ({"unit": "word"}, "unit must be one of token, sequence, got 'word'"),
        ({"unit": None}, "unit must be one of token, sequence, got None"),
    ],
)
def test_values_out_of_their_bounds_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        check_settings(Config(**values))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": "7"}, "steps must be a whole number, got '7'"),
        ({"steps": 2.5}, "steps must be a whole number, got 2.5"),
        ({"steps": None}, "steps must be a whole number, got None"),
        ({"betas": 0.9}, "betas must be a list, got 0.9"),
        ({"betas": "09"}, "betas must be a list, got '09'"),
        ({"betas": (0.9, "0.999")}, "betas[1] must be a number, got '0.999'"),
        ({"betas": [0.9]}, "betas must be a list of 2, got [0.9]"),
        ({"limit": [1]}, "limit must be a whole number or None, got [1]"),
        ({"rate": "1e-3"}, "rate must be a number, got '1e-3'"),
        ({"fast": 1}, "fast must be true or false, got 1"),
        ({"folder": 5}, "folder must be text or None, got 5"),
    ],
)
def test_values_of_another_kind_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError) as error:
        check_settings(Config(**values))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Arithmetic(steps=(1, "2")), "steps[1] must be a whole number, got '2'"),  # pyright: ignore
        (lambda: Arithmetic(seed=1.5), "seed must be a whole number, got 1.5"),  # pyright: ignore
        (lambda: Parity(p_cot="x"), "p_cot must be a number, got 'x'"),  # pyright: ignore
        (lambda: Dataset("x.jsonl", question=[5]), "question[0] must be text, got 5"),  # pyright: ignore
        (lambda: ProblemList(5), "problems must be a list or a mapping, got 5"),  # pyright: ignore
        (lambda: Uniform(1.5), "repeats must be a whole number, got 1.5"),  # pyright: ignore
        (lambda: Backtracking(window=2.5), "window must be a whole number, got 2.5"),  # pyright: ignore
        (lambda: Marker(5), "marker must be text, got 5"),  # pyright: ignore
        (lambda: SumReward(5), "terms must be a list, got 5"),  # pyright: ignore
        (lambda: SumReward([(1, 1.0, SparseReward())]), "terms[0][0] must be text, got 1"),  # pyright: ignore
        (lambda: SumReward([("a", 1.0, SparseReward)]),  # pyright: ignore
         f"the term 'a' must be a Reward, got {SparseReward!r}: give an instance"),
        (lambda: grade("#### 5", 5), "answer must be text, got 5"),  # pyright: ignore
        (lambda: Problem("a", "1+4", 5), "answer of problem 'a' must be text, got 5"),  # pyright: ignore
        (lambda: Problem("a", "1+4", "5", 5), "solution of problem 'a' must be text or None, got 5"),  # pyright: ignore
        (lambda: load("tokengym/tiny", lora_rank="a"), "lora_rank must be a whole number or None, got 'a'"),  # pyright: ignore
        (lambda: SFT("tokengym/Arithmetic-v0", seed="a"), "seed must be a whole number, got 'a'"),  # pyright: ignore
        (lambda: SFT("tokengym/Arithmetic-v0", run=5), "run must be text or a path or None, got 5"),  # pyright: ignore
        (lambda: make_agent(5, "tokengym/Arithmetic-v0"), "name must be text, got 5"),  # pyright: ignore
        (lambda: evaluate(None, "tokengym/Arithmetic-v0", problems="2"), "problems must be a whole number, got '2'"),  # pyright: ignore
    ],
)  # fmt: skip
def test_what_users_call_names_arguments_of_another_kind(call: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError) as error:
        call()
    assert str(error.value) == message


def test_arguments_are_checked_by_position_and_by_name_and_shown_as_they_are() -> None:
    @kinds_checked
    def total(first: int, *others: int, scale: float = 1.0, note: str = None, **named: str) -> float:  # noqa: RUF013
        return (first + sum(others)) * scale

    assert total(1, 2, 3, scale=2, note=None, other="a") == 12
    assert list(inspect.signature(total).parameters) == ["first", "others", "scale", "note", "named"]
    for call in (lambda: total("1"), lambda: total(first="1")):  # pyright: ignore
        with pytest.raises(TypeError, match="first must be a whole number, got '1'"):
            call()


@pytest.mark.parametrize("name", AGENTS.names())
def test_settings_read_without_the_agent_are_the_agents(name: str) -> None:
    assert config_class(name) is AGENTS.get(name).config_class
