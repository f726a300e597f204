"""The measurement of a GPU, at a tiny size on a CPU: what is counted is there, and nothing is timed."""

import json

import pytest
import torch

from tokengym.benchmarks.speed import gpu_decoding
from tokengym.models.engine import graph_decoder

SHAPE = {
    "vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


@pytest.mark.parametrize("graphs", [False, True])
def test_all_ways_draw_as_many_tokens_and_the_least_bytes_are_those_of_weights_and_cache(monkeypatch, graphs) -> None:
    device = "cpu"
    if graphs:  # the same tensors under the name of another device
        device = torch.device("cpu")
        monkeypatch.setattr(graph_decoder, "record", lambda run, pool: run)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(gpu_decoding, "_COPIED", 2**20)
    results = gpu_decoding.run(
        device=device, rows=4, prompt_tokens=6, new_tokens=8, compiled=False, shape=SHAPE, seed=1
    )
    assert json.loads(json.dumps(results)) == results
    ways = results["ways"]
    assert list(ways) == ["generate", "plain", *(["graphs"] if graphs else [])]
    assert results["bytes"] == 2 * results["parameters"] + 4 * 10 * (2 * 2 * 2 * 2 * 8)
    assert all(way["rate"] > 0 for way in ways.values())
    if graphs:
        assert ways["graphs"]["same"] == 1
    lines = gpu_decoding.table(results).splitlines()
    assert [line.split("  ")[0] for line in lines[2:-1]] == list(ways)


def test_without_a_gpu_there_is_one_line(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="this measures a GPU, and PyTorch finds none here"):
        gpu_decoding.run()
