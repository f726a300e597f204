"""A copy of a language model's matrices in bfloat16, to decode as it is trained under autocast."""

import copy
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..forward import output_head
from ..head import float32_forward
from ..layers import without_graphs


class HalfCopy:
    """A model whose matrices are rounded to bfloat16 once, where autocast would round them at every token.

    Whatever else is float32 in training is so in decoding: sums between layers, norms and the output head. So the copy
    computes what training computes, and takes 2 bytes for each weight of a linear layer; embeddings, norms and the head
    are those of the model itself.

    Args:
        model: Language model with weights in float32.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._copy: PreTrainedModel | None = None
        self._pairs = [(weight, torch.empty(0)) for weight in _matrices(model)]

    def newest(self) -> PreTrainedModel:
        """The copy, with the weights that the model has now."""
        if self._copy is None:
            self._copy = self._make()
        with torch.no_grad():
            for weight, half in self._pairs:
                half.copy_(weight)
        return self._copy.eval()

    def tensors(self) -> list[Tensor]:
        """The weights of the copy that are not the model's own."""
        self.newest()
        return [half for _, half in self._pairs]

    def _make(self) -> PreTrainedModel:
        self._pairs = [(weight, torch.empty_like(weight, dtype=torch.bfloat16)) for weight, _ in self._pairs]
        memo: dict[int, Any] = {id(parameter): parameter for parameter in self.model.parameters()}
        memo |= {id(buffer): buffer for buffer in self.model.buffers()}
        memo |= {id(weight): nn.Parameter(half, requires_grad=False) for weight, half in self._pairs}
        made = copy.deepcopy(self.model, memo | without_graphs(self.model))
        head = output_head(made)
        if (forward := float32_forward(head)) is not None:
            head.forward = forward
        made.forward = torch.autocast(made.device.type, torch.bfloat16)(made.forward)
        return made


def half_copy(model: PreTrainedModel) -> HalfCopy | None:
    """A copy to decode with in bfloat16; `None` if the weights are no longer than that."""
    return HalfCopy(model) if any(weight.dtype == torch.float32 for weight in _matrices(model)) else None


def _matrices(model: PreTrainedModel) -> Iterator[nn.Parameter]:
    """Weights and biases of linear layers, but of the output head, that no other layer shares."""
    head = set(output_head(model).modules())
    linear = [part for part in model.modules() if isinstance(part, nn.Linear | Conv1D) and part not in head]
    found = {id(parameter): parameter for part in linear for parameter in part.parameters(recurse=False)}
    inside = set(linear)
    for part in model.modules():
        if part not in inside:
            for parameter in part.parameters(recurse=False):
                found.pop(id(parameter), None)
    return iter(cast(list[nn.Parameter], list(found.values())))
