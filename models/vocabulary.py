"""Sizes of vocabularies: of a tokenizer's ids, some of which may belong to no token, and of a model's embeddings."""

from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def num_token_ids(tokenizer: "PreTrainedTokenizerBase") -> int:
    """One above the largest id of `tokenizer`, which is more than `len(tokenizer)` where ids between are unused.

    A model has scores for unused ids too, so they can be drawn, and decode to nothing.
    """
    tokens = len(tokenizer)
    known = _sizes.get(tokenizer)
    if known is None or known[0] != tokens:  # no token was added since
        known = _sizes[tokenizer] = tokens, 1 + max(tokenizer.get_vocab().values())
    return known[1]


# Number of tokens and of ids of each tokenizer: a large one takes a tenth of a second to list.
_sizes: "WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, int]]" = WeakKeyDictionary()


def num_embeddings(model: "PreTrainedModel") -> int:
    """Number of token ids that `model` can read, those of no token included."""
    return len(cast(Any, model.get_input_embeddings()).weight)


def check_largest_id(model: "PreTrainedModel", largest: int) -> None:
    """Raises `ValueError` unless `model` has an embedding for the largest token id of what it is to read."""
    if largest >= (rows := num_embeddings(model)):
        raise ValueError(
            f"the token id {largest} is to be read, and the model has embeddings for ids 0 to {rows - 1} only: use "
            "its own tokenizer, as models.load gives it, for policy and environment"
        )
