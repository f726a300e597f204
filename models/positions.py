"""The longest sequence that a language model computes right, and the source of that limit."""

from typing import Any

from transformers import PreTrainedConfig

_NO_LIMIT = 2**31


def position_limit(config: PreTrainedConfig) -> tuple[int, str]:
    """The longest sequence, in tokens, that a model computes the same alone, in a padded batch and token by token.

    Past some lengths, models change how they compute every token of a batch, the short sequences in it included. None
    of that is right in a policy whose attempts are sampled in one batch and learned from in another.

    Returns:
        The limit, 2^31 without one, and what sets it, for messages.
    """
    config = config.get_text_config()
    limits = [(_NO_LIMIT, "anything")]
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    if isinstance(positions, int) and positions > 0:
        limits.append((positions, f"the model's {positions} positions"))
    for rope in _rope_parameters(config):
        original = rope.get("original_max_position_embeddings")
        if rope.get("rope_type") == "longrope" and original:
            why = f"the {original} tokens past which longrope takes other frequencies for every sequence of a batch"
            limits.append((int(original), why))
    if getattr(config, "attn_temperature_tuning", False) and getattr(config, "floor_scale", None):  # Llama 4
        longest = int(config.floor_scale) - 1
        why = f"the {longest} tokens past which the attention's temperature follows the length of the cache"
        limits.append((longest, why))
    if "indexed_attention" in (getattr(config, "layer_types", None) or ()) and getattr(config, "index_topk", None):
        why = f"the {config.index_topk} tokens past which indexed_attention leaves keys out, and padding changes which"
        limits.append((int(config.index_topk), why))
    return min(limits)


def check_length(config: PreTrainedConfig, longest: int, what: str = "a sequence", advice: str = "") -> None:
    """Raises `ValueError`, with `advice` at its end, if `what`, of `longest` tokens, is too long for a model."""
    limit, why = position_limit(config)
    if longest > limit:
        raise ValueError(f"{what} of {longest} tokens is longer than {why}{advice}")


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """The rotary settings of a configuration, of which some models have one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [rope] if "rope_type" in rope else [each for each in rope.values() if isinstance(each, dict)]
