"""Where completions show their answers, format by format."""

import pytest

from tokengym.registry import UnknownNameError
from tokengym.rewards.grading.formats import ANSWER_FORMATS, AnswerFormat, make_format

ANSWER_TAG = {"name": "tag"}
DAPO = {"name": "marker", "marker": "Answer:", "answers": "latex"}


@pytest.mark.parametrize(
    ("spec", "completion", "gold", "reason"),
    [
        ("marker", "so #### 1,234", "1234", "correct"),
        ("marker", "#### 1\n#### 2", "2", "ambiguous"),
        ("marker", r"\boxed{2}", "2", "no_answer"),
        ({"name": "marker", "marker": "Answer:"}, "Answer: 2\n", "2", "correct"),
        ({"name": "marker", "percent": "fraction"}, "#### 20%", "0.2", "correct"),
        (DAPO, r"Answer: \frac{1}{2}", "0.5", "correct"),
        (DAPO, r"Answer: \frac{1}{3}", "0.5", "wrong"),
        ({"name": "marker", "units": ["cm", "Square Feet"]}, "#### 5 cm.", "5", "correct"),
        ({"name": "marker", "units": ["cm", "Square Feet"]}, "#### 5 square feet", "5", "correct"),
        ({"name": "marker", "units": ["cm"]}, "#### 5", "5 cm", "correct"),
        ({"name": "marker", "units": ["cm"]}, "#### 5 inches", "5", "unparsed"),
        ({"name": "marker", "units": []}, "#### 5 cm", "5", "unparsed"),
        ({"name": "tag", "answers": "number", "units": ["cm"]}, "<answer>6 cm</answer>", "5", "wrong"),
        ("boxed", r"\boxed{\frac12}", "0.5", "correct"),
        ("boxed", "#### 2", "2", "no_answer"),
        (ANSWER_TAG, "<answer> 42 </answer>", "42", "correct"),
        (ANSWER_TAG, "<answer>41</answer> no: <answer>42</answer>", "42", "ambiguous"),
        (ANSWER_TAG, "<answer>42", "42", "no_answer"),
        (ANSWER_TAG, "42</answer>", "42", "no_answer"),
        ({"name": "tag", "tag": "result"}, r"<result>\frac{4}{2}</result>", "2", "correct"),
        ({"name": "tag", "answers": "number"}, r"<answer>\sqrt{4}</answer>", "2", "unparsed"),
        ({"name": "tag", "answers": "number"}, "<answer>2\n3</answer>", "2", "unparsed"),
        ({"name": "tag", "answers": "number"}, "<answer>#### 2</answer>", "2", "unparsed"),
        ("choice", "The answer is (B).", "B", "correct"),
        ("choice", "**Answer:** C", "B", "wrong"),
        ("choice", r"so \boxed{\text{(B)}}", "(B)", "correct"),
        ("choice", "(B) 21 cm", "b", "correct"),
        ("choice", "The answer is A.\nNo, the answer is B.", "B", "ambiguous"),
        ("choice", r"\boxed{21}", "B", "unparsed"),
        ("choice", "I do not know", "B", "no_answer"),
        ("choice", "The answer is 21. A good one", "A", "no_answer"),
        ("choice", "So it is.\nA good guess", "A", "no_answer"),
        ("choice", "So it is.\n(A) good guess", "A", "correct"),
        ("choice", "So it is.\nB = 5", "B", "no_answer"),
        ("choice", "Answer: B = 5", "B", "no_answer"),
        ("choice", "Answer: E-mail it", "E", "no_answer"),
        ("choice", "Answer: A or B", "A", "ambiguous"),
        ("choice", "the answer is (A), (C)", "A", "ambiguous"),
        ("choice", "Answer: A, B, C, D, E", "A", "ambiguous"),
        ("choice", "Answer: **B** and D", "B", "ambiguous"),
        ("choice", "Answer: B, A is wrong", "B", "correct"),
        ("choice", "Option A is 5 and option B is 6.\nAnswer: B", "B", "correct"),
        ("choice", "Choice A is 5.\n\\boxed{B}", "B", "correct"),
        ("choice", "Choice A is wrong, choice B right", "B", "ambiguous"),
        ("choice", "The correct option is B, not option A", "B", "correct"),
        ("choice", "The answer is option C.\nAnswer: B", "B", "ambiguous"),
        ("choice", "It is option B.", "B", "correct"),
        ("choice", "Answer: B, and nothing else", "B", "correct"),
        ("choice", r"\boxed{A or B}", "A", "unparsed"),
        ("choice", r"\boxed{\text{A and B}}", "A", "unparsed"),
        ("choice", "A or B", "A", "no_answer"),
        ({"name": "choice", "letters": "AB"}, "Answer: C", "B", "no_answer"),
        ("last_number", "7 + 2 = 9, so there are 9 apples.", "9", "correct"),
        ("last_number", "9, I think of 3", "9", "wrong"),
        ("last_number", "so half of it is 4 1/2", "4.5", "correct"),
        ("last_number", "so half of it is 4 5/2", "6.5", "unparsed"),
        ("last_number", "#### 9\nQ: What is 3 and 4?", "9", "correct"),
        ("last_number", "none", "9", "no_answer"),
        ("last_number", "So the area is 9 cm^2.", "9", "correct"),
        ("last_number", r"The volume is $9 \text{ m}^{3}$.", "9", "correct"),
        ("last_number", r"That is $\frac{3}{4}$", "0.75", "correct"),
        ("last_number", r"That is $\frac{3}{4}$", "4", "wrong"),
        ("last_number", r"That is 2\frac{1}{2} hours", "2.5", "correct"),
        ("last_number", "That is 10^2", "2", "unparsed"),
        ("last_number", "It is 5 x 10^{3}.", "3", "unparsed"),
        ("last_number", "It costs 5 million dollars.", "5", "unparsed"),
        ("last_number", "At 12:30 they meet.", "30", "unparsed"),
        ("last_number", "At 12: 30 of them meet!", "30", "correct"),
        ("last_number", "x^2 = 9, x = 3", "3", "correct"),
    ],
)
def test_what_is_read(spec, completion, gold, reason):
    assert make_format(spec).grade(completion, gold).reason == reason


