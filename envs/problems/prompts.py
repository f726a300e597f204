"""Prompts: how a problem, and worked examples before it, become the text that a completion continues."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...arrays import IntArray
from ...registry import unknown_name
from ...rewards.grading.formats import Marker
from ...settings import check_kind
from .base import Message, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT = "chat"
TEMPLATES: Mapping[str, str] = {
    "qa": "Q: {question}\nA:\n",
    CHAT: "{question}\n\n{instruction}",
}
"""Templates by name; `chat` is what the user says, inside the tokenizer's own chat template."""

# What chat templates call the switch that turns thinking on or off: Qwen3, SmolLM3 and others; DeepSeek, Granite.
_THINKING = ("enable_thinking", "thinking")


@dataclass(frozen=True, slots=True)
class Chat:
    """Settings of prompts in the tokenizer's own chat template.

    Attributes:
        system: System prompt, in place of the one that a problem's own messages may have; `None` leaves those as they
            are, and the template's default.
        user: Text of the user's turn, with `{question}` in it, and `{instruction}` where it is wanted.
        thinking: Ask the model to think before it answers, for templates with such a switch; `None` leaves it to the
            template.
    """

    system: str | None = None
    user: str = TEMPLATES[CHAT]
    thinking: bool | None = None


def resolve_template(template: "str | Mapping[str, Any] | Chat") -> str | Chat:
    """A template: the text itself or one of `TEMPLATES` by its name, and for chats their settings.

    Raises:
        UnknownNameError: A name, and no template has it.
        ValueError: A text without `{question}`, or a mapping that is not "name": "chat" with the fields of `Chat`.
        TypeError: None of these.
    """
    if isinstance(template, Mapping):
        settings = {name: value for name, value in template.items() if name != "name"}
        try:
            inspect.signature(Chat).bind(**settings)
        except TypeError as error:
            raise ValueError(f'prompt "chat" takes system, user and thinking: {error}') from None
        if template.get("name") != CHAT:
            raise ValueError(f'prompt={dict(template)!r}: only "chat" has settings, as in {{"name": "chat", ...}}')
        template = Chat(**settings)
    if isinstance(template, Chat):
        if template.thinking not in (None, True, False):
            raise ValueError(f"thinking must be true, false or None, got {template.thinking!r}")
        _check_text(template.user)
        return template
    check_kind("prompt", template, str | Mapping)
    if template == CHAT:
        return Chat()
    if template in TEMPLATES:
        return TEMPLATES[template]
    return _check_text(template)


def _check_text(template: str) -> str:
    if "{question}" not in template:
        if re.fullmatch(r"[\w-]+", template):
            raise unknown_name("prompt template", template, TEMPLATES)
        raise ValueError(f"the prompt template {template!r} has no {{question}} to put the problem in")
    return template


def next_question(template: str) -> tuple[str, ...]:
    """Stop strings for the next question after a worked example: the text before `{question}`, on a new line.

    Empty where the template begins with the question: nothing then tells it from the lines of a solution.
    """
    head = template.partition("{question}")[0].strip()
    return (f"\n{head.splitlines()[0].rstrip()}",) if head and "{instruction}" not in head.splitlines()[0] else ()


def render_prompt(
    template: "str | Mapping[str, Any] | Chat",
    problem: Problem,
    shots: Sequence[Problem] = (),
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    instruction: str = Marker().instruction,
) -> str:
    """The prompt for `problem`; the completion starts right after it.

    Worked examples are rendered with the same template, each followed by its full solution and a blank line; with
    "chat", they are earlier turns of the conversation. A problem that comes with messages of its own is asked by these
    in a chat, word for word; examples then stand after its system prompt.

    Args:
        template: Name in `TEMPLATES`, any text with `{question}` in it, and `{instruction}` where it is wanted, or the
            settings of a chat.
        problem: Problem to ask.
        shots: Problems to show with their solutions first.
        tokenizer: Tokenizer whose chat template is used; only "chat" needs it. The special tokens are part of the text
            then: see `encode_rendered`.
        instruction: Sentence that asks for an answer as the problem's source reads it; chats end with it.

    Raises:
        UnknownNameError: No template has that name.
        ValueError: A text without `{question}`, a shot without a solution, or a chat with a tokenizer whose chat
            template is missing or has no system prompt or switch for thinking where one is set.
    """
    resolved = resolve_template(template)
    chat = resolved if isinstance(resolved, Chat) else None
    text = (resolved if isinstance(resolved, str) else resolved.user).replace("{instruction}", instruction)
    if chat is not None:
        text = text.strip()

    def ask(asked: Problem) -> str:
        return text.replace("{question}", asked.question)

    if chat is None:
        return "".join(f"{ask(shot)}{_solution(shot)}\n\n" for shot in shots) + ask(problem)
    if tokenizer is None or not tokenizer.chat_template:
        name = "no tokenizer was given" if tokenizer is None else f"{tokenizer.name_or_path!r} has none"
        raise ValueError(f'prompt="chat" needs a tokenizer with a chat template, and {name}: use prompt="qa"')
    asked = [message._asdict() for message in problem.messages or (Message("user", ask(problem)),)]
    examples = [
        message._asdict()
        for shot in shots
        for message in (Message("user", ask(shot)), Message("assistant", _solution(shot)))
    ]
    begin = int(asked[0]["role"] == "system")
    system = asked[:begin] if chat.system is None else [Message("system", chat.system)._asdict()]
    return _apply(tokenizer, [*system, *examples, *asked[begin:]], chat)


def encode_rendered(text: str, tokenizer: "PreTrainedTokenizerBase", *, is_chat: bool) -> IntArray:
    """Token ids of a prompt that `render_prompt` made, with the special tokens that the tokenizer begins a text with.

    Those of a chat are in its text. An end-of-sequence token that the tokenizer ends a text with is left out, because
    nothing would continue it.
    """
    tokens = np.asarray(tokenizer(text, add_special_tokens=not is_chat)["input_ids"], np.int64)
    if is_chat or not len(tokens) or tokens[-1] != tokenizer.eos_token_id:
        return tokens
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]  # may end with that token by its own words
    return tokens[:-1] if plain and plain[-1] != tokens[-1] else tokens


def _apply(tokenizer: "PreTrainedTokenizerBase", turns: list[dict[str, Any]], chat: Chat) -> str:
    """The tokenizer's chat template with these turns in it, up to where the assistant's answer begins."""
    switch: dict[str, Any] = {}
    if chat.thinking is not None:
        # Nothing else tells: templates ignore the variables that they do not know.
        source = str(tokenizer.chat_template)
        name = next((name for name in _THINKING if re.search(rf"\b{name}\b", source)), None)
        if name is None:
            raise ValueError(
                f"the chat template of {tokenizer.name_or_path!r} has no switch for thinking "
                f"({' or '.join(_THINKING)}): leave `thinking` out"
            )
        switch[name] = chat.thinking
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **switch))
    except Exception as error:  # Jinja's, with what the template raises of its own
        raise ValueError(f"the chat template of {tokenizer.name_or_path!r} refuses the prompt: {error}") from error
    if chat.system is not None and chat.system.strip() not in text:
        raise ValueError(f"the chat template of {tokenizer.name_or_path!r} drops the system prompt: leave `system` out")
    return text


def _solution(shot: Problem) -> str:
    if shot.solution is None:
        raise ValueError(f"problem {shot.id!r} has no solution to show as a worked example")
    return shot.solution.strip()
