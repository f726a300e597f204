"""Arithmetic made by the problem: word problems in GSM8K's solution format, and bare equations.

Every problem is a pure function of (arguments, seed, split, index). Which split a problem may appear in is decided by a
hash of its content alone, so no two splits share a problem, whatever their seeds, arguments and indices.
"""

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...registry import unknown_name
from ...rewards.grading import solutions
from ...rewards.grading.formats import AnswerFormat, make_format
from ...rewards.grading.numbers import Verdict, grade
from ...settings import kinds_checked
from .base import Problem
from .procedural import Draws, ProceduralSource

STYLES = ("word", "equation")
MAX_STEPS = 32
MAX_VALUE = 10**6
MAX_FACTOR = 10
"""Largest factor or divisor that a word problem asks for, as in the multiplication table."""
SHE = [
    "Mia", "Ana", "Eva", "Amy", "Zoe", "Lea", "Ivy", "Kim", "Joy", "May", "Sue", "Liz", "Meg", "Pam", "Ada",
    "Ida", "Lily", "Emma", "Ella", "Nora",
]  # fmt: skip
HE = [
    "Ben", "Tom", "Max", "Leo", "Sam", "Dan", "Tim", "Jim", "Bob", "Ian", "Ray", "Roy", "Ken", "Jon", "Ali",
    "Abe", "Noah", "Adam", "Paul", "Mark",
]  # fmt: skip
NAMES = [(name, "She", "she", "her", "her") for name in SHE] + [(name, "He", "he", "his", "him") for name in HE]
STRIDES = (1, 3, 7, 9, 11, 13, 17, 19)  # coprime to the number of names: a stride visits every name before it repeats

THINGS = [
    "apple", "pear", "plum", "lemon", "orange", "cookie", "cake", "egg", "nut", "pen", "pencil", "book",
    "card", "coin", "cup", "hat", "ball", "shell", "stamp", "marble", "sticker", "bead", "toy", "key", "rose",
    "stone", "button", "ticket", "block", "flag",
]  # fmt: skip
BOXES = (("box", "boxes"), ("bag", "bags"), ("pack", "packs"), ("basket", "baskets"))

Equation = tuple[int, str, int, int]  # a, operation, b, result


@dataclass(frozen=True, slots=True)
class Situation:
    """One thing that can happen in a story, with its sentences.

    In the sentences, {N} is the person that the story is about, {She}, {she}, {her} and {him} the pronouns, {O} another
    person, {x} and {y} the numbers drawn, {xt} and {yt} the unit that agrees with them, {t} the unit in general; in the
    lines of the solution {e} is the equation and {t} the unit that agrees with its result.

    Attributes:
        before: Topics of the story that it can follow ("" for an opening).
        after: Topic that it leaves the story with; "=" keeps the topic, "." ends the story with a question.
        operations: Change of the running value v by each line of the solution: "+" v+x, "-" v-x, "*" v*x, "/" v/x, "d"
            v*2, "h" v/2, "~" x-v. "m" is a line for x*y by itself, which the next operation adds or takes away. An
            opening draws v as well: its x is that v, and its y the other number.
        text: Sentences of the question.
        lines: Sentences of the solution, one per operation.
        shift: True if the story continues about {O}.
    """

    before: str
    after: str
    operations: str
    text: str
    lines: tuple[str, ...] = ()
    shift: bool = False


HAS, NOW, LEFT = "{N} has {e} {t}.", "Now {she} has {e} {t}.", "{She} has {e} {t} left."
OTHER = "{O} has {e} {t}."
GOES, OLD = "{O} goes {e} {t}.", "{O} is {e} {t} old."

