"""Decoding under labels against a naive loop: a full forward pass for every token, labels inserted by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tokengym.models.condition_tokens import Labels
from tokengym.models.engine.conditioned_decoder import ConditionedDecoder
from tokengym.models.engine.decoder import SlotDecoder
from tokengym.models.engine.sampling import GREEDY, SamplingConfig, sample, stream_key

VOCABULARY, NEWLINES = 40, (7, 8, 9)
ENDS_STEP = np.isin(np.arange(VOCABULARY), NEWLINES)


def labels_for(granularity: Any) -> Labels:
    return Labels(("[BAD]", "[GOOD]"), VOCABULARY, granularity, (0.5,))


def random_model(architecture: str) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if architecture == "llama":
            config = LlamaConfig(
                vocab_size=VOCABULARY + 2, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=96, initializer_range=0.3,
            )  # fmt: skip
            return LlamaForCausalLM(config).eval()
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 96, "initializer_range": 0.3}
        return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY + 2, **shape)).eval()


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return random_model(request.param)


def prompts(count: int, seed: int = 0) -> list[np.ndarray]:
    """Of unequal lengths, newlines in some, also at their ends."""
    rng = np.random.default_rng(seed)
    found = [rng.integers(3, VOCABULARY, rng.integers(1, 20)) for _ in range(count)]
    for prompt in found[::2]:
        prompt[-1] = rng.choice(NEWLINES)
    return found


def naive(
    model: PreTrainedModel,
    prompt: np.ndarray,
    key: int,
    steps: int,
    sampling: SamplingConfig,
    labels: Labels,
    label: int,
) -> tuple[list[int], list[float]]:
    """What is drawn under `label`, one full forward pass for each token, and the log-probabilities."""
    ids, drawn, logprobs = prompt.tolist(), [], []
    for step in range(steps):
        if step == 0 or (labels.granularity == "step" and ids[-1] in NEWLINES):
            ids.append(label)
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[:, -1, :VOCABULARY]
        token, logprob = sample(logits, torch.tensor([key]), torch.tensor([step]), sampling)
        ids.append(int(token))
        drawn.append(int(token))
        logprobs.append(float(logprob))
    return drawn, logprobs


@pytest.mark.parametrize("sampling", [GREEDY, SamplingConfig(1.0), SamplingConfig(2.0, top_k=20)], ids=str)
@pytest.mark.parametrize("granularity", ["step", "attempt"])
def test_decoding_under_a_label_equals_the_naive_loop(model: PreTrainedModel, granularity: str, sampling) -> None:
    """Four slots for all sequences, refilled at different times: steps of different rows end at different times."""
    labels = labels_for(granularity)
    sequences = prompts(9)
    steps = [int(n) for n in np.random.default_rng(5).integers(3, 14, len(sequences))]
    keys = np.array([stream_key(0, str(i), 0) for i in range(len(sequences))])
    for label in (VOCABULARY, VOCABULARY + 1):
        decoder = ConditionedDecoder(model, 4, VOCABULARY, labels, label, ENDS_STEP)
        found = refill(decoder, sequences, keys, steps, sampling)
        placed = 0
        for i, sequence in enumerate(sequences):
            tokens, logprobs = naive(model, sequence, int(keys[i]), steps[i], sampling, labels, label)
            assert [token for token, _ in found[i]] == tokens
            np.testing.assert_allclose([logprob for _, logprob in found[i]], logprobs, atol=1e-4)
            placed += 1 if granularity == "attempt" else 1 + sum(token in NEWLINES for token in tokens[:-1])
        assert decoder.placed[label - VOCABULARY] == decoder.placed.sum() == placed


def refill(
    decoder: SlotDecoder, sequences: list[np.ndarray], keys: np.ndarray, steps: list[int], sampling: SamplingConfig
) -> list[list[tuple[int, float]]]:
    """What is drawn for each sequence when a decoder's slots are handed from one to the next, or retire."""
    drawn: list[list[tuple[int, float]]] = [[] for _ in sequences]
    holds, waiting = dict.fromkeys(range(decoder.num_slots), -1), list(range(len(sequences)))
    while any(len(found) < count for found, count in zip(drawn, steps, strict=True)):
        for slot, held in list(holds.items()):
            if held >= 0 and len(drawn[held]) < steps[held]:
                continue
            if waiting:
                holds[slot] = waiting.pop(0)
                decoder.begin(np.array([slot]), [sequences[holds[slot]]], keys[[holds[slot]]])
            else:
                decoder.retire(np.array([slot]))
                del holds[slot]
        tokens, logprobs = decoder.step(sampling)
        for slot, token, logprob in zip(decoder.slots, tokens, logprobs, strict=True):
            drawn[holds[slot]].append((int(token), float(logprob)))
            if len(drawn[holds[slot]]) == steps[holds[slot]]:
                decoder.finish(np.array([slot]))
    return drawn


