"""Linear layers on processors where PyTorch takes twice the time for a product of float32 matrices.

PyTorch's x86 wheels take these products from MKL, which uses AVX-512 on Intel's processors alone. oneDNN, which they
have for other types of numbers, uses it wherever it is.
"""

import functools
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)

LEAST = 2**20
"""Multiplications of a product below which the way into oneDNN takes longer than it saves. [measured]"""


class OneDNNLinear(nn.Linear):
    """A linear layer that takes large float32 products from oneDNN, and everything else from where PyTorch does."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def use_onednn(model: _Module) -> _Module:
    """The model, with all its linear layers `OneDNNLinear` on a processor where that is faster.

    Weights, names and what is saved stay as they are; outputs and gradients are the same up to rounding.
    """
    if onednn_is_faster():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = OneDNNLinear
    return model


@functools.cache
def onednn_is_faster() -> bool:
    """True on AMD's processors with AVX-512, where PyTorch has both libraries."""
    # Neither is a promise of PyTorch's: without them, layers stay its own.
    if not hasattr(torch.cpu, "get_capabilities") or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
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
    if torch.compiler.is_compiling() or input.numel() * len(weight) < LEAST or not _takes(input, weight):
        return nn.functional.linear(input, weight, bias)
    if torch.is_grad_enabled():
        return _Linear.apply(input, weight, bias)
    return _product(input, weight, bias)


def _takes(input: Tensor, weight: Tensor) -> bool:
    """True if these are plain float32 tensors on a CPU, to be multiplied as they are."""
    plain = type(input) in _PLAIN and type(weight) in _PLAIN
    kinds = input.dtype == weight.dtype == torch.float32 and input.device.type == weight.device.type == "cpu"
    return plain and kinds and not torch.is_autocast_enabled("cpu")


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
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator hides names of parameters
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (gradient,) = gradients
        input, weight = ctx.saved_tensors
        of_input, of_weight, of_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            _product(gradient, weight.t()) if of_input else None,
            _product(rows.t(), input.flatten(0, -2).t()) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )
