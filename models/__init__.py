"""Language models: loading, the built-in tiny model and tokenizer, KV-cache slots, sampling, heads."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .extrapolation import extrapolate
    from .loading import check_vocabulary, load
    from .outcome import OutcomeModel
    from .tokenizers import load_tokenizer
    from .vocabulary import num_token_ids

__all__ = ["OutcomeModel", "check_vocabulary", "extrapolate", "load", "load_tokenizer", "num_token_ids"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "extrapolation": ("extrapolate",),
        "loading": ("check_vocabulary", "load"),
        "outcome": ("OutcomeModel",),
        "tokenizers": ("load_tokenizer",),
        "vocabulary": ("num_token_ids",),
    },
)
