r"""Answers by kind, with their right verdicts; rewritings that change nothing; expressions that earn nothing; votes."""

import random
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tokengym.rewards import grade, grade_free_form
from tokengym.rewards.grading import normalize_number
from tokengym.rewards.grading.boxes import boxed_answers, unbox_earlier
from tokengym.rewards.grading.comparison import compare, is_copied, is_readable, spell
from tokengym.rewards.grading.formats import make_format
from tokengym.rewards.grading.latex import Worker
from tokengym.rewards.grading.reader import Unreadable, clean, read
from tokengym.rewards.grading.values import is_simple_enough

NOBODY = Worker(deadline=0.0, script="/nonexistent")
"""A worker that cannot start: nothing here needs one."""

RIGHT = {
    "constants": [
        (r"\frac{3}{3\cdot 2004!}", r"\frac{1}{2004!}"),
        (r"6.63\times 10^{-34}", r"66.3 \cdot 10^{-35}"),
        (r"10^{-7}", "0.0000001"),
        (r"\frac{\sqrt{3}}{\sqrt{2}}", r"\frac{\sqrt{6}}{2}"),
        (r"\frac{3}{2}+\frac{\sqrt{5}}{2}", r"\frac{3+\sqrt{5}}{2}"),
        (r"\sqrt[3]{16}", r"2\sqrt[3]{2}"),
        (r"\pi \cdot \frac{18}{2}", r"9\pi"),
        (r"\frac{11-2i}{5}", r"\frac{11}{5}-\frac{2}{5}i"),
        ("e^2", r"\mathrm{e}^{2}"),
        (r"\ln 8", r"3\ln 2"),
        (r"\log_{10} 5", r"\lg 5"),
        (r"\log 5", r"\log_{10} 5"),
        (r"\log 5", r"\ln 5"),
    ],
    "expressions": [
        (r"(x-1)(x+1)", "x^2-1"),
        (r"\frac{x^2-1}{x-1}", "x+1"),
        (r"\frac{1}{\sqrt{x}}", r"\sqrt{\frac1x}"),
        (r"ba", "ab"),
        (r"\sin^2 x", r"1-\cos^2 x"),
        (r"\tan x", r"\frac{\sin x}{\cos x}"),
        (r"\frac{n(n+1)}{2}", r"\frac{n^2+n}{2}"),
        (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"),
        (r"(-1)^{n+2}", r"(-1)^n"),
        (r"x_1 + x_2", r"x_{2}+x_{1}"),
        (r"a_n", r"a_{n}"),
        (r"x\sqrt{-4}", "2ix"),
        (r"x\sqrt[3]{-2}", r"-x\sqrt[3]{2}"),
        (r"x+10^{100}+\sqrt{2}-10^{100}", r"x+\sqrt{2}"),
    ],
    "equations": [
        ("x = 5", "5"),
        ("5 = x", "5"),
        ("5", "x=5"),
        ("3+2=5", "5"),
        ("S = 3+2 = 5", "5"),
        ("f(x)=2x+1", "2x+1"),
        ("y=2x+3", "2x+3"),
        ("2x+3", "y=2x+3"),
        ("2x-y+3=0", "y=2x+3"),
        ("y=2x+3", "2x-y+3=0"),
        ("x=2-y", "x+y=2"),
        ("2x+2y=4", "x+y=2"),
        (r"\text{Area} = 5", "5"),
        ("x=1, y=2", "y=2, x=1"),
        ("(1,2)", "x=1, y=2"),
        (r"x=1 \text{ or } x=2", "1,2"),
        ("1,2", "x=1, x=2"),
        (r"1 \pm \sqrt{2}", r"1+\sqrt{2}, 1-\sqrt{2}"),
    ],
    "intervals": [
        ("x<3", r"(-\infty,3)"),
        ("3>x", r"x \in (-\infty,3)"),
        (r"[2,\infty)", r"x \ge 2"),
        (r"0 < x \leq 1", "(0,1]"),
        ("(1,2)", "1<x<2"),
        (r"|x| \le 2", "[-2,2]"),
        (r"|x| \ge 2", r"(-\infty,-2] \cup [2,\infty)"),
        ("|x| > 2", r"(-\infty,-2) \cup (2,\infty)"),
        ("|x| > 0", r"x \ne 0"),
        (r"|x| \le 0", "0"),
        ("|x| > -1", r"\mathbb{R}"),
        (r"|x| \ne 2", r"(-\infty,-2) \cup (-2,2) \cup (2,\infty)"),
        (r"x > 0 \text{ and } |x| = 2", "2"),
        (r"x > 0 \text{ and } |x| = -2", r"\emptyset"),
        (r"x \ne 3", r"(-\infty,3) \cup (3,\infty)"),
        (r"\mathbb{R} \setminus \{3\}", r"(-\infty,3) \cup (3,\infty)"),
        (r"x<1 \text{ or } x>2", r"(-\infty,1)\cup(2,\infty)"),
        (r"(2,\infty)\cup(-\infty,1)", r"(-\infty,1)\cup(2,\infty)"),
        (r"(0,1)\cup[1,2)", "(0,2)"),
        (r"(0,2) \cup (1,2]", "(0,2]"),
        (r"(1,3) \cap [1,2]", "(1,2]"),
        (r"[1,2) \cap (1,2]", "(1,2)"),
        (r"[-\infty,3)", "x<3"),
        (r"\{x \mid x > 2\}", r"(2,\infty)"),
        ("a > 2", "x > 2"),
        ("2x > 4", "x > 2"),
        ("-x > 2", "x < -2"),
        (r"\emptyset", r"\{\}"),
    ],
    "clock times and ratios": [
        ("02:30", "2:30"),
        ("6:4", "3:2"),
        (r"\frac{3}{2}", "3:2"),
        ("2:4:6", "1:2:3"),
        ("4:150", "2:75"),
        ("4:30", r"\text{4:30}"),
        (r"5\text{ p.m.}", r"5 \text{ PM}"),
    ],
    "mixed numbers": [
        (r"3\frac{1}{2}", r"\frac{7}{2}"),
        (r"3\frac12", "3.5"),
        ("3 1/2", r"\frac{7}{2}"),
        (r"2\frac{1}{3}y", r"\frac{7}{3}y"),
        (r"-1\frac{1}{2}", "-1.5"),
    ],
    "degrees": [
        ("45°", r"45^{\circ}"),
        (r"45^\circ", "45"),
        (r"\cos 60^\circ", r"\sin 30^\circ"),
        (r"\sin \frac{\pi}{5}", r"\sin 36^\circ"),
        (r"x = 30^\circ", "30"),
    ],
    "dressing": [
        ("17.", "17"),
        (r"{17}.", "17"),
        (r"\color{blue}{x = 0}.", "0"),
        (r"\boxed{\boxed{17.}}.", "17"),
        (r"\textbf{17}", "17"),
        (r"\mathbf{17}", "17"),
        (r"\displaystyle \frac{1}{2}", r"\frac12"),
        (r"\dfrac{1}{2}", "0.5"),
        (r"17\ \text{cm}", "17"),
        (r"17~\mathrm{km/h}", "17"),
        (r"17\,\text{m}^3", "17"),
        (r"\sqrt{2}\text{ units}", r"\sqrt{2}"),
        (r"\$17.00", "17"),
        (r"17\%", "17"),
        (r"\left(1, 2\right)", "(1,2)"),
        (r"12\,345", "12345"),
        (r"12{,}345", "12,345"),
        ("12 345", "12345"),
        (r"\frac{12{,}345}{2}", "6172.5"),
        ("2.5e10", r"2.5 \times 10^{10}"),
        (r"0.\overline{12}", r"\frac{4}{33}"),
        (r"0.1\overline{6}", r"\frac{1}{6}"),
        (r"\{1,2\}", "2,1"),
        (r"1 \text{ and } 2", "1,2"),
        ("1; 2", "1,2"),
        (r"\(5\)", "5"),
        ("$5$", "5"),
        (r"\boxed{5}", "5"),
        (r"5 \\", "5"),
    ],
    "choices": [
        ("B", r"\text{(B)}"),
        (r"\text{(B)}", "B"),
        (r"\text{B}", "(B)"),
        (r"\mathrm{(B)}~12", "B"),
        ("B. 12", "B"),
        ("(B) twelve", "B"),
        (r"\text{B, A}", "A, B"),
    ],
    "words": [
        (r"\text{Evelyn}", "evelyn"),
        ("even", r"\text{even}"),
        (r"\text{ellipse}", r"\mbox{ellipse}"),
        (r"\infty", r"+\infty"),
        ("n\\pi, n \\in \\mathbb{Z}", r"k\pi, k \in \mathbb{Z}"),
    ],
    "rows": [
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}"),
        ("(1,2)", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"\begin{pmatrix} 0.5 & 1 \\ 2 & 3 \end{pmatrix}", r"\begin{pmatrix} \frac12 & 1 \\ 2 & 3 \end{pmatrix}"),
        (r"(2,1), (1,2)", r"(1,2), (2,1)"),
    ],
}
WRONG = {
    "constants": [
        (r"\frac{1}{2^{98}}", r"\frac{1}{2^{99}}"),
        (r"\frac{2}{2004!}", r"\frac{1}{2004!}"),
        ("0", r"3 \times 10^{-20}"),
        ("0.0000001", "0.0000002"),
        (r"\frac{1}{6}", r"\frac{1}{3}"),
        (r"\sqrt{2}", "1.414"),
        ("1.41421356237", r"\sqrt{2}"),
        ("3.14159", r"\pi"),
        ("0.333", r"\frac{1}{3}"),
        ("0.333", "1/3"),
        (r"\frac13", "0.333"),
        ("0.6667", r"\frac{2}{3}"),
        ("i", "-i"),
    ],
    "expressions": [
        ("x", "|x|"),
        (r"\sqrt{x^2}", "x"),
        ("x+1", "n+1"),
        ("x^2+1+10^{-30}", "x^2+1"),
        (r"\sin(\pi n)", "0"),
        (r"x\sqrt{-4}", "-2x"),
        (r"\sqrt{-2}", r"-\sqrt{2}"),
        (r"\sqrt{-x^2-1}", r"\sqrt{-x^2-2}"),
        (r"x(10^{140} + 10^{-28}\sqrt{2} - 10^{140})", r"10^{-28}x\sqrt{2.01}"),
        ("CBA", "ABC"),
        (r"\text{seat}", r"\text{east}"),
        ("2", "2x"),
        ("x_1", "x_2"),
    ],
    "equations": [
        ("0", "x^2-4=0"),
        ("x^2-4=0", "0"),
        ("5", "x+y=5"),
        ("x+y=5", "5"),
        ("2x=10", "5"),
        ("2x=x", "2x"),
        ("4+2=5", "5"),
        ("x+y=3", "x+y=2"),
        ("y=2x+3", "2x-y-3=0"),
        (r"y=\sqrt{25-x^2}", "x^2+y^2=25"),
        ("x=5", "2x=10"),
        ("x=2, y=1", "x=1, y=2"),
        ("x=1, y=2", "x=1, z=2"),
        ("x=2, x=2", "x=1, x=2"),
        (r"\pm 3", "3"),
        ("3", r"\pm 3"),
    ],
    "intervals": [
        ("(0,1)", "[0,1]"),
        ("(0,1]", "[0,1)"),
        ("x>2", r"[2,\infty)"),
        ("x<2", r"(2,\infty)"),
        ("(1,2)", "(2,1)"),
        (r"(-\infty,\infty)", r"x \ne 3"),
        (r"\emptyset", "0"),
        ("-2x > 4", "x > 2"),
        ("-x > 2", "x > -2"),
        (r"|x| \ne 2", "|x| > 2"),
        (r"x > 0 \text{ and } |x| = 2", r"[2,\infty)"),
    ],
    "clock times and ratios": [
        ("1:15", "2:30"),
        ("2:03", "2:30"),
        ("2.5", "2:30"),
        ("2:3", "3:2"),
        (r"5\text{ a.m.}", r"5\text{ p.m.}"),
        ("5", r"5\text{ p.m.}"),
    ],
    "mixed numbers": [
        (r"3\cdot\frac{1}{2}", r"\frac{7}{2}"),
        (r"3\frac{1}{2}", r"\frac{3}{2}"),
        (r"3\frac{2}{2}", "4"),
        (r"3\frac{x}{2}", r"3+\frac{x}{2}"),
    ],
    "degrees": [(r"\sin 30", r"\sin 30^\circ"), ("45", r"54^\circ"), (r"\frac{\pi}{4}", r"45^\circ")],
    "dressing": [
        ("18 x", "18"),
        ("18x", "18"),
        (r"18\text{ million}", "18"),
        *((f"18{words}", "18") for words in ("pi", " pi", "xy", " xyz", "ab", r"\text{ thirds}", " thirds", " lakh")),
        ("1 2", "12"),
        ("12,34", "1234"),
        (r"0.\overline{3}", "0.3"),
        ("(1,234)", "1234"),
    ],
    "choices": [("C", "B"), (r"\text{(C) } B", "B"), ("BC", "B"), ("12", "B"), ("A", "A, B"), ("b + 1", "B")],
    "words": [("oval", r"\text{ellipse}"), (r"-\infty", r"\infty"), (r"\text{not even}", r"\text{even}")],
    "rows": [
        ("(2,1)", "(1,2)"),
        ("(1,2,3)", "(1,2)"),
        (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}"),
        ("(1,2)", "(1,2), (2,1)"),
    ],
}


