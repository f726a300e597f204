"""The second reader, and both readings of attempts whose verdicts are known."""

import pytest

from tokengym.agents import CausalLMPolicy
from tokengym.benchmarks.studies import real_answers
from tokengym.benchmarks.studies.real_answers import graded, second_reading
from tokengym.envs.curriculum import Sequential
from tokengym.envs.registration import make_vec_env
from tokengym.models import load


@pytest.mark.parametrize(
    ("text", "style", "number"),
    [
        ("first \\boxed{3}, no, \\boxed{1,250 \\text", "boxed", "3"),
        ("so \\boxed{\\$1,250.50}", "boxed", "1250.50"),
        ("so \\boxed{3 or 4}", "boxed", None),
        ("3+4=7\n#### 7 apples", "marker", "7"),
        ("#### -.5\nQ: 8", "marker", "-.5"),
        ("The answer is 7.", "marker", None),
    ],
)
def test_the_number_in_the_last_box_or_behind_the_last_marker(text, style, number):
    assert second_reading(text, style) == number


def test_both_readings_of_one_model_and_disputes_are_kept(monkeypatch):
    policy = CausalLMPolicy(*load("tokengym/tiny", device="cpu"))
    env = make_vec_env(
        "tokengym/Arithmetic-v0", 8, steps=1, operations="+", max_new_tokens=48, autoreset_mode="Disabled"
    )
    env.curriculum = Sequential()
    found = graded(policy, env, "marker", 8)
    assert sum(found.verdicts.values()) == 8
    assert (found.agree, found.disputes, found.ended_by_stop) == (8, [], 0)
    assert found.right == round(8 * found.maj.value) > 0
    monkeypatch.setattr(real_answers, "second_reading", lambda text, style: None)
    assert len(graded(policy, env, "marker", 8).disputes) == found.right
