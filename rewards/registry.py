"""Rewards by name: the built-in ones, and those of other packages' entry points."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..registry import Registry
from .base import Reward, how_to_register
from .dense import DenseReward
from .judged import JudgedReward
from .outcome import OutcomeReward
from .product import ProductReward
from .sparse import SparseReward
from .sum import SumReward

if TYPE_CHECKING:
    from ..models import OutcomeModel

REWARDS: Registry[Callable[..., Reward]] = Registry("reward", base=f"{Reward.__module__}:Reward")
REWARDS.register("sparse")(SparseReward)
REWARDS.register("dense")(DenseReward)
REWARDS.register("judged")(JudgedReward)


@REWARDS.register("sparse_orm")
@REWARDS.register("orm")
def _make_sparse_orm(
    orm: "str | Path | OutcomeModel", orm_mix: Literal["replace", "add"] = "replace", device: str | None = None
) -> OutcomeReward:
    """p(correct) by an outcome model, at the last token of an attempt that ended by itself."""
    return OutcomeReward(orm, dense=False, orm_mix=orm_mix, device=device)


@REWARDS.register("dense_orm")
def _make_dense_orm(
    orm: "str | Path | OutcomeModel",
    orm_mix: Literal["replace", "add"] = "replace",
    shaping: Literal["potential"] | None = None,
    device: str | None = None,
) -> OutcomeReward:
    """p(correct) by an outcome model, at the last token of every step."""
    return OutcomeReward(orm, dense=True, shaping=shaping, orm_mix=orm_mix, device=device)


@REWARDS.register("sum")
def _make_sum(terms: Sequence[Any]) -> SumReward:
    """`{"name": "sum", "terms": [[weight, reward], ...]}`, each reward as `make_reward` takes it."""
    if not all(isinstance(term, list | tuple) and len(term) == 2 for term in terms):
        raise ValueError(f"the terms of a sum are a list of pairs [weight, reward], not {terms!r}")
    named = _named([spec for _, spec in terms])
    return SumReward((name, weight, reward) for (name, reward), (weight, _) in zip(named, terms, strict=True))


@REWARDS.register("product")
def _make_product(terms: Sequence[str | Mapping[str, Any] | Reward]) -> ProductReward:
    """`{"name": "product", "terms": [reward, ...]}`, each reward as `make_reward` takes it."""
    if not all(isinstance(term, str | Mapping | Reward) for term in terms):
        raise ValueError(f"the terms of a product are a list of rewards, not {terms!r}")
    return ProductReward(_named(terms))


def _named(specs: Sequence[str | Mapping[str, Any] | Reward]) -> list[tuple[str, Reward]]:
    """The rewards of a sum or a product, each with its name; those of the same name are numbered."""
    rewards = [make_reward(spec) for spec in specs]
    names = [
        spec if isinstance(spec, str) else spec["name"] if isinstance(spec, Mapping) else type(spec).__name__
        for spec in specs
    ]
    return [
        (f"{name}-{names[:i].count(name) + 1}" if names.count(name) > 1 else name, reward)
        for i, (name, reward) in enumerate(zip(names, rewards, strict=True))
    ]


def make_reward(spec: str | Mapping[str, Any] | Reward) -> Reward:
    """A reward from its name, from `{"name": ..., **arguments}`, or the instance that was given.

    Raises:
        UnknownNameError: There is no such reward; the message suggests the nearest name.
        ValueError: The spec is none of these, or its arguments do not fit the reward.
    """
    if isinstance(spec, type) and issubclass(spec, Reward):
        raise ValueError(f"{spec.__name__} is a class of rewards, and no reward: {how_to_register(spec)}")
    return REWARDS.make(spec)
