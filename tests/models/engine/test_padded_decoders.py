"""Compiled and recorded steps: the tokens of `SlotDecoder`, few graphs, and idle rows that harm nothing."""

import functools

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._dynamo.utils import counters
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tokengym.models.engine import compiled_decoder, graph_decoder
from tokengym.models.engine.compiled_decoder import CompiledDecoder
from tokengym.models.engine.decoder import SlotDecoder
from tokengym.models.engine.graph_decoder import GraphDecoder
from tokengym.models.engine.half_copy import HalfCopy
from tokengym.models.engine.padded_decoder import padded_columns, padded_rows
from tokengym.models.engine.padded_decoder import step as plain_step
from tokengym.models.engine.sampling import GREEDY, SamplingConfig

V = 97


def llama(**settings):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, initializer_range=0.3, **{"num_hidden_layers": 2, **settings},
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gemma3():
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, sliding_window=6,
        layer_types=["sliding_attention", "full_attention"], initializer_range=0.3,
    )  # fmt: skip
    return Gemma3ForCausalLM(config).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=128)).eval()


def lora():
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    return model.eval()


def half():
    return HalfCopy(llama()).newest()


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """Graphs are made and checked, and run without a compiler; what CUDA graphs would replay runs again."""
    compiled = functools.cache(lambda: torch.compile(plain_step, fullgraph=True, dynamic=True, backend="eager"))
    monkeypatch.setattr(compiled_decoder, "compiled_step", compiled)
    monkeypatch.setattr(graph_decoder, "compiled_step", compiled)
    monkeypatch.setattr(graph_decoder, "record", lambda run, pool: run)
    torch._dynamo.reset()
    counters.clear()


