"""Outcome models against their own parts, run one sequence at a time."""

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from tokengym.models import load, load_tokenizer
from tokengym.models.forward import sigmoid
from tokengym.models.new_model import ARCHITECTURES, new_model
from tokengym.models.outcome import OutcomeModel
from tokengym.registry import UnknownNameError

TOKENIZER = load_tokenizer("chars:0123456789+=\n")


def language_model(architecture: str, seed: int = 0) -> PreTrainedModel:
    return new_model(TOKENIZER, architecture, depth=2, width=32, heads=4, positions=64, seed=seed)


def outcome_model(architecture: str, kind: str = "orm") -> OutcomeModel:
    """One with a head that is large enough for scores to differ."""
    model = OutcomeModel.from_causal_lm(language_model(architecture), TOKENIZER, kind)
    with torch.no_grad():
        model.head.weight.mul_(50)
    return model


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> OutcomeModel:
    return outcome_model(request.param)


def sequences(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, len(TOKENIZER), rng.integers(1, 40)) for _ in range(count)]


def expected(model: OutcomeModel, sequence: np.ndarray) -> np.ndarray:
    """p(correct) after every token, from the trunk's hidden states and the head's weights."""
    with torch.inference_mode():
        hidden = model.model.base_model(torch.from_numpy(sequence)[None]).last_hidden_state[0]
        return torch.sigmoid(hidden.double() @ model.head.weight[0].double() + model.head.bias.double()).numpy()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_trunk_is_the_language_models_and_the_head_is_new(architecture: str) -> None:
    language = language_model(architecture)
    before = torch.random.get_rng_state()
    model = OutcomeModel.from_causal_lm(language, TOKENIZER, "orm")
    assert torch.equal(torch.random.get_rng_state(), before)
    ids = torch.from_numpy(sequences(1)[0])[None]
    hidden = [m.base_model(ids).last_hidden_state for m in (language, model.model)]
    assert torch.equal(*hidden)
    assert model.head.weight.shape == (1, 32)
    assert model.head.weight.any()
    same, other = (OutcomeModel.from_causal_lm(language, TOKENIZER, "orm", seed=seed) for seed in (0, 1))
    assert torch.equal(same.head.weight, model.head.weight)
    assert not torch.equal(other.head.weight, model.head.weight)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.zero_()
    assert torch.equal(language.base_model(ids).last_hidden_state, hidden[0]), "the language model shares weights"


def test_there_is_no_dropout_even_in_training_mode(model: OutcomeModel) -> None:
    assert not model.model.training
    model.model.train()
    (sequence,) = sequences(1)
    positions = [np.arange(len(sequence))]
    np.testing.assert_array_equal(model.score([sequence], positions)[0], model.score([sequence], positions)[0])


def test_adapters_are_merged_into_the_trunk(tmp_path) -> None:
    language_model("llama").save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    adapted, _ = load(tmp_path, device="cpu", lora_rank=4)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter += 0.1
    ids = torch.from_numpy(sequences(1)[0])[None]
    model = OutcomeModel.from_causal_lm(adapted, TOKENIZER, "orm")
    assert not any("lora_" in name for name, _ in model.model.named_parameters())
    right = adapted(ids, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(model.model.base_model(ids).last_hidden_state, right, rtol=1e-4, atol=1e-5)
    assert any("lora_" in name for name, _ in adapted.named_parameters()), "the language model was changed"


def test_scores_of_a_padded_batch_are_those_of_each_sequence_alone(model: OutcomeModel) -> None:
    batch = sequences(9)
    rng = np.random.default_rng(1)
    # Some in no order, one twice, and of one sequence none.
    positions = [rng.integers(0, len(sequence), rng.integers(1, 5)) for sequence in batch]
    positions[3] = np.empty(0, np.int64)
    for budget in (16_384, 80, 1):
        scores = model.score(batch, positions, micro_batch_tokens=budget)
        for sequence, wanted, found in zip(batch, positions, scores, strict=True):
            assert found.dtype == np.float64
            np.testing.assert_allclose(found, expected(model, sequence)[wanted], atol=1e-5)
    assert np.ptp(np.concatenate(scores)) > 0.1
    assert model.score([], []) == []


def test_logits_are_those_of_the_selected_tokens_and_have_gradients(model: OutcomeModel) -> None:
    ids = torch.from_numpy(np.stack([np.resize(sequence, 12) for sequence in sequences(3)]))
    select = torch.zeros(ids.shape, dtype=torch.bool)
    select[[0, 1, 1], [11, 0, 5]] = True
    logits = model.logits(ids, torch.ones_like(ids), select)
    right = [expected(model, ids[row].numpy())[column] for row, column in ((0, 11), (1, 0), (1, 5))]
    np.testing.assert_allclose(sigmoid(logits.detach().numpy()), right, atol=1e-5)
    logits.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.model.parameters())


