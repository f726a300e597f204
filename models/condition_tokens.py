"""Labels: special tokens that tell a language model how good the step or the attempt is that follows them.

Labels belong to the model, not to the environment. They stand between the tokens of an attempt in the model's input and
are never actions, so they come after the environment's whole vocabulary, and two tokenizers are saved with such a
model: its own, with labels, and the one without, which is the environment's.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..files import read_json
from ..registry import unknown_name
from .tokenizers import WITHOUT_LABELS, model_folder
from .vocabulary import num_token_ids

BAD, GOOD = "[BAD]", "[GOOD]"
"""The labels of Havrilla et al. 2024."""

OWN = "own"
"""Stands for the label that the model draws by itself."""

_RECORD = "labels.json"


@dataclass(frozen=True)
class Labels:
    """The labels of a model.

    Attributes:
        tokens: Texts of the labels, from worst to best.
        first: Id of the worst label; the ids of the others follow it.
        granularity: Unit that a label stands before: each "step", which is a line, or the whole "attempt".
        edges: Returns, or estimates of them, that divide the labels; one fewer than there are labels.
        learnt: True if the model was trained to write the labels itself too.
    """

    tokens: tuple[str, ...]
    first: int
    granularity: Literal["step", "attempt"]
    edges: tuple[float, ...]
    learnt: bool = True

    @property
    def best(self) -> str:
        return self.tokens[-1]

    @property
    def stop(self) -> int:
        """The id after that of the best."""
        return self.first + len(self.tokens)

    def id(self, label: str) -> int:
        """The token id of `label`; raises `UnknownNameError` for another text."""
        if label not in self.tokens:
            raise unknown_name("label", label, self.tokens)
        return self.first + self.tokens.index(label)

    def save(self, folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Writes the labels, the tokenizer with them, and `tokenizer`, which is without, beside a saved model."""
        folder = Path(folder)
        record = json.dumps(asdict(self) | {"ids": list(range(self.first, self.stop))}, indent=2)
        (folder / _RECORD).write_text(record + "\n")
        tokenizer.save_pretrained(folder / WITHOUT_LABELS)
        with_labels(tokenizer, self.tokens).save_pretrained(folder)

    @classmethod
    def load(cls, name_or_path: str | Path) -> Self | None:
        """The labels of the model in a folder, or in the folder of its run; `None` for a model that has none."""
        record = model_folder(Path(name_or_path).expanduser()) / _RECORD
        if not record.is_file():
            return None
        values: dict[str, Any] = read_json(record)
        del values["ids"]
        values["tokens"], values["edges"] = tuple(values["tokens"]), tuple(values["edges"])
        return cls(**values)


def with_labels(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer with labels as special tokens behind all others.

    Raises:
        ValueError: The tokenizer has one of the labels already, or gives new tokens unused ids between its others.
    """
    known = tokenizer.get_vocab()
    for token in tokens:
        if token in known:
            raise ValueError(
                f"the tokenizer {tokenizer.name_or_path!r} has a token {token!r} of its own (id {known[token]}): a "
                "label must mean nothing else, so train from a model whose tokenizer is without"
            )
    labelled = copy.deepcopy(tokenizer)
    added: list[Any] = [AddedToken(token, special=True, normalized=False) for token in tokens]
    labelled.add_tokens(added, special_tokens=True)
    given, first = labelled.convert_tokens_to_ids(list(tokens)), num_token_ids(tokenizer)
    if given != list(range(first, first + len(tokens))):
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} leaves ids below {first} unused, and gives new tokens the ids "
            f"{given}: labels need ids behind all others, so train from a model whose tokenizer uses all of its ids"
        )
    return labelled


@torch.no_grad()
def add_labels(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str], seed: int = 0) -> int:
    """Gives a model embeddings for labels: drawn about the mean of all others, as far from it as those are.

    Labels that all began as the mean would differ by no more than what little training moves them, and be as good as
    one. Where the output layer has weights of its own, labels do begin as the mean there, which changes the
    probabilities of other tokens least (Hewitt 2021).

    Args:
        model: Model to change in place.
        tokenizer: Tokenizer of the model, which is not changed.
        tokens: Texts of the labels, from worst to best.
        seed: Seed of the new embeddings' draw.

    Returns:
        The id of the first label; the others follow it.

    Raises:
        ValueError: The tokenizer has one of the labels already.
    """
    known, size = with_labels(tokenizer, tokens).get_vocab(), num_token_ids(tokenizer)
    first, stop = known[tokens[0]], known[tokens[-1]] + 1
    inputs: Any = model.get_input_embeddings()
    if stop > len(inputs.weight):  # many models have rows to spare
        with torch.random.fork_rng(devices=[]):
            model.resize_token_embeddings(stop, mean_resizing=False)
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    for weight in (outputs.weight, getattr(outputs, "bias", None)):  # pyright: ignore[reportOptionalMemberAccess]
        if isinstance(weight, torch.Tensor):
            weight[first:stop] = weight[:size].mean(0)
    others = inputs.weight[:size]
    noise = torch.randn((stop - first, others.shape[1]), generator=torch.Generator().manual_seed(seed))
    inputs.weight[first:stop] = others.mean(0) + others.std(0) * noise.to(others)
    return first
