"""Shared prompts at a tiny size: both sides draw the same tokens, and nothing is timed."""

import json

import pytest

from tokengym.benchmarks.speed import shared_prompts
from tokengym.models.engine.shared_prefixes import SharedPrefixes


def test_one_decoder_shares_and_the_other_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SharedPrefixes, "worth", 1)
    attend, calls = SharedPrefixes.attend, []
    monkeypatch.setattr(SharedPrefixes, "attend", lambda self, *inputs: calls.append(1) or attend(self, *inputs))
    results = shared_prompts.run(rows=6, problems=(2,), steps=3, prompts=(20,))
    assert json.loads(json.dumps(results)) == results
    assert len(calls) == len(shared_prompts.SHAPES) * 4 * 7  # layers, and steps with those before the timed ones
    assert [case["tokens"] for case in results["cases"]] == [1.0] * len(shared_prompts.SHAPES)
    assert all(case["speedup"] == case["apart"] / case["shared"] for case in results["cases"])
    assert len(shared_prompts.table(results).splitlines()) == 1 + len(shared_prompts.SHAPES)
