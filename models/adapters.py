"""LoRA adapters on disk: beside the weights they are merged into in float32, and bound to those they were trained on.

Merging them into weights in bfloat16 would round nearly all away of what a few updates have taught them.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..extras import need
from ..files import read_json, read_tensors
from .layers import deep_copy, without_adapters
from .quantized import expanded, expanded_model, is_in_4bit

FOLDER = "adapter"
"""Folder of a saved model's adapters, inside the model's own."""

_CONFIG = "adapter_config.json"
_RECORD = "base.json"


def is_adapter(folder: Path) -> bool:
    """True if `folder` holds adapters alone, as peft writes them."""
    return (folder / _CONFIG).is_file()


def base_name(folder: Path) -> str:
    """The name or path of the model that the adapters in `folder` were trained on.

    Raises:
        ValueError: The adapters are not LoRA adapters, or name no model.
    """
    config: dict[str, Any] = read_json(folder / _CONFIG)
    if config.get("peft_type") != "LORA" or not config.get("base_model_name_or_path"):
        raise ValueError(
            f"{str(folder / _CONFIG)!r} names peft_type {config.get('peft_type')!r} and base_model_name_or_path "
            f"{config.get('base_model_name_or_path')!r}: LoRA adapters with the name of their model can be loaded"
        )
    return config["base_model_name_or_path"]


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Writes a language model to `folder`: its adapters merged into float32 weights, and unmerged in `adapter`.

    Weights in 4 bits are expanded before adapters are merged into them, so that nothing is rounded again.

    Adapters that train the rows of new tokens, too, are written merged only: no model without them has these rows.
    """
    if not hasattr(model, "merge_and_unload"):
        model.save_pretrained(folder)
        return
    if is_in_4bit(model):
        expanded_model(model, merged_weights(model)).save_pretrained(folder)
    else:
        cast(Any, deep_copy(model)).float().merge_and_unload().save_pretrained(folder)
    if cast(Any, model).peft_config["default"].trainable_token_indices is None:
        cast(Any, model).save_pretrained(folder / FOLDER, save_embedding_layers=False)
        (folder / FOLDER / _RECORD).write_text(json.dumps(_record(model)) + "\n")


def with_saved_adapters(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with the adapters in `folder`, in float32, ready to be trained further.

    Args:
        model: Model that the adapters were trained on, in any precision; its layers are wrapped in place.
        folder: Folder that `save_model` or peft wrote.

    Raises:
        ValueError: The adapters were trained on another model.
    """
    need("lora", "reading adapters")
    from peft import PeftModel  # slow to import
    from peft.utils.save_and_load import get_peft_model_state_dict

    base = base_name(folder)
    record = folder / _RECORD
    known, found = read_json(record) if record.is_file() else {}, _record(model)
    compared = _FINGERPRINTS[0] if all(part.get(_FINGERPRINTS[0]) for part in (known, found)) else _FINGERPRINTS[1]
    if compared in known and known[compared] != found[compared]:
        raise ValueError(
            f"the adapters in {str(folder)!r} were trained on other weights than those of {base!r} now: load the "
            "merged model in the folder above, or put the weights back that they were trained on"
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # they are put in below
            adapted = PeftModel.from_pretrained(model, folder, is_trainable=True)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the adapters in {str(folder)!r} do not fit the model {base!r}: {error}") from error
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    saved = read_tensors(folder / "adapter_model.safetensors")
    if others := set(state) ^ set(saved):
        raise ValueError(
            f"the adapters in {str(folder)!r} do not fit the model {base!r}: {min(others)} is in one of them only"
        )
    with torch.no_grad():
        for name, value in saved.items():
            state[name].copy_(value)  # peft leaves out what transformers has other names for in its checkpoints
    return cast(PreTrainedModel, adapted)


def started(model: PreTrainedModel) -> bool:
    """True if the adapters of a model have been trained: they begin as the identity, with one factor 0."""
    return any(bool(parameter.any()) for name, parameter in model.named_parameters() if ".lora_B." in name)


def merged_weights(model: PreTrainedModel, leave_out: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Weights by their names in the model as it was loaded, with what adapters add to them; the model stays as it is.

    Merging in place and taking it back would leave rounding errors in the weights, update after update. Weights in 4
    bits are expanded.

    Args:
        model: Model with adapters or without.
        leave_out: Return the weights without what adapters add.
    """
    base = cast(Any, without_adapters(model))
    for name, parameter in base.named_parameters(remove_duplicate=False):  # tied ones by both names
        if ".base_layer." in name:
            owner, _, kind = name.partition(".base_layer.")
            layer = cast(Any, base.get_submodule(owner))
            merged = kind == "weight" and not leave_out
            delta = layer.get_delta_weight("default") if merged else 0
            yield f"{owner}.{kind}", (expanded(parameter) + delta).detach()
        elif ".lora_" not in name:
            yield name, expanded(parameter).detach()


_FINGERPRINTS = ("fingerprint", "outside_linear_layers")
"""Digests of all weights, and of those that are the same in 4 bits."""


def _record(model: PreTrainedModel) -> dict[str, str | None]:
    """What is written down of the weights that adapters belong to; of those in 4 bits not all can be known."""
    whole = None if is_in_4bit(model) else fingerprint(model)
    return dict(zip(_FINGERPRINTS, (whole, fingerprint(model, linear=False)), strict=True))


def fingerprint(model: PreTrainedModel, linear: bool = True) -> str:
    """A digest of a model's weights without adapters, the same in every precision down to bfloat16.

    Read from up to 64 numbers of each weight, evenly spaced: training changes some of them all over the model.

    Args:
        model: Model with adapters or without.
        linear: Read the weights of linear layers, too.
    """
    base = without_adapters(model)
    skipped = {name for name, part in base.named_modules() if not linear and isinstance(part, nn.Linear | Conv1D)}
    return _digest(base, lambda name: ".lora_" not in name and name.rpartition(".")[0] not in skipped)


def weights_fingerprint(model: PreTrainedModel) -> str:
    """A digest of the weights that training begins with, as `fingerprint`, those of trained adapters included.

    Linear layers in 4 bits do not count.
    """
    base = fingerprint(model, linear=not is_in_4bit(model))
    adapters = _digest(model, lambda name: ".lora_" in name) if started(model) else ""
    return hashlib.sha256((base + adapters).encode()).hexdigest()[:16]


def _digest(model: nn.Module, counts: Callable[[str], bool]) -> str:
    """A digest of those parameters of a model whose names count."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if counts(name):
            flat = parameter.detach().flatten()
            count = min(64, len(flat))
            some = flat[torch.arange(count, device=flat.device) * (len(flat) - 1) // max(1, count - 1)]
            plain = ".".join(part for part in name.split(".") if part != "base_layer")  # experts are wrapped twice
            digest.update(f"{plain} {tuple(parameter.shape)}".encode())
            digest.update(some.bfloat16().view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()
