"""The rollout benchmarks at tiny sizes: what they count is there, and nothing is timed."""

import json

import pytest
import torch

from tokengym.benchmarks.speed import rollout_memory, rollout_throughput
from tokengym.benchmarks.speed.random_models import tiny_llama
from tokengym.models import load_tokenizer


def test_both_sides_make_what_was_asked_for() -> None:
    results = rollout_throughput.run(
        rows=4, completions=12, attempts_per_problem=2, prompt_tokens=3, mean_new_tokens=4, max_new_tokens=8,
        fixed_completions=8, fixed_new_tokens=5, repeats=2,
    )  # fmt: skip
    assert json.loads(json.dumps(results)) == results
    for kind, count in (("geometric", 12), ("fixed", 8)):
        for side in ("generate", "engine"):
            runs = results[kind]["runs"][side]
            assert [run["completions"] for run in runs] == [count, count]
            assert results[kind][side] > 0
        assert results[kind]["speedup"] == pytest.approx(results[kind]["engine"] / results[kind]["generate"])
        assert 0 < results[kind]["outside"] < 1
    for side in ("generate", "engine"):
        assert [run["tokens"] for run in results["fixed"]["runs"][side]] == [40, 40]
        assert all(12 <= run["tokens"] <= 96 for run in results["geometric"]["runs"][side])
    assert [line.split()[0] for line in rollout_throughput.table(results).splitlines()] == [
        "lengths",
        "geometric",
        "fixed",
    ]


def test_a_batch_that_would_be_partly_empty_is_refused() -> None:
    with pytest.raises(ValueError, match="completions must be a multiple of rows=4, got 6"):
        rollout_throughput.run(rows=4, completions=6)


def test_the_model_ends_attempts_with_the_probability_asked_for() -> None:
    tokenizer = load_tokenizer("chars:" + "".join(map(chr, range(0x20, 0x7F))))
    eos = tokenizer.convert_tokens_to_ids(tokenizer.eos_token)
    tokens = torch.randint(0, 95, (4, 32), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ending = tiny_llama(tokenizer, 32, 1 / 16, 0)(tokens).logits.softmax(-1)[..., eos]
        endless = tiny_llama(tokenizer, 32, 0.0, 0)(tokens).logits.softmax(-1)[..., eos]
    assert ending.mean() == pytest.approx(1 / 16, rel=0.05)
    assert ending.std() < 0.1 * ending.mean()
    assert not endless.any()


def test_memory_is_that_of_the_attempts_asked_for() -> None:
    results = rollout_memory.run(attempts=24, new_tokens=6, rows=4, attempts_per_problem=2, prompt_tokens=3)
    assert (results["attempts"], results["tokens"]) == (24, 24 * 6)
    assert results["peak"] >= 0
    assert results["base"] > 0
    assert rollout_memory.table(results).splitlines()[1].split()[:2] == ["24", "6"]
