"""Language models: loading, the built-in tiny model and tokenizer, KV-cache slots, sampling, heads."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loading import check_vocabulary, load
    from .tokenizers import load_tokenizer

__all__ = ["check_vocabulary", "load", "load_tokenizer"]

_HOMES = {"check_vocabulary": "loading", "load": "loading", "load_tokenizer": "tokenizers"}


def __getattr__(name: str) -> Any:
    # torch and transformers take seconds to import: only whoever uses a model waits for them.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