def test_the_sigmoid_is_exact_and_does_not_overflow() -> None:
    logits = np.array([-1e4, -40.0, 0.0, 40.0, 1e4], np.float32)
    np.testing.assert_allclose(sigmoid(logits), [0, np.exp(-40), 0.5, 1, 1], rtol=1e-12)


@pytest.mark.parametrize("kind", ["orm", "sorm", "preference", "prm"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_was_saved_is_loaded(tmp_path, architecture: str, kind: str) -> None:
    model = outcome_model(architecture, kind)
    model.save(tmp_path / "scorer")
    loaded = OutcomeModel.load(tmp_path / "scorer", tokenizer=TOKENIZER, device="cpu")
    assert loaded.kind == kind
    (tmp_path / "scorer").rename(tmp_path / "model")
    (tmp_path / "config.json").write_text("{}")  # of a run, which stands for the model in it
    assert OutcomeModel.load(tmp_path, device="cpu").kind == kind
    assert not loaded.model.training
    assert loaded.tokenizer.get_vocab() == TOKENIZER.get_vocab()
    batch = sequences(3)
    positions = [np.arange(len(sequence)) for sequence in batch]
    for found, right in zip(loaded.score(batch, positions), model.score(batch, positions), strict=True):
        np.testing.assert_allclose(found, right, atol=1e-6)  # rounding may follow where in memory the weights are


def test_a_path_that_is_missing_or_holds_no_outcome_model(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no outcome model '.*nowhere'"):
        OutcomeModel.load(tmp_path / "nowhere")
    language_model("llama").save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is not an outcome model: it holds no outcome_model.json. `tokengym train"):
        OutcomeModel.load(tmp_path)


def test_another_tokenizer_is_named(tmp_path) -> None:
    outcome_model("llama").save(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"was trained with another tokenizer, of 15 tokens, than the attempts', .* of 979: id 0 is '0' to the",
    ):
        OutcomeModel.load(tmp_path, tokenizer=load_tokenizer("tokengym/tiny"))
    with pytest.raises(ValueError, match=r"of 15: id 2 is '2' to the one and '3' to the other. Train an outcome model"):
        OutcomeModel.load(tmp_path, tokenizer=load_tokenizer("chars:0132456789+=\n"))


def test_models_that_cannot_be_outcome_models(tmp_path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown kind of outcome model 'crm': .*sorm"):
        OutcomeModel.from_causal_lm(language_model("llama"), TOKENIZER, "crm")
    model = outcome_model("llama").model
    with pytest.raises(ValueError, match="does not fit the model"):
        OutcomeModel(model, load_tokenizer("tokengym/tiny"), "orm")
    model.config.num_labels = 2
    with pytest.raises(ValueError, match="an outcome model has one label, this TokenScorer 2"):
        OutcomeModel(model, TOKENIZER, "orm")


def test_a_position_outside_a_sequence_and_a_sequence_over_the_limit_are_errors(model: OutcomeModel) -> None:
    for position in (4, -1):
        with pytest.raises(ValueError, match=r"sequence 0 has 4 tokens: none at positions"):
            model.score([np.arange(4)], [np.array([position])])
    with pytest.raises(ValueError, match="a sequence of 65 tokens is longer than the model's 64 positions"):
        model.score([np.zeros(70, np.int64)], [np.array([64])])
