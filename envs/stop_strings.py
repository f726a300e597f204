r"""Texts that end an attempt, as "\nQ:" does for a base model that continues with the next question by itself."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ..arrays import IntArray
from ..models.vocabulary import num_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNKNOWN, _INSIDE, _MAY_END = -1, 0, 1
# Half a character, as a byte-level token may hold it.
_REPLACEMENT = "\ufffd"


class StopStrings:
    """Finds the token with which the text of a completion first holds one of some strings.

    A token that cannot end a stop string costs one look into a table; for the others the last few tokens are decoded,
    never the whole completion.

    Args:
        strings: Stop strings, or a single one.
        tokenizer: Tokenizer that the completions are written in.

    Attributes:
        strings: Stop strings as a tuple.

    Raises:
        ValueError: A stop string is empty or not text.
    """

    def __init__(self, strings: str | Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> None:
        given = (strings,) if isinstance(strings, str) or not isinstance(strings, Sequence) else tuple(strings)
        for string in given:
            if not isinstance(string, str) or not string or _REPLACEMENT in string:
                raise ValueError(f'stop={strings!r}: {string!r} can end no attempt; give texts such as "\\nQuestion:"')
        self.strings = given
        self._tokenizer = tokenizer
        self._last = frozenset(string[-1] for string in given)
        self._longest = max(map(len, given), default=0)
        self._kinds = np.full(num_token_ids(tokenizer), _UNKNOWN if given else _INSIDE, np.int8)
        self._anchor: list[int] | None = None

    def __bool__(self) -> bool:
        return bool(self.strings)

    def candidates(self, tokens: NDArray[np.integer[Any]]) -> IntArray:
        """Positions in `tokens` `[T]` of those that may be the last of a stop string."""
        kinds = self._kinds[tokens]
        if kinds.min(initial=_INSIDE) == _UNKNOWN:
            for token in np.unique(tokens[kinds == _UNKNOWN]).tolist():
                self._kinds[token] = _MAY_END if self._may_end(token) else _INSIDE
            kinds = self._kinds[tokens]
        return np.flatnonzero(kinds)

    def ends(self, completion: NDArray[np.integer[Any]]) -> bool:
        """True if the last token of `completion` `[T]` ends a stop string; there must be none before it."""
        window = 4 * self._longest + 8  # a character has at most four tokens
        while True:
            known = window >= len(completion)
            # What precedes the last token in these tokens; its first character may be half of one, or a lost space.
            if known or len(self._decode(completion[-window:-1])) > self._longest:
                text = self._decode(completion[-window:])
                return any(string in text for string in self.strings)
            window *= 2

    def first_end(self, completion: NDArray[np.integer[Any]], start: int = 0) -> int | None:
        """The number of tokens of `completion` `[T]` up to the first at or after `start` that ends a stop string."""
        if self.strings:
            for position in (start + self.candidates(completion[start:])).tolist():
                if self.ends(completion[: position + 1]):
                    return position + 1
        return None

    def cut(self, text: str, kept: Sequence[str] = ()) -> str:
        """`text` before its first stop string; that string included if it is one of `kept`."""
        found = [(at, string) for string in self.strings if (at := text.find(string)) >= 0]
        if not found:
            return text
        at, string = min(found, key=lambda each: (each[0], len(each[1])))
        return text[: at + len(string) * (string in kept)]

    def whole_tokens(self, completion: NDArray[np.integer[Any]], kept: Sequence[str] = ()) -> int:
        """Number of the first tokens of `completion` that have no text beyond what `cut` leaves of it."""
        before = len(self.cut(self._decode(completion), kept))
        low, high = 0, len(completion)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if len(self._decode(completion[:middle])) <= before else (low, middle - 1)
        return low

    def _may_end(self, token: int) -> bool:
        # After another token, for some tokenizers drop the space that a text begins with.
        anchor = self._find_anchor()
        if not anchor:
            return True
        text = self._decode(np.array([*anchor, token])).removeprefix(self._decode(np.array(anchor)))
        # Half a character may be the last half, unless all that it could end are characters of one byte.
        if _REPLACEMENT in text and not all(character.isascii() for character in self._last):
            return True
        return not self._last.isdisjoint(text)

    def _find_anchor(self) -> list[int]:
        """A token that is the same text wherever it stands; empty where there is none."""
        if self._anchor is None:
            for token in range(len(self._kinds)):
                text = self._decode(np.array([token]))
                if text.isascii() and text.isalnum() and self._decode(np.array([token, token])) == 2 * text:
                    self._anchor = [token]
                    break
            else:
                self._anchor = []
        return self._anchor

    def _decode(self, tokens: NDArray[np.integer[Any]]) -> str:
        return cast(str, self._tokenizer.decode(tokens.tolist(), clean_up_tokenization_spaces=False))
