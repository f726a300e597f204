"""Sampling from next-token distributions, with a random stream of its own for every attempt.

A row's draw depends on its key and its position alone, so what an attempt samples does not depend on which other rows
share the batch, on refills, or on the number of slots.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from ..kept_tokens import KeptTokens
from ..layers import model_name

# SplitMix64 (Steele, Lea and Flood 2014), written for two's-complement int64, which is what torch has on every device.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64
_BLOCK = 256


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """Settings for drawing next tokens.

    Attributes:
        temperature: Temperature that divides the logits; 0 is greedy decoding.
        top_k: Number of most likely tokens to keep; `None` keeps all.
        top_p: Probability that the smallest set of most likely tokens to keep must reach (nucleus sampling); `None`
            keeps all.
        min_p: Least probability of a token to keep, as a share of the most likely token's (Nguyen et al. 2024, arXiv
            2407.01082); `None` keeps all.

    Tokens are dropped from the distribution at the temperature, by `top_k`, then `top_p`, then `min_p`.

    Raises:
        ValueError: The temperature is negative, `top_k` is below 1, or `top_p` or `min_p` is outside (0, 1].
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be a finite number >= 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {value}")

    @property
    def truncates(self) -> bool:
        """True if tokens may be dropped from the distribution."""
        return self.temperature > 0 and (self.top_k, self.top_p or 1, self.min_p) != (None, 1, None)


GREEDY = SamplingConfig(temperature=0.0)


def stream_key(seed: int, problem_id: str, attempt: int) -> int:
    """The 64-bit key, as a signed integer, of one attempt's random stream."""
    digest = hashlib.blake2b(f"{seed}/{attempt}/{problem_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def uniforms(keys: Tensor, positions: Tensor) -> Tensor:
    """Draws from [0, 1): number `positions[i]` of the stream `keys[i]`, as float64 of the same shape (SplitMix64)."""
    state = keys + (positions + 1) * _GAMMA
    state = (state ^ _shift_right(state, 30)) * _MIX_1
    state = (state ^ _shift_right(state, 27)) * _MIX_2
    state = state ^ _shift_right(state, 31)
    return _shift_right(state, 11).double() * 2.0**-53


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's own is arithmetic for int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def sample(logits: Tensor, keys: Tensor, positions: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Draws one token per row.

    Args:
        logits: `[R, V]` logits of any floating type; they are computed on in float32.
        keys: `[R]` int64 stream keys, see `stream_key`.
        positions: `[R]` int64 positions in the stream, one per token drawn.
        config: Settings of temperature and truncation.

    Returns:
        Tokens `[R]` int64 and their log-probabilities `[R]` float32 under the distribution that they were drawn from:
        at the sampling temperature and after truncation. Greedy decoding reports log-probabilities at temperature 1.
    """
    return draw(logits, keys, positions, config)[:2]


def sample_with_kept(
    logits: Tensor, keys: Tensor, positions: Tensor, config: SamplingConfig
) -> tuple[Tensor, Tensor, KeptTokens]:
    """Draws as `sample`, and returns the tokens that each row was drawn from, too."""
    tokens, logprobs, logits = draw(logits, keys, positions, config)
    return tokens, logprobs, KeptTokens.of(logits > -torch.inf)


def draw(logits: Tensor, keys: Tensor, positions: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Draws as `sample`, and returns the logits `[R, V]` that tokens were drawn from, too: -inf where none is kept."""
    logits = logits.float()
    if config.temperature == 0:
        tokens, normalizer = logits.argmax(-1), logits.logsumexp(-1)
    else:
        logits = _truncate(logits if config.temperature == 1 else logits / config.temperature, config)
        tokens, normalizer = _invert(logits, uniforms(keys, positions))
        tokens.clamp_(max=logits.shape[-1] - 1)
    return tokens, logits.gather(-1, tokens[:, None])[:, 0] - normalizer, logits


class NonFiniteLogitsError(ValueError):
    """A model's logits are infinite or NaN."""


def check_finite(logprobs: NDArray[np.float32], model: PreTrainedModel) -> None:
    """Makes sure that tokens were drawn from a distribution.

    Args:
        logprobs: `[R]` log-probabilities of drawn tokens.
        model: Model that they were drawn from.

    Raises:
        NonFiniteLogitsError: They are not finite.
    """
    if not np.isfinite(logprobs).all():
        rows = int((~np.isfinite(logprobs)).sum())
        raise NonFiniteLogitsError(
            f"the logits of {model_name(model)} are not finite in {rows} of {len(logprobs)} attempts: an update has "
            "broken its weights, or they were broken when it was loaded. Go back to a checkpoint from before, with a "
            "lower learning rate"
        )


def _truncate(logits: Tensor, config: SamplingConfig) -> Tensor:
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        threshold = logits.topk(config.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if config.top_p is not None and config.top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        outside = torch.empty_like(logits, dtype=torch.bool).scatter_(-1, order, before >= config.top_p)
        logits = logits.masked_fill(outside, -torch.inf)
    if config.min_p is not None:
        logits = logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(config.min_p), -torch.inf)
    return logits


def _invert(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Inverts the cumulative distribution at `uniform`: block sums first, then inside one block, both in float64.

    One uniform number and one pass over the vocabulary per row; a cumulative sum over 50,000 float32 probabilities
    would be slower and less exact. A token of probability zero is never drawn. Returns tokens `[R]` and the
    distribution's log-normalizer `[R]`.
    """
    peak = logits.amax(-1, keepdim=True)
    weights = (logits - peak).exp_()
    padding = -weights.shape[-1] % _BLOCK
    if padding:
        weights = torch.nn.functional.pad(weights, (0, padding))
    blocks = weights.unflatten(-1, (-1, _BLOCK))
    mass = blocks.sum(-1, dtype=torch.float64)
    ends = mass.cumsum(-1)
    target = uniform[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, target, right=True).clamp_(max=ends.shape[-1] - 1)  # NaN would be past the end
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, _BLOCK))[:, 0].double().cumsum(-1)
    offset = target - (ends - mass).gather(1, block)
    # Rounding may carry the offset to the block's very end, past its last token of positive weight.
    offset = torch.minimum(offset, torch.nextafter(inside[:, -1:], torch.zeros_like(offset)))
    tokens = block * _BLOCK + torch.searchsorted(inside, offset, right=True)
    return tokens[:, 0], peak[:, 0] + ends[:, -1].log().float()
