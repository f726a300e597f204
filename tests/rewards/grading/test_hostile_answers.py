r"""The free-form grader's corpus of attacks: answers that would hang it, run code in it, fill its memory or fool it.

Each is graded by a worker process against a gold answer, which is 7 unless another is named, and has one right verdict;
or two, `wrong|timeout`, where math-verify gets there on a fast machine alone. After each, an ordinary answer is graded.
"""

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tokengym.rewards import grade_free_form
from tokengym.rewards.grading import latex_worker
from tokengym.rewards.grading.latex import Worker

Attack = str | tuple[str, str]
"""What stands in the box, and the gold answer if it is not 7."""

TOWERS: dict[str, list[Attack]] = {
    "timeout": [
        r"9^{9^{9^{9}}}",
        r"9^{9^{9}}",
        r"10^{10^{10}}",
        r"2^{2^{2^{2^{2^{2}}}}}",
        r"(9^{9^9})^{9^9}",
        r"9^{-9^{9^9}}",
        r"\left(\frac{1}{2}\right)^{10^{10}}",
        r"e^{e^{e^{e^{e}}}}",
        r"\sqrt[9^9]{7^{9^9}}",
        r"7^{10^{9}}-7^{10^{9}}+7",
        r"7^{1^{9^{9^{9}}}}",
        r"i^{9^{9^9}}",
        r"\log(\log(\log(10^{10^{10}})))",
        "2^" * 100 + "2",
    ],
    "wrong|timeout": [r"x^{x^{x^{x^{x}}}}", r"10^{1000000}", r"\pi^{\pi^{\pi^{\pi}}}"],
    "wrong": ["9^9^9^9"],
    "unparsed|timeout": ["x" + "^x" * 100, "x^{2^{" * 20 + "}}" * 20],
    "correct": [r"\log_{2}(128)", r"7^{1^{9}}"],
}
FACTORIALS: dict[str, list[Attack]] = {
    "timeout": [
        "99999999!",
        "(99999999!)!",
        "9!!",
        "9!!!!!!!!!!",
        "((((9!)!)!)!)!",
        r"\frac{99999999!}{99999998!}",
        "(10^9)!",
        r"\binom{10^9}{5\cdot10^8}",
        r"\binom{99999999}{49999999}",
        r"\Gamma(10^{10})",
    ],
    "wrong": ["(-1)!", "x!!", "7!"],
    "unparsed|timeout": ["7" + "!" * 200],
    "correct": ["3!+1", r"\binom{7}{1}"],
}
NESTING: dict[str, list[Attack]] = {
    "timeout": [
        "{" * 100 + "}" * 100,
        "(" * 120 + ")" * 120,
        "(" * 100 + "7" + ")" * 100,
        "[" * 250,
        "[" * 100 + "7" + "]" * 100,
        r"\{" * 60 + "7" + r"\}" * 60,
        "f(" * 60 + "x" + ")" * 60,
        "x" + "_x" * 100,
        "x" + "_{x" * 60 + "}" * 60,
        r"\frac{1}{1+" * 18 + "7" + "}" * 18,
    ],
    "wrong|timeout": [r"\sqrt{" * 36 + "7" + "}" * 36],
    "unparsed": ["(((7)", "7)))", "(" * 10 + "7", "[7)", r"\text{" * 30 + "7" + "}" * 30, "|" * 100 + "7" + "|" * 100],
    "unparsed|timeout": [r"\sin " * 40 + "x"],
    "wrong": ["-" * 201 + "7", "1+" * 60 + "1"],
    "too_long": ["(" * 2000 + ")" * 2000, "{" * 50_000 + "}" * 50_000],
    "correct": [
        r"\boxed{" * 25 + "7" + "}" * 25,
        r"\lfloor " * 8 + "7" + r"\rfloor " * 8,
        "-" * 100 + "7",
        r"\frac{1}{\frac{1}{7}}",
    ],
}
CODE: dict[str, list[Attack]] = {
    "unparsed": [
        "__import__('os').system('touch CANARY')",
        '["correct", null]\n["correct", null]',
        "().__class__.__bases__[0].__subclasses__()",
        "import os\nos.mkdir('CANARY')",
        "globals()",
        "os.system",
        "x:=7",
        "{0.__class__}",
        "%s%s%n",
        "%(7)s",
        "`touch CANARY`",
        "; touch CANARY;",
        "7 # comment",
        "7 // x",
        "/* */ 7",
        "'; DROP TABLE x; --",
        "../../CANARY",
        "file:///CANARY",
        "<script>7</script>",
        "&#55;",
        r"\x37",
        r"\u0037",
        r"\N{DIGIT SEVEN}",
        r"\067",
        "%37",
        r"\operatorname{eval}(7)",
        r"\operatorname{exec}(7)",
        r"\operatorname{__import__}(os)",
        r"\operatorname{open}(x)",
        r"\variable{__import__}",
    ],
    "wrong": [  # letters are variables, and a name before parentheses is an unknown function
        r"\text{__import__('os').mkdir('CANARY')}",
        "exec(open('CANARY','w'))",
        "lambda: 7",
        "(lambda x: x)(7)",
        "print(7)",
        "eval('7')",
        "Integer(7)",
        "Symbol('x')",
        "S(7)",
        "sympify('7')",
        r"\mathrm{system}(7)",
        "f'{7}'",
        "{{config}}",
        "$(touch CANARY)",
        "7; import os",
        "7 if True else 8",
        "True",
        "None",
        "correct",
        '["correct", "7"]',
        '{"answer": 7}',
        "SELECT 7",
    ],
    "correct": ["'7'", '"7"', "${7}"],
}
TEX: dict[str, list[Attack]] = {
    "unparsed": [
        r"\input{/etc/passwd}",
        r"\include{/etc/passwd}",
        r"\write18{touch CANARY}",
        r"\immediate\write18{touch CANARY}",
        r"\openout15=CANARY",
        r"\read15 to \x",
        r"\def\x{7}\x",
        r"\def\x{\x\x}\x",
        r"\newcommand{\x}{7}\x",
        r"\loop\repeat",
        r"\csname input\endcsname",
        r"\expandafter\x",
        r"\let\x=7 \x",
        r"\directlua{os.execute('touch CANARY')}",
        r"\special{ps: 7}",
        r"\href{http://x}{7}",
        r"\includegraphics{x}",
        r"\begin{document}7\end{document}",
        r"\begin{verbatim}7\end{verbatim}",
        r"\verb|7|",
        r"\color{white}{8}7",
        r"\cancel{8}7",
        r"\stackrel{8}{7}",
        r"8 \atop 7",
        r"\tag{7}",
        r"\xrightarrow{7}",
        "% 8\n7",
        r"\begin{pmatrix}7",
    ],
    "wrong": [r"\phantom{8}7", "7%8", r"{8 \over 7}", r"\vec{7}", r"\overline{7}"],
    "correct": [r"\$7\$", "$$7$$", r"\text{7}", r"\frac71"],
}
BIG_NUMBERS: dict[str, list[Attack]] = {
    "too_long": ["9" * 257, "9" * 10_000_000, "7." + "0" * 300, "7" + "x" * 1_000_000],
    "timeout": [
        "10^{1000000000}",
        "10^{99999999999999999999}",
        r"10^{10^9}+7-10^{10^9}",
        r"\frac{1}{10^{10^9}}+7",
        "9" * 100 + "^{" + "9" * 100 + "}",
    ],
    "wrong": [
        "9" * 256,
        "9" * 250 + "x",
        "1" + "0" * 255,
        "1e999",
        "-1e999",
        "7e1",
        "7." + "0" * 200 + "1",
        "2^{31}",
        "1e999999999",
        "1_000_000",
        "7e",
        "7,000,00x",
    ],
    "unparsed": ["1,,000"],
    "correct": ["7." + "0" * 200, "0" * 200 + "7", "7e0", r"70\cdot 10^{-1}"],
}
SUMS: dict[str, list[Attack]] = {
    "timeout": [
        r"\sum_{n=1}^{99999999} n!",
        r"\prod_{n=1}^{1000000} n",
        r"\prod_{n=1}^{10^9} \frac{n+1}{n}",
        r"\int_0^{\infty} e^{-x^9}\sin(x^{7}) dx",
        r"\max(7, 10^{10^{10}})",
        r"\gcd(10^{10^{9}}, 7)",
        r"\sin(10^{10^{10}})",
        r"\lfloor 10^{10^9}/3 \rfloor",
        r"|10^{10^{10}}|",
        r"(x+y+z)^{999}",
    ],
    "wrong|timeout": [
        r"\sum_{n=1}^{\infty} n",
        r"\sum_{n=1}^{\infty}\frac{\sin n}{n^{1.1}}",
        r"\prod_{n=1}^{7}n^{n^n}",
        r"\int_0^1 x^{x^x} dx",
        r"\int \frac{1}{x^{17}+x+1} dx",
        r"\int\int\int\int\int\int x",
        r"\lim_{n\to\infty} n!^{1/n}",
        r"\lim_{n\to\infty}(1+1/n)^{n^n}",
        r"\frac{d}{dx} x^{x^{x^x}}",
        r"\sin^{99}(x)+\cos^{99}(x)",
        r"(a+b+c+d+e+f)^{30}",
        r"\tan(\tan(\tan(\tan(x))))",
    ],
    "unparsed": [r"\sum", r"\int", r"\prod_{p}"],
    "correct": [r"\sum_{n=1}^{7} 1", r"\gcd(7, 14)"],
}
MATRICES: dict[str, list[Attack]] = {
    "timeout": [r"\begin{pmatrix}9^{9^{9}}&1\\1&1\end{pmatrix}"],
    "timeout|crashed": [r"\operatorname{zeros}(99999,99999)", r"\operatorname{ones}(30000,30000)"],
    "unparsed": [r"\begin{pmatrix}1&1\\1\end{pmatrix}", r"\begin{pmatrix}\end{pmatrix}", r"\operatorname{rank}(7)"],
    "wrong": [
        (r"\begin{pmatrix}2\\1\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        (r"\begin{pmatrix}1\\2\\3\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ],
    "correct": [
        r"\det\begin{pmatrix}7\end{pmatrix}",
        (r"\begin{pmatrix} \frac{2}{2} \\ 2.0 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ],
}
SETS: dict[str, list[Attack]] = {
    "timeout": [r"[7, 9^{9^{9^9}}]"],
    "wrong": [
        r"\{9^{9^{9}}, 7\}",
        r"(9^{9^{9}}, \infty)",
        r"(99!,999!]",
        ",".join(map(str, range(80))),
        "1;2;3",
        "7,8",
        "7;8",
        r"\{7\}\cup\{8\}",
        r"(-\infty, 7) \cup (7, \infty)",
        r"\mathbb{R}\setminus\{8\}",
        r"\mathbb{N}",
        r"\emptyset",
        r"\{1,\ldots,7\}",
        ("[1,2]", "(1,2)"),
        ("(2,1)", "(1,2)"),
        ("1,2,3", "1,2"),
        ("1", "1,2"),
    ],
    "wrong|timeout": [r"\{" + ",".join(map(str, range(70))) + r"\}"],
    "unparsed": ["()", "[]", "(7,)", "(,7)", "7,", ",7", ",,,,", r"\bigcup_{n=1}^{\infty}[n,n+1]"],
    "correct": [r"\{7,7,7\}", ",".join("7" * 60), (r"\{2,1,1\}", "1,2"), (r"x \in [1,2]", "[1,2]")],
}
RELATIONS: dict[str, list[Attack]] = {
    "timeout": ["x>9^{9^{9}}"],
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
        r"8 \approx 7",
        "y=7x",
    ],
    "unparsed": ["===", "<>", "7<", "=7", "x=", "7=", r"x \to 7", r"7\sim8", r"7 \equiv 0 \pmod 7"],
    "correct": ["x=7", "x=y=7", "=".join(["7"] * 60)],
}
# Signs that look like a right answer; only U+2212 and the signs of operations are what they look like.
HOMOGLYPHS: dict[str, list[Attack]] = {
    "unparsed": [
        *("\u0667", "\u06f7", "\uff17", "\u17e7", "\U0001d7d5", "\u2077", "\u2166", "\u2466", "\u4e03"),
        *("\uff17\uff0e\uff10", "7\u0660", "7\uff0c000", "7\u066b0", "7\u2044\u0661", "\u00bd", "7\u00b0", "7\u2032"),
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
    "correct": ["7\u00d71", "7\u00f71", ("\u22127", "-7"), ("\u03c0", r"\pi")],
}
INVISIBLE: dict[str, list[Attack]] = {
    "unparsed": [
        *("7\u200b", "\u200b7", "7\u200d", "\u20607", "\ufeff7", "7\ufeff", "\u00ad7", "7\u034f", "\u31647", "\u2800"),
        *("\u202e7", "7\u202e8", "\u200e7\u200f", "\u200b" * 250, "\u202d\u202e" * 100, "7\U000e0037"),
        *("7\u0301", "7\u20dd", "7\ufe0f\u20e3", "a\u0300" * 100),
        *("\x00", "7\x00", "\x007", "7\x7f", "7\x1a", "7\x04", "7\x08\x088", "\x1b[31m7", "\x1b]0;x\x077"),
        *("\ud800", "7\udfff", "\ud83d", "\ud83d\ude007", "\ufffd", "\ufffe", "\U0010ffff", "\U0001f4a5" * 256),
        *("7\r8", "7\x0c8"),
    ],
    "correct": ["7\n", "\n7\n", "\u00a07", "7\u2003", "7\u2028", "7\x0b"],
}
# What is easily taken for more, or for something else, than was written.
FOOLING: dict[str, list[Attack]] = {
    "wrong": [
        *("3(4)", "(3)(4)", "3{4}", "(3)4", r"\frac{6}{2}(4)"),  # math-verify adds them, as in 3\frac{1}{2}
        *(
            "7x",
            "7d",
            r"7\text{ million}",
            "7 million",
            r"7\text{ or more}",
            r"7\text{ or so}",
            "7 and 8",
            r"7 \text{ or } 8",
        ),
        *(r"700\%", "700%", "7_8", "7_2", "+-7", "7.7.7", "0.7.7", r"\sqrt49", "78", r"\text{not }7", "nan", r"\infty"),
        (r"7\%", "0.07"),
        (r"\frac{1}{0}", r"\infty"),
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
            "~7",
        ),
        *("7?", "?7", "@7", "#7", "&7", "7&8", r"7\\8", "7^", "7_", "^7", "_7", "*7", "/7", r"7\times", r"\frac{7}"),
        *(r"\text{}", r"\,", "$", "%", r"\%", r"\sqrt", r"\left(7\right."),
    ],
    "correct": [
        *(
            "7.",
            "--7",
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
        ("3(4)", "12"),
        ("(x+1)(x-1)", "x^2-1"),
        (r"\log_2(8)", "3"),
    ],
}
# Whole completions: which box counts.
BOXES: dict[str, list[Attack]] = {
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
    "towers of exponents": TOWERS,
    "factorials": FACTORIALS,
    "nesting": NESTING,
    "code": CODE,
    "TeX": TEX,
    "big numbers": BIG_NUMBERS,
    "sums and functions": SUMS,
    "matrices": MATRICES,
    "sets": SETS,
    "relations": RELATIONS,
    "homoglyphs": HOMOGLYPHS,
    "invisible": INVISIBLE,
    "fooling": FOOLING,
}


class Case(NamedTuple):
    kind: str
    verdicts: set[str]
    completion: str
    gold: str


def cases() -> Iterator[Case]:
    for kind, answers in (*ANSWERS.items(), ("boxes", BOXES)):
        for verdicts, attacks in answers.items():
            for attack in attacks:
                text, gold = (attack, "7") if isinstance(attack, str) else attack
                yield Case(
                    kind, set(verdicts.split("|")), text if kind == "boxes" else rf"so $\boxed{{{text}}}$.", gold
                )


CASES = list(cases())
LIMIT = 2.0
"""Seconds for any grade at all."""


def grade(worker: Worker, completion: str, gold: str) -> tuple[str, float]:
    """The verdict's reason, and the seconds it took."""
    start = time.monotonic()
    verdict = grade_free_form(completion, gold, worker=worker)
    assert verdict.correct == (verdict.reason == "correct")
    return verdict.reason, time.monotonic() - start


def ordinary(worker: Worker) -> bool:
    """Whether a right and a wrong answer, both for math-verify, are told apart."""
    return [grade(worker, rf"\boxed{{{n} + x}}", "x+7")[0] for n in (7, 8)] == ["correct", "wrong"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the workers run: attacks try to make a CANARY there."""
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def worker(folder: Path) -> Iterator[Worker]:
    """The default one."""
    yield from started(Worker(), folder)


@pytest.fixture(scope="module")
def impatient(folder: Path) -> Iterator[Worker]:
    """For answers that would take hours: they need not wait for the default deadline."""
    yield from started(Worker(deadline=0.3), folder)


def started(worker: Worker, folder: Path) -> Iterator[Worker]:
    with contextlib.chdir(folder):
        assert ordinary(worker)
    yield worker
    worker.close()


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 150
    assert len(set(CASES_KEYS := [(case.completion, case.gold) for case in CASES])) == len(CASES_KEYS)


@pytest.mark.parametrize("kind", [*ANSWERS, "boxes"])
def test_attacks_get_their_verdicts_in_time_and_change_nothing(
    kind: str, worker: Worker, impatient: Worker, folder: Path
) -> None:
    environment = dict(os.environ)
    for case in CASES:
        if case.kind != kind:
            continue
        grader = impatient if "timeout" in case.verdicts else worker
        reason, seconds = grade(grader, case.completion, case.gold)
        assert reason in case.verdicts, (reason, case)
        assert seconds < LIMIT, case
        assert ordinary(grader), case
    assert not list(folder.iterdir())
    assert dict(os.environ) == environment


@pytest.mark.parametrize("kind", [kind for kind, answers in ANSWERS.items() if "timeout" in answers])
def test_the_default_deadline_keeps_the_limit(kind: str, worker: Worker) -> None:
    attack = ANSWERS[kind]["timeout"][0]
    assert isinstance(attack, str)
    reason, seconds = grade(worker, rf"\boxed{{{attack}}}", "7")
    assert (reason, seconds < LIMIT) == ("timeout", True)
    assert ordinary(worker)


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
        attack
        for table in (CODE, TEX, HOMOGLYPHS, INVISIBLE, BIG_NUMBERS, FOOLING)
        for verdicts, attacks in table.items()
        for attack in attacks
        if isinstance(attack, str) and verdicts not in ("timeout", "too_long")
    ]
    told = subprocess.run(
        [sys.executable, "-P", "-c", script, latex_worker.__file__],
        input=json.dumps(answers),
        capture_output=True,
        text=True,
        check=True,
    )
    seen = json.loads(told.stdout)
    assert [event for event, _ in seen] == ["__main__"], seen


def test_an_allocation_bomb_ends_in_a_verdict() -> None:
    worker = Worker(deadline=30, memory=400 << 20)
    assert ordinary(worker)
    (before,) = psutil.Process(worker.pid).children()
    assert f"{worker.memory}" in Path(f"/proc/{before.pid}/limits").read_text()
    assert grade(worker, r"\boxed{\operatorname{zeros}(99999,99999)}", "7")[0] == "crashed"
    assert ordinary(worker)
    (after,) = psutil.Process(worker.pid).children()
    assert before.pid != after.pid
    worker.close()


def test_after_an_answer_that_took_half_the_memory_comes_a_fresh_worker() -> None:
    worker = Worker(deadline=30, memory=100 << 20)  # of which Python and SymPy take 60 MB
    seen = set()
    for _ in range(3):
        assert ordinary(worker)
        seen |= {child.pid for child in psutil.Process(worker.pid).children()}
    assert len(seen) == 3
    assert worker.counters == {"correct": 3, "wrong": 3}
    worker.close()
