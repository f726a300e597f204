"""The layers of a language model, whatever its architecture calls them."""

from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel


def decoder_layers(model: PreTrainedModel) -> tuple[nn.Module, nn.ModuleList]:
    """The transformer layers of a language model, first to last, and the module that holds them.

    Raises:
        ValueError: no list has as many modules as the model's configuration has layers.
    """
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        for part in module.children():
            if isinstance(part, nn.ModuleList) and len(part) == count:
                return module, part
    raise ValueError(f"{model_name(model)} does not keep its {count} layers in a list: its top ones cannot be told")


def final_norm(stack: nn.Module) -> nn.Module:
    """The norm behind the layers in the module that holds them; nothing for architectures without one."""
    norms = [part for part in stack.children() if "norm" in type(part).__name__.lower()]
    return norms[-1] if norms else nn.Identity()


def train_top_layers(model: PreTrainedModel, count: int) -> None:
    """Leaves gradients to the top `count` layers and the norm behind them, and freezes the rest.

    Raises:
        ValueError: the model has fewer layers.
    """
    stack, layers = decoder_layers(model)
    check_depth("trained_layers", count, model)
    model.requires_grad_(False)
    for part in (*layers[-count:], final_norm(stack)):
        part.requires_grad_()


def check_depth(setting: str, count: int, model: PreTrainedModel) -> None:
    """Raises `ValueError` unless the model has `count` layers."""
    depth = len(decoder_layers(model)[1])
    if not 1 <= count <= depth:
        raise ValueError(f"{setting} is {count}, but {model_name(model)} has {depth} layers: choose 1 to {depth}")


def without_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """The language model inside of one with adapters; another is returned as it is."""
    return cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model


def model_name(model: PreTrainedModel) -> str:
    """For messages: the class, and where the weights came from."""
    model = without_adapters(model)
    return f"{type(model).__name__} {model.name_or_path!r}" if model.name_or_path else type(model).__name__
