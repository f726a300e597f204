"""Sizes of vocabularies: of a tokenizer's ids, some of which may belong to no token."""

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
