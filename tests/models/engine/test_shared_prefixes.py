"""Prefixes that rows share: groups by trying all lengths, and steps against those that read every row apart."""

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from tokengym.benchmarks.studies.tiny_architectures import configurations, tiny_config, tiny_model
from tokengym.models.engine.decoder import SlotDecoder
from tokengym.models.engine.half_copy import HalfCopy
from tokengym.models.engine.sampling import GREEDY, SamplingConfig
from tokengym.models.engine.shared_prefixes import SharedPrefixes, find_groups

V = 97
LAYERS = 4


def tiny(kind, **own):
    return tiny_model(tiny_config(kind, V, **own))


def llama():
    return tiny("llama")


def lora():
    return get_peft_model(llama(), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).eval()


def gemma3(window):
    return tiny("gemma3_text", sliding_window=window)


def history(model, config, worth, monkeypatch, steps=24):
    """Steps of attempts at few prompts that end, retire and begin anew at random; and the layers that shared then."""
    monkeypatch.setattr(SharedPrefixes, "worth", worth)
    attend = SharedPrefixes.attend
    shared: list[tuple[int, int]] = []

    def recorded(self, layer, *arguments):
        shared.append((self.length, layer))
        return attend(self, layer, *arguments)

    monkeypatch.setattr(SharedPrefixes, "attend", recorded)
    rng = np.random.default_rng(0)
    header = rng.integers(0, V, 20)
    prompts = [np.concatenate([header, rng.integers(0, V, size)]) for size in (9, 14, 30)]
    decoder = SlotDecoder(model, 12, V)
    decoder.records_kept = True
    decoder.begin(np.arange(12), [prompts[i % 3] for i in range(12)], np.arange(12))
    found = []
    for step in range(steps):
        tokens, logprobs = decoder.step(config)
        order = np.argsort(decoder.slots)
        found.append((decoder.slots[order], tokens[order], logprobs[order]))
        if step in (3, 9):
            decoder.retire(rng.choice(decoder.slots, len(decoder.slots) // 2, replace=False))
        if step == 6:  # in the place of others, one of them with a shorter prompt than any had
            decoder.begin(decoder.slots[:2], [prompts[0], prompts[1][:8]], np.array([50, 51]))
        if step == 15:
            fresh = np.setdiff1d(np.arange(12), decoder.slots)
            decoder.begin(fresh, [prompts[i % 2] for i in range(len(fresh))], 1000 + fresh)
    monkeypatch.setattr(SharedPrefixes, "attend", attend)
    return found, shared


def same(found, wanted, atol):
    for (slots, tokens, logprobs), (wanted_slots, wanted_tokens, wanted_logprobs) in zip(found, wanted, strict=True):
        assert slots.tolist() == wanted_slots.tolist()
        assert tokens.tolist() == wanted_tokens.tolist()
        np.testing.assert_allclose(logprobs, wanted_logprobs, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "make", [llama, lambda: tiny("gpt2"), lora, lambda: gemma3(200)], ids=["llama", "gpt2", "lora", "gemma3"]
)
@pytest.mark.parametrize("config", [SamplingConfig(), GREEDY, SamplingConfig(top_k=5, temperature=0.8)], ids=str)
def test_steps_that_share_prefixes_draw_what_others_draw(make, config, monkeypatch):
    model = make()
    wanted, none = history(model, config, 2**60, monkeypatch)
    found, shared = history(model, config, 1, monkeypatch)
    same(found, wanted, 2e-5)
    assert not none
    assert len(shared) == LAYERS * 24  # all layers of each step
    assert len({length for length, _ in shared}) > 2  # other rows, other prefixes


@pytest.mark.parametrize("kind", ["gemma3n_text", "mllama", "deepseek_v3", "falcon, new decoder", "doge", "olmoe"])
def test_models_of_any_kind_share_or_are_computed_as_before(kind, monkeypatch):
    """Layers that read others' keys, that attend to images, with values of another size, a mask or an attention of
    their own."""
    ((_, config),) = configurations(V, [kind])
    assert not isinstance(config, Exception)
    model = tiny_model(config)
    wanted, _ = history(model, GREEDY, 2**60, monkeypatch)
    same(history(model, GREEDY, 1, monkeypatch)[0], wanted, 1e-4)


def test_prefixes_are_shared_in_half_precision_and_under_autocast(monkeypatch):
    for model, context in (
        (HalfCopy(llama()).newest(), torch.autocast("cpu", enabled=False)),
        (llama(), torch.autocast("cpu", torch.bfloat16)),
    ):
        with context:
            wanted, _ = history(model, GREEDY, 2**60, monkeypatch, steps=1)
            found, shared = history(model, GREEDY, 1, monkeypatch, steps=2)
        assert len(shared) == LAYERS * 2
        np.testing.assert_allclose(found[0][2], wanted[0][2], atol=0.1)


def test_a_window_that_ends_within_a_prefix_ends_sharing(monkeypatch):
    """The prompts are of 29 to 50 tokens: with a window of 55 nothing is hidden at first."""
    wanted, _ = history(gemma3(55), GREEDY, 2**60, monkeypatch)
    found, shared = history(gemma3(55), GREEDY, 1, monkeypatch)
    same(found, wanted, 2e-5)
    assert 0 < len(shared) < LAYERS * 24


@pytest.mark.parametrize("make", [llama, lambda: gemma3(55)], ids=["llama", "a window that ends within a prefix"])
def test_a_models_first_steps_are_bit_for_bit_those_of_later_ones(make, monkeypatch):
    """Else a run that was stopped and resumed would draw other tokens."""
    model = make()
    first, shared = history(model, SamplingConfig(), 1, monkeypatch)
    again, _ = history(model, SamplingConfig(), 1, monkeypatch)
    assert shared
    same(first, again, 0)


def test_a_model_that_computes_something_else_by_it_shares_nothing(monkeypatch):
    """Such as one whose layers have attention of their own, and so would see no prefix."""
    for fault in (lambda self, layer, query, *_: torch.zeros_like(query), lambda *_: 1 / 0):
        model = llama()
        wanted, _ = history(model, GREEDY, 2**60, monkeypatch)
        monkeypatch.setattr(SharedPrefixes, "attend", fault)
        found, shared = history(model, GREEDY, 1, monkeypatch)
        same(found, wanted, 0)
        assert len(shared) <= LAYERS  # of one step


def test_only_pytorchs_attention_shares(monkeypatch):
    model = llama()
    model.set_attn_implementation("eager")
    assert not history(model, GREEDY, 1, monkeypatch)[1]


def test_a_decoder_that_shared_is_freed_with_its_last_name(monkeypatch):
    monkeypatch.setattr(SharedPrefixes, "worth", 1)
    decoder = SlotDecoder(llama(), 4, V)
    decoder.begin(np.arange(4), [np.arange(20)] * 4, np.arange(4))
    for _ in range(3):
        decoder.step(GREEDY)
    cache = weakref.ref(decoder.cache)
    gc.disable()
    try:
        del decoder
        assert cache() is None
    finally:
        gc.enable()


@st.composite
def prefixes(draw):
    """Rows that begin with one of few stems, cut or continued, and -1 behind them."""
    stems = draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=4))
    rows = []
    for _ in range(draw(st.integers(1, 12))):
        stem = draw(st.sampled_from(stems))
        rows.append((stem[: draw(st.integers(1, 9))] + draw(st.lists(st.integers(0, 2), max_size=3)))[:12])
    found = np.full((len(rows), 13), -1)
    for row, tokens in zip(found, rows, strict=True):
        row[: len(tokens)] = tokens
    return found


@settings(deadline=None, max_examples=300)
@given(prefixes(), st.integers(0, 30))
def test_the_length_that_saves_most_is_found(rows, least):
    def saved(length: int) -> int:
        sizes = np.unique(rows[:, :length], axis=0, return_counts=True)[1]
        most = min(sizes.max(), 2 * -(-len(rows) // len(sizes)))
        return length * (len(rows) - int((-(-sizes // most)).sum()))

    whole = (rows >= 0).sum(1).min()
    best = max((saved(length) for length in range(1, whole + 1)), default=0)
    groups = find_groups(rows, least)
    if best < max(least, 1):
        assert groups is None
        return
    assert groups is not None
    assert groups.saved == best
    assert groups.rows.flatten()[groups.places].tolist() == list(range(len(rows)))
    assert len(set(groups.places.tolist())) == len(rows)
    first = rows[groups.rows[:, 0], : groups.length]
    assert (first >= 0).all()
    assert (first[groups.places // groups.rows.shape[1]] == rows[:, : groups.length]).all()
