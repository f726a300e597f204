"""How long sequences may be, and what says so."""

import pytest
from transformers import PreTrainedConfig

from tokengym.benchmarks.studies.tiny_architectures import VARIANTS, tiny_config
from tokengym.models.positions import check_length, position_limit


def config(kind: str, **own) -> PreTrainedConfig:
    return tiny_config(kind, 50, **own)


@pytest.mark.parametrize(
    ("found", "limit", "why"),
    [
        (config("llama"), 256, "the model's 256 positions"),
        (config("mpt"), 256, "the model's 256 positions"),
        (config("bloom"), 2**31, "anything"),
        (config("phi3", **VARIANTS["phi3, longrope"][1]), 32, "longrope"),
        (config("llama4_text", floor_scale=100), 99, "temperature"),
        (config("deepseek_v32"), 8, "indexed_attention"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_the_limit_is_where_a_batch_is_no_longer_computed_as_its_rows(found, limit: int, why: str) -> None:
    assert position_limit(found)[0] == limit
    assert why in position_limit(found)[1]


def test_what_is_too_long_is_an_error_with_advice() -> None:
    check_length(config("llama"), 256)
    with pytest.raises(ValueError, match="an attempt of 257 tokens is longer than the model's 256 positions"):
        check_length(config("llama"), 257, "an attempt", ". Lower it")
