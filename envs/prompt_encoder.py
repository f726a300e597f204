"""Problems to token ids, and token ids back to text: a prompt template, worked examples and a tokenizer."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays import BoolArray, IntArray
from ..models.vocabulary import num_token_ids
from .problems.base import HOW_TO_MAKE, Problem, ProblemSource
from .problems.prompts import Chat, encode_rendered, next_question, render_prompt, resolve_template
from .stop_strings import StopStrings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Prompts kept encoded, some 2 MB of them: curricula come back to a problem soon or not for long.
_MAX_RECENT = 1024


class PromptEncoder:
    """Encodes the prompts and reference solutions of a source's problems, and decodes completions.

    Args:
        problems: Source of the problems.
        tokenizer: Tokenizer, or its name for `models.load_tokenizer`.
        eos_token_ids: Ids that end an attempt beside the tokenizer's own.
        template: Template of the prompts: a name, any text with `{question}` in it, or chat settings, as in
            `prompts.render_prompt`.
        shots: Number of worked examples before each question, the first of `examples` that ask something else.
        examples: Source of the worked examples.
        stop: Texts that end a completion; `None` uses the beginning of the next question if there are shots.

    Attributes:
        problems: Source of the problems.
        tokenizer: Tokenizer of prompts and completions.
        template: Template as it was given.
        shots: Number of worked examples before each question.
        examples: Source of the worked examples.
        stops: Texts that end a completion.
        eos_token_ids: All ids that end an attempt.
        eos_token_id: End-of-sequence id of the tokenizer.
        pad_token_id: Padding id of the tokenizer, or `eos_token_id` if it has none.
        vocab_size: Number of token ids V; an id is in [0, V).
        is_eos: Bool `[V]`, true for ids that end an attempt.

    Raises:
        ValueError: The tokenizer has no end-of-sequence token, an id is outside its vocabulary, the template has no
            `{question}`, there are no examples for the shots, or a stop string is empty or cuts off every answer.
        UnknownNameError: No template has the name given.
    """

    def __init__(
        self,
        problems: ProblemSource,
        tokenizer: "str | PreTrainedTokenizerBase",
        *,
        eos_token_ids: Sequence[int] = (),
        template: str | Mapping[str, Any] | Chat = "qa",
        shots: int = 0,
        examples: ProblemSource | None = None,
        stop: str | Sequence[str] | None = None,
    ) -> None:
        if shots < 0 or (shots > 0 and examples is None):
            raise ValueError(f"shots must be at least 0, and need `examples` to take them from, got {shots}")
        resolved = resolve_template(template)  # its errors belong here, not in the first prompt
        if isinstance(tokenizer, str):
            from ..models import load_tokenizer  # here and not above: `import tokengym` must not import transformers

            tokenizer = load_tokenizer(tokenizer)
        if not callable(tokenizer):
            raise TypeError(f"tokenizer must be the name of one, a folder as text, or a tokenizer, got {tokenizer!r}")
        self.tokenizer = tokenizer
        self.template = template
        self._is_chat = isinstance(resolved, Chat)
        if stop is None:
            stop = next_question(resolved) if shots and isinstance(resolved, str) else ()
        self.stops = StopStrings(stop, tokenizer)
        self.eos_token_ids = _end_of_sequence_ids(tokenizer, eos_token_ids)
        self.eos_token_id = cast(int, tokenizer.eos_token_id)
        self.pad_token_id = self.eos_token_id if tokenizer.pad_token_id is None else cast(int, tokenizer.pad_token_id)
        self.vocab_size = num_token_ids(tokenizer)
        self.is_eos: BoolArray = np.zeros(self.vocab_size, dtype=np.bool_)
        self.is_eos[list(self.eos_token_ids)] = True
        self.problems = problems
        self._kept_stops()  # its errors, too
        self.shots = shots
        self.examples = examples
        self._recent: dict[int | str, tuple[Problem, IntArray]] = {}

    def start(self, key: int | str) -> tuple[Problem, IntArray]:
        """The source's problem of that index or id, and its prompt; made once for many attempts at it."""
        start = self._recent.get(key)
        if start is None:
            problem = self.problems.find(key) if isinstance(key, str) else self.problems[key]
            if not isinstance(problem, Problem):
                raise TypeError(f"{self.problems!r} gave {problem!r} for {key!r}: {HOW_TO_MAKE}")
            start = self._recent[key] = problem, self.encode_prompt(problem)
            if len(self._recent) > _MAX_RECENT:
                del self._recent[next(iter(self._recent))]
        return start

    def forget(self) -> None:
        """Drops the prompts that were kept, as those of another source."""
        self._recent.clear()

    def encode(self, text: str) -> IntArray:
        """Token ids of a text."""
        return np.asarray(self.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)

    def encode_prompt(self, problem: Problem) -> IntArray:
        """Token ids of the prompt for `problem`, however many they are.

        Raises:
            ValueError: There are too few worked examples.
        """
        shots = self._worked_examples(problem)
        text = render_prompt(self.template, problem, shots, self.tokenizer, self.problems.instruction)
        return encode_rendered(text, self.tokenizer, is_chat=self._is_chat)

    def _worked_examples(self, problem: Problem) -> list[Problem]:
        """The examples before a problem, which may be one of their split: its own solution is not shown."""
        found: list[Problem] = []
        if self.shots and self.examples is not None:
            size = self.examples.size
            for index in itertools.count() if size is None else range(size):
                example = self.examples[index]
                if example.question != problem.question:
                    found.append(example)
                if len(found) == self.shots:
                    return found
            raise ValueError(
                f"shots={self.shots}, and only {len(found)} of {size} examples ask something else than problem "
                f"{problem.id!r}: lower shots, or give more examples"
            )
        return found

    def encode_solution(self, problem: Problem) -> IntArray:
        """Token ids of the reference solution of `problem`, an end-of-sequence token at their end.

        Raises:
            ValueError: The problem has no solution.
        """
        if problem.solution is None:
            raise ValueError(f"problem {problem.id!r} has no solution: its data has answers only")
        return np.append(self.encode(problem.solution), self.eos_token_id)

    def encode_prefix(self, prefix: str | ArrayLike | None, max_new_tokens: int) -> IntArray:
        """Token ids of the beginning of a completion, given as text, as token ids or as None for none.

        Raises:
            ValueError: The prefix holds an end-of-sequence token, a stop string or a token outside the vocabulary, or
                leaves nothing of `max_new_tokens`.
        """
        if prefix is None:
            return np.empty(0, dtype=np.int64)
        tokens = self.encode(prefix) if isinstance(prefix, str) else np.asarray(prefix, dtype=np.int64)
        if len(tokens) >= max_new_tokens:
            raise ValueError(f"a prefix of {len(tokens)} tokens leaves nothing of max_new_tokens={max_new_tokens}")
        self.check_vocabulary(tokens)
        if self.is_eos[tokens].any():
            raise ValueError(f"a prefix must not hold an end-of-sequence token, got {tokens.tolist()}")
        if self.stops.first_end(tokens) is not None:
            raise ValueError(f"a prefix must not hold one of stop={self.stops.strings!r}, got {self.decode(tokens)!r}")
        return tokens

    def decode(self, completion: NDArray[np.integer[Any]]) -> str:
        """The text of a completion as it is graded: an end-of-sequence token or stop string at its end is left out."""
        ended = len(completion) > 0 and completion[-1] in self.eos_token_ids
        tokens = completion[:-1] if ended else completion
        text = cast(str, self.tokenizer.decode(tokens.tolist(), clean_up_tokenization_spaces=False))
        return text if ended else self.cut(text)

    def cut(self, text: str) -> str:
        """The text of a completion before its stop string.

        A stop string with which the answer format ends an answer, such as "</answer>", stays.
        """
        return self.stops.cut(text, self._kept_stops()) if self.stops else text

    def end_by_token(self, completion: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
        """A finished completion, ended by an end-of-sequence token in the place of a stop string.

        For training without the prompts that make a model write the stop string.
        """
        if completion[-1] in self.eos_token_ids or self.stops.first_end(completion) is None:
            return completion
        return np.append(completion[: self.stops.whole_tokens(completion, self._kept_stops())], self.eos_token_id)

    def _kept_stops(self) -> list[str]:
        """The stop strings that end an answer in the source's format.

        Raises:
            ValueError: A stop string begins every answer, so that none would be graded.
        """
        kept: list[str] = []
        for string in self.stops.strings:
            before, found, after = self.problems.answer_format.show("0").partition(string)
            if found and "0" in after and "0" not in before + string:
                raise ValueError(
                    f"stop={string!r} would cut off every answer, which is shown as {before + found + after!r}: stop "
                    "after it, or choose another answer_format"
                )
            if found:
                kept.append(string)
        return kept

    def check_vocabulary(self, tokens: NDArray[Any], slots: IntArray | None = None) -> None:
        """Checks that all of `tokens` are token ids; an error names the slot of the first that is none.

        Raises:
            ValueError: A token is outside the vocabulary.
        """
        outside = (tokens < 0) | (tokens >= self.vocab_size)
        if outside.any():
            first = int(np.flatnonzero(outside)[0])
            where = "" if slots is None else f"slot {slots[first]}: "
            raise ValueError(f"{where}token id {tokens[first]} is outside the vocabulary [0, {self.vocab_size})")


def _end_of_sequence_ids(tokenizer: "PreTrainedTokenizerBase", further: Sequence[int]) -> frozenset[int]:
    if tokenizer.eos_token_id is None:
        name = tokenizer.name_or_path or type(tokenizer).__name__
        raise ValueError(f"tokenizer {name!r} has no end-of-sequence token: set its eos_token")
    for token in further:
        if not 0 <= token < num_token_ids(tokenizer):
            raise ValueError(f"end-of-sequence id {token} is outside the vocabulary [0, {num_token_ids(tokenizer)})")
    return frozenset({cast(int, tokenizer.eos_token_id), *further})
