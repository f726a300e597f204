import gguf
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokengym.models import OutcomeModel, check_vocabulary, load, load_tokenizer
from tokengym.models.loading import with_lora
from tokengym.registry import UnknownNameError

CHARS = "chars:0123456789"
CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
IDS = torch.tensor([[1, 5, 3, 7, 7, 0]])


def small_model(vocabulary, **settings):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **CONFIG | settings)).eval()


@pytest.fixture
def folder(tmp_path):
    small_model(12).save_pretrained(tmp_path)
    load_tokenizer(CHARS).save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_gives_its_weights_in_evaluation_mode(folder):
    model, tokenizer = load(folder, device="cpu")
    assert not any(module.training for module in model.modules())
    assert tokenizer("42")["input_ids"] == [4, 2]
    torch.testing.assert_close(model(IDS).logits, small_model(12)(IDS).logits)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype(folder, dtype):
    model, _ = load(str(folder), device="cpu", dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


def test_attention_implementations_agree(folder):
    models = [load(folder, device="cpu", attn=attn)[0] for attn in ("eager", "sdpa")]
    assert [model.config._attn_implementation for model in models] == ["eager", "sdpa"]
    torch.testing.assert_close(models[0](IDS).logits, models[1](IDS).logits)


def test_a_tokenizer_with_ids_that_the_model_lacks_is_an_error(tmp_path):
    small_model(11).save_pretrained(tmp_path)
    load_tokenizer(CHARS).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"token '<\|pad\|>' has id 11, but the model has embeddings for ids 0 to 10"):
        load(tmp_path)


def test_a_model_may_have_more_rows_than_the_tokenizer_has_tokens():
    check_vocabulary(small_model(16), load_tokenizer(CHARS))


def test_lora_starts_as_the_model_and_can_be_switched_off(folder):
    before = torch.random.get_rng_state()
    model, _ = load(folder, device="cpu", lora_rank=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    right = small_model(12)(IDS).logits
    torch.testing.assert_close(model(IDS).logits, right)

    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    # 7 linear layers in each of 2 blocks, 2 matrices of rank 4 each; not the LM head
    assert len(trained) == 28
    assert all("lora_" in name and 4 in parameter.shape for name, parameter in trained.items())
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 0.1
    assert not torch.allclose(model(IDS).logits, right, atol=1e-2)
    with model.disable_adapter():
        torch.testing.assert_close(model(IDS).logits, right)


def test_lora_scale_targets_and_seed(folder):
    settings = {"device": "cpu", "lora_rank": 2, "lora_targets": ["q_proj"]}
    one, two, other = (load(folder, **settings, lora_seed=seed)[0].state_dict() for seed in (0, 0, 1))
    names = [name for name in one if "lora_A" in name]
    assert len(names) == 2
    assert all(torch.equal(one[name], two[name]) for name in names)
    assert not any(torch.equal(one[name], other[name]) for name in names)
    scales = [
        load(folder, **settings, lora_alpha=alpha)[0]
        .base_model.model.model.layers[0]
        .self_attn.q_proj.scaling["default"]
        for alpha in (None, 8)
    ]
    assert scales == [1, 4]


def test_bad_arguments(folder):
    with pytest.raises(UnknownNameError, match="did you mean 'bfloat16'"):
        load(folder, dtype="bfloat")
    with pytest.raises(ValueError, match="lora_rank is 0"):
        load(folder, lora_rank=0)
    for setting in ({"lora_alpha": 8}, {"lora_targets": ["q_proj"]}, {"lora_rank_stabilized": True}):
        with pytest.raises(ValueError, match="give lora_rank, too"):
            load(folder, **setting)


def test_a_name_of_no_model(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    load_tokenizer(CHARS).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no model: it has no config.json"):
        load(tmp_path)
    small_model(12).config.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no model can be loaded from"):
        load(tmp_path)
    with pytest.raises(UnknownNameError, match="'nobody/nothing'"):
        load("nobody/nothing")
    with pytest.raises(UnknownNameError, match="a tokenizer alone"):
        load(CHARS)


def test_weights_of_another_shape_are_named(folder, tmp_path):
    OutcomeModel.from_causal_lm(small_model(12), load_tokenizer(CHARS), "orm").save(tmp_path / "orm")
    for path, read in ((folder, load), (tmp_path / "orm", OutcomeModel.load)):
        config = path / "config.json"
        config.write_text(config.read_text().replace('"intermediate_size": 48', '"intermediate_size": 96'))
        with pytest.raises(ValueError, match=r"layers\.0\.mlp\.down_proj\.weight is \[32, 48\], not \[32, 96\]"):
            read(path, device="cpu")


def test_no_weights_are_made_up(tmp_path):
    model = small_model(12, tie_word_embeddings=False)
    model.model.save_pretrained(tmp_path / "trunk")
    load_tokenizer(CHARS).save_pretrained(tmp_path / "trunk")
    with pytest.raises(ValueError, match=r"lacks 1 weights of a LlamaForCausalLM, the first 'lm_head.weight'"):
        load(tmp_path / "trunk", device="cpu")
    OutcomeModel.from_causal_lm(model, load_tokenizer(CHARS), "orm").save(tmp_path / "orm")
    with pytest.raises(ValueError, match=r"orm' is an outcome model, which scores text and writes none"):
        load(tmp_path / "orm", device="cpu")
    with pytest.raises(ValueError, match=r"'tokengym/tiny-orm' is an outcome model, which scores text"):
        load("tokengym/tiny-orm", device="cpu")
    with pytest.raises(UnknownNameError, match="unknown dtype 'float33': did you mean 'float32'"):
        OutcomeModel.load("tokengym/tiny-orm", device="cpu", dtype="float33")


def rotary_order(weight, heads):
    """Rows of a query or key projection in the order that GGUF files of Llamas hold them in."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, model, tokens, merges):
    """A GGUF file as converters write it for a Llama, all weights in full precision."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("small")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(tokens) - 2))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        values = weight.numpy()
        if "q_proj" in name or "k_proj" in name:
            values = rotary_order(
                values, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            )
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_gives_the_model_that_was_written_to_it(tmp_path):
    tokens = ["<|endoftext|>", "<|end|>", *"0123456789ab", "ab"]
    model = small_model(len(tokens))
    write_gguf(tmp_path / "small.gguf", model, tokens, ["a b"])
    loaded, tokenizer = load(tmp_path / "small.gguf", device="cpu")
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert tokenizer("12ab")["input_ids"] == [3, 4, 14]
    assert (tokenizer.eos_token, tokenizer.eos_token_id, loaded.generation_config.eos_token_id) == ("<|end|>", 1, 1)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "7ab"}], tokenize=False) == "7ab"

    # It trains and is saved like any other.
    loaded(IDS, labels=IDS).loss.backward()
    assert loaded.model.layers[0].self_attn.q_proj.weight.grad is not None
    loaded.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again, _ = load(tmp_path / "saved", device="cpu")
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits)


