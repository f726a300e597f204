from types import SimpleNamespace

import pytest

from tokengym.envs.problems.base import Message, Problem
from tokengym.envs.problems.prompts import render_prompt, resolve_template
from tokengym.models import load_tokenizer
from tokengym.registry import UnknownNameError

PROBLEM = Problem("p-2", "What is {2}+{question}?", "4")
SHOTS = [
    Problem("p-0", "1+1?", "2", "1+1 = <<1+1=2>>2\n#### 2"),
    Problem("p-1", "1+2?", "3", "1+2 = <<1+2=3>>3\n#### 3\n"),
]


class ChatTokenizer(SimpleNamespace):
    chat_template = "some"
    name_or_path = "some/model"

    def apply_chat_template(self, turns, tokenize, add_generation_prompt):
        assert not tokenize
        assert add_generation_prompt
        return "".join(f"<{turn['role']}>{turn['content']}</>" for turn in turns) + "<assistant>"


def test_the_completion_begins_on_a_new_line():
    assert render_prompt("qa", SHOTS[0]) == "Q: 1+1?\nA:\n"


def test_braces_in_a_question_stay_as_they_are():
    assert render_prompt("{question} =", PROBLEM) == "What is {2}+{question}? ="


def test_worked_examples_come_first_in_the_same_template():
    assert render_prompt("qa", PROBLEM, SHOTS) == (
        "Q: 1+1?\nA:\n1+1 = <<1+1=2>>2\n#### 2\n\n"
        "Q: 1+2?\nA:\n1+2 = <<1+2=3>>3\n#### 3\n\n"
        "Q: What is {2}+{question}?\nA:\n"
    )
    with pytest.raises(ValueError, match="'p-2' has no solution"):
        render_prompt("qa", SHOTS[0], [PROBLEM])


def test_chat_shows_worked_examples_as_earlier_turns():
    instruction = "\n\nReason step by step, and end with a line of the form `#### answer`."
    assert render_prompt("chat", SHOTS[1], SHOTS[:1], ChatTokenizer()) == (  # type: ignore
        f"<user>1+1?{instruction}</><assistant>1+1 = <<1+1=2>>2\n#### 2</><user>1+2?{instruction}</><assistant>"
    )


def test_chat_needs_a_chat_template():
    with pytest.raises(ValueError, match="no tokenizer was given"):
        render_prompt("chat", PROBLEM)
    plain = SimpleNamespace(chat_template=None, name_or_path="some/base")
    with pytest.raises(ValueError, match="'some/base' has none"):
        render_prompt("chat", PROBLEM, tokenizer=plain)  # type: ignore


def test_unknown_templates():
    with pytest.raises(UnknownNameError, match="did you mean 'chat'"):
        resolve_template("chatt")
    with pytest.raises(ValueError, match=r"has no \{question\}"):
        resolve_template("Question:")
    assert resolve_template("Question: {question}") == "Question: {question}"


def test_chat_settings():
    tokenizer = ChatTokenizer()
    chat = {"name": "chat", "system": "Be brief.", "user": "Solve: {question}"}
    assert render_prompt(chat, SHOTS[0], tokenizer=tokenizer) == (  # type: ignore
        "<system>Be brief.</><user>Solve: 1+1?</><assistant>"
    )
    # A system prompt takes the place of the data's own, and examples stand after it.
    asked = Problem("p", "hi", "1", messages=(Message("system", "old"), Message("user", "hi")))
    assert render_prompt(chat, asked, SHOTS[:1], tokenizer) == (  # type: ignore
        "<system>Be brief.</><user>Solve: 1+1?</><assistant>1+1 = <<1+1=2>>2\n#### 2</><user>hi</><assistant>"
    )
    assert render_prompt("chat", asked, tokenizer=tokenizer) == "<system>old</><user>hi</><assistant>"  # type: ignore


@pytest.mark.parametrize("name", ["enable_thinking", "thinking"])
def test_the_switch_for_thinking_is_the_templates_own(name):
    tokenizer = load_tokenizer("tokengym/tiny")
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
        f"{{% if {name} is defined and not {name} %}}</think>{{% endif %}}"
    )
    asked = Problem("p", "hi", "1")
    chat = {"name": "chat", "user": "{question}"}
    assert render_prompt(chat, asked, tokenizer=tokenizer) == "[user]hi[assistant]"
    assert render_prompt(chat | {"thinking": True}, asked, tokenizer=tokenizer) == "[user]hi[assistant]"
    assert render_prompt(chat | {"thinking": False}, asked, tokenizer=tokenizer) == "[user]hi[assistant]</think>"


def test_a_template_that_would_ignore_a_setting():
    tokenizer = load_tokenizer("tokengym/tiny")
    tokenizer.chat_template = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="has no switch for thinking"):
        render_prompt({"name": "chat", "thinking": False}, PROBLEM, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="drops the system prompt"):
        render_prompt({"name": "chat", "system": "Be brief."}, PROBLEM, tokenizer=tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(ValueError, match="refuses the prompt: no system role"):
        render_prompt("chat", PROBLEM, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"name": "chat", "sytem": "x"}, "takes system, user and thinking.*sytem"),
        ({"name": "qa"}, 'only "chat" has settings'),
        ({"name": "chat", "user": "no question"}, r"has no \{question\}"),
        ({"name": "chat", "thinking": "no"}, "thinking must be true, false or None"),
    ],
)
def test_settings_that_are_none(template, message):
    with pytest.raises(ValueError, match=message):
        resolve_template(template)
