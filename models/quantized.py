"""Weights in 4 bits (QLoRA, Dettmers et al. 2023): read by bitsandbytes as they are, frozen, under adapters that train.

The weights of linear layers, but of the output head, are NF4 numbers in blocks of 64 with scales that are quantized
again. Every product expands its matrix to the precision of the activations, computes there, and drops it.
"""

import copy
import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..extras import need
from .layers import model_name, without_adapters

EXTRA = "quantization"
"""Extra of the distribution that reads and writes quantized numbers."""

_BLOCK, _SCALES = 64, 256  # numbers that share a scale, and scales that share another


def loading_in_4bit(dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` that quantize weights while they are loaded.

    Args:
        dtype: Precision of all other weights and of products.
        device: Device of the model.

    Raises:
        ImportError: The package bitsandbytes is not installed.
    """
    need(EXTRA, "loading in 4 bits")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def check_loaded(model: PreTrainedModel) -> None:
    """Makes sure that a model that was loaded in 4 bits can be trained and saved, and computes what it should.

    bitsandbytes 0.50.2 expands rows of a number that blocks do not divide wrong on CPUs with AVX-512, without an error.

    Raises:
        ValueError: No layer is in 4 bits, layers are that store their weights transposed, or bitsandbytes expands a
            weight wrong.
    """
    layers = list(_layers(model))
    if not layers:
        raise ValueError(f"{model_name(model)} has no linear layers that 4 bits are for: leave out load_in_4bit")
    for name, layer in layers:
        if getattr(layer, "source_cls", None) is Conv1D:
            raise ValueError(
                f"{model_name(model)} cannot be loaded in 4 bits, because {name} stores its weights transposed: leave "
                "out load_in_4bit"
            )
        if layer.weight.device.type == "cpu" and not torch.equal(expanded(layer.weight), _by_blocks(layer.weight)):
            raise ValueError(
                f"{model_name(model)} cannot be loaded in 4 bits on this CPU, because bitsandbytes expands the "
                f"{layer.in_features} columns of {name} wrong, as {_BLOCK} do not divide them: leave out load_in_4bit, "
                "or use a GPU"
            )
        layer.support_avx512bf16_for_cpu = False  # another kernel, which only runs where nothing is trained


def _by_blocks(weight: Any) -> Tensor:
    """A weight expanded as rows of one block each, which every kernel does right."""
    from bitsandbytes.functional import dequantize_4bit  # pyright: ignore[reportMissingImports]  # an extra

    state, count = copy.copy(weight.quant_state), math.prod(weight.quant_state.shape)
    if count % _BLOCK:
        return torch.full(weight.quant_state.shape, torch.nan)  # the last block is shorter
    state.shape = torch.Size((count // _BLOCK, _BLOCK))
    return dequantize_4bit(weight.data, state).reshape(weight.quant_state.shape)


def is_in_4bit(model: nn.Module) -> bool:
    """True if some weights of a model are in 4 bits, or stand in for such."""
    return any(True for _ in _layers(model)) or any(isinstance(part, CountedLinear) for part in model.modules())


def expanded(weight: Tensor) -> Tensor:
    """A weight in floating point, in the precision that it was loaded in before it was quantized."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit  # pyright: ignore[reportMissingImports]  # an extra

    return dequantize_4bit(weight.data, state)


def expand(module: nn.Module) -> None:
    """Puts plain layers, which can be trained as a whole, in the place of those in 4 bits inside of a module."""
    for name, part in list(module.named_children()):
        if _is_in_4bit(part):
            setattr(module, name, _plain(part, expanded(cast(Tensor, part.weight))))
        else:
            expand(part)


def expanded_model(model: PreTrainedModel, weights: Iterator[tuple[str, Tensor]]) -> PreTrainedModel:
    """A plain model in float32 of the architecture of one in 4 bits.

    Args:
        model: Model in 4 bits, with adapters or without.
        weights: Weights of the model in floating point, by their names without adapters.
    """
    base = without_adapters(model)
    config: Any = copy.deepcopy(base.config)
    del config.quantization_config
    with torch.device("meta"):
        plain = cast(Any, type(base))(config)
    state: dict[str, Tensor] = {name: weight.detach().float() for name, weight in weights}
    state |= {name: buffer for name, buffer in base.named_buffers() if name in plain.state_dict()}
    plain.load_state_dict(state, assign=True)
    plain.tie_weights()
    plain.generation_config = base.generation_config
    return plain


class CountedLinear(nn.Linear):
    """Stand-in for a layer in 4 bits where memory is counted: its weight is what products expand it to."""

    @property
    def stored(self) -> int:
        """Bytes of the weight in 4 bits, with both kinds of scales."""
        numbers = self.weight.numel()
        blocks = math.ceil(numbers / _BLOCK)
        return math.ceil(numbers / 2) + blocks + 4 * math.ceil(blocks / _SCALES)

    @property
    def in_use(self) -> int:
        """Bytes of the weight and its scales while a product runs."""
        return self.weight.nbytes + 4 * math.ceil(self.weight.numel() / _BLOCK)


def counted(model: PreTrainedModel) -> None:
    """Puts stand-ins in the place of the layers that loading in 4 bits would quantize."""
    head = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, part in list(module.named_children()):
            if type(part) is nn.Linear and part is not head:
                setattr(module, name, _plain(part, part.weight, CountedLinear))


def stand_ins(module: nn.Module) -> dict[int, nn.Module]:
    """Stand-ins without data for the layers in 4 bits of a module, by the ids of these; only inside of a dry run."""
    made: dict[int, nn.Module] = {}
    for _, layer in _layers(module):
        weight = torch.empty((layer.out_features, layer.in_features), dtype=cast(Any, layer.weight).quant_state.dtype)
        made[id(layer)] = _plain(layer, weight, CountedLinear)
    return made


def _plain(layer: Any, weight: Tensor, kind: type[nn.Linear] = nn.Linear) -> nn.Linear:
    with torch.device("meta"):
        plain = kind(layer.in_features, layer.out_features, bias=layer.bias is not None)
    plain.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if layer.bias is not None:
        bias = torch.empty_like(layer.bias, device=weight.device) if layer.bias.is_meta else layer.bias.detach()
        plain.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)
    return plain


def _layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, part) for name, part in module.named_modules() if _is_in_4bit(part))


def _is_in_4bit(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and getattr(module.weight, "quant_state", None) is not None
