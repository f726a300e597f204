"""The rollout engine: KV caches with one row per environment slot, decoding, scoring, sampling."""

from typing import TYPE_CHECKING

from ...lazy import lazy_names

if TYPE_CHECKING:
    from .cache import SlotCache, SlotModel
    from .conditioned_decoder import ConditionedDecoder
    from .decoder import SlotDecoder
    from .sampling import GREEDY, SamplingConfig, sample, stream_key, uniforms
    from .scorer import SlotScorer
    from .vllm_decoder import VLLM, BaseVLLM, VLLMDecoder
    from .vllm_servers import VLLMServers

__all__ = [
    "GREEDY",
    "VLLM",
    "BaseVLLM",
    "ConditionedDecoder",
    "SamplingConfig",
    "SlotCache",
    "SlotDecoder",
    "SlotModel",
    "SlotScorer",
    "VLLMDecoder",
    "VLLMServers",
    "sample",
    "stream_key",
    "uniforms",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "cache": ("SlotCache", "SlotModel"),
        "conditioned_decoder": ("ConditionedDecoder",),
        "decoder": ("SlotDecoder",),
        "sampling": ("GREEDY", "SamplingConfig", "sample", "stream_key", "uniforms"),
        "scorer": ("SlotScorer",),
        "vllm_decoder": ("VLLM", "BaseVLLM", "VLLMDecoder"),
        "vllm_servers": ("VLLMServers",),
    },
)
