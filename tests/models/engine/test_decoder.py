"""The slot decoder against transformers' own `generate`, and against itself in other company."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tokengym.models import linear
from tokengym.models.engine.decoder import SlotDecoder
from tokengym.models.engine.row_decoder import RowDecoder
from tokengym.models.engine.sampling import GREEDY, SamplingConfig, stream_key

VOCABULARY = 97


def llama() -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def gpt2() -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=64, n_layer=3, n_head=4, n_positions=256, initializer_range=0.3
    )  # fmt: skip
    return GPT2LMHeadModel(config)


@pytest.fixture(params=["llama", "gpt2", "llama by oneDNN", "gpt2 by oneDNN"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    name, _, library = request.param.partition(" by ")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = {"llama": llama, "gpt2": gpt2}[name]().eval()
    if library:
        if not torch.backends.mkldnn.is_available():
            pytest.skip("PyTorch was built without oneDNN")
        monkeypatch.setattr(linear, "onednn_is_faster", lambda: True)
        monkeypatch.setattr(linear, "LEAST", 1)
    return linear.use_onednn(made)


def prompts(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCABULARY, rng.integers(1, 40)) for _ in range(count)]


def run(model: PreTrainedModel, sequences: list[np.ndarray], steps: int, sampling: SamplingConfig) -> list[list[int]]:
    decoder = SlotDecoder(model, len(sequences), VOCABULARY)
    keys = np.array([stream_key(0, sequence.tobytes().hex(), 0) for sequence in sequences])
    decoder.begin(np.arange(len(sequences)), sequences, keys)
    columns = [decoder.step(sampling)[0] for _ in range(steps)]
    return np.stack(columns, axis=1)[np.argsort(decoder.slots)].tolist()


def test_greedy_decoding_equals_generate_for_unequal_prompts(model: PreTrainedModel) -> None:
    sequences = prompts(9)
    ours = run(model, sequences, 30, GREEDY)
    for sequence, tokens in zip(sequences, ours, strict=True):
        ids = torch.from_numpy(sequence)[None]
        theirs = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=30,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert tokens == theirs[0, len(sequence) :].tolist()


def test_log_probabilities_equal_a_full_forward_pass(model: PreTrainedModel) -> None:
    sequences = prompts(6, seed=1)
    decoder = SlotDecoder(model, 6, VOCABULARY)
    decoder.begin(np.arange(6), sequences, np.arange(6))
    steps = [decoder.step(SamplingConfig(0.7)) for _ in range(25)]
    tokens, logprobs = (np.stack(part, axis=1) for part in zip(*steps, strict=True))
    for row, slot in enumerate(decoder.slots):
        whole = torch.from_numpy(np.concatenate([sequences[slot], tokens[row]]))
        with torch.inference_mode():
            logits = model(whole[None]).logits[0, len(sequences[slot]) - 1 : -1] / 0.7
        expected = logits.log_softmax(-1).gather(-1, torch.from_numpy(tokens[row])[:, None])[:, 0]
        assert torch.allclose(torch.from_numpy(logprobs[row]), expected, atol=1e-4)


def test_a_row_samples_the_same_alone_in_a_crowd_and_after_refills(model: PreTrainedModel) -> None:
    sequences = prompts(64, seed=2)
    crowd = run(model, sequences, 12, SamplingConfig(1.0))
    assert [run(model, [sequence], 12, SamplingConfig(1.0))[0] for sequence in sequences[:8]] == crowd[:8]

    # Four slots for all 64: each is refilled when its 12 tokens are done, and slots begin at different times.
    decoder = SlotDecoder(model, 4, VOCABULARY)
    keys = np.array([stream_key(0, sequence.tobytes().hex(), 0) for sequence in sequences])
    drawn: dict[int, list[int]] = {i: [] for i in range(len(sequences))}
    holds, waiting = dict.fromkeys(range(4), -1), list(range(len(sequences)))
    while any(len(tokens) < 12 for tokens in drawn.values()):
        idle = [slot for slot, held in holds.items() if held < 0 or len(drawn[held]) == 12][:3]
        for slot in idle:
            if waiting:
                holds[slot] = waiting.pop(0)
                decoder.begin(np.array([slot]), [sequences[holds[slot]]], keys[[holds[slot]]])
            elif slot in decoder.slots:
                decoder.retire(np.array([slot]))
                del holds[slot]
        tokens = decoder.step(SamplingConfig(1.0))[0]
        for slot, token in zip(decoder.slots, tokens, strict=True):
            if len(drawn[holds[slot]]) < 12:
                drawn[holds[slot]].append(int(token))
    assert [drawn[i] for i in range(len(sequences))] == crowd


def test_shared_prompts_and_prefixes_are_computed_once(model: PreTrainedModel) -> None:
    rng = np.random.default_rng(3)
    header = rng.integers(3, VOCABULARY, 50)
    sequences = [np.append(header, rng.integers(3, VOCABULARY, 6)) for _ in range(4)]
    decoder = SlotDecoder(model, 12, VOCABULARY)
    decoder.begin(np.arange(8), [sequence for sequence in sequences[:2] for _ in range(4)], np.arange(8))
    # The header and one question's tokens, the other question's tokens; the last prompt token is never prefilled.
    assert decoder.prefill_tokens == 55 + 5
    decoder.begin(np.arange(4, 12), [sequence for sequence in sequences[2:] for _ in range(4)], np.arange(8))
    assert decoder.prefill_tokens == 60 + 5 + 5
    fresh = SlotDecoder(model, 4, VOCABULARY)
    fresh.begin(np.arange(4), sequences, np.arange(4))  # the header before the four questions, not in each of them
    assert fresh.prefill_tokens == 50 + 4 * 5
    together = decoder.step(GREEDY)[0]
    alone = [run(model, [sequences[i]], 1, GREEDY)[0][0] for i in (0, 2, 2, 3, 3)]
    rows = [int(np.flatnonzero(decoder.slots == slot)[0]) for slot in (0, 4, 7, 8, 11)]
    assert [together[row] for row in rows] == alone


def test_what_the_caller_did_replaces_what_was_drawn(model: PreTrainedModel) -> None:
    (sequence,) = prompts(1, seed=4)
    decoder = SlotDecoder(model, 1, VOCABULARY)
    decoder.begin(np.zeros(1, np.int64), [sequence], np.zeros(1, np.int64))
    decoder.step(GREEDY)
    decoder.replace_pending(np.array([5]))
    assert decoder.step(GREEDY)[0].tolist() == run(model, [np.append(sequence, 5)], 1, GREEDY)[0]


def test_ids_beyond_the_tokenizer_are_never_drawn(model: PreTrainedModel) -> None:
    decoder = SlotDecoder(model, 32, 4)
    decoder.begin(np.arange(32), [np.array([3])] * 32, np.arange(32))
    assert max(decoder.step(SamplingConfig(5.0))[0].max() for _ in range(5)) < 4


def test_an_empty_prompt_and_a_sequence_over_the_model_limit_are_errors(model: PreTrainedModel) -> None:
    decoder = SlotDecoder(model, 1, VOCABULARY)
    with pytest.raises(ValueError, match="at least one prompt token"):
        decoder.begin(np.zeros(1, np.int64), [np.empty(0, np.int64)], np.zeros(1, np.int64))
    decoder.begin(np.zeros(1, np.int64), [np.full(256, 5)], np.zeros(1, np.int64))
    decoder.step(GREEDY)
    with pytest.raises(ValueError, match="256 positions"):
        decoder.step(GREEDY)


def test_rows_apart_keep_to_their_slots_and_to_the_positions(model: PreTrainedModel) -> None:
    decoder = RowDecoder(model, 2, VOCABULARY)
    decoder.records_kept = True
    decoder.begin(np.arange(2), [np.array([3]), np.full(255, 5)], np.arange(2))
    decoder.finish(np.zeros(1, np.int64))
    tokens, _ = decoder.step(SamplingConfig(top_k=2))
    assert decoder.kept is not None
    assert decoder.kept.counts.tolist() == [0, 2]
    assert tokens[1] in decoder.kept.tokens
    decoder.step(GREEDY)
    with pytest.raises(ValueError, match="256 positions"):
        decoder.step(GREEDY)


def test_memory_that_was_never_written_reaches_no_output(model: PreTrainedModel) -> None:
    sequences = prompts(5, seed=4)
    expected = run(model, sequences, 8, SamplingConfig(1.0))
    torch.use_deterministic_algorithms(True)  # which fills uninitialized memory with NaN
    try:
        assert run(model, sequences, 8, SamplingConfig(1.0)) == expected
    finally:
        torch.use_deterministic_algorithms(False)


def test_steps_read_copies_of_weights_and_prompts_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("PyTorch was built without oneDNN")
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(linear, "LEAST", 1)
    read: list[str] = []
    weight = linear.PackedWeights.weight
    monkeypatch.setattr(linear.PackedWeights, "weight", lambda *given: read.append("copy") or weight(*given))
    model = linear.use_onednn(llama().eval())
    decoder = SlotDecoder(model, 3, VOCABULARY)
    decoder.begin(np.arange(3), prompts(3), np.arange(3))
    assert read == []
    decoder.step(GREEDY)
    layers = sum(isinstance(module, linear.OneDNNLinear) for module in model.modules())
    assert len(read) == layers
    with torch.no_grad():
        model(torch.arange(8)[None])
    assert len(read) == layers
