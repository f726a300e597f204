import copy
import pickle
import socket
import subprocess
import sys

import huggingface_hub.constants
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, PreTrainedTokenizerFast

from tokengym.models import OutcomeModel, load, load_tokenizer, num_token_ids
from tokengym.models.condition_tokens import with_labels
from tokengym.registry import UnknownNameError


def plain(eos=None, pad=None, **settings):
    backend = Tokenizer(WordLevel({"a": 0, "b": 1, "</s>": 2}))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, pad_token=pad, **settings)


def test_characters_are_the_ids_in_order_then_eos_and_pad():
    tokenizer = load_tokenizer("chars:0123456789+= \n")
    assert tokenizer("12+3=\n 0")["input_ids"] == [1, 2, 10, 3, 11, 13, 12, 0]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (14, 15, 16)


@given(st.text(st.sampled_from("0aZé+ \n\t€<|>")))
def test_characters_round_trip(text):
    tokenizer = load_tokenizer("chars:0aZé+ \n\t€<|>")
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", ["1x", ["1", "1x"], "x", "<|endoftext|>x"])
def test_an_unknown_character_is_an_error(text):
    with pytest.raises(ValueError, match=r"no token for '.'; its characters are '01'"):
        load_tokenizer("chars:01")(text)


def test_the_copy_the_pickle_and_the_saved_char_tokenizer_are_as_strict(tmp_path):
    tokenizer = load_tokenizer("chars:01")
    tokenizer.save_pretrained(tmp_path)
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer)), load_tokenizer(tmp_path)):  # noqa: S301
        assert other("0110")["input_ids"] == [0, 1, 1, 0]
        assert (other.eos_token_id, other.pad_token_id) == (2, 3)
        with pytest.raises(ValueError, match="no token for '2'"):
            other("012")


def test_text_never_becomes_a_special_token():
    tokenizer = load_tokenizer("chars:<|endoftx>pa")
    for token in (tokenizer.eos_token, tokenizer.pad_token):
        assert len(tokenizer(token)["input_ids"]) == len(token)


@pytest.mark.parametrize(("name", "complaint"), [("chars:", "names no characters"), ("chars:abca", "gives 'a' more")])
def test_bad_characters(name, complaint):
    with pytest.raises(ValueError, match=complaint):
        load_tokenizer(name)


def test_a_tokenizer_needs_an_end_of_sequence_token(tmp_path):
    plain(pad="b").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        load_tokenizer(tmp_path)


def test_without_a_pad_token_padding_is_the_end_of_sequence_token_on_the_right(tmp_path):
    plain(eos="</s>", padding_side="left").save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert tokenizer.padding_side == "right"


def test_a_pad_token_of_its_own_stays(tmp_path):
    plain(eos="</s>", pad="b").save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token_id == 1


def test_tokenizers_are_not_shared():
    first = load_tokenizer("tokengym/tiny")
    first.pad_token = first.eos_token
    second = load_tokenizer("tokengym/tiny")
    assert second.pad_token_id != second.eos_token_id