# Topics: t things, m dollars, w miles, a years of age.
SITUATIONS = (
    # Openings.
    Situation("", "t", "", "{N} has {x} {xt}."),
    Situation("", "t", "m", "{N} has {x} {boxes} with {y} {yt} each.", (HAS,)),
    Situation("", "t", "+", "{N} has {x} big {xt} and {y} small {yt}.", (HAS,)),
    Situation("", "t", "+", "{N} gets {x} {xt} on Monday and {y} {yt} on Friday.", ("{N} gets {e} {t}.",)),
    Situation("", "t", "+", "{O} has {x} {xt}. {N} has {y} more {yt} than {O}.", (HAS,)),
    Situation("", "t", "-", "{O} has {x} {xt}. {N} has {y} fewer {yt} than {O}.", (HAS,)),
    Situation("", "t", "*", "{O} has {x} {xt}. {N} has {y} times as many {t} as {O}.", (HAS,)),
    Situation("", "t", "d", "{O} has {x} {xt}. {N} has twice as many {t} as {O}.", (HAS,)),
    Situation("", "t", "h", "{O} has {x} {xt}. {N} has half as many {t} as {O}.", (HAS,)),
    Situation("", "t", "/", "{y} friends share {x} {xt} equally. {N} is one of them.", ("{N} gets {e} {t}.",)),
    Situation("", "m", "", "{N} has {x} {xt}."),
    Situation("", "m", "m", "{N} works {x} hours for {y} {yt} an hour.", ("{N} earns {e} {t}.",)),
    Situation("", "m", "m", "{N} sells {x} {things} for {y} {yt} each.", ("{N} gets {e} {t}.",)),
    Situation("", "m", "-", "{N} has {x} {xt} and pays {y} {yt} for one {thing}.", (LEFT,)),
    Situation("", "w", "", "{N} walks {x} {xt}."),
    Situation("", "w", "m", "For {x} days {N} runs {y} {yt} a day.", ("{N} runs {e} {t}.",)),
    Situation("", "w", "m", "For {x} hours {N} rides {y} {yt} an hour.", ("{N} rides {e} {t}.",)),
    Situation("", "a", "", "{N} is {x} {xt} old."),
    Situation("", "a", "+", "{O} is {x} {xt} old. {N} is {y} {yt} older than {O}.", ("{N} is {e} {t} old.",)),
    Situation("", "a", "*", "{O} is {x} {xt} old. {N} is {y} times as old as {O}.", ("{N} is {e} {t} old.",)),
    # What happens next.
    Situation("t", "=", "+", "{She} buys {x} more {xt}.", (NOW,)),
    Situation("t", "=", "m+", "{She} buys {x} {boxes} with {y} {yt} each.", ("{She} buys {e} {t}.", NOW)),
    Situation("t", "=", "m-", "{She} gives {x} friends {y} {yt} each.", ("{She} gives away {e} {t}.", LEFT)),
    Situation("t", "=", "-", "{She} sells {x} {xt}.", (LEFT,)),
    Situation("t", "=", "/", "{She} puts {her} {t} equally into {x} {boxes} and keeps one {box}.", (LEFT,)),
    Situation("t", "m", "*", "{She} sells all {her} {t} for {x} dollars each.", ("{She} gets {e} {t}.",)),
    Situation("tm", "=", "+", "{She} finds {x} {xt}.", (NOW,)),
    Situation("tm", "=", "+", "{O} gives {him} {x} {xt}.", (NOW,)),
    Situation("tm", "=", "-", "{She} gives {x} {xt} to {O}.", (LEFT,)),
    Situation("tm", "=", "-", "{She} loses {x} {xt}.", (LEFT,)),
    Situation("tm", "=", "h", "{She} gives half of {her} {t} to {O}.", (LEFT,)),
    Situation("tm", "=", "d", "Then the number of {her} {t} doubles.", (NOW,)),
    Situation("tm", "=", "*", "{O} has {x} times as many {t} as {N}.", (OTHER,), shift=True),
    Situation("tm", "=", "d", "{O} has twice as many {t} as {N}.", (OTHER,), shift=True),
    Situation("tm", "=", "+", "{O} has {x} more {xt} than {N}.", (OTHER,), shift=True),
    Situation("tm", "=", "-", "{O} has {x} fewer {xt} than {N}.", (OTHER,), shift=True),
    Situation("m", "=", "-", "{She} spends {x} {xt}.", (LEFT,)),
    Situation("m", "=", "m+", "{She} works {x} hours for {y} {yt} an hour.", ("{She} earns {e} {t}.", NOW)),
    Situation("m", "=", "m-", "{She} buys {x} {things} for {y} {yt} each.", ("{She} pays {e} {t}.", LEFT)),
    Situation("w", "=", "+", "Then {she} walks {x} more {xt}.", ("{She} goes {e} {t}.",)),
    Situation(
        "w", "=", "m+", "For {x} days {she} runs {y} {yt} a day.", ("{She} runs {e} {t}.", "{She} goes {e} {t}.")
    ),
    Situation("w", "=", "*", "{O} goes {x} times as far as {N}.", (GOES,), shift=True),
    Situation("w", "=", "d", "{O} goes twice as far as {N}.", (GOES,), shift=True),
    Situation("w", "=", "h", "{O} goes half as far as {N}.", (GOES,), shift=True),
    Situation("w", "=", "+", "{O} goes {x} more {xt} than {N}.", (GOES,), shift=True),
    Situation("w", "=", "-", "{O} goes {x} fewer {xt} than {N}.", (GOES,), shift=True),
    Situation("a", "=", "*", "{O} is {x} times as old as {N}.", (OLD,), shift=True),
    Situation("a", "=", "d", "{O} is twice as old as {N}.", (OLD,), shift=True),
    Situation("a", "=", "h", "{O} is half as old as {N}.", (OLD,), shift=True),
    Situation("a", "=", "+", "{O} is {x} {xt} older than {N}.", (OLD,), shift=True),
    Situation("a", "=", "-", "{O} is {x} {xt} younger than {N}.", (OLD,), shift=True),
    # Questions, some of which ask for one more step.
    Situation("tm", ".", "", "How many {t} does {N} have now?"),
    Situation("w", ".", "", "How many miles does {N} go?"),
    Situation("a", ".", "", "How old is {N}?"),
    Situation("tm", ".", "+", "{O} has {x} {xt}. How many {t} do {N} and {O} have together?", ("They have {e} {t}.",)),
    Situation(
        "tm", ".", "-", "{O} has {x} {xt}. How many more {t} does {N} have than {O}?", ("{N} has {e} more {t}.",)
    ),
    Situation("tm", ".", "~", "How many more {t} does {N} need to have {x}?", ("{N} needs {e} more {t}.",)),
    Situation("t", ".", "/", "{x} friends share them equally. How many {t} does each get?", ("Each gets {e} {t}.",)),
    Situation("t", ".", "/", "{x} {t} go in each {box}. How many {boxes} does {N} need?", ("{N} needs {e}.",)),
    Situation("t", ".", "*", "How many dollars does {N} get for them at {x} dollars each?", ("{N} gets {e}.",)),
    Situation("m", ".", "/", "How many {things} for {x} dollars each can {N} buy?", ("{N} can buy {e}.",)),
    Situation("w", ".", "+", "{O} goes {x} {xt}. How many miles do {N} and {O} go together?", ("They go {e} {t}.",)),
    Situation("w", ".", "~", "How many more miles must {N} go to reach {x} {xt}?", ("{N} must go {e} more {t}.",)),
    Situation("w", ".", "/", "This takes {x} hours. How many miles is that an hour?", ("That is {e} {t} an hour.",)),
    Situation("a", ".", "+", "{O} is {x} {xt} old. How old are {N} and {O} together?", ("They are {e} {t} old.",)),
    Situation("a", ".", "+", "How old will {N} be in {x} {xt}?", ("{N} will be {e}.",)),
    Situation("a", ".", "-", "How old was {N} {x} {xt} ago?", ("{N} was {e}.",)),
)
SYMBOLS = {"+": "+", "-": "-~", "*": "*dm", "/": "/h"}