def test_a_gguf_file_whose_byte_level_vocabulary_lacks_endoftext_loads(tmp_path):
    """transformers appends that token behind the vocabulary, where the model has no embedding."""
    tokens = ["<|begin|>", "<|end|>", *"0123456789ab", "ab"]
    model = small_model(len(tokens))
    write_gguf(tmp_path / "small.gguf", model, tokens, ["a b"])
    loaded, tokenizer = load(tmp_path / "small.gguf", device="cpu")
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits)
    assert tokenizer.get_vocab() == {token: i for i, token in enumerate(tokens)}
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (1, 1, len(tokens))
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again("12ab")["input_ids"] == tokenizer("12ab")["input_ids"] == [3, 4, 14]
    assert again.get_vocab() == tokenizer.get_vocab()


def test_layers_that_share_weights_take_no_adapters():
    """Their adapters would be merged into one another's weights."""
    model = small_model(12)
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(ValueError, match=r"of type 'llama', cannot have adapters on .*layers\.1\.mlp\.up_proj, which "):
        with_lora(model, 2)


def test_layers_that_are_never_called_take_no_adapters():
    """Where others read a layer's weights, adapters would train in vain; they would still be merged."""
    model = small_model(12)
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda hidden: mlp.down_proj(mlp.act_fn(hidden @ mlp.gate_proj.weight.T) * mlp.up_proj(hidden))
    adapted = with_lora(model, 2)
    names = {name for name, _ in adapted.named_parameters() if "lora_A" in name and "layers.0.mlp" in name}
    assert {name.split("mlp.")[1].split(".")[0] for name in names} == {"up_proj", "down_proj"}
    assert "lora_A" in str([name for name, _ in adapted.named_parameters() if "layers.1.mlp.gate_proj" in name])