@pytest.mark.parametrize("kind", RIGHT)
def test_what_is_right_by_kind(kind: str) -> None:
    failed = [case for case in RIGHT[kind] if not compare([case[0]], case[1], worker=NOBODY).correct]
    assert not failed


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_by_kind(kind: str) -> None:
    failed = [case for case in WRONG[kind] if compare([case[0]], case[1], worker=NOBODY).correct]
    assert not failed


def test_equal_answers_equal_themselves_and_each_other_either_way() -> None:
    for cases in RIGHT.values():
        for pair in cases:
            for text in pair:
                assert compare([text], text, worker=NOBODY).correct, text


# ------------------------------------------------------------------------------------ which text is the answer


@pytest.mark.parametrize(
    ("completion", "question", "expected"),
    [
        (r"<think>\boxed{3}</think> \boxed{5}", None, ["5"]),
        (r"<think>\boxed{3}</think> so it is 3", None, []),
        (r"\boxed{3} then \boxed{5}", None, ["5", "3"]),
        (r"$3+\boxed{\square}=8$, \boxed{5}", None, ["5"]),
        (r"\boxed{\phantom{00}} \boxed{5}", None, ["5"]),
        (r"\boxed{?} \boxed{\ldots} \boxed{...} \boxed{\_} \boxed{} \boxed{5}", None, ["5"]),
        (r"I put it in \boxed{your answer}: \boxed{5}", None, ["5"]),
        (r"in \boxed{answer} or \boxed{\text{final answer}}: \boxed{5}", None, ["5"]),
        (r"$\boxed{11}=2$, \boxed{6}", r"What is $\boxed{11} \times \boxed{20}$?", ["6"]),
        (r"\boxed{5}", "What is 2+3?", ["5"]),
    ],
)
def test_which_boxes_are_answers(completion: str, question: str | None, expected: list[str]) -> None:
    assert boxed_answers(completion, question) == expected