def allowed_situations(operations: str) -> dict[tuple[str, int], list[Situation]]:
    """Situations that may come next with these operations, by (topic, solution lines to go; 2 stands for more)."""
    symbols = set("".join(SYMBOLS[operation] for operation in operations))
    allowed = [situation for situation in SITUATIONS if symbols.issuperset(situation.operations)]
    choices: dict[tuple[str, int], list[Situation]] = {("", 1): [s for s in allowed if not s.before]}
    choices["", 2] = choices["", 1]
    for topic in "tmwa":
        here = [situation for situation in allowed if topic in situation.before]
        choices[topic, 0] = [s for s in here if s.after == "." and not s.operations]
        choices[topic, 1] = [s for s in here if len(s.operations) == 1]
        choices[topic, 2] = [s for s in here if s.after != "."]
    return choices


Plan = list[tuple[Situation, int, int, list[Equation]]]  # situation, x, y, its equations


def plan_story(
    draws: Draws, steps: int, max_value: int, choices: dict[tuple[str, int], list[Situation]]
) -> Plan | None:
    """Draws what happens in a story whose solution has `steps` lines; `None` when it runs into a dead end."""
    plan: Plan = []
    topic, value = "", 0
    while topic != ".":
        options = choices[topic, min(steps, 2)]
        for _ in range(8):
            situation = options[draws.below(len(options))]
            drawn = draw_numbers(draws, situation, value, max_value)
            if drawn is not None:
                break
        else:
            return None
        plan.append((situation, *drawn[1:]))
        value = drawn[0]
        steps -= len(situation.operations)
        if situation.after != "=":
            topic = situation.after
    return plan


