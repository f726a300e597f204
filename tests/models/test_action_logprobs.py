"""Log-probabilities of actions a chunk at a time: as of whole logits, in less memory."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from tokengym.models import forward
from tokengym.models.forward import action_logprobs, action_states
from tokengym.models.kept_tokens import KeptTokens
from tokengym.models.layers import decoder_layers, recomputed

WIDTH, VOCABULARY = 509, 500
SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": WIDTH, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "soft cap": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=0.5)),
    "factor": lambda: CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.1)),
}
IDS = torch.randint(0, VOCABULARY, (4, 40), generator=torch.Generator().manual_seed(0))
TOKENS = IDS[:, 1:].flatten()


def make(kind: str):
    torch.manual_seed(0)
    return MODELS[kind]().eval()


def logprobs(model, temperature: float = 1.0, entropy: str = "none", kept: KeptTokens | None = None):
    select = torch.ones_like(IDS, dtype=torch.bool)
    select[:, -1] = False
    states = action_states(model, model, IDS, torch.ones_like(IDS), select)
    return action_logprobs(model, states, TOKENS, VOCABULARY, temperature, entropy, kept)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("positions", [1, 7, 10_000], ids="{} at a time".format)
@pytest.mark.parametrize("kind", MODELS)
def test_values_and_gradients_equal_those_of_whole_logits(monkeypatch, kind: str, positions: int) -> None:
    monkeypatch.setattr(forward, "CHUNK_LOGITS", positions * WIDTH)
    model, temperature = make(kind), 0.7
    scores = (model(IDS).logits[:, :-1, :VOCABULARY].flatten(0, 1).float() / temperature).log_softmax(-1)
    expected = scores.gather(1, TOKENS[:, None])[:, 0], -(scores.exp() * scores).sum(-1)
    weights = torch.randn(2, len(TOKENS), generator=torch.Generator().manual_seed(1))
    theirs = gradients(model, (torch.stack(expected) * weights).sum())

    found = logprobs(model, temperature, "gradient")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    ours = gradients(model, (torch.stack(found) * weights).sum())
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("positions", [7, 10_000], ids="{} at a time".format)
@pytest.mark.parametrize("kind", ["llama", "soft cap"])
def test_truncated_distributions_equal_whole_logits_under_a_mask(monkeypatch, kind: str, positions: int) -> None:
    monkeypatch.setattr(forward, "CHUNK_LOGITS", positions * WIDTH)
    model, temperature = make(kind), 0.7
    mask = torch.rand(len(TOKENS), VOCABULARY, generator=torch.Generator().manual_seed(2)) < 0.1
    mask[::5] = False  # these keep the action alone
    mask[torch.arange(len(TOKENS)), TOKENS] = True
    logits = model(IDS).logits[:, :-1, :VOCABULARY].flatten(0, 1).float() / temperature
    scores = logits.masked_fill(~mask, -torch.inf).log_softmax(-1)
    finite = scores.masked_fill(~mask, 0)
    expected = scores.gather(1, TOKENS[:, None])[:, 0], -(finite.exp() * finite).masked_fill(~mask, 0).sum(-1)
    weights = torch.randn(2, len(TOKENS), generator=torch.Generator().manual_seed(1))
    theirs = gradients(model, (torch.stack(expected) * weights).sum())

    found = logprobs(model, temperature, "gradient", KeptTokens.of(mask))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found[0][::5] == 0).all()
    ours = gradients(model, (torch.stack(found) * weights).sum())
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_head_of_a_model_of_half_the_precision_runs_in_float32() -> None:
    model = make("llama").bfloat16()
    states = action_states(model, model, IDS, torch.ones_like(IDS), torch.ones_like(IDS, dtype=torch.bool))
    assert states.dtype == torch.bfloat16
    expected = states.float() @ model.lm_head.weight.float().T
    torch.testing.assert_close(forward.logits_of(model, states), expected)


def test_logits_of_half_the_precision_are_computed_with_in_float32() -> None:
    logits = 20 * torch.randn(8, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    tokens = torch.arange(8)
    scores = (logits.float() / 0.7).log_softmax(-1)
    torch.testing.assert_close(forward.token_logprobs(logits, tokens, 0.7), scores[tokens, tokens])
    torch.testing.assert_close(forward.token_entropies(logits, 0.7), -(scores.exp() * scores).sum(-1))
    kept = KeptTokens.of(torch.ones(8, 50, dtype=torch.bool))
    assert forward.among_kept(logits, tokens, kept)[0].dtype == torch.float32
    assert forward.token_logprobs(logits.double(), tokens).dtype == torch.float64


def test_entropies_come_without_a_gradient_where_none_is_asked_for() -> None:
    found, entropies = logprobs(make("llama"), entropy="value")
    assert found.requires_grad
    assert not entropies.requires_grad
    torch.testing.assert_close(entropies, logprobs(make("llama"), entropy="gradient")[1])


def kept_bytes(run) -> int:
    """Bytes that autograd keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())


def test_chunks_keep_no_logits(monkeypatch) -> None:
    model = make("llama")
    logprobs_of_all = len(TOKENS) * VOCABULARY * 4
    whole = kept_bytes(lambda: logprobs(model))
    monkeypatch.setattr(forward, "CHUNK_LOGITS", 8 * WIDTH)
    assert kept_bytes(lambda: logprobs(model)) <= whole - logprobs_of_all


def test_recomputed_layers_give_the_same_gradients_and_keep_less() -> None:
    model = make("llama")
    _, layers = decoder_layers(model)
    theirs = gradients(model, logprobs(model)[0].sum())
    plain = kept_bytes(lambda: model.model(IDS, use_cache=False))
    with recomputed(layers):
        ours = gradients(model, logprobs(model)[0].sum())
        less = kept_bytes(lambda: model.model(IDS, use_cache=False))
    torch.testing.assert_close(ours, theirs)
    assert less < 0.35 * plain
    assert all("forward" not in layer.__dict__ for layer in layers)