@pytest.mark.parametrize(
    ("answers", "gold", "reason"),
    [
        (["1", "2"], "1,2", "correct"),
        (["2", "1"], "1,2", "correct"),
        (["1", "2", "2.0"], r"\{1,2\}", "correct"),
        (["x=1", "x=2"], "1,2", "correct"),
        (["(1,2)", "(2,1)"], "(1,2),(2,1)", "correct"),
        (["1", "2", "3"], "1,2", "ambiguous"),
        (["1", "3"], "1,2", "ambiguous"),
        (["1", "2"], "2", "ambiguous"),
        (["1", "2"], "(1,2)", "ambiguous"),
        ([r"\frac12", "0.5"], "0.5", "correct"),
        (["A", "A"], "A", "correct"),
        (["A", "B"], "B", "ambiguous"),
        (["5 a.m.", "5 p.m."], "5 p.m.", "wrong"),
    ],
)
def test_several_boxes(answers: list[str], gold: str, reason: str) -> None:
    completion = " and ".join(rf"$\boxed{{{answer}}}$" for answer in answers)
    assert grade_free_form(completion, gold, worker=NOBODY).reason == reason


def test_earlier_boxes_are_taken_off() -> None:
    text = r"So $\boxed{\frac{1}{2}}$, \boxed 3, hence $\boxed{4}$."
    assert unbox_earlier(text) == r"So $\frac{1}{2}$, 3, hence $\boxed{4}$."
    assert unbox_earlier("no box") == "no box"