def draw_numbers(
    draws: Draws, situation: Situation, value: int, max_value: int
) -> tuple[int, int, int, list[Equation]] | None:
    """New running value, x, y and equations of a situation met at `value`; `None` where it has no numbers in range."""
    x = y = 0
    equations: list[Equation] = []
    operations = situation.operations
    if not situation.before and operations != "m":
        value = x = draws.between(1, max_value)
    if operations[:1] == "m":
        room = max_value if not situation.before else value if operations == "m-" else max_value - value
        if room < 2:
            return None
        x = draws.between(2, min(MAX_FACTOR, room))
        y = draws.between(1, room // x)
        equations.append((x, "*", y, x * y))
        if operations == "m":
            return x * y, x, y, equations
        equation = (value, "+", x * y, value + x * y) if operations == "m+" else (value, "-", x * y, value - x * y)
    elif operations:
        equation = draw_step(draws, operations, value, max_value)
        if equation is None:
            return None
        number = equation[0] if operations == "~" else equation[2]
        x, y = (x, number) if not situation.before else (number, 0)
    else:
        return value, x, y, equations
    equations.append(equation)
    return equation[3], x, y, equations


def draw_step(draws: Draws, operation: str, value: int, max_value: int) -> Equation | None:
    """An equation that starts at `value` and stays within [0, max_value], if there is one."""
    if operation == "+":
        if value < max_value:
            x = draws.between(1, max_value - value)
            return value, "+", x, value + x
    elif operation == "~":
        if value < max_value:
            x = draws.between(value + 1, max_value)
            return x, "-", value, x - value
    elif value == 0:
        return None
    elif operation == "-":
        x = draws.between(1, value)
        return value, "-", x, value - x
    elif operation in "*d":
        high = min(MAX_FACTOR if operation == "*" else 2, max_value // value)
        if high >= 2:
            x = draws.between(2, high)
            return value, "*", x, value * x
    else:
        divisors = [d for d in range(2, MAX_FACTOR + 1 if operation == "/" else 3) if value % d == 0]
        if divisors:
            x = divisors[draws.below(len(divisors))]
            return value, "/", x, value // x
    return None


def story_content(plan: Plan) -> str:
    """The equations of a plan ("3*6=18 14+18=32"): what two stories share when they differ only in words."""
    return " ".join(f"{a}{operation}{b}={c}" for *_, equations in plan for a, operation, b, c in equations)


def tell_story(draws: Draws, plan: Plan) -> tuple[str, str, str]:
    """Question, answer and solution of a plan in words."""
    thing, box = THINGS[draws.below(len(THINGS))], BOXES[draws.below(len(BOXES))]
    units = {"t": (thing, thing + "s"), "m": ("dollar", "dollars"), "w": ("mile", "miles"), "a": ("year", "years")}
    place, stride = draws.below(len(NAMES)), STRIDES[draws.below(len(STRIDES))]
    person = NAMES[place]
    words: dict[str, str | int] = {"thing": thing, "things": thing + "s", "box": box[0], "boxes": box[1]}
    words["N"], words["She"], words["she"], words["her"], words["him"] = person
    sentences: list[str] = []
    lines: list[str] = []
    unit = units[plan[0][0].after]
    for situation, x, y, equations in plan:
        # The numbers of a sentence count what the story was about before it, and its equations what it is about after.
        words["x"], words["xt"], words["y"], words["yt"] = x, unit[x != 1], y, unit[y != 1]
        words["t"] = unit[1]
        if "{O}" in situation.text:
            place = (place + stride) % len(NAMES)
            words["O"] = NAMES[place][0]
        sentences.append(situation.text.format_map(words))
        unit = units.get(situation.after, unit)
        for line, (a, operation, b, c) in zip(situation.lines, equations, strict=True):
            words["t"] = unit[c != 1]
            words["e"] = f"{a}{operation}{b} = <<{a}{operation}{b}={c}>>{c}"
            lines.append(line.format_map(words))
        if situation.shift:
            person = NAMES[place]
            words["N"], _, _, words["her"], words["him"] = person
        if situation.shift or (not situation.before and "{O}" in situation.text):
            words["She"] = words["she"] = person[0]  # two people have been named: a pronoun could mean either
    answer = str(plan[-1][3][-1][3] if plan[-1][3] else plan[-2][3][-1][3])
    lines.append(f"#### {answer}")
    return " ".join(sentences), answer, "\n".join(lines)


def plan_chain(draws: Draws, steps: int, max_value: int, operations: str) -> tuple[str, int]:
    """A chain such as "3+4*2=" and its value by the usual precedence.

    Every prefix of the chain, and every product or quotient in it, has an integer value in [0, max_value].
    """
    total, sign, term = 0, 1, draws.between(0, max_value)  # the value so far is total + sign * term
    text = str(term)
    for _ in range(steps):
        operation = operations[draws.below(len(operations))]
        value = total + sign * term
        if operation in "+-":
            number = draws.between(0, max_value - value if operation == "+" else value)
            total, sign, term = value, 1 if operation == "+" else -1, number
        elif operation == "*":
            # A subtracted product may use up the total, an added one the room above it.
            room = max_value - total if sign == 1 else total
            number = draws.between(1, max(1, room // max(term, 1)))
            term *= number
        else:
            divisors = [d for d in range(2, min(term, max_value, MAX_FACTOR) + 1) if term % d == 0]
            number = divisors[draws.below(len(divisors))] if divisors else 1
            term //= number
        text += f"{operation}{number}"
    return text + "=", total + sign * term


class Arithmetic(ProceduralSource):
    r"""Endless arithmetic problems with exact answers in [0, max_value]; so are all values on the way.

    `style="word"`: a short story and a question; the solution has one sentence per step, with GSM8K's calculator
    annotation, and then the answer ("Mia has 3*6 = <<3*6=18>>18 apples.\n...\n#### 18").
    `style="equation"`: a chain of operations ("3+4*2="), read by the usual precedence; the whole completion is the
    answer ("11"), with no marker before it.

    Problems are disjoint between splits, whatever the seeds and the other arguments: a hash of the content (of a word
    problem its equations, so that no test problem even repeats the computation of a training problem with other words;
    of a chain its text) puts eight tenths of all contents into train and one tenth each into validation and test.
    Within a split, problems repeat when the arguments leave room for few.

    Args:
        split: Split of the problems: "train", "validation" or "test".
        seed: Seed in [0, 2**63), which chooses among endless streams of problems.
        steps: Number of solution lines of a word problem, of operations in a chain; or (lowest, highest), both
            included, from 1 to 32.
        max_value: Largest number that occurs, up to 10**6.
        operations: Operations to use, any of "+-*/".
        style: Style of the problems: "word" or "equation".
        answer_format: Format of the answers of attempts at word problems, and of the end of each solution: "marker" by
            default, which is "#### 18"; or "boxed", "tag", "last_number", ...

    Raises:
        UnknownNameError: There is no such split, style or format.
        ValueError: An argument is out of range, or the arguments leave no problem for this split.
    """

    name = "arithmetic"
    remedy = "raise max_value or steps, or allow more operations"

    @kinds_checked
    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        steps: int | Sequence[int] = (2, 4),
        max_value: int = 100,
        operations: str = "+-*/",
        style: str = "word",
        answer_format: str | Mapping[str, Any] | AnswerFormat | None = None,
    ) -> None:
        super().__init__(split, seed)
        pair = (steps, steps) if isinstance(steps, int) else tuple(steps)
        if len(pair) != 2 or not 1 <= pair[0] <= pair[1] <= MAX_STEPS:
            raise ValueError(f"steps must be a number from 1 to {MAX_STEPS} or a pair (lowest, highest), not {steps!r}")
        self.steps = (operator.index(pair[0]), operator.index(pair[1]))
        self.max_value = operator.index(max_value)
        if not 1 <= self.max_value <= MAX_VALUE:
            raise ValueError(f"max_value must be in [1, {MAX_VALUE}], not {max_value}")
        if not operations or len(set(operations)) < len(operations) or set(operations) - set("+-*/"):
            raise ValueError(f"operations must be some of '+-*/', each once, not {operations!r}")
        self.operations = operations
        if style not in STYLES:
            raise unknown_name("style", style, STYLES)
        self.style = style
        if style == "equation":
            if answer_format is not None:
                raise ValueError(f'answer_format={answer_format!r}: with style="equation" the answer stands alone')
            self.answer_format = _WholeCompletion()
        elif answer_format is not None:
            self.answer_format = make_format(answer_format)
        self._choices = allowed_situations(operations)
        self[0]  # arguments that leave this split empty fail here, not in the middle of training

    def draw(self, draws: Draws) -> tuple[str, Any] | None:
        steps = draws.between(*self.steps)
        if self.style == "equation":
            chain, result = plan_chain(draws, steps, self.max_value, self.operations)
            return chain, (chain, result)
        plan = plan_story(draws, steps, self.max_value, self._choices)
        return None if plan is None else (story_content(plan), plan)

    def tell(self, draws: Draws, drawn: Any) -> tuple[str, str, str]:
        if self.style == "equation":
            chain, result = drawn
            return chain, str(result), str(result)
        question, answer, solution = tell_story(draws, drawn)
        return question, answer, self.answer_format.complete(solution, answer)

    def check_steps(self, steps: Sequence[str], problem: Problem) -> list[bool]:
        """True for each step whose equations are all the solution's own, with terms and factors in any order.

        A line that gives the answer is right if the answer is. A line that says neither is not wrong.
        """
        known = {_unordered(equation) for equation in solutions.equations(problem.solution or "")}

        def is_right(step: str) -> bool:
            if self.answer_format.is_answer(step):
                return self.answer_format.grade(step, problem.answer).correct
            return known.issuperset(map(_unordered, solutions.equations(step)))

        return [is_right(step) for step in steps]

    def __repr__(self) -> str:
        return (
            f"Arithmetic(split={self.split!r}, seed={self.seed}, steps={self.steps}, max_value={self.max_value}, "
            f"operations={self.operations!r}, style={self.style!r})"
        )


def _unordered(equation: str) -> str:
    """An equation with the two terms of a sum, or factors of a product, in one order."""
    found = re.fullmatch(r"(\d+)([+*])(\d+)=(\d+)", equation)
    if found is None:
        return equation
    a, operation, b, value = found.groups()
    return f"{min(a, b)}{operation}{max(a, b)}={value}"


class _WholeCompletion(AnswerFormat):
    """The whole completion is the answer."""

    @property
    def instruction(self) -> str:
        return "Give the answer alone."

    def show(self, answer: str) -> str:
        return answer

    def extract(self, completion: str) -> list[str]:
        return [completion.strip()] if completion.strip() else []

    def compare(self, answers: list[str], gold: str) -> Verdict:
        return grade(answers[0], gold, marker=None)
