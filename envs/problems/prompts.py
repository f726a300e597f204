"""Prompts: how a problem, and worked examples before it, become the text that a completion continues."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ...registry import unknown_name
from ...rewards.grading.formats import Marker
from .base import Message, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT = "chat"
TEMPLATES: Mapping[str, str] = {
    "qa": "Q: {question}\nA:\n",
    CHAT: "{question}\n\n{instruction}",
}
"""Templates by name; `chat` is what the user says, inside the tokenizer's own chat template."""


def resolve_template(template: str) -> str:
    """The text of a template: one of `TEMPLATES` by its name, or the text itself.

    Raises:
        UnknownNameError: a name, and no template has it.
        ValueError: a text without `{question}`.
    """
    if template in TEMPLATES:
        return TEMPLATES[template]
    if "{question}" not in template:
        if re.fullmatch(r"[\w-]+", template):
            raise unknown_name("prompt template", template, TEMPLATES)
        raise ValueError(f"the prompt template {template!r} has no {{question}} to put the problem in")
    return template


def render_prompt(
    template: str,
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
        template: name among `TEMPLATES`, or any text with `{question}` in it, and `{instruction}` where it is wanted.
        problem: the problem to ask.
        shots: problems to show with their solutions first.
        tokenizer: whose chat template to use; only "chat" needs it. The special tokens are part of the text then:
            encode it with `add_special_tokens=False`.
        instruction: sentence that asks for an answer as the problem's source reads it; chats end with it.

    Raises:
        UnknownNameError: no template has that name.
        ValueError: a text without `{question}`, a shot without a solution, or "chat" with a tokenizer that has no chat
            template.
    """
    text = resolve_template(template)

    text = text.replace("{instruction}", instruction)
    if template == CHAT:
        text = text.strip()

    def ask(asked: Problem) -> str:
        return text.replace("{question}", asked.question)

    if template != CHAT:
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
    turns = [*asked[:begin], *examples, *asked[begin:]]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def _solution(shot: Problem) -> str:
    if shot.solution is None:
        raise ValueError(f"problem {shot.id!r} has no solution to show as a worked example")
    return shot.solution.strip()
