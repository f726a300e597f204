"""A tiny random model of each type that transformers can read and write text with, for tests and tables.

Sizes are small, but what tells architectures apart is kept: every kind of layer that a type has by default, windows and
chunks that short rows reach past, several experts, shared keys and values.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
"""The types of models that transformers loads as causal language models."""

WINDOW, CHUNK = 6, 8
"""Tokens of a window, and of a chunk."""

POSITIONS = 256
"""The longest sequence of each model that has such a limit."""

# Above this many weights a type has sizes that are not known here, and making it could take all memory.
_MOST_WEIGHTS = 3_000_000

_WIDTH, _DEPTH, _HEADS, _GROUPS, _HEAD, _INNER = 64, 4, 4, 2, 16, 96
# Names of sizes in transformers' configurations, by size.
_SIZES: dict[int, str] = {
    _WIDTH: "hidden_size n_embd d_model dim model_dim embedding_size word_embed_proj_dim lru_width emb_dim",
    _DEPTH: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_attention_heads n_head "
    "n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads num_experts num_local_experts "
    "n_routed_experts moe_num_experts index_n_heads linear_num_value_heads",
    _GROUPS: "num_key_value_heads num_kv_heads num_experts_per_tok moe_k moe_topk top_k linear_num_key_heads "
    "num_kv_shared_layers",
    _HEAD: "head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim hidden_size_per_layer_input mamba_d_head "
    "mamba_d_state mamba_head_dim ssm_state_size state_size linear_key_head_dim linear_value_head_dim",
    _INNER: "intermediate_size ffn_dim d_inner ffn_hidden_size decoder_ffn_dim encoder_ffn_dim n_inner dff mlp_dim "
    "d_ff",
    POSITIONS: "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions seq_length "
    "max_sequence_length",
    _INNER // 2: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size",
    32: "q_lora_rank kv_lora_rank index_head_dim",
    8: "laurel_rank mamba_n_heads mamba_num_heads index_topk rotary_dim",
    1: "n_group topk_group first_k_dense_replace mamba_n_groups n_groups",
}
_BY_NAME = {name: size for size, names in _SIZES.items() for name in names.split()}
_WINDOWS = ("sliding_window", "attention_window", "window_size", "attention_window_size", "sliding_window_size")

_FULL, _SLIDING, _LINEAR = "full_attention", "sliding_attention", "linear_attention"
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_MIXED = {"layer_types": [_LINEAR, _FULL] * 2}
_INKLING = {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
    "d_rel": 8,
    "rel_extent": 64,
}
# What the rules above leave out or get wrong.
_OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": _MIXED,
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {
        "layer_types": [_SLIDING, _SLIDING, _SLIDING, _FULL],
        "rope_parameters": {_SLIDING: _ROPE, _FULL: _ROPE},
    },
    "cpmant": {"dim_head": 16, "dim_ff": _INNER, "prompt_length": 4, "prompt_types": 2, "segment_types": 2},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v4": {"hidden_size": 32, "o_groups": 2, "o_lora_rank": 8, "num_key_value_heads": 1, "index_topk": 4},
    "dots1": {
        "n_shared_experts": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": [_SLIDING, _FULL] * 2,
    },
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma4_text": {"layer_types": [_SLIDING, _FULL] * 2},
    "gemma4_unified_text": {"layer_types": [_SLIDING, _FULL] * 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": _MIXED,
    "inkling_text": {**_INKLING, "hidden_size": 32, "n_shared_experts": 1},
    "inkling2_text": {**_INKLING, "unpadded_vocab_size": None, "n_layers_per_attn_res_block": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {**_MIXED, "linear_head_dim": 16, "linear_num_heads": 4},
    "lfm2": {"layer_types": ["conv", _FULL] * 2},
    "lfm2_moe": {"layer_types": ["conv", _FULL] * 2},
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8},
    "minimax_m3_vl_text": {
        "hidden_size": 32,
        "dense_intermediate_size": _INNER,
        "shared_intermediate_size": 48,
        "rotary_dim": 16,
        "index_block_size": 8,
        "index_topk_blocks": 2,
    },
    "qwen4_exp_text": {
        "hc_lowrank": 8,
        "hc_count": 2,
        "ple_layer_ids": [1],
        "ple_embed_dim": 16,
        "ngram_vocab_size_base": 64,
        "heads_per_ngram": 2,
        "split_ngram_parts": 2,
        "make_ngram_vocab_size_divisible_by": 2,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "reformer": {
        "axial_pos_embds": False,
        "attn_layers": ["local", "local"],
        "local_attn_chunk_length": 16,
        "attention_head_size": 16,
        "feed_forward_size": _INNER,
    },
    "roc_bert": {
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
        "shape_vocab_size": 16,
        "pronunciation_vocab_size": 16,
    },
    "zamba2": {"layers_block_type": [_LINEAR, "hybrid"] * 2, "adapter_rank": 8},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
# Types that hold a text model and encoders for other things, and what the text model is if they do not say.
_TEXT = {
    "emu3": "emu3_text_model",
    "fuyu": "persimmon",
    "gemma4_assistant": "gemma4_text",
    "got_ocr2": "qwen2",
    "moss_transcribe_diarize": "qwen3",
}
_ENCODER = {
    "patch_size": 14,
    "image_size": 28,
    "depth": 2,
    "num_layers": 2,
    "num_hidden_layers": 2,
    "conf_hidden_size": 64,
    "hidden_channels": 32,
}
_VISION = {
    "hidden_size": _WIDTH,
    "intermediate_size": _INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": _HEADS,
    "patch_size": 14,
    "image_size": 56,
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon, ALiBi": ("falcon", {"alibi": True}),
    "falcon, new decoder": ("falcon", {"new_decoder_architecture": True}),
    "gpt_neo, global layers": ("gpt_neo", {"attention_types": [[["global"], 4]]}),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "opt, projected": ("opt", {"word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    "phi3, window": ("phi3", {"sliding_window": WINDOW}),
    "phi3, longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 8,
                "long_factor": [4.0] * 8,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "qwen2, windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": [_SLIDING, _FULL] * 2},
    ),
    "qwen3, windows": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": [_SLIDING, _FULL] * 2},
    ),
    "llama, yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
}
"""Configurations beside the defaults: the type, and settings of its own."""


def tiny_config(kind: str, vocab_size: int, **own: Any) -> PreTrainedConfig:
    """A small configuration of a type.

    Args:
        kind: Name in `TYPES`.
        vocab_size: Number of tokens.
        own: Settings of the type's text model.

    Raises:
        Exception: Sizes do not fit together in a type not known here, which transformers refuses.
    """
    cls: Any = CONFIG_MAPPING[kind]
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    if "text_config" in defaults and "hidden_size" not in defaults:
        parts = {name: part for name, part in cls.sub_configs.items() if dataclasses.is_dataclass(part)}
        text = _TEXT.get(kind) or getattr(parts.get("text_config"), "model_type", "llama")
        encoders: dict[str, Any] = {name: _encoder(part) for name, part in parts.items() if name != "text_config"}
        encoders |= {"vision_config": {**_VISION}} if "vision_config" in cls.sub_configs.keys() - parts.keys() else {}
        return cls(text_config=tiny_config(text, vocab_size, **own), **encoders)
    sizes = {name: size for name, size in _BY_NAME.items() if name in defaults}
    for optional in ("n_inner", "index_topk", "rotary_dim", "attention_chunk_size"):
        if defaults.get(optional) is None:
            sizes.pop(optional, None)
    if "kv_lora_rank" in defaults:
        sizes["num_key_value_heads"] = _HEADS
    sizes |= {name: WINDOW for name in _WINDOWS if isinstance(defaults.get(name), int)}
    sizes |= {name: 0.0 for name, default in defaults.items() if "drop" in name and isinstance(default, float)}
    sizes |= {"attention_chunk_size": CHUNK} if defaults.get("attention_chunk_size") else {}
    sizes |= {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0 if defaults.get("pad_token_id") is not None else None,
    }
    sizes |= {"vocab_size": vocab_size, "vocab_size_per_layer_input": vocab_size, "is_decoder": True}
    sizes = {name: size for name, size in sizes.items() if name in defaults}
    if kind == "inkling2_text":
        own = {"unpadded_vocab_size": vocab_size, **own}
    return cls(**{**sizes, **copy.deepcopy(_OWN.get(kind, {})), **own})


def tiny_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A model whose random weights are large enough for every part of it to show in its outputs, in evaluation mode.

    Raises:
        ValueError: The model would have millions of weights.
    """
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if count > _MOST_WEIGHTS:
        raise ValueError(f"a {config.model_type} of these sizes has {count:,} weights")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 1 if "embed" in name else 1 / math.sqrt(parameter.shape[-1]))
        if (head := model.get_output_embeddings()) is not None:
            head.weight.normal_(0, 2 / math.sqrt(head.weight.shape[-1]))
    return model.eval()


def configurations(vocab_size: int, kinds: Sequence[str] = ()) -> Iterator[tuple[str, PreTrainedConfig | Exception]]:
    """All types and variants by name, each with its configuration, or with why none can be made small.

    Args:
        vocab_size: Number of tokens.
        kinds: Names of some types; by default all.
    """
    named = {kind: (kind, {}) for kind in TYPES} | VARIANTS
    for name in kinds or sorted(named):
        kind, own = named[name]
        try:
            yield name, tiny_config(kind, vocab_size, **own)
        except Exception as error:
            yield name, error


def _encoder(cls: Any) -> PreTrainedConfig:
    """A small configuration of an encoder."""
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    sizes = {name: size for name, size in {**_BY_NAME, **_ENCODER}.items() if isinstance(defaults.get(name), int)}
    parts = {name: _encoder(part) for name, part in cls.sub_configs.items() if dataclasses.is_dataclass(part)}
    return cls(**sizes, **parts)
