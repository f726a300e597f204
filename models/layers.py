"""The layers of a language model, whatever its architecture calls them."""

import copy
import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

_Module = TypeVar("_Module", bound=nn.Module)


def decoder_layers(model: PreTrainedModel) -> tuple[nn.Module, nn.ModuleList]:
    """The transformer layers of a language model, first to last, and the module that holds them.

    Raises:
        ValueError: No list has as many modules as the model's configuration has layers.
    """
    config = model.config.get_text_config()
    count = getattr(config, "decoder_layers", None) or config.num_hidden_layers  # BART's other name counts its encoder
    decoder = without_adapters(model).get_decoder()  # beside an encoder for images it is what reads text
    for root in (decoder, model):
        for module in root.modules() if isinstance(root, nn.Module) else ():
            for part in module.children():
                if isinstance(part, nn.ModuleList) and len(part) == count:
                    return module, part
    raise ValueError(f"{model_name(model)} does not keep its {count} layers in a list: its top ones cannot be told")


def trunk(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a causal language model that makes hidden states: all of it but its head, without adapters."""
    base: Any = without_adapters(model).base_model
    if base.get_output_embeddings() is not None:  # Llama 4 gives itself for its base model
        base = next(part for part in base.children() if isinstance(part, PreTrainedModel))
    return base


@torch.no_grad()
def path_to_head(model: PreTrainedModel) -> tuple[list[nn.Module], bool]:
    """The modules that hidden states pass from the last layer to the output layer: a norm, and in some a projection.

    Names do not tell them: there are norms for other things, and some of those come last. So the hidden states of a
    short forward pass are followed from module to module.

    Returns:
        The modules in order, and whether the output layer reads what the last of them makes, or something else.
    """
    _, layers = decoder_layers(model)
    path: list[nn.Module] = []
    current: list[Any] = []
    inside: list[nn.Module] = []
    reads_it = False

    def leave_layers(_: nn.Module, inputs: Any, output: Any) -> None:
        current[:] = [output[0] if isinstance(output, tuple | list) else output]

    def enter(module: nn.Module, inputs: Any, named: Any) -> None:
        if current and not inside and any(value is current[0] for value in (*inputs, *named.values())):
            inside.append(module)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        if inside and inside[0] is module:
            inside.clear()
            path.append(module)
            current[:] = [output]

    def read(_: nn.Module, inputs: Any) -> None:
        nonlocal reads_it
        found = bool(current) and isinstance(current[0], Tensor)
        reads_it = found and inputs[0].shape == current[0].shape and torch.equal(inputs[0], current[0])
        current.clear()

    head = cast(nn.Module, model.get_output_embeddings())
    within = {part for layer in layers for part in layer.modules()} | set(head.modules())
    hooks = [layers[-1].register_forward_hook(leave_layers), head.register_forward_pre_hook(read)]
    for module in model.modules():
        if module not in within:
            hooks += [module.register_forward_pre_hook(enter, with_kwargs=True), module.register_forward_hook(leave)]
    try:
        short_pass(model)
    finally:
        for hook in hooks:
            hook.remove()
    return path, reads_it


def deep_copy(module: _Module) -> _Module:
    """A deep copy; states that a forward pass has left in a module lose the graphs that made them."""
    for part in module.modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                vars(part)[name] = value.detach()
    return copy.deepcopy(module)


def without_graphs(module: nn.Module) -> dict[int, Any]:
    """A memo of `copy.deepcopy` that leaves out what a forward pass has left in a module: it has a graph."""
    parts = (value for part in module.modules() for value in vars(part).values())
    return {id(value): None for value in parts if isinstance(value, Tensor) and not value.is_leaf}


@torch.no_grad()
def short_pass(model: PreTrainedModel) -> Any:
    """A model's output for two tokens, without cache and dropout: for hooks that follow what a forward pass does."""
    with evaluating(model):
        return model(input_ids=torch.zeros((1, 2), dtype=torch.long, device=model.device), use_cache=False)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the block, all modules of a model are in evaluation mode, without dropout."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def recomputed(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Within the block, layers keep nothing but their inputs, and run again in the backward pass.

    Activations then take memory for one layer at a time, for about a third more computing (Chen et al. 2016).
    """
    before = [(layer, layer.__dict__.get("forward")) for layer in layers]
    for layer, _ in before:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer, forward in before:
            del layer.forward
            if forward is not None:
                layer.forward = forward


def train_top_layers(model: PreTrainedModel, count: int) -> None:
    """Leaves gradients to the top `count` layers and the norm behind them, and freezes the rest.

    Raises:
        ValueError: The model has fewer layers.
    """
    _, layers = decoder_layers(model)
    check_depth("trained_layers", count, model)
    model.requires_grad_(False)
    for part in (*layers[-count:], *path_to_head(model)[0]):
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
    """Name of a model for messages: the class, and the source of the weights."""
    model = without_adapters(model)
    return f"{type(model).__name__} {model.name_or_path!r}" if model.name_or_path else type(model).__name__
