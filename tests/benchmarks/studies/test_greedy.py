"""Greedy decoding of windowed models is `generate`'s, token by token."""

import numpy as np
import pytest

from tokengym.benchmarks.studies.greedy import compare, decoded, generated
from tokengym.benchmarks.studies.tiny_architectures import configurations, tiny_model


def model(name: str, size: int):
    ((_, config),) = configurations(size, [name])
    assert not isinstance(config, Exception)
    return tiny_model(config)


@pytest.mark.parametrize("name", ["mistral", "gemma3_text", "gpt_oss", "qwen2, windows", "lfm2"])
def test_completions_past_the_window_are_those_of_generate(name: str) -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 60, length) for length in (2, 9, 31)]
    for one in compare(model(name, 60), 60, prompts, 24):
        assert one.same_tokens == one.new_tokens or one.gap < 1e-4, one


def test_completions_that_part_are_measured() -> None:
    prompt = np.arange(3, 12)
    windowed = model("mistral", 60)
    ours = decoded(windowed, 60, [prompt], 8)[0]
    windowed.config.sliding_window = 2
    assert not np.array_equal(generated(windowed, prompt, 8), ours)
