"""Tokenizers by name: the built-in ones, any Hugging Face tokenizer, and those inside GGUF files."""

import json
import re
import textwrap
from collections.abc import Set
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..extras import need
from ..files import DamagedFileError, check_tensors, read_json
from ..registry import UnknownNameError, unknown_name
from .vocabulary import num_token_ids

TINY = "tokengym/tiny"
TINY_FOLDER = Path(__file__).parent / "tiny"
TINY_ORM = "tokengym/tiny-orm"
"""Name of the built-in outcome model, which `scripts/make_tiny_orm.py` made of the built-in model."""
TINY_ORM_FOLDER = Path(__file__).parent / "tiny_orm"
CHARS = "chars:"
BUILT_INS = (TINY, CHARS + "<characters>")

EOS, PAD = "<|endoftext|>", "<|pad|>"

WITHOUT_LABELS = "without_labels"
"""Folder, inside that of a model with labels (see `labels`), of the tokenizer without them."""

# A repository on the hub: "name" or "owner/name".
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


class CharTokenizer(PreTrainedTokenizerFast):
    """One token per character; encoding a character that has no token raises `ValueError`."""

    def _encode_plus(self, text: Any, text_pair: Any = None, *args: Any, **kwargs: Any) -> Any:
        known = self.get_vocab()
        for char in _characters((text, text_pair)):
            if char not in known:
                raise ValueError(f"the tokenizer has no token for {char!r}; its characters are {self._alphabet()!r}")
        return super()._encode_plus(text, text_pair, *args, **kwargs)

    def _alphabet(self) -> str:
        return "".join(token for token in self.convert_ids_to_tokens(list(range(len(self)))) if len(token) == 1)


def _characters(text: Any) -> set[str]:
    if text is None:
        return set()
    return set(text) if isinstance(text, str) else set().union(*map(_characters, text))


def char_tokenizer(characters: str) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per character of `characters`, ids in their order, then end-of-sequence and pad.

    Raises:
        ValueError: There is no character, or one is given twice.
    """
    repeated = sorted({char for char in characters if characters.count(char) > 1})
    if repeated:
        raise ValueError(f"{CHARS + characters!r} gives {', '.join(map(repr, repeated))} more than once")
    if not characters:
        raise ValueError(f'{CHARS!r} names no characters: write them after the colon, as in "chars:0123456789+="')
    vocabulary = {token: index for index, token in enumerate([*characters, EOS, PAD])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return wrap(tokenizer, CharTokenizer)


def wrap(
    tokenizer: Tokenizer, kind: type[PreTrainedTokenizerFast] = PreTrainedTokenizerFast
) -> PreTrainedTokenizerFast:
    """`tokenizer`, whose vocabulary holds `EOS` and `PAD`, behind the transformers interface.

    Text never turns into a special token, not even the text "<|endoftext|>": a problem cannot end its own prompt.
    """
    return kind(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
        model_input_names=["input_ids", "attention_mask"],
    )


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of that name, without reading any weights.

    It pads on the right; a tokenizer without a pad token pads with its end-of-sequence token. A built-in name, a folder
    and a file are read without the network. Of a model that was trained with labels it is the tokenizer without them.
    Added tokens behind the model's last embedding, which it cannot read or write, are left out: Gemma 3's language
    models have one for images.

    Args:
        name_or_path: Tokenizer to load: "tokengym/tiny"; "chars:0123456789+=" for one token per character; a local
            folder; a *.gguf file; or a name on the Hugging Face hub, which is downloaded unless it is in the local
            cache.

    Raises:
        UnknownNameError: There is no tokenizer of that name.
        FileNotFoundError: The *.gguf file does not exist, or the folder holds no tokenizer.
        ValueError: The tokenizer has no end-of-sequence token, without which no attempt ever ends.
    """
    name = str(name_or_path)
    if name.startswith(CHARS):
        return char_tokenizer(name.removeprefix(CHARS))
    location = locate(name)
    if (unlabelled := Path(location["pretrained_model_name_or_path"], WITHOUT_LABELS)).is_dir():
        location = {"pretrained_model_name_or_path": str(unlabelled)}
    try:
        tokenizer = _tokenizer_class(location).from_pretrained(**location)
    except (OSError, ValueError) as error:
        raise not_loaded("tokenizer", name, location, error) from error
    if "gguf_file" in location:
        _drop_appended(tokenizer)
    else:
        _drop_unembedded(tokenizer, location)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer of {name!r} has no end-of-sequence token: set its `eos_token` and save it again"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    name_built_in(tokenizer)
    return tokenizer


def _drop_appended(tokenizer: Any) -> None:
    """Takes out what transformers appends to the tokens of a GGUF file, which are all that the model has.

    A byte-level vocabulary without "<|endoftext|>" gets it, whatever the file's own special tokens are.
    """
    own = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    _drop(tokenizer, tokenizer.get_added_vocab().keys() - own.keys() - {*tokenizer.special_tokens_map.values()})


def _drop_unembedded(tokenizer: Any, location: dict[str, str]) -> None:
    """Takes out added tokens that the model has no embeddings for, unless prompts or attempts need them.

    A pad token among them is replaced, for what is read at padding changes nothing.
    """
    try:
        rows = getattr(AutoConfig.from_pretrained(**location).get_text_config(), "vocab_size", None)
    except (OSError, ValueError):  # a tokenizer alone, or a type that `load` will refuse
        return
    if rows is None or num_token_ids(tokenizer) <= rows or not hasattr(tokenizer, "backend_tokenizer"):
        return
    added = {token for token, index in tokenizer.get_added_vocab().items() if index >= rows}
    _drop(tokenizer, added - needed_tokens(tokenizer))


