r"""A corpus of answers in LaTeX and free form, each with its one right verdict.

The gold answer is 7 unless another is named.
"""

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tokengym.rewards import grade_free_form
from tokengym.rewards.grading import latex_worker

Answer = str | tuple[str, str]
"""What stands in the box, and the gold answer if it is not 7."""

EXPRESSIONS: dict[str, list[Answer]] = {
    "wrong": [
        *("7!", "2^{31}", "7e1", "1+1", "7." + "0" * 200 + "1", "1+" * 60 + "1", "7y", r"x+7", r"\frac{7}{x}"),
        ("\\frac{1}{2006!}", "\\frac{1}{2004!}"),
        (r"2^{100}+1", "2^{100}"),
        (r"\sqrt{10^{60}+1}", "10^{30}"),
        (r"\sin 10^\circ", r"\sin 20^\circ"),
    ],
    "unparsed": [
        # What comes to 7, but is no number.
        *(r"\log_{2}(128)", "7^{1^{9}}", "3!+1", r"\binom{7}{1}", r"\frac{1}{\frac{1}{7}}", r"\gcd(7, 14)", "3+4"),
        *(r"\lfloor 7 \rfloor", r"\sum_{n=1}^{7} 1", "--7", "-(-7)", "7\u00d71", "7\u00f71", r"\sqrt{49}", r"\sqrt49"),
        *(r"7 \cdot 1", "(1)(7)", "7^1", "|7|", "|-7|", "8-1", r"\frac{7 \cdot 2}{2}", r"\frac{6+1}{1}", "7+0i"),
        (r"2\pi+3\pi", r"5\pi"),
        (r"\sqrt{2}\sqrt{3}", r"\sqrt{6}"),
        (r"(1+\sqrt{2})^2", r"3+2\sqrt{2}"),
        ("3(4)", "12"),
        (r"\log_2(8)", "3"),
        (r"\det\begin{pmatrix}7\end{pmatrix}", "7"),
        # What is no answer at all.
        (r"\frac{1}{0}", r"\infty"),
        *("(-1)!", "x!!", "7%8", r"{8 \over 7}", r"\overline{7}", r"\vec{7}", "-" * 201 + "7", "1,,000"),
        *("(((7)", "7)))", "[7)", r"\sum", r"\int", r"\prod_{p}", "% 8\n7", r"\begin{pmatrix}7"),
        *(r"\cancel{8}7", r"\stackrel{8}{7}", r"8 \atop 7", r"\tag{7}", r"\frac{7}{0}"),
    ],
    "too_long": ["9" * 257, "7." + "0" * 300, "7" + "x" * 300],
    "correct": [
        *(r"\boxed{\boxed{7}}", r"70\cdot 10^{-1}", r"0.7 \times 10^1", r"\frac{14}{2}", "14/2", r"\phantom{8}7"),
        *(r"\$7\$", "$$7$$", r"\text{7}", r"\frac71", "7." + "0" * 200, "0" * 200 + "7", "7e0", "7\n", "\u00a07"),
        (r"4\cdot 2^{10}", "2^{12}"),
        (r"\frac{1}{2004!}", r"\frac{2}{2 \cdot 2004!}"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
        (r"\frac{\sqrt{2}}{\sqrt{3}}", r"\frac{\sqrt{6}}{3}"),
        (r"\frac{1}{2-\sqrt{3}}", r"2+\sqrt{3}"),
    ],
}
MATRICES: dict[str, list[Answer]] = {
    "unparsed": [r"\begin{pmatrix}1&1\\1\end{pmatrix}", r"\begin{pmatrix}\end{pmatrix}", r"\operatorname{rank}(7)"],
    "wrong": [
        (r"\begin{pmatrix}2\\1\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        (r"\begin{pmatrix}1\\2\\3\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ],
    "correct": [
        (r"\begin{pmatrix} \frac{2}{2} \\ 2.0 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ],
}
SETS: dict[str, list[Answer]] = {
    "wrong": [
        ",".join(map(str, range(10))),
        "1;2;3",
        "7,8",
        "7;8",
        r"\{7\}\cup\{8\}",
        r"(-\infty, 7) \cup (7, \infty)",
        r"\mathbb{R}\setminus\{8\}",
        r"\emptyset",
        ("[1,2]", "(1,2)"),
        ("(2,1)", "(1,2)"),
        ("1,2,3", "1,2"),
        ("1", "1,2"),
    ],
    "unparsed": [
        r"\mathbb{N}",
        r"\{1,\ldots,7\}",
        "()",
        "[]",
        "(7,)",
        "(,7)",
        "7,",
        ",7",
        ",,,,",
        ",".join("7" * 90),
        r"\bigcup_{n=1}^{\infty}[n,n+1]",
    ],
    "correct": [r"\{7,7,7\}", ",".join("7" * 60), (r"\{2,1,1\}", "1,2"), (r"x \in [1,2]", "[1,2]")],
}
RELATIONS: dict[str, list[Answer]] = {
    "wrong": [
        "x<7",
        "1<2<3<4<5<6<7",
        "7>6>5",
        "<".join("abcdfghjk"),
        "7=8",
        "x=7=8",
        "x=7, x=8",
        r"x=7 \text{ or } x=8",
        r"x \ne 8",
        r"x\ge7",
        "x=x",
        "0=0",
        "x^2=49",
        "x^{99}+x+1=0",
        r"7 \pm 8",
        r"\pm 7",
        "y=7x",
    ],
    "unparsed": [r"8 \approx 7", "===", "<>", "7<", "=7", "x=", "7=", r"x \to 7", r"7\sim8", r"7 \equiv 0 \pmod 7"],
    "correct": ["x=7", "x=y=7", "=".join(["7"] * 60)],
}
# Digits and letters of other scripts are none of ours; U+2212 and the signs of operations are what they look like.
SIGNS: dict[str, list[Answer]] = {
    "unparsed": [
        *("\u0667", "\u06f7", "\uff17", "\u17e7", "\U0001d7d5", "\u2077", "\u2166", "\u2466", "\u4e03"),
        *("\uff17\uff0e\uff10", "7\u0660", "7\uff0c000", "7\u066b0", "7\u2044\u0661", "\u00bd", "7\u2032"),
        *("\u221a49", "\u20147", "\u2013 7", "\u00b77", "\u22641"),
        ("\u0445", "x"),
        ("\u0430+1", "a+1"),
        ("\u0456", "i"),
        ("\u212f", "e"),
        ("\u0391", r"\text{A}"),
        ("\uff21", "A"),
        ("5\u20435", "5-5"),
    ],
    "wrong": ["\u22127", "\u00b17", "I", "VII", "l", "seven", r"\text{seven}", ("O", "0"), ("l", "1")],
    "correct": ["7\u00b0", ("\u22127", "-7"), ("2\u00d710^3", "2000"), ("\u03c0", r"\pi")],
}
# What is easily taken for more, or for something else, than was written.
DRESSED: dict[str, list[Answer]] = {
    "wrong": [
        *("3(4)", "(3)(4)", "3{4}", "(3)4", r"\frac{6}{2}(4)"),  # math-verify adds them, as in 3\frac{1}{2}
        *(
            "7x",
            "7d",
            r"7\text{ or more}",
            r"7\text{ or so}",
            "7 and 8",
            r"7 \text{ or } 8",
        ),
        *(r"700\%", "700%", "7_8", "7_2", "78", "nan", r"\infty"),
        (r"7\%", "0.07"),
        ("2", "2t"),
        ("6", "6ab"),
        ("2", "2 m"),
        ("5h", "5"),
        ("3d", "3"),
        ("seat", r"\text{east}"),
        ("111_2", "111_3"),
        (r"5\text{ a.m.}", r"5\text{ p.m.}"),
        ("3.14", r"\pi"),
        (r"\frac{22}{7}", r"\pi"),
        ("0.33", r"\frac{1}{3}"),
    ],
    "unparsed": [
        *(
            "3 4",
            r"3\;4",
            r"2 10/2",
            r"6 \boxed{7}",
            r"\boxed{7} 8",
            r"7\}8",
            r"8\}",
            r"\{7",
            "7..",
            "7...",
            "..7",
            r"7\text{ million}",
            "7 million",
            "+-7",
            r"\text{not }7",
            "7.7.7",
            "0.7.7",
        ),
        *("7?", "?7", "@7", "#7", "&7", "7&8", r"7\\8", "7^", "7_", "^7", "_7", "*7", "/7", r"7\times", r"\frac{7}"),
        *(r"\,", "%", r"\%", r"\sqrt", r"\left(7\right."),
    ],
    "correct": [
        *(
            "7.",
            "~7",
            "(7)",
            "7,7",
            "7^\\circ",
            r"7\text{ cm}^2",
            r"7\%",
            "7%",
            r"\$7",
            r"7 \text{ miles per hour}",
            "7 cm",
        ),
        ("2516", "2516_8"),
        ("2516_{8}", "2516_8"),
        (r"10{,}000", "10000"),
        (r"10\,000", "10000"),
        (r"10,\!000", "10,000"),
        (r"3\frac{1}{2}", "3.5"),
        (r"\frac{1}{2}\text{ hours}", r"\frac{1}{2}"),
        (r"5\sqrt{3}\text{ cm}", r"5\sqrt3"),
        ("(x+1)(x-1)", "x^2-1"),
    ],
}
# Whole completions: which box counts.
BOXES: dict[str, list[Answer]] = {
    "ambiguous": [
        r"\boxed{8} \boxed{7}",
        r"\boxed{7} \boxed{8}",
        r"\boxed{7} \boxed{\frac{8}{1}} \boxed{7}",
        " ".join(rf"\boxed{{{n}}}" for n in range(1000)),
        " ".join(rf"\boxed{{{n}}}" for n in range(7, -1, -1)) + r" \boxed{7}",
        r"\boxed{x+1} \boxed{7}",
    ],
    "no_answer": [
        *(
            "",
            "7",
            "####7",
            r"\boxed",
            r"\boxed{",
            r"\boxed{7",
            r"\boxed{" * 1000,
            r"\boxed{}",
            r"\boxed{ }",
            r"\boxed{}" * 500,
        ),
        *(r"\boxed{\}", r"\\boxed{7}", r"\Boxed{7}", r"\ boxed{7}", r"boxed{7}", "\\\u0501oxed{7}", "{7}", "}{"),
    ],
    "correct": [
        r"\boxed{7}",
        r"\boxed{7}" * 1000,
        r"\boxed{7} \boxed{7.0} \boxed{\frac{14}{2}}",
        r"\boxed{} \boxed{7} \boxed{}",
        r"}}}\boxed{7}{{{",
        r"\boxed{7}" + "}" * 100_000,
        "{" * 100_000 + r"\boxed{7}",
        r"\boxed{8 \boxed{7}",
        r"\fbox{7}",
        r"\boxed 7",
        "x" * 1_000_000 + r"\boxed{7}",
        r"\boxed{7}" + "\x00\ud800" * 1000,
        r"\boxed{" + "9" * 1000 + r"} \boxed{7}",
    ],
    "too_long": [r"\boxed{7} \boxed{" + "7" * 257 + "}"],
}
ANSWERS = {
    "expressions": EXPRESSIONS,
    "matrices": MATRICES,
    "sets": SETS,
    "relations": RELATIONS,
    "signs": SIGNS,
    "dressed": DRESSED,
}


class Case(NamedTuple):
    kind: str
    verdict: str
    completion: str
    gold: str


def cases() -> Iterator[Case]:
    for kind, answers in (*ANSWERS.items(), ("boxes", BOXES)):
        for verdict, rows in answers.items():
            for row in rows:
                text, gold = (row, "7") if isinstance(row, str) else row
                yield Case(kind, verdict, text if kind == "boxes" else rf"so $\boxed{{{text}}}$.", gold)


CASES = list(cases())


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 150
    assert len({(case.completion, case.gold) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("kind", [*ANSWERS, "boxes"])
def test_answers_get_their_verdicts(kind: str) -> None:
    for case in CASES:
        if case.kind == kind:
            verdict = grade_free_form(case.completion, case.gold)
            assert verdict.reason == case.verdict, (verdict, case)
            assert verdict.correct == (verdict.reason == "correct")


def test_no_text_of_an_answer_is_compiled_or_executed() -> None:
    """By Python's own audit events, in a process that reads answers as a worker does."""
    script = textwrap.dedent(
        """
        import importlib.util, json, sys
        spec = importlib.util.spec_from_file_location("latex_worker", sys.argv[1])
        worker = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(worker)
        answers = json.load(sys.stdin)
        worker.prepare()
        seen = []
        forbidden = ("os.", "socket", "subprocess", "shutil", "ctypes", "urllib")
        harmless = ("os.listdir", "os.scandir")  # importing looks for files

        def hook(event, arguments):
            # Modules that are imported at their first use are compiled and executed too, from files; and SymPy writes
            # functions that add exponents, for as many as an expression has variables.
            if event == "compile" and not str(arguments[1]).startswith("/"):
                name = sys._getframe(1).f_globals["__name__"]
                seen.extend([] if name == "sympy.polys.monomials" else [[name, str(arguments)]])
            elif event == "open" and arguments[1] not in (None, "r", "rb"):
                seen.append([event, str(arguments)])
            elif event.startswith(forbidden) and event not in harmless:
                seen.append([event, str(arguments)])

        sys.addaudithook(hook)
        for answer in answers:
            worker.compare("7", [answer])
        eval("7")  # the hook works
        print(json.dumps(seen))
        """
    )
    answers = [
        row
        for table in ANSWERS.values()
        for verdict, rows in table.items()
        for row in rows
        if isinstance(row, str) and verdict != "too_long"
    ]
    result = subprocess.run(
        [sys.executable, "-P", "-c", script, latex_worker.__file__],
        input=json.dumps(answers),
        capture_output=True,
        text=True,
        check=True,
    )
    seen = json.loads(result.stdout)
    assert [event for event, _ in seen] == ["__main__"], seen