# ----------------------------------------------------------------------------- an expression is not an answer


def expression(rng: random.Random, depth: int) -> tuple[str, Fraction]:
    """A formula as a question has it, and what it comes to."""
    if depth == 0:
        number = rng.choice((2, 3, 4, 5, 6, 7, 8, 9, 11, 12))  # a power of ten is a number
        return str(number), Fraction(number)
    (a, x), (b, y) = expression(rng, depth - 1), expression(rng, rng.randint(0, depth - 1))
    form = rng.randrange(9)
    if form == 0:
        return f"{a}+{b}", x + y
    if form == 1:
        return rf"\left({a}\right)-\left({b}\right)", x - y
    if form == 2:
        return rf"\left({a}\right)\cdot\left({b}\right)", x * y
    if form == 3 and y:
        return rf"\frac{{{a}}}{{{b}}}+1", x / y + 1
    if form == 4:
        return rf"\left({a}\right)^2", x * x
    if form == 5:
        return rf"({a})({b})", x * y
    if form == 6:
        n, k = rng.randint(3, 12), rng.randint(1, 3)
        value = Fraction(1)
        for i in range(k):
            value = value * (n - i) / (i + 1)
        return rf"\binom{{{n}}}{{{k}}}", value
    if form == 7:
        n = rng.randint(2, 12)
        return rf"\sqrt{{{n * n}}}", Fraction(n)
    n = rng.randint(3, 6)
    return f"{n}!", Fraction({3: 6, 4: 24, 5: 120, 6: 720}[n])