def needed_tokens(tokenizer: Any) -> Set[str]:
    """Tokens that prompts and attempts need: all but added ones that neither begin nor end texts, nor are the unknown.

    The others occur only where a text has them, or at padding, whose ids nobody reads.
    """
    if hasattr(tokenizer, "backend_tokenizer"):
        own = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False).keys()
    else:
        own = tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys()
    return own | {tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token}


def _drop(tokenizer: Any, tokens: Set[str]) -> None:
    """Takes out added tokens; their text is then text like any other."""
    if not tokens:
        return
    saved = tokenizer.init_kwargs.get("model_specific_special_tokens", {})
    for name, token in tokenizer.special_tokens_map.items():
        if token in tokens:
            setattr(tokenizer, name, None)
            saved.pop(name, None)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in tokens]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))


def name_built_in(thing: Any) -> None:
    """Names a built-in model or tokenizer as users do, not by its folder, which they never gave; for messages."""
    names = {str(TINY_FOLDER): TINY, str(TINY_ORM_FOLDER): TINY_ORM}
    thing.name_or_path = names.get(thing.name_or_path, thing.name_or_path)


def locate(name: str) -> dict[str, str]:
    """Location of the model or tokenizer `name`, as arguments of transformers' `from_pretrained`."""
    if not name:
        raise UnknownNameError("no model '': give a name on the hub, a folder or a *.gguf file")
    path = Path(name).expanduser()
    if name == TINY:
        return {"pretrained_model_name_or_path": str(TINY_FOLDER)}
    if name == TINY_ORM and not path.exists():
        return {"pretrained_model_name_or_path": str(TINY_ORM_FOLDER)}
    if name.startswith("tokengym/") and not path.exists():
        raise unknown_name("model", name, BUILT_INS)
    if name.endswith(".gguf"):
        if not path.is_file():
            raise FileNotFoundError(f"there is no GGUF file {str(path.absolute())!r}")
        need("gguf", "reading a *.gguf file")
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if path.is_dir():
        return {"pretrained_model_name_or_path": str(model_folder(path))}
    if path.exists():
        raise ValueError(f"{str(path)!r} is a file: give the folder that it is in, or a *.gguf file")
    if not _HUB_ID.fullmatch(name):
        raise UnknownNameError(
            f"no model {name!r}: it is no built-in ({', '.join(BUILT_INS)}), there is no folder "
            f"{str(path.absolute())!r}, and it cannot be a name on the hub"
        )
    return {"pretrained_model_name_or_path": name}


def model_folder(path: Path) -> Path:
    """The folder of the model that a run's folder holds, whose own `config.json` is the run's; another as it is."""
    inside = path / "model"
    is_run = (inside / "config.json").exists() and not (path / "tokenizer_config.json").exists()
    return inside if is_run else path


def not_loaded(what: str, name: str, location: dict[str, str], error: Exception) -> Exception:
    """The error for a `what` that transformers could not load from `location`, naming everything that was tried."""
    cause, folder = textwrap.shorten(str(error), 400), Path(location["pretrained_model_name_or_path"])
    if folder.is_dir():
        return FileNotFoundError(
            f"no {what} can be loaded from {name!r}: "
            f"{_damage(folder) or _unfinished(folder) or _lack(folder, what) or cause}"
        )
    offline = "; without a network HF_HUB_OFFLINE=1 saves the time of asking" if "connect" in cause else ""
    return UnknownNameError(
        f"no {what} {name!r}: it is no built-in ({', '.join(BUILT_INS)}), there is no folder "
        f"{str(Path(name).absolute())!r}, and the hub did not provide it: {cause}{offline}"
    )


def _unfinished(folder: Path) -> str | None:
    """What is wrong with the folder of a run that has kept no model yet, if it is one."""
    record = folder / "config.json"
    config = read_json(record) if record.is_file() else None
    if isinstance(config, dict) and {"agent", "env", "versions"} <= config.keys():
        return (
            "it is the folder of a run that has kept no model yet: finish the run by `resume`, or give another folder"
        )
    return None


def _lack(folder: Path, what: str) -> str | None:
    """What a folder lacks that one of a `what` has, if it lacks all of it."""
    if any(next(folder.glob(pattern), None) is not None for pattern in _TOKENIZER_FILES):
        return None
    if not (folder / "config.json").is_file():
        return "it has neither a config.json nor a tokenizer.json: give the folder that a model was saved in"
    if what == "tokenizer":
        return "it has no tokenizer.json: save the model's tokenizer there, too, by `tokenizer.save_pretrained`"
    return None


_TOKENIZER_FILES = ("*token*", "*vocab*", "*.model", "merges.txt")
"""Files of which every tokenizer's folder has one."""


def _damage(folder: Path) -> str | None:
    """What is wrong with the first damaged file of a model's folder, if any is."""
    try:
        for path in sorted(folder.glob("*.json")):
            read_json(path)
        for path in sorted(folder.glob("*.safetensors")):
            check_tensors(path)
    except DamagedFileError as error:
        return str(error)
    return None


def _tokenizer_class(location: dict[str, str]) -> Any:
    """`CharTokenizer` for a folder that one was saved in, which transformers would not know."""
    config = Path(location["pretrained_model_name_or_path"], "tokenizer_config.json")
    saved = config.is_file() and f'"{CharTokenizer.__name__}"' in config.read_text(encoding="utf-8")
    return CharTokenizer if saved else AutoTokenizer
