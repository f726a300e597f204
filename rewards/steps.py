"""Ends of the steps of a completion: a step is a line of text."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ..arrays import IntArray
from ..models.vocabulary import num_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(slots=True)
class OpenLine:
    """Start of a completion's unfinished line."""

    start: int = 0
    carried: str = ""  # text after the newline inside the token that ended the last line

    def finish(self, tokens: NDArray[np.integer], decode: Callable[[Any], str], beyond: int = 0) -> str:
        """The text of the line that ends with the last of `tokens`, a completion so far; "" if it is blank.

        Args:
            tokens: Token ids [T] of the completion.
            decode: Function that gives the text of tokens.
            beyond: Number of characters at the end that are no part of the completion's text: its stop string.
        """
        text = self.carried + decode(tokens[self.start :])
        text = text[: max(0, len(text) - beyond)]
        line, newline, rest = text.rpartition("\n")
        self.start, self.carried = len(tokens), rest if newline else ""
        return (line if newline else text).strip()


def step_ends(
    completions: Sequence[NDArray[np.integer]], terminated: Sequence[bool], tokenizer: "PreTrainedTokenizerBase"
) -> list[IntArray]:
    """The last token of each step of finished attempts, by the rules of `StepReward`: indices [S] into each completion.

    But for stop strings, which are not known here: the text of one is the end of a step, or a step.

    Args:
        completions: Token ids [T] of each of C attempts.
        terminated: Bool, true for attempts that ended by themselves; the line that a token budget cuts off is not a
            step.
        tokenizer: Tokenizer of the completions.
    """
    text_of = functools.partial(decode, tokenizer)
    newline = newline_tokens(tokenizer)
    found: list[IntArray] = []
    for completion, ended in zip(completions, terminated, strict=True):
        boundary = newline[completion]
        boundary[len(completion) - 1 :] |= ended
        line = OpenLine()
        ends = [end for end in np.flatnonzero(boundary).tolist() if line.finish(completion[: end + 1], text_of)]
        found.append(np.array(ends, np.int64))
    return found


def step_texts(completion: NDArray[np.integer], ends: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The texts of the steps of a completion that end at the tokens `ends`, which `step_ends` has found."""
    texts: list[str] = []
    start, carried = 0, ""
    for end in ends:
        text = (carried + decode(tokenizer, completion[start : end + 1])).lstrip()  # blank lines before it are no steps
        line, newline, rest = text.rpartition("\n")
        texts.append((line if newline else text).strip())
        start, carried = end + 1, rest if newline else ""
    return texts


def newline_tokens(tokenizer: "PreTrainedTokenizerBase") -> NDArray[np.bool_]:
    """Bool [V], true for token ids with a newline in their text; read-only, made once per tokenizer."""
    tokens = len(tokenizer)
    known = _NEWLINES.get(tokenizer)
    if known is None or known[0] != tokens:  # no token was added since
        texts = tokenizer.batch_decode([[token] for token in range(num_token_ids(tokenizer))])
        found = np.fromiter(("\n" in text for text in texts), dtype=np.bool_, count=len(texts))
        found.flags.writeable = False
        known = _NEWLINES[tokenizer] = tokens, found
    return known[1]


# Number of tokens of each tokenizer, and what was found: a large vocabulary takes tenths of a second to decode.
_NEWLINES: "WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, NDArray[np.bool_]]]" = WeakKeyDictionary()


def decode(tokenizer: "PreTrainedTokenizerBase", tokens: NDArray[np.integer]) -> str:
    text = tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
    return text if isinstance(text, str) else "".join(text)
