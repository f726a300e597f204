"""Reference policies, and values as training's forward passes compute them."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...models.adapters import started
from .fine_tuning import restore, snapshot
from .learner import Example, Learner
from .sharding import named_parameters

if TYPE_CHECKING:
    from peft import PeftModel

TokenValues = list[NDArray[np.float32]]
"""One value for each token of each attempt, `[T]` of each."""


class Reference:
    """A policy as it was at some time: what a KL penalty is against.

    With LoRA it is the model without its adapter; after a refresh, or if the adapter was trained before, it is the
    model with a copy of the adapter. Without LoRA it is a frozen copy of the model.

    Args:
        model: Policy whose present state becomes the reference.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._adapted = cast("PeftModel", model) if hasattr(model, "disable_adapter") else None
        self._copy = copy.deepcopy(model).requires_grad_(False) if self._adapted is None else None
        self._refreshed: dict[str, Tensor] = {}  # trainable weights since the last refresh, those of the copy itself
        if self._adapted is not None and started(model):
            self.refresh()

    @property
    def modules(self) -> list[nn.Module]:
        """The models that it holds besides the policy."""
        return [] if self._copy is None else [self._copy]

    def logprobs(self, learner: Learner, examples: Sequence[Example], temperature: float) -> TokenValues:
        """Log-probabilities `[T]` of each completion's tokens."""
        if self._adapted is None:
            return learner.logprobs(examples, temperature, self._copy)
        if not self._refreshed:
            with self._adapted.disable_adapter():
                return learner.logprobs(examples, temperature, self._adapted.get_base_model())  # pyright: ignore
        newest = snapshot(self._model)
        restore(self._model, self._refreshed)
        try:
            return learner.logprobs(examples, temperature, self._model)
        finally:
            restore(self._model, newest)

    def refresh(self) -> None:
        """Makes the policy as it is now the reference."""
        self.load_state(snapshot(self._model))

    def state(self) -> dict[str, Tensor]:
        """The weights that the reference has instead of those that the model was loaded with, if any."""
        return self._refreshed

    def weights(self) -> dict[str, Tensor]:
        """The weights that the reference has where the policy is trained; none if it is the policy without adapters."""
        if self._copy is None:
            return self._refreshed
        trained = {name for name, parameter in named_parameters(self._model) if parameter.requires_grad}
        return {name: parameter for name, parameter in named_parameters(self._copy) if name in trained}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores what `state` gave."""
        if not tensors:
            return
        self._refreshed = dict(tensors)
        if self._copy is not None:
            restore(self._copy, self._refreshed)
            self._refreshed = {name: p for name, p in named_parameters(self._copy) if name in tensors}


def shuffled(
    count: int, epochs: int, minibatches: int, seed: Sequence[int], group_size: int = 1
) -> list[NDArray[np.int64]]:
    """The rows of each update: `epochs` times all `count` of them, in a new order each time, in nearly equal parts.

    Groups keep together but where a part ends: attempts at one problem then share the forward pass of its prompt.

    Args:
        count: Number of rows.
        epochs: Number of passes over all rows.
        minibatches: Number of parts of each pass.
        seed: Seed of the orders.
        group_size: Number of rows in each group, which are consecutive.
    """
    starts = np.arange(0, count, group_size)
    return [
        rows
        for epoch in range(epochs)
        for rows in np.array_split(
            (np.random.default_rng([*seed, epoch]).permutation(starts)[:, None] + np.arange(group_size)).ravel(),
            minibatches,
        )
    ]


def evaluate_as_trained(
    evaluate: Callable[[Sequence[Example]], tuple[TokenValues, ...]],
    examples: Sequence[Example],
    minibatches: Sequence[NDArray[np.int64]],
) -> tuple[TokenValues, ...]:
    """Values of `evaluate` for each completion's tokens, each minibatch in the forward passes that will train on it.

    The ratio of an update is to the policy that acted, as the training forward pass sees it: log-probabilities recorded
    in the rollout differ from it by rounding (1e-6 in float32, 1e-2 in bfloat16), which is no step of the policy. Each
    minibatch is evaluated as it will be trained, so that the first ratio is exactly 1; and a reference is, so that the
    first divergence from it is exactly 0.

    Args:
        evaluate: Function that returns values of each completion's tokens, one list for each output.
        examples: Examples of all minibatches.
        minibatches: Minibatches of one epoch, by the rows of the examples that they train on; rows in none get no
            values.
    """
    found: list[TokenValues] = []
    for rows in minibatches:
        if len(rows):
            outputs = evaluate([examples[i] for i in rows])
            found = found or [[np.empty(0, np.float32)] * len(examples) for _ in outputs]
            for values, output in zip(found, outputs, strict=True):
                for i, value in zip(rows, output, strict=True):
                    values[i] = value
    return tuple(found)
