"""Linear layers on processors where PyTorch takes twice the time for a product of float32 matrices.

PyTorch's x86 wheels take these products from MKL, which uses AVX-512 on Intel's processors alone. oneDNN, which they
have for other types of numbers, uses it wherever it is.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from transformers.pytorch_utils import Conv1D

_Module = TypeVar("_Module", bound=nn.Module)

LEAST = 2**21
"""Multiplications of a product below which the way into oneDNN takes longer than it saves. [measured]"""


class OneDNNLinear(nn.Linear):
    """A linear layer that takes large float32 products from oneDNN, and everything else from where PyTorch does."""

    def forward(self, input: Tensor) -> Tensor:
        if _is_small(input, self.out_features):
            return super().forward(input)
        return _large(input, self.weight, self.bias, self)


class OneDNNConv1D(Conv1D):
    """GPT-2's linear layer, whose weight is `[in, out]`, in the same way."""

    def forward(self, x: Tensor) -> Tensor:
        if _is_small(x, self.nf):
            return super().forward(x)
        return _large(x, self.weight.t(), self.bias, self)


class PackedWeights:
    """Copies of linear layers' weights in the order in which oneDNN reads them, each made when it is first read.

    A product of few rows takes up to half as long: without them oneDNN orders a weight anew for each.
    """

    def __init__(self) -> None:
        self._made: dict[nn.Module, tuple[tuple[int, int], Tensor]] = {}

    @contextmanager
    def read(self) -> Iterator[None]:
        """Within the block, large products of oneDNN's layers that no gradient is wanted of read these copies."""
        token = _PACKED.set(self)
        try:
            yield
        finally:
            _PACKED.reset(token)

    def weight(self, layer: nn.Module, weight: Tensor) -> Tensor:
        """The copy of a layer's weight `[N, K]`, made anew if that was moved or changed in place.

        A weight made in inference mode is returned itself: nothing tells whether it was changed.
        """
        if weight.is_inference():
            return weight
        state = weight.data_ptr(), weight._version
        made = self._made.get(layer)
        if made is None or made[0] != state:
            made = self._made[layer] = state, torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
        return made[1]


_PACKED: ContextVar[PackedWeights | None] = ContextVar("packed weights", default=None)


def packed_weights(model: nn.Module, rows: int) -> list[Tensor]:
    """The weights that steps of so many rows read copies of."""
    weights = [module.weight for module in model.modules() if isinstance(module, OneDNNLinear | OneDNNConv1D)]
    return [weight for weight in weights if weight.dtype == torch.float32 and rows * weight.numel() >= LEAST]


_FASTER: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: OneDNNLinear, Conv1D: OneDNNConv1D}


def use_onednn(model: _Module) -> _Module:
    """The model, with all its linear layers on a CPU made oneDNN's where that is faster.

    Weights, names and what is saved stay as they are; outputs and gradients are the same up to rounding.
    """
    if onednn_is_faster():
        for module in model.modules():
            if type(module) in _FASTER and cast(Tensor, module.weight).device.type == "cpu":
                module.__class__ = _FASTER[type(module)]
    return model


@functools.cache
def onednn_is_faster() -> bool:
    """True on AMD's processors with AVX-512, where PyTorch has both libraries."""
    # None of these is a promise of PyTorch's: without them, layers stay its own.
    products = all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))
    if not hasattr(torch.cpu, "get_capabilities") or not products:
        return False
    found = torch.cpu.get_capabilities()
    libraries = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return found.get("avx512_f", False) and found.get("cpu_name", "").startswith("AMD") and libraries


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, with large float32 products on a CPU from oneDNN.

    Args:
        input: `[..., K]`.
        weight: `[N, K]`.
        bias: `[N]`.
    """
    if _is_small(input, weight.shape[0]):
        return nn.functional.linear(input, weight, bias)
    return _large(input, weight, bias)


def _large(input: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Module | None = None) -> Tensor:
    """A product that is not small; of a layer, where no gradient is wanted, perhaps by a copy of its weight."""
    if not _takes(input, weight):
        return nn.functional.linear(input, weight, bias)
    if torch.is_grad_enabled():
        return _Linear.apply(input, weight, bias)
    packed = _PACKED.get()
    return _product(input, weight if packed is None or layer is None else packed.weight(layer, weight), bias)


def _is_small(input: Tensor, outputs: int) -> bool:
    """True if PyTorch's own product is at least as fast; while it is compiled or traced by fx, it is always taken."""
    return torch.compiler.is_compiling() or type(input) not in _PLAIN or input.numel() * outputs < LEAST


def _takes(input: Tensor, weight: Tensor) -> bool:
    """True if these are plain float32 tensors on a CPU, to be multiplied as they are."""
    plain = type(input) in _PLAIN and type(weight) in _PLAIN
    kinds = input.dtype == weight.dtype == torch.float32 and input.device.type == weight.device.type == "cpu"
    return plain and kinds and not torch.is_autocast_enabled("cpu") and not _is_transformed()


def _is_transformed() -> bool:
    """True in transforms of `torch.func`, forward-mode differentiation and jit's tracing: oneDNN has no rules there.

    Without a gradient's graph, its products would lose tangents without an error.
    """
    traced = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]  # documented, and not exported
    return traced or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


_PLAIN = (Tensor, nn.Parameter)


def _product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # Inductor's name for the product; `mkldnn_linear`, the older one, copies what it reads and what it makes.
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return _product(input, weight, bias)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # as many gradients as outputs
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (gradient,) = gradients
        input, weight = ctx.saved_tensors
        of_input, of_weight, of_bias = ctx.needs_input_grad
        rows, inputs = gradient.reshape(-1, gradient.shape[-1]), input.reshape(-1, input.shape[-1])
        # Gradients of gradients and batches of them are PyTorch's own.
        own = torch.is_grad_enabled() or _is_transformed()
        return (
            (gradient @ weight if own else _product(gradient, weight.t())) if of_input else None,
            (rows.t() @ inputs if own else _gradient_of_weight(rows, inputs)) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _gradient_of_weight(gradient: Tensor, input: Tensor) -> Tensor:
    # Products with more columns than rows are the faster ones, by a fifth where one is four times the other.
    if gradient.shape[1] > input.shape[1]:
        return _product(input.t(), gradient.t()).t()
    return _product(gradient.t(), input.t())