@pytest.mark.parametrize("spec", ["marker", "boxed", ANSWER_TAG, "choice", "last_number", DAPO])
def test_a_completed_solution_shows_its_answer_and_the_instruction_asks_for_it(spec):
    answer_format = make_format(spec)
    gold = "B" if spec == "choice" else "72"
    answer_format.check(gold)
    solution = answer_format.complete("It takes some thought.", gold)
    assert solution.startswith("It takes some thought.\n")
    assert answer_format.grade(solution, gold).correct
    assert answer_format.complete(solution, gold) == solution
    asked = {"boxed": r"\boxed{}", "choice": "Answer: letter", "last_number": "a number"}
    text = answer_format.show("answer").split("answer")[0]
    if isinstance(spec, str):
        text = asked.get(spec, text)
    assert text in answer_format.instruction


@pytest.mark.parametrize("spec", ["marker", "boxed", ANSWER_TAG, "choice", "last_number", DAPO])
def test_what_comes_before_the_end_of_thinking_is_no_answer(spec):
    answer_format = make_format(spec)
    gold, other = ("B", "C") if spec == "choice" else ("72", "7")
    right, wrong = answer_format.show(gold), answer_format.show(other)
    assert answer_format.grade(f"<think>{wrong}\nNo.</think>\n{right}", gold).reason == "correct"
    assert answer_format.grade(f"<think>{right}</think>\nI do not know.", gold).reason == "no_answer"
    assert make_format({"name": "marker", "marker": "</think>"}).grade("2*36\n</think> 72", "72").correct


@pytest.mark.parametrize("spec", ["marker", "boxed", ANSWER_TAG, "choice", "last_number", DAPO])
def test_the_line_of_the_answer_is_no_step(spec):
    answer_format = make_format(spec)
    assert answer_format.is_answer(answer_format.show("B" if spec == "choice" else "72"))
    for step in ("48/2 = 24 clips", "B = 5 is the base", "In all there are 72.", "Option A would be 70+2 = 72"):
        assert not answer_format.is_answer(step)


def test_gsm8ks_last_line_gives_way_to_the_format():
    solution = "48/2 = <<48/2=24>>24\n#### 24"
    assert make_format("marker").complete(solution, "24") == solution
    assert make_format("boxed").complete(solution, "24") == "48/2 = <<48/2=24>>24\n\\boxed{24}"
    assert make_format("boxed").complete("#### Half\n48/2 = 24\n#### 24", "24") == "#### Half\n48/2 = 24\n\\boxed{24}"


@pytest.mark.parametrize(
    ("spec", "gold", "message"),
    [
        ("marker", "two", "'two' is not a number that the grader reads"),
        ("choice", "F", "'F' is none of the letters ABCDE"),
        ({"name": "marker", "units": ["cm"]}, "5 m", "not a number that the grader reads with units=\\['cm'\\]"),
        ("boxed", "a}", "the gold answer 'a}' is read as"),
        ("boxed", "", "1 to 256 characters"),
    ],
)
def test_a_gold_answer_that_cannot_be_read_says_why(spec, gold, message):
    with pytest.raises(ValueError, match=message):
        make_format(spec).check(gold)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("boxd", UnknownNameError, "did you mean 'boxed'"),
        ({"name": "tag", "tag": "<answer>"}, ValueError, "give the tag's name alone"),
        ({"name": "marker", "marker": " "}, ValueError, "give a text in one line"),
        ({"name": "marker", "answers": "numbers"}, UnknownNameError, "did you mean 'number'"),
        ({"name": "marker", "mark": "x"}, ValueError, "did you mean 'marker'"),
        ({"name": "choice", "letters": "A"}, ValueError, "capital letters"),
        (3, ValueError, "not 3"),
        ({"name": "marker", "units": "cm"}, ValueError, "units must be a list or None, got 'cm'"),
        ({"name": "marker", "units": ["million"]}, ValueError, "give a list of words"),
        ({"name": "tag", "units": ["cm"]}, ValueError, 'is for answers="number"'),
    ],
)
def test_bad_specs_name_themselves(spec, error, message):
    with pytest.raises(error, match=message):
        make_format(spec)


def test_a_format_of_ones_own():
    class Shouted(AnswerFormat):
        @property
        def instruction(self) -> str:
            return "Shout the answer."

        def show(self, answer: str) -> str:
            return f"{answer}!"

        def extract(self, completion: str) -> list[str]:
            return [word[:-1] for word in reversed(completion.split()) if word.endswith("!")]

    assert make_format(Shouted()).grade("so it is 7!", "7").correct
    assert make_format(Shouted()).grade("5! no 7!", "7").reason == "ambiguous"
    assert set(ANSWER_FORMATS.names()) >= {"boxed", "choice", "last_number", "marker", "tag"}