def test_no_expression_of_a_question_earns() -> None:
    rng = random.Random(0)
    for _ in range(600):
        formula, value = expression(rng, rng.randint(1, 3))
        gold = str(value) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
        if len(formula) > 200 or len(gold) > 100:
            continue
        question = f"What is ${formula}$?"
        for text in (formula, formula.replace(r"\left", "").replace(r"\right", ""), f"x = {formula}"):
            verdict = grade_free_form(rf"\boxed{{{text}}}", gold, worker=NOBODY)
            assert not verdict.correct, (text, gold)
            assert verdict.answer != normalize_number(str(value)), (
                text,
                gold,
            )  # and it has no vote for the gold answer
        assert not grade_free_form(rf"\boxed{{{formula}}}", gold, question=question, worker=NOBODY).correct
        assert grade_free_form(rf"\boxed{{{gold}}}", gold, question=question, worker=NOBODY).correct


@pytest.mark.parametrize(
    ("question", "answer", "gold", "copied"),
    [
        (r"Simplify $\sqrt{180}$.", r"\sqrt{180}", r"6\sqrt{5}", True),
        (r"Expand $(x+1)^2$.", "(x + 1)^2", "x^2+2x+1", True),
        (r"Expand $(x+1)^2$.", "x^2+2x+1", "x^2+2x+1", False),
        (r"Rationalize $\frac{5}{\sqrt{125}}$.", r"\dfrac{5}{\sqrt{125}}", r"\frac{\sqrt5}{5}", True),
        (r"What is $\frac{20}{4}$?", r"\frac{20}{4}", "5", True),
        (r"Which is larger, $\frac{1}{2}$ or $0.3$?", r"\frac{1}{2}", "0.5", False),
        (r"Is $n+1$ or $n$ even?", "n+1", "n+1", False),
        ("What is 5 plus 0?", "5", "5", False),
    ],
)
def test_expressions_copied_from_the_question(question: str, answer: str, gold: str, copied: bool) -> None:
    assert is_copied(answer, gold, question) == copied
    assert compare([answer], gold, worker=NOBODY).correct or copied
    assert grade_free_form(rf"\boxed{{{answer}}}", gold, question=question, worker=NOBODY).correct == (not copied)


# ------------------------------------------------------------------------------------------------- properties


NUMBERS = st.fractions(-1000, 1000, max_denominator=60)


def latex(value: Fraction, style: str = "frac") -> str:
    if value.denominator == 1:
        return str(value.numerator)
    sign = "-" if value < 0 else ""
    if style == "mixed" and abs(value) > 1:
        whole, rest = divmod(abs(value), 1)
        return rf"{sign}{whole}\frac{{{rest.numerator}}}{{{rest.denominator}}}"
    style = "frac" if style == "mixed" else style
    return rf"{sign}\{style}{{{abs(value.numerator)}}}{{{value.denominator}}}"