def test_unknown_names(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UnknownNameError, match="did you mean 'tokengym/tiny'"):
        load_tokenizer("tokengym/tyny")
    with pytest.raises(UnknownNameError, match=r"'nobody/nothing': it is no built-in .* no folder .* the hub did not"):
        load_tokenizer("nobody/nothing")
    with pytest.raises(UnknownNameError, match="cannot be a name on the hub"):
        load_tokenizer("no such/place at all")
    with pytest.raises(FileNotFoundError, match=r"no GGUF file .*absent\.gguf"):
        load_tokenizer(tmp_path / "absent.gguf")
    with pytest.raises(FileNotFoundError, match="no tokenizer can be loaded from"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"agent": "ei", "env": "tokengym/Arithmetic-v0", "versions": {}}')
    with pytest.raises(FileNotFoundError, match="it is the folder of a run that has kept no model yet"):
        load_tokenizer(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        load_tokenizer(tmp_path / "notes.txt")


def test_local_tokenizers_need_no_network(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    load_tokenizer("chars:ab").save_pretrained(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("tokengym/tiny", "chars:01", tmp_path):
        load_tokenizer(name)


def test_the_room_imports_no_torch():
    code = "import sys, tokengym.models; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folder_says_what_it_lacks(tmp_path):
    with pytest.raises(UnknownNameError, match="no model ''"):
        load_tokenizer("")
    with pytest.raises(FileNotFoundError, match=r"it has neither a config\.json nor a tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(FileNotFoundError, match=r"it has no tokenizer\.json: save the model's tokenizer there"):
        load_tokenizer(tmp_path)


def test_a_runs_folder_stands_for_the_model_in_it(tmp_path):
    from tokengym.models.tokenizers import locate

    (tmp_path / "model").mkdir()
    (tmp_path / "config.json").write_text("{}")  # the run's own
    (tmp_path / "model" / "config.json").write_text("{}")
    assert locate(str(tmp_path)) == {"pretrained_model_name_or_path": str(tmp_path / "model")}
    assert locate(str(tmp_path / "model")) == {"pretrained_model_name_or_path": str(tmp_path / "model")}
    (tmp_path / "tokenizer_config.json").touch()
    assert locate(str(tmp_path)) == {"pretrained_model_name_or_path": str(tmp_path)}


def test_unused_ids_between_tokens_are_ids_all_the_same():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1, "</s>": 6})), eos_token="</s>"
    )
    assert (len(tokenizer), num_token_ids(tokenizer)) == (3, 7)
    tokenizer.add_tokens("c")
    assert num_token_ids(tokenizer) == 1 + max(tokenizer.get_vocab().values()) == 8
    assert num_token_ids(load_tokenizer("tokengym/tiny")) == len(load_tokenizer("tokengym/tiny"))


def test_labels_are_refused_where_a_tokenizer_gives_new_tokens_unused_ids():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1, "</s>": 2, "c": 7})), eos_token="</s>"
    )
    with pytest.raises(ValueError, match=r"leaves ids below 8 unused, and gives new tokens the ids \[4, 5\]"):
        with_labels(tokenizer, ["[BAD]", "[GOOD]"])


def test_added_tokens_that_the_model_lacks_are_left_out_here_and_when_saved(tmp_path):
    """As Gemma 3's language models have a token for images behind their last embedding."""
    whole = plain("</s>", extra_special_tokens={"image_token": "<img>"})
    whole.add_special_tokens({"pad_token": "<p>"})
    whole.save_pretrained(tmp_path)
    assert len(load_tokenizer(tmp_path)) == 5  # a tokenizer alone
    LlamaConfig(vocab_size=3).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.get_vocab() == {"a": 0, "b": 1, "</s>": 2}
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 2)
    with_labels(tokenizer, ["[BAD]"]).save_pretrained(tmp_path / "labelled")
    assert load_tokenizer(tmp_path / "labelled").get_vocab() == {"a": 0, "b": 1, "</s>": 2, "[BAD]": 3}


def test_no_token_that_ends_attempts_is_left_out(tmp_path):
    tokenizer = plain("</s>")
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(tmp_path)
    LlamaConfig(vocab_size=3).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).eos_token_id == 3  # `load` refuses the model


def test_built_ins_have_the_names_that_users_give_them(tmp_path):
    loaded = [*load("tokengym/tiny", device="cpu"), load_tokenizer("tokengym/tiny")]
    judge = OutcomeModel.load("tokengym/tiny-orm", device="cpu")
    assert [thing.name_or_path for thing in loaded] == ["tokengym/tiny"] * 3
    assert judge.model.name_or_path == judge.tokenizer.name_or_path == "tokengym/tiny-orm"
    loaded[1].save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).name_or_path == str(tmp_path)