def history(decoder, config, seed=0):
    """Tokens and log-probabilities of attempts that end, retire and begin anew at random."""
    rng = np.random.default_rng(seed)
    slots, found = decoder.num_slots, []
    prompt = lambda: rng.integers(0, V, rng.integers(1, 90))  # noqa: E731
    decoder.begin(np.arange(slots), [prompt() for _ in range(slots)], np.arange(slots))
    for step in range(24):
        tokens, logprobs = decoder.step(config)
        order = np.argsort(decoder.slots)
        found.append((decoder.slots[order], tokens[order], logprobs[order]))
        if step in (3, 9):
            decoder.retire(rng.choice(decoder.slots, len(decoder.slots) * 2 // 3, replace=False))
        if step == 15:
            fresh = np.setdiff1d(np.arange(slots), decoder.slots)[: slots // 2]
            decoder.begin(fresh, [prompt() for _ in fresh], 1000 + fresh)
        if step == 5:
            decoder.finish(decoder.slots[:1])
    return found


def test_a_compiled_step_of_one_layer_draws_what_a_plain_one_draws():
    model = llama(num_hidden_layers=1)
    plain, compiled = SlotDecoder(model, 12, V), CompiledDecoder(model, 12, V)
    for decoder in (plain, compiled):
        decoder.begin(np.arange(12), [np.arange(1 + i) for i in range(12)], np.arange(12))
    for step in range(6):
        found, logprobs = compiled.step(SamplingConfig())
        wanted, wanted_logprobs = plain.step(SamplingConfig())
        assert found.tolist() == wanted.tolist()
        np.testing.assert_allclose(logprobs, wanted_logprobs, atol=2e-5)
        if step == 2:  # seven rows are left, of the twelve that are computed
            for decoder in (plain, compiled):
                decoder.retire(np.arange(5))
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("make", [llama, gemma3, gpt2, lora])
def test_a_compiled_step_draws_what_a_plain_one_draws(make):
    model = make()
    exact = history(SlotDecoder(model, 20, V), SamplingConfig())
    found = history(CompiledDecoder(model, 20, V), SamplingConfig())
    for (slots, tokens, logprobs), (wanted_slots, wanted, wanted_logprobs) in zip(found, exact, strict=True):
        assert slots.tolist() == wanted_slots.tolist()
        assert tokens.tolist() == wanted.tolist()
        np.testing.assert_allclose(logprobs, wanted_logprobs, atol=2e-5)


@pytest.mark.parametrize("make", [llama, gemma3, gpt2, lora])
@pytest.mark.parametrize("config", [SamplingConfig(), GREEDY, SamplingConfig(top_k=5, temperature=0.8)], ids=str)
def test_a_replayed_step_draws_what_a_plain_one_draws(make, config):
    model = make()
    exact = history(SlotDecoder(model, 20, V), config)
    found = history(GraphDecoder(model, 20, V), config)
    for (slots, tokens, logprobs), (wanted_slots, wanted, wanted_logprobs) in zip(found, exact, strict=True):
        assert slots.tolist() == wanted_slots.tolist()
        assert tokens.tolist() == wanted.tolist()
        np.testing.assert_allclose(logprobs, wanted_logprobs, atol=2e-5)


def test_steps_are_recorded_once_for_each_shape_and_again_when_the_cache_grows(monkeypatch):
    recorded = []

    def record(run, pool):
        recorded.append(run)
        return run

    monkeypatch.setattr(graph_decoder, "record", record)
    model = llama(num_hidden_layers=1)
    decoder = GraphDecoder(model, 2, V)
    decoder.begin(np.arange(2), [np.arange(56), np.arange(8)], np.arange(2))
    decoder.step(GREEDY)  # compared with a plain step, by a graph of its own that returns logits
    for _ in range(8):
        decoder.step(GREEDY)
    assert len(recorded) == 2
    decoder.step(GREEDY)  # the 65th token needs a larger cache
    assert len(recorded) == 3
    decoder.retire(np.arange(1))
    decoder.step(SamplingConfig())
    assert len(recorded) == 4


def test_kept_tokens_are_those_of_a_plain_step_in_a_replayed_one():
    model = llama()
    plain, replayed = SlotDecoder(model, 4, V), GraphDecoder(model, 4, V)
    for decoder in (plain, replayed):
        decoder.records_kept = True
        decoder.begin(np.arange(4), [np.arange(3 + i) for i in range(4)], np.arange(4))
    for _ in range(3):
        config = SamplingConfig(top_p=0.7)
        assert replayed.step(config)[0].tolist() == plain.step(config)[0].tolist()
        assert replayed.kept.tokens.tolist() == plain.kept.tokens.tolist()


def test_a_model_whose_step_cannot_be_recorded_is_decoded_without_and_says_so_once(monkeypatch, caplog):
    def fails(run, pool):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graph_decoder, "record", fails)
    model = llama()
    for _ in range(2):
        plain, decoder = SlotDecoder(model, 2, V), GraphDecoder(model, 2, V)
        for each in (plain, decoder):
            each.begin(np.arange(2), [np.arange(4), np.arange(5)], np.arange(2))
        for _ in range(3):
            assert decoder.step(SamplingConfig())[0].tolist() == plain.step(SamplingConfig())[0].tolist()
    (record,) = caplog.records
    assert (
        "LlamaForCausalLM is decoded without CUDA graphs, which is right but slow: its step cannot be recorded: "
        in (record.getMessage())
    )


def test_a_replayed_step_that_computes_something_else_is_not_used(monkeypatch, caplog):
    def wrong(run, pool):
        return lambda: tuple(found.flip(-1) for found in run())

    monkeypatch.setattr(graph_decoder, "record", wrong)
    model = llama()
    plain, decoder = SlotDecoder(model, 2, V), GraphDecoder(model, 2, V)
    for each in (plain, decoder):
        each.begin(np.arange(2), [np.arange(4), np.arange(5)], np.arange(2))
    assert decoder.step(SamplingConfig())[0].tolist() == plain.step(SamplingConfig())[0].tolist()
    assert "replayed, its step changes its outputs" in caplog.text


def test_a_compiled_step_that_cannot_be_recorded_is_refused(monkeypatch):
    monkeypatch.setattr(graph_decoder, "record", lambda run, pool: 1 / 0)
    decoder = GraphDecoder(llama(), 2, V, compiled=True)
    decoder.begin(np.arange(2), [np.arange(4), np.arange(5)], np.arange(2))
    with pytest.raises(ValueError, match=r"is of no use: its step cannot be recorded: Zero.*Leave out compile_decoder"):
        decoder.step(GREEDY)


@pytest.mark.slow
def test_in_bfloat16_a_compiled_step_draws_the_same_up_to_rounding():
    model = half()
    steps = []
    for kind in (SlotDecoder, CompiledDecoder):
        decoder = kind(model, 20, V)
        decoder.begin(np.arange(20), [np.arange(1 + 4 * i) % V for i in range(20)], np.arange(20))
        steps.append(decoder.step(SamplingConfig()))
    (wanted, wanted_logprobs), (found, logprobs) = steps
    same = found == wanted
    assert same.sum() >= 18  # a draw between two tokens may fall to either side
    np.testing.assert_allclose(logprobs[same], wanted_logprobs[same], atol=0.1)


@pytest.mark.slow
def test_graphs_are_few_and_serve_the_next_decoder_too():
    model = llama()
    history(CompiledDecoder(model, 20, V), SamplingConfig())
    first = counters["stats"]["unique_graphs"]
    history(CompiledDecoder(model, 20, V), SamplingConfig(), seed=1)
    assert first <= 4
    assert counters["stats"]["unique_graphs"] == first


@pytest.mark.slow
def test_truncated_and_greedy_draws_are_those_of_a_plain_step():
    model = llama()
    for config in (GREEDY, SamplingConfig(top_k=5, temperature=0.8)):
        plain, compiled = SlotDecoder(model, 4, V), CompiledDecoder(model, 4, V)
        for decoder in (plain, compiled):
            decoder.records_kept = True
            decoder.begin(np.arange(4), [np.arange(3 + i) for i in range(4)], np.arange(4))
        for _ in range(3):
            assert compiled.step(config)[0].tolist() == plain.step(config)[0].tolist()
            assert compiled.kept.counts.tolist() == plain.kept.counts.tolist()
            assert compiled.kept.tokens.tolist() == plain.kept.tokens.tolist()


def test_a_step_that_computes_something_else_is_refused(monkeypatch):
    def wrong(*arguments):
        tokens, logprobs, logits = plain_step(*arguments)
        return tokens, logprobs, logits.flip(-1)

    monkeypatch.setattr(compiled_decoder, "compiled_step", lambda: wrong)
    decoder = CompiledDecoder(llama(), 2, V)
    decoder.begin(np.arange(2), [np.arange(4), np.arange(5)], np.arange(2))
    with pytest.raises(ValueError, match="the compiled decoder of LlamaForCausalLM changes its outputs: leave out"):
        decoder.step(GREEDY)


def test_a_step_that_cannot_be_compiled_is_refused_with_the_cause(monkeypatch):
    def fails(*arguments):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(compiled_decoder, "compiled_step", lambda: fails)
    decoder = CompiledDecoder(llama(), 2, V)
    decoder.begin(np.arange(2), [np.arange(4), np.arange(5)], np.arange(2))
    with pytest.raises(ValueError, match=r"cannot be compiled: RuntimeError: no compiler\. Leave out compile_decoder"):
        decoder.step(GREEDY)


def test_shapes_are_few_and_large_enough():
    assert [padded_rows(count, 100) for count in (100, 51, 50, 26, 25, 13, 7, 1)] == [100, 100, 50, 50, 25, 13, 7, 7]
    assert padded_rows(1, 3) == 3
    sizes = sorted({padded_columns(length, 2) for length in range(1, 2000)})
    assert sizes == [64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048]
    finer = sorted({padded_columns(length, 4) for length in range(1, 600)})
    assert finer == [64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640]
    for parts in (2, 4):
        for length in range(1, 2000):
            assert length <= padded_columns(length, parts) < max((1 + 1 / parts) * length, 65)


@pytest.mark.slow
def test_long_rows_without_an_attempt_are_forgotten_where_they_are_overwritten():
    model = llama()
    rng = np.random.default_rng(0)
    long = rng.integers(0, V, 200)
    runs = []
    for kind in (SlotDecoder, CompiledDecoder):
        decoder = kind(model, 8, V)
        decoder.begin(np.arange(8), [np.arange(5)] * 7 + [long], np.arange(8))
        decoder.retire(np.array([7]))
        for _ in range(4):  # the long row is inside the batch, and 64 columns are read
            decoder.step(SamplingConfig())
        decoder.begin(np.array([7]), [long], np.array([77]))
        runs.append([decoder.step(SamplingConfig()) for _ in range(3)])
    for (tokens, logprobs), (wanted, wanted_logprobs) in zip(*runs[::-1], strict=True):
        assert tokens.tolist() == wanted.tolist()
        np.testing.assert_allclose(logprobs, wanted_logprobs, atol=2e-5)


@pytest.mark.slow
def test_inductor_draws_what_a_plain_step_draws(monkeypatch):
    monkeypatch.undo()
    model = llama()
    exact = history(SlotDecoder(model, 20, V), SamplingConfig())
    found = history(CompiledDecoder(model, 20, V), SamplingConfig())
    for (_, tokens, _), (_, wanted, _) in zip(found, exact, strict=True):
        assert tokens.tolist() == wanted.tolist()