@given(NUMBERS, NUMBERS, st.sampled_from(["frac", "dfrac", "tfrac", "mixed"]))
def test_numbers_are_equal_if_their_values_are(a: Fraction, b: Fraction, style: str) -> None:
    assert compare([latex(a, style)], latex(a), worker=NOBODY).correct
    assert compare([latex(a, style)], latex(b), worker=NOBODY).correct == (a == b)


@given(st.integers(-9, 9).filter(bool), st.integers(2, 60), st.integers(1, 9), st.integers(2, 60), st.integers(1, 9))
def test_roots_are_equal_if_their_squares_are(sign: int, n: int, a: int, m: int, b: int) -> None:
    same = Fraction(sign * abs(sign) * n, a * a) == Fraction(sign * abs(sign) * m, b * b)
    texts = [rf"\frac{{{sign}\sqrt{{{n}}}}}{{{a}}}", rf"\frac{{{sign}\sqrt{{{m}}}}}{{{b}}}"]
    assert compare([texts[0]], texts[1], worker=NOBODY).correct == same


# From the inside out.
WRAPPINGS = [
    lambda text: text.replace("frac", "dfrac"),
    lambda text: rf"\left({text}\right)" if text[0] != "-" else text,
    lambda text: rf"\displaystyle {text}",
    lambda text: rf"{text}\text{{ cm}}",
    lambda text: rf"{text}~\mathrm{{m}}^2",
    lambda text: rf"{text}^\circ",
    lambda text: f"x = {text}",
    lambda text: rf"\color{{blue}}{{{text}}}",
    lambda text: f"{text}.",
    lambda text: f" {text} ",
    lambda text: f"${text}$",
    lambda text: rf"\({text}\)",
    lambda text: rf"\boxed{{{text}}}",
]
UNITS = {3, 4, 5}


@given(NUMBERS, st.sampled_from(["", r"\sqrt{3}", r"\pi"]), st.sets(st.integers(0, len(WRAPPINGS) - 1), max_size=4))
def test_rewriting_changes_nothing(value: Fraction, factor: str, wrappings: set[int]) -> None:
    assume(len(wrappings & UNITS) < 2 and not (factor and 5 in wrappings))
    gold = text = latex(value) + factor
    for i in sorted(wrappings):
        text = WRAPPINGS[i](text)
    assert compare([text], gold, worker=NOBODY).correct, text
    assert not compare([text], latex(value + 1) + factor, worker=NOBODY).correct


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=5), st.integers(2, 5), st.randoms(use_true_random=False))
def test_polynomials_in_any_order_and_form(coefficients: list[int], k: int, rng: random.Random) -> None:
    terms = [f"{c:+d}x^{{{i}}}" for i, c in enumerate(coefficients)]
    gold = "".join(terms)
    rng.shuffle(terms)
    scaled = rf"\frac{{{k}({''.join(terms)})}}{{{k}}}"
    for text in ("".join(terms), scaled):
        assert compare([text], gold, worker=NOBODY).correct
        assert spell(text) == spell(gold)
    assert not compare([f"{gold}+x"], gold, worker=NOBODY).correct


@given(st.text(alphabet="\\{}()[]|^_/+-=<>!:,.;0123456789abxyiepi \n$%&~", max_size=60))
@settings(max_examples=300)
def test_no_text_raises(text: str) -> None:
    class Silent(Worker):
        def compare(self, gold, answers):
            return "unparsed", None

    for gold in ("5", "x+1", "(1,2)", r"\frac{1}{2}", r"x \in [1,2)", "2:30"):
        verdict = compare([text], gold, worker=Silent())
        assert verdict.correct == (verdict.reason == "correct")


@pytest.mark.parametrize("piece", ["(", "{", "[", "|", r"\sqrt{", r"\frac{", "x^{", "-"])
def test_nesting_is_bounded(piece: str) -> None:
    with pytest.raises(Unreadable):
        read(clean(piece * 60))


@pytest.mark.parametrize("text", ["(" * 15 + "7" + ")" * 15, r"\frac{1}{1+" * 12 + "7" + "}" * 12, "1+" * 100 + "1"])
def test_what_is_within_the_bounds_is_read(text: str) -> None:
    assert {node.kind for node in read(clean(text)).walk()} <= {"number", "sum", "quotient", "group"}


@pytest.mark.parametrize("text", ["x^2^3", r"\ln^{-1} x", r"\sin(1,2)"])
def test_what_has_two_meanings_is_not_read(text: str) -> None:
    with pytest.raises(Unreadable):
        read(clean(text))


