"""Labels: new tokens behind all others, as unlike each other as those are, and two tokenizers on disk."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from tokengym.models import load, load_tokenizer
from tokengym.models.condition_tokens import Labels, add_labels, with_labels
from tokengym.models.forward import action_logits
from tokengym.models.loading import with_lora
from tokengym.registry import UnknownNameError

LETTERS = load_tokenizer("chars:ab\n")
TOKENS = ("[BAD]", "[GOOD]")


def model(architecture: str, rows: int = len(LETTERS)) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if architecture == "gpt2":
            return GPT2LMHeadModel(GPT2Config(vocab_size=rows, n_embd=16, n_layer=1, n_head=2, n_positions=16)).eval()
        if architecture == "phi":
            shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
            phi = PhiForCausalLM(PhiConfig(vocab_size=rows, max_position_embeddings=16, **shape)).eval()
            torch.nn.init.normal_(phi.lm_head.bias)
            return phi
        shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        shape["tie_word_embeddings"] = architecture.endswith("tied")
        return LlamaForCausalLM(LlamaConfig(vocab_size=rows, max_position_embeddings=16, **shape)).eval()


@pytest.mark.parametrize("rows", [len(LETTERS), len(LETTERS) + 1, 64])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_labels_differ_as_tokens_do_and_change_no_other(architecture: str, rows: int) -> None:
    old, new = model(architecture, rows), model(architecture, rows)
    before = torch.random.get_rng_state()
    first = add_labels(new, LETTERS, TOKENS)
    assert torch.equal(before, torch.random.get_rng_state())
    size = len(LETTERS)
    assert first == size
    embeddings = new.get_input_embeddings().weight.detach()
    assert len(embeddings) == max(rows, size + 2)
    ids = torch.tensor([[0, 1, 2, 0]])
    with torch.no_grad():
        expected, found = old(ids).logits[0, :, :size], new(ids).logits[0]
    assert torch.equal(found[:, :size], expected)
    if architecture == "llama":  # an output layer of its own: of the mean row, the mean logit
        assert torch.allclose(found[:, size : size + 2], expected.mean(-1, keepdim=True).expand(-1, 2), atol=1e-5)
    between = torch.cdist(embeddings[:size], embeddings[:size])[~torch.eye(size, dtype=torch.bool)]
    apart = (embeddings[size] - embeddings[size + 1]).norm()
    assert between.min() / 2 < apart < between.max() * 2
    again, other = model(architecture, rows), model(architecture, rows)
    add_labels(again, LETTERS, TOKENS)
    add_labels(other, LETTERS, TOKENS, seed=1)
    assert torch.equal(again.get_input_embeddings().weight, embeddings)
    assert not torch.equal(other.get_input_embeddings().weight, embeddings)


def test_a_tokenizer_with_such_a_token_is_an_error() -> None:
    for tokenizer in (with_labels(LETTERS, ["[GOOD]"]), with_labels(LETTERS, TOKENS)):
        with pytest.raises(ValueError, match=r"has a token '\[(GOOD|BAD)\]' of its own \(id 5\)"):
            add_labels(model("llama", 64), tokenizer, TOKENS)
    assert len(LETTERS) == 5  # and the tokenizer that was asked with is left alone


@pytest.mark.parametrize("name", ["chars:ab\n", "tokengym/tiny"])
def test_both_tokenizers_are_saved_and_text_is_never_a_label(tmp_path, name: str) -> None:
    tokenizer = load_tokenizer(name)
    labelled = model("llama", len(tokenizer))
    labels = Labels(TOKENS, add_labels(labelled, tokenizer, TOKENS), "step", (0.5,), learnt=False)
    labelled.save_pretrained(tmp_path)
    labels.save(tmp_path, tokenizer)
    assert Labels.load(tmp_path) == labels
    assert Labels.load("tokengym/tiny") is None
    found, without = load(tmp_path, device="cpu")
    assert torch.equal(found.get_input_embeddings().weight, labelled.get_input_embeddings().weight)
    assert without.get_vocab() == tokenizer.get_vocab()
    own = AutoTokenizer.from_pretrained(tmp_path)
    assert own.convert_tokens_to_ids(list(TOKENS)) == [labels.first, labels.first + 1]
    if name == "tokengym/tiny":
        assert max(without("[GOOD] [BAD]")["input_ids"]) < labels.first
    assert [labels.id(token) for token in TOKENS] == [len(tokenizer), len(tokenizer) + 1]
    with pytest.raises(UnknownNameError, match=r"did you mean '\[GOOD\]'"):
        labels.id("[GOD]")


def test_a_runs_folder_has_the_labels_of_the_model_in_it(tmp_path) -> None:
    """Without them its model would be evaluated as one that was trained without."""
    tokenizer = load_tokenizer("chars:ab\n")
    labelled = model("llama", len(tokenizer))
    labels = Labels(TOKENS, add_labels(labelled, tokenizer, TOKENS), "step", (0.5,))
    labelled.save_pretrained(tmp_path / "model")
    labels.save(tmp_path / "model", tokenizer)
    (tmp_path / "config.json").write_text("{}")  # the run's own
    assert Labels.load(tmp_path) == labels


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "llama tied", "phi"])
def test_adapters_train_the_rows_of_labels_in_embeddings_and_head(architecture: str) -> None:
    """Rows of their own in both, or tied; Phi's head has a bias, GPT-2's layers are of the kind `Conv1D`."""
    adapted: Any = model(architecture)
    first = add_labels(adapted, LETTERS, TOKENS)
    ids = torch.tensor([[0, first, 1, first + 1, 2]])
    rows = lambda it: [it.get_input_embeddings().weight, it.get_output_embeddings().weight]  # noqa: E731
    before, untrained = [weight.detach().clone() for weight in rows(adapted)], adapted(ids).logits.detach()
    adapted = with_lora(adapted, 2, trainable_tokens=[first, first + 1])
    torch.testing.assert_close(adapted(ids).logits, untrained)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], 1.0)
    adapted(ids, labels=ids).loss.backward()
    optimizer.step()
    trained = adapted(ids).logits.detach()
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    torch.testing.assert_close(action_logits(adapted, adapted, ids, torch.ones_like(ids), everywhere), trained[0])
    with adapted.disable_adapter():
        torch.testing.assert_close(adapted(ids).logits, untrained)
        torch.testing.assert_close(action_logits(adapted, adapted, ids, torch.ones_like(ids), everywhere), untrained[0])
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, trained)
    for after, old in zip(rows(merged), before, strict=True):
        np.testing.assert_array_equal(np.flatnonzero((after != old).any(1).numpy()), [first, first + 1])
    assert (merged.get_output_embeddings().weight[first] != merged.get_output_embeddings().weight[first + 1]).any()
    assert (trained[..., first] != trained[..., first + 1]).all()