def test_the_model_draws_labels_by_its_own_distribution(model: PreTrainedModel) -> None:
    labels = labels_for("step")
    prompt, count = np.array([3, 4, 7]), 4000
    decoder = ConditionedDecoder(model, count, VOCABULARY, labels, None, ENDS_STEP)
    keys = np.array([stream_key(0, str(i), 0) for i in range(count)])
    decoder.begin(np.arange(count), [prompt] * count, keys)
    decoder.step(SamplingConfig(1.0))
    with torch.inference_mode():
        expected = model(torch.from_numpy(prompt)[None]).logits[0, -1, VOCABULARY:].softmax(-1).numpy()
    assert decoder.placed.sum() == count
    deviation = np.sqrt(expected.prod() / count)
    assert abs(decoder.placed[1] / count - expected[1]) < 4 * deviation
    greedy = ConditionedDecoder(model, 3, VOCABULARY, labels, None, ENDS_STEP)
    greedy.begin(np.arange(3), [prompt] * 3, keys[:3])
    greedy.step(GREEDY)
    assert greedy.placed[expected.argmax()] == 3


def label_blind_model() -> PreTrainedModel:
    """A model to which labels and newlines are one token, and that draws after the newest token alone."""
    model = random_model("llama")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "o_proj" in name:
                weight.zero_()
        embeddings: Any = model.get_input_embeddings().weight
        embeddings[[*NEWLINES, VOCABULARY, VOCABULARY + 1]] = embeddings[7].clone()
    return model


def test_a_label_and_the_action_after_it_are_drawn_by_themselves() -> None:
    model, count = label_blind_model(), 2000
    decoder = ConditionedDecoder(model, count, VOCABULARY, labels_for("step"), None, ENDS_STEP)
    keys = np.array([stream_key(0, str(i), 0) for i in range(count)])
    decoder.begin(np.arange(count), [np.array([3, 7])] * count, keys)
    seen: list[np.ndarray] = []
    handle = model.register_forward_pre_hook(
        lambda _, arguments, named: seen.append(named["input_ids"].numpy().copy()), with_kwargs=True
    )
    try:
        tokens, _ = decoder.step(SamplingConfig(1.0))
    finally:
        handle.remove()
    is_good, is_large = seen[-1][:, 0] == VOCABULARY + 1, tokens > np.median(tokens)
    assert 0.05 < is_good.mean() < 0.95
    assert abs(np.corrcoef(is_good, is_large)[0, 1]) < 4 / np.sqrt(count)


def test_rows_that_have_finished_get_no_label() -> None:
    decoder = ConditionedDecoder(random_model("llama"), 2, VOCABULARY, labels_for("step"), VOCABULARY, ENDS_STEP)
    decoder.begin(np.arange(2), [np.array([3, 7])] * 2, np.arange(2))
    decoder.finish(np.array([0]))
    decoder.step(GREEDY)
    assert decoder.placed.sum() == 1


def test_drawing_labels_leaves_the_streams_of_actions_alone() -> None:
    """The same tokens are drawn whichever labels stand there, or none."""
    model = label_blind_model()
    sequences = [prompt for prompt in prompts(12) if prompt[-1] in NEWLINES]
    keys = np.array([stream_key(0, str(i), 0) for i in range(len(sequences))])
    steps = [20] * len(sequences)
    expected = refill(SlotDecoder(model, 4, VOCABULARY), sequences, keys, steps, SamplingConfig(1.0))
    for label in (None, VOCABULARY, VOCABULARY + 1):
        decoder = ConditionedDecoder(model, 4, VOCABULARY, labels_for("step"), label, ENDS_STEP)
        found = refill(decoder, sequences, keys, steps, SamplingConfig(1.0))
        assert [[token for token, _ in row] for row in found] == [[token for token, _ in row] for row in expected]


def test_a_label_past_the_models_positions_is_an_error(model: PreTrainedModel) -> None:
    decoder = ConditionedDecoder(model, 1, VOCABULARY, labels_for("step"), VOCABULARY, ENDS_STEP)
    limit = model.config.max_position_embeddings
    decoder.begin(np.zeros(1, np.int64), [np.full(limit, 3)], np.zeros(1, np.int64))
    with pytest.raises(
        ValueError, match=f"a sequence of {limit + 1} tokens is longer than the model's {limit} positions"
    ):
        decoder.step(GREEDY)


def test_a_label_costs_its_row_one_token_and_nothing_is_computed_twice(model: PreTrainedModel) -> None:
    sequences = prompts(6)
    decoder = ConditionedDecoder(model, 6, VOCABULARY, labels_for("step"), VOCABULARY + 1, ENDS_STEP)
    decoder.begin(np.arange(6), sequences, np.arange(6))
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _, arguments, named: sizes.append(named["input_ids"].numel()), with_kwargs=True
    )
    try:
        for _ in range(20):
            decoder.step(SamplingConfig(1.0))
    finally:
        handle.remove()
    assert decoder.placed.sum() > 6
    assert sum(sizes) == 6 * 20 + decoder.placed.sum()