def test_large_numbers_are_no_numbers_but_text() -> None:
    """Work is bounded by size before anything is computed."""
    for text in (r"2^{10^6}", r"(10^{900})^{900}", "5000!", r"\sin(10^{9000})", r"\binom{9000}{4}"):
        assert compare([text], text, worker=NOBODY).correct
        assert compare([text], "7", worker=NOBODY).reason in ("unparsed", "wrong")
        assert compare(["7"], text, worker=NOBODY).reason in ("unparsed", "wrong")


# ------------------------------------------------------------------------------------------------------ votes


@pytest.mark.parametrize(
    "texts",
    [
        ["1.5", r"\frac{3}{2}", r"1\frac12", "3/2", r"x=\frac{6}{4}", r"1.50\text{ cm}"],
        ["0.5", r"\frac{1}{2}", r"50 \cdot 10^{-2}"],
        [r"2\sqrt{2}", r"\sqrt{8}", r"\frac{4}{\sqrt{2}}"],
        [r"\sqrt{2}-1", r"\frac{1}{1+\sqrt{2}}", r"-1+\sqrt2"],
        [r"\frac{\pi}{2}", r"0.5\pi", r"\frac{1}{2}\pi"],
        ["(x+1)^2", "x^2+2x+1", r"1+2x+x^2", r"\frac{(x+1)^3}{x+1}"],
        [r"\frac{1}{x+2}", r"\frac{x+1}{(x+1)(x+2)}"],
        ["3+2i", "2i+3", r"\frac{13}{3-2i}"],
        ["1,2", "2,1", r"\{1,2\}", r"x=1 \text{ or } x=2"],
        ["(1,2)", r"\left(1, \frac{4}{2}\right)", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"],
        [r"[2,\infty)", r"x \ge 2", r"2 \leq x", r"x\in[2,\infty)"],
        ["x+y=2", "2x+2y=4", "2-x-y=0"],
        [r"\text{even}", "even", r"\text{Even}"],
        ["6:4", "3:2", r"\frac32"],
    ],
)
def test_equal_wrong_answers_have_one_vote(texts: list[str]) -> None:
    verdicts = [compare([text], r"\text{another}", worker=NOBODY) for text in texts]
    assert {verdict.reason for verdict in verdicts} == {"wrong"}
    assert len({verdict.answer for verdict in verdicts}) == 1, [verdict.answer for verdict in verdicts]


def test_different_wrong_answers_have_different_votes() -> None:
    texts = ["1", "2", r"\sqrt{2}", r"\sqrt{3}", "x", "x+1", "x^2", "1,2", "(1,2)", "[1,2]", "x>1", "2:30", "even",
             "odd", r"\frac{1}{x}", r"\sin x", r"\cos x", "x+y=2", r"\pi", "e", "i"]  # fmt: skip
    assert len({compare([text], r"\text{another}", worker=NOBODY).answer for text in texts}) == len(texts)


def test_spellings_are_readable() -> None:
    expected = {
        "1.50": "1.5",
        r"\frac{4}{6}": "2/3",
        "(x-y)^2": "x^2 - 2*x*y + y^2",
        r"2\pi+1": "2*pi + 1",
        "2,1": "{1, 2}",
        "x<3": "(-oo, 3)",
        r"\sqrt{4}": "2",
        r"\sqrt{2}": "1.4142135623730950488016887242",
    }
    assert {text: str(spell(text))[: len(found)] for text, found in expected.items()} == expected


# ------------------------------------------------------------------------------------------------ gold answers


@pytest.mark.parametrize(("gold", "readable"), [
    ("5", True), (r"\text{(C)}", True), (r"\text{Evelyn}", True), (r"\frac{x}{2}", True), ("(1,2)", True),
    ("the two numbers that he wrote down first of all", False),
])  # fmt: skip
def test_gold_answers_that_only_their_own_text_can_equal(gold: str, readable: bool) -> None:
    assert is_readable(gold, NOBODY) == readable


def test_roots_where_the_gold_answer_has_some() -> None:
    assert is_simple_enough(read(r"\sqrt{8}"), read(r"2\sqrt{2}"))
    assert not is_simple_enough(read(r"\sqrt{4}"), read("2"))
    assert not is_simple_enough(read(r"\sqrt{2}\sqrt{3}"), read(r"\sqrt{6}"))


# -------------------------------------------------------------------------------------------- marked numbers


@pytest.mark.parametrize(
    "text",
    [r"40\%", "**40**", r"\boxed{40}", "\n40", "€40", "£40", "40 €", "$40$", r"\(40\)", r"\$40", "`40`", '"40"', "40°",
     "The answer is 40.", "x = 40", "**40** apples", r"**\$40**", "**$40$**", r"\textbf{40}", "__40__",
     r"$\boxed{40}$", r"**$\boxed{40}$**.", r"\(\boxed{\text{40}}\) apples",
     "\n\n 40 \nmore", "**The answer is 40**", "**Answer:** 40", "**Final answer**: $40$", "_x = 40_"],
)  # fmt: skip
def test_what_is_around_a_marked_number(text: str) -> None:
    assert grade(f"So.\n#### {text}", "40").correct
    assert grade(f"So.\n#### {text}", "41").reason == "wrong"


@pytest.mark.parametrize(
    "text",
    ["40 x", "40 n", "40 k", "40x", "40 y.", "**40", "40 or so 3", "x y = 40", "(40", "40 million", "40**",
     "40 times ten", "40 twenty", "40 third", "40 thousandth", "40 mln", "40 degrees below zero", "40 at least"],
)  # fmt: skip
def test_what_is_no_marked_number(text: str) -> None:
    assert grade(f"#### {text}", "40").reason == "unparsed"


@pytest.mark.parametrize("unit", ["two-liter bottles", "third graders", "ten dollar bills", "times", "seconds"])
def test_number_words_before_a_unit_are_part_of_it(unit: str) -> None:
    assert grade(f"#### 40 {unit}", "40").correct


@pytest.mark.parametrize(
    "text",
    ["**Answer:** 40", "**Answer: 40**", "__Answer:__ 40", "*Answer:* 40", "- **Final Answer:** 40 apples",
     "**Answer:** **40**", "**Answer:**\n\n40", "so **x** holds. ***Answer:*** $40$", "Answer: **40**",
     "**Answer: 40** apples"],
)  # fmt: skip
@pytest.mark.parametrize("answers", ["number", "latex"])
def test_emphasis_around_a_marker(text: str, answers: str) -> None:
    marker = make_format({"name": "marker", "marker": "Answer:", "answers": answers})
    assert marker.grade(text, "40").correct
    assert marker.grade(text, "41").reason == "wrong"


@pytest.mark.parametrize(
    "text", ["a * b. Answer: 40**", "**a** Answer: 40**", "** Answer: ** 40", "2*3, Answer: 40* 2"]
)
def test_signs_that_are_no_emphasis_of_a_marker(text: str) -> None:
    assert make_format({"name": "marker", "marker": "Answer:"}).grade(text, "40").reason == "unparsed"


@pytest.mark.parametrize(
    "text",
    [r"**\frac{1}{2}**", r"`\frac12`", '"0.5"', r"**$\frac12$**", r"**Answer:** $\frac12$", "The final answer is 1/2.",
     r"\boxed{**\frac12**}", r"The answer is: **\frac12**"],
)  # fmt: skip
def test_what_is_around_an_answer_in_latex(text: str) -> None:
    tag = make_format("tag")
    assert tag.grade(f"<answer>{text}</answer>", r"\frac{1}{2}").correct
    assert tag.grade(f"<answer>{text}</answer>", "2").reason == "wrong"
    assert tag.grade("<answer>The answer is x+3</answer>", "3+x", question="What is x+3?").reason == "unparsed"


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("5 cm", r"5\text{ cm}"), ("5 m", r"5 \text{ m}"), (r"\frac12 cm", r"\frac{1}{2}\text{ cm}"),
     (r"5\pi cm^2", r"5\pi\text{ cm}^2"), (r"2\sqrt{3} in", r"2\sqrt{3}")],
)  # fmt: skip
def test_units_without_text_are_units_where_the_gold_answer_has_no_letters(answer: str, gold: str) -> None:
    assert compare([answer], gold).correct
    assert compare([answer], "7").reason == "wrong"
    assert compare(["5 x"], r"5\text{ cm}").reason == "wrong"
    assert compare(["5 xy"], r"5\text{ cm}").reason == "wrong"
    assert compare(["5"], "5 cm").reason == "wrong"
