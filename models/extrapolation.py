"""ExPO: weights extrapolated beyond a trained model (Zheng et al. 2025, arXiv 2404.16792)."""

import math
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from .adapters import fingerprint, started
from .layers import deep_copy, model_name


def extrapolate(weaker: PreTrainedModel, stronger: PreTrainedModel, alpha: float) -> PreTrainedModel:
    """A new model with the weights stronger + alpha (stronger - weaker), computed in float32.

    Where logits are linear in the trained weights and `stronger` is the optimum of a reward under a KL penalty of
    weight beta against `weaker`, the result is the optimum under a weight of beta / (1 + alpha).

    If `stronger` is LoRA adapters on `weaker`, the result is the same adapters with their output scaled by 1 + alpha.
    Other adapters are merged first, and the result has none.

    Args:
        weaker: Model that training began from; it stays as it is.
        stronger: Model that was trained from it; it stays as it is, too.
        alpha: Distance beyond `stronger`, in multiples of its distance from `weaker`: 0 gives `stronger`, -1 gives
            `weaker`, and numbers between these interpolate.

    Returns:
        The new model, on the device of `stronger`; with float32 weights, or where `stronger` is adapters on `weaker`,
        with its own.

    Raises:
        ValueError: The models have weights of different names or shapes, or exactly the same weights, or alpha is not
            finite.
    """
    if not math.isfinite(alpha):
        raise ValueError(f"alpha must be finite, got {alpha}")
    if _are_adapters_on(stronger, weaker):
        if not started(stronger):
            raise _nothing_learned()
        result = deep_copy(stronger)
        with torch.no_grad():
            for name, parameter in result.named_parameters():
                if _is_factor(name, "B"):
                    parameter.mul_(1 + alpha)
        return result
    start, result = _merged(weaker), _merged(stronger)
    result = (deep_copy(result) if result is stronger else result).float()
    before, after = dict(start.named_parameters()), dict(result.named_parameters())
    shapes = [{name: tuple(weight.shape) for name, weight in weights.items()} for weights in (before, after)]
    if others := sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()}):
        name = others[0]
        raise ValueError(
            f"{model_name(weaker)} and {model_name(stronger)} differ in {len(others)} weights by name or shape: {name} "
            f"has shape {shapes[0].get(name, 'none')} in the weaker model and {shapes[1].get(name, 'none')} in the "
            "stronger. Extrapolate a model from the one that its training began from"
        )
    with torch.no_grad():
        olds = {name: old.to(after[name].device, torch.float32) for name, old in before.items()}
        if all(torch.equal(old, after[name]) for name, old in olds.items()):
            raise _nothing_learned()
        for name, new in after.items():
            new.copy_(torch.lerp(olds[name], new, 1 + alpha))  # exact at both ends
    return result


def _are_adapters_on(model: PreTrainedModel, base: PreTrainedModel) -> bool:
    """True if a model is LoRA adapters, and nothing else that was trained, on the weights of another."""
    if not hasattr(model, "peft_config") or hasattr(base, "peft_config"):
        return False
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    only_factors = all(_is_factor(name, "A") or _is_factor(name, "B") for name in trained)
    return only_factors and fingerprint(model) == fingerprint(base)


def _is_factor(name: str, factor: str) -> bool:
    return f".lora_{factor}." in name or f".lora_embedding_{factor}." in name


def _merged(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself, or a copy with its adapters merged in float32."""
    if not hasattr(model, "merge_and_unload"):
        return model
    return cast(PreTrainedModel, cast(Any, deep_copy(model)).float().merge_and_unload())


def _nothing_learned() -> ValueError:
    return ValueError("the stronger model has exactly the weights of the weaker: there is nothing to extrapolate")
