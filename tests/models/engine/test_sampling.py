"""Sampling: the right distribution, from streams that belong to attempts alone."""

import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokengym.models.engine.sampling import (
    GREEDY,
    NonFiniteLogitsError,
    SamplingConfig,
    check_finite,
    sample,
    sample_with_kept,
    stream_key,
    uniforms,
)


def keys(*attempts: int) -> torch.Tensor:
    return torch.tensor([stream_key(0, "problem", attempt) for attempt in attempts])


def test_uniforms_are_splitmix64() -> None:
    """The published first outputs for the seed 1234567 (Vigna's reference implementation), scaled to [0, 1)."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    draws = uniforms(torch.full((4,), 1234567), torch.arange(4))
    assert draws.tolist() == [(value >> 11) * 2.0**-53 for value in expected]


@pytest.mark.parametrize("vocabulary", [3, 256, 1000])
def test_draws_follow_the_distribution(vocabulary: int) -> None:
    """Chi-squared against the softmax at the temperature: within six standard deviations of its mean."""
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(0)) * 0.5
    count, config = 200_000, SamplingConfig(temperature=0.7)
    tokens, _ = sample(logits.expand(count, -1), keys(1).expand(count), torch.arange(count), config)
    expected = (logits.double() / 0.7).softmax(-1) * count
    observed = torch.bincount(tokens, minlength=vocabulary)
    statistic = float(((observed - expected) ** 2 / expected).sum())
    assert abs(statistic - (vocabulary - 1)) < 6 * math.sqrt(2 * (vocabulary - 1))


@pytest.mark.parametrize("config", [SamplingConfig(1.0), SamplingConfig(0.3), SamplingConfig(2.0, top_k=5), GREEDY])
def test_log_probabilities_are_of_the_distribution_drawn_from(config: SamplingConfig) -> None:
    logits = torch.randn(64, 500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens, logprobs = sample(logits, keys(*range(64)), torch.zeros(64, dtype=torch.int64), config)
    scaled = logits / (config.temperature or 1.0)
    if config.top_k:
        scaled[scaled < scaled.topk(config.top_k).values[:, -1:]] = -torch.inf
    expected = scaled.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    assert torch.allclose(logprobs.double(), expected, atol=1e-5)


def test_tokens_of_probability_zero_are_never_drawn() -> None:
    """Even at the very edges of the unit interval, next to blocks without weight."""
    logits = torch.full((1, 1000), -torch.inf)
    logits[0, [5, 300, 511]] = torch.tensor([0.0, 1.0, 0.5])
    tokens, _ = sample(logits.expand(50_000, -1), keys(0).expand(50_000), torch.arange(50_000), SamplingConfig(1.0))
    assert set(tokens.tolist()) == {5, 300, 511}


def test_nucleus_keeps_the_smallest_set_that_reaches_top_p() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(2000, -1)
    draw = lambda p: sample(logits, keys(0).expand(2000), torch.arange(2000), SamplingConfig(1.0, top_p=p))  # noqa: E731
    assert set(draw(0.5)[0].tolist()) == {0}
    tokens, logprobs = draw(0.79)
    assert set(tokens.tolist()) == {0, 1}
    assert logprobs[tokens == 1][0].exp().item() == pytest.approx(0.3 / 0.8)


def test_min_p_keeps_tokens_that_are_likely_enough_beside_the_likeliest() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(2000, -1)
    draw = lambda **s: sample(logits, keys(0).expand(2000), torch.arange(2000), SamplingConfig(**s))  # noqa: E731
    assert set(draw(min_p=1.0)[0].tolist()) == {0}
    tokens, logprobs = draw(min_p=0.29)
    assert set(tokens.tolist()) == {0, 1, 2}
    assert logprobs[tokens == 2][0].exp().item() == pytest.approx(0.15 / 0.95)
    # The share is taken at the temperature: squared, 0.15 is 0.09 of 0.5.
    assert set(draw(temperature=0.5, min_p=0.29)[0].tolist()) == {0, 1}
    # All three together: top_k leaves three, top_p two of them, min_p one.
    assert set(draw(top_k=3, top_p=0.8, min_p=0.7)[0].tolist()) == {0}


@pytest.mark.parametrize(
    "settings", [{"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_k": 9, "top_p": 0.8, "min_p": 0.05}]
)
def test_what_is_kept_is_what_is_drawn_from(settings: dict[str, float]) -> None:
    """Against the definitions, a row and a token at a time."""
    logits = torch.randn(40, 60, generator=torch.Generator().manual_seed(4))
    config = SamplingConfig(0.8, **settings)  # pyright: ignore[reportArgumentType]
    tokens, logprobs, kept = sample_with_kept(logits, keys(*range(40)), torch.zeros(40, dtype=torch.int64), config)
    for row, choices in enumerate(kept.rows()):
        ordered = sorted(range(60), key=lambda token: -logits[row, token].item())[: config.top_k]
        weights = (logits[row, ordered].double() / 0.8).exp()
        chosen, reached = [], 0.0
        for token, share in zip(ordered, (weights / weights.sum()).tolist(), strict=True):
            if reached >= (config.top_p or 2):
                break
            chosen.append(token)
            reached += share
        least = math.log(config.min_p) if config.min_p else -math.inf
        chosen = [token for token in chosen if (logits[row, token] - logits[row, ordered[0]]).item() / 0.8 >= least]
        assert choices.tolist() == sorted(chosen)
        expected = (logits[row, chosen].double() / 0.8).log_softmax(-1)[chosen.index(int(tokens[row]))]
        assert logprobs[row].item() == pytest.approx(expected.item(), abs=1e-5)
    plain = sample(logits, keys(*range(40)), torch.zeros(40, dtype=torch.int64), config)
    assert torch.equal(plain[0], tokens)
    assert torch.equal(plain[1], logprobs)


def test_a_row_draws_the_same_alone_and_in_a_batch() -> None:
    logits = torch.randn(40, 300, generator=torch.Generator().manual_seed(2))
    positions = torch.arange(40) % 7
    together = sample(logits, keys(*range(40)), positions, SamplingConfig(1.0))[0]
    alone = [sample(logits[i : i + 1], keys(i), positions[i : i + 1], SamplingConfig(1.0))[0].item() for i in range(40)]
    assert together.tolist() == alone


def test_streams_differ_by_seed_problem_attempt_and_position() -> None:
    names = [(seed, problem, attempt) for seed in (0, 1) for problem in ("a", "b") for attempt in (0, 1)]
    streams = torch.tensor([stream_key(*name) for name in names])
    draws = uniforms(streams[:, None], torch.arange(50)[None, :])
    assert len(set(draws.flatten().tolist())) == draws.numel()
    assert abs(np.corrcoef(draws.numpy()) - np.eye(len(names))).max() < 0.6


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"min_p": 0.0}, "min_p"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SamplingConfig(**settings)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("vocabulary", [3, 256, 1000])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "config",
    [
        GREEDY,
        SamplingConfig(1.0),
        SamplingConfig(0.7, top_k=2),
        SamplingConfig(1.0, top_p=0.9),
        SamplingConfig(1.0, min_p=0.2),
    ],
)
def test_logits_that_are_not_finite_draw_ids_of_the_vocabulary_and_show(
    vocabulary: int, value: float, config: SamplingConfig
) -> None:
    """An id outside would end a process on a GPU before anybody could say why."""
    logits = torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(0))
    logits[1] = value
    tokens, logprobs = sample(logits, keys(0, 1, 2), torch.arange(3), config)
    assert ((tokens >= 0) & (tokens < vocabulary)).all()
    assert logprobs.isfinite().tolist() == [True, False, True]
    with pytest.raises(NonFiniteLogitsError, match="the logits of LlamaForCausalLM are not finite in 1 of 3 attempts"):
        check_finite(
            logprobs.numpy(),
            LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, num_attention_heads=1, num_hidden_layers=1)),
        )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, False),
        ({"top_k": 5}, True),
        ({"top_p": 0.9}, True),
        ({"top_p": 1.0}, False),
        ({"min_p": 0.1}, True),
        ({"temperature": 0.0, "top_k": 5, "min_p": 0.1}, False),
    ],
)
def test_each_setting_that_may_drop_tokens_is_known_to(settings: dict, expected: bool) -> None:
    assert SamplingConfig(**settings).truncates == expected
