r"""Comparison of an answer in LaTeX or free form with the gold answer.

**By value, exactly.** Rational numbers are compared as such, whatever their size, and other constants to 170 digits:
a rounded decimal is not the fraction or the root that it rounds (0.333 is not 1/3, however that is written).
Expressions with letters are equal if they are for all values of the letters (`values`).

**A number is an answer, an expression is not.** Where the gold answer is a number, nothing may be left to do in the
answer that is not left to do in the gold answer: 1+2 is not 3, nor is \binom{3}{1}, while \frac{6}{2} is; \sqrt{8} is
2\sqrt{2}, since the gold answer has a root. Where the question is known, an expression copied from it is no answer
either (`is_copied`).

**Kinds.** x=5 is 5, and 3+2=5 is, but x^2-4=0 is not 0: an equation equals equations that are a multiple of it. An
inequality in one letter is the interval of its solutions. Lists and sets have no order, tuples do. 2:30 is a time if it
can be one, and equals that time alone; other ratios are equal if their quotients are. Units are ignored, those outside
of \text{} where the gold answer has no letters, and so are dollar and percent signs. A choice such as (C) may have its
text after it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from .numbers import MAX_LENGTH, Verdict, is_unit, normalize_number
from .reader import Node, Unreadable, clean, read
from .values import (
    Evaluator,
    equal_expressions,
    is_simple_enough,
    letters,
    sign_of_ratio,
    spell_expression,
    spell_multiple,
)
from .worker import WORKERS, Worker, Workers

# In a gold answer in LaTeX, 2m, 6ab and 2 m have variables; words are longer.
_ALGEBRA = re.compile(r"\d(?:[A-DF-Za-df-z]|[eE](?![+-]?\d)|\s+[A-Za-z]{1,2}\b)", re.ASCII)
_TEXT = re.compile(r"\\(?:text(?:normal|rm|bf|it|sf)?|mbox|mathrm|mathbf)\s*\{([^{}]*)\}")
_CHOICE = re.compile(r"\s*\(?\s*([A-J])\s*\)?\s*[.:]?\s*")
_CHOSEN = re.compile(r"\s*(?:\(\s*([A-J])\s*\)|([A-J])\s*[).:])(?=\s|$|[^A-Za-z0-9]).*|\s*([A-J])\s*", re.DOTALL)
_HALF_DAY = re.compile(r"\s*\b([ap])\s*\.?\s*m\s*\.?\s*", re.IGNORECASE)
_ARITHMETIC = frozenset(
    {"number", "symbol", "constant", "negative", "sum", "product", "quotient", "power", "root", "group", "degrees"}
    | {"absolute", "floor", "ceiling", "factorial", "binomial", "function", "ratio"}
)
_SETS = frozenset({"interval", "union", "intersection", "difference", "numbers"})
# A unit that was written without \text{}: 5 cm, 5\pi cm^2.
_BARE_UNIT = re.compile(r"(?<=\S)\s+([A-Za-z]{2,3}|[mgshlL])(?:\s*\^\s*\{?\s*[23]\s*\}?)?$", re.ASCII)
_FUNCTION_NAMES = frozenset("fghpqFGHPQ")
_MAX_MEMBERS = 80
_UNPARSED = Verdict(False, "unparsed", None)


def compare(answers: Sequence[str], gold: str, *, worker: Worker | Workers = WORKERS) -> Verdict:
    r"""Compare the answers of one attempt with the gold answer by the rules at the top of this module.

    Never raises because of an answer.

    Args:
        answers: Answers that the attempt gives, the last one first. Different ones are `ambiguous`, unless they are
            together the values that the gold answer lists.
        gold: Gold answer, in LaTeX or plain text.
        worker: Worker, or several, to compare answers outside the grammar.

    Returns:
        A verdict. Its `answer` is the gold answer where that was given, else the one spelling of all answers that are
        equal.

    Raises:
        ValueError: The gold answer is empty or longer than 256 characters.
        RuntimeError: The worker does not start.
    """
    gold = " ".join(gold.split())
    if not gold or len(gold) > MAX_LENGTH:
        raise ValueError(f"a gold answer has 1 to {MAX_LENGTH} characters, not {len(gold)}: {gold[:60]!r}")
    if not answers:
        return Verdict(False, "no_answer", None)
    if len(answers[0]) > MAX_LENGTH:
        return Verdict(False, "too_long", None)
    texts = list(dict.fromkeys(text for answer in answers if len(answer) <= MAX_LENGTH and (text := clean(answer))))
    if not texts or not clean(answers[0]):
        return _UNPARSED
    return _Comparison(gold, worker).verdict(texts)


def is_copied(answer: str, gold: str, question: str) -> bool:
    """True if an answer is an expression that the question has as it stands, and the gold answer is spelled otherwise.

    A letter, and a number with nothing left to do, is no expression.
    """
    text = clean(answer)
    node = _try_read(text)
    if node is None or node.kind not in _ARITHMETIC or _is_plain(node) or _squeeze(text) == _squeeze(clean(gold)):
        return False
    return _squeeze(text) in _squeeze(clean(question))


def is_readable(gold: str, worker: Worker | Workers = WORKERS) -> bool:
    """True if anything but its own text can equal a gold answer: a value, a choice or a few words."""
    if _CHOICE.fullmatch(_plain(clean(gold))):
        return True
    if _is_prose(_plain(clean(gold))):
        return False
    return _try_read(clean(gold)) is not None or worker.compare(clean(gold), [clean(gold)])[0] in ("correct", "wrong")


class _Comparison:
    def __init__(self, gold: str, worker: Worker | Workers) -> None:
        self.given = gold
        self.gold = clean(gold) or gold
        self.number = None if _ALGEBRA.search(self.gold) else normalize_number(self.gold)
        self.worker = worker

    def verdict(self, texts: Sequence[str]) -> Verdict:
        correct = Verdict(True, "correct", self.number or self.given)
        choice = _CHOICE.fullmatch(_plain(self.gold))
        if choice:
            return self._choice(choice[1], texts, correct)
        if len(texts) == 1 and self._same_text(texts[0]):
            return correct
        gold_half, self.gold = _half_of_day(self.gold)
        halves, texts = zip(*map(_half_of_day, texts), strict=True)
        if gold_half and set(halves) != {gold_half}:
            return Verdict(False, "wrong", f"{texts[0]} {halves[0]}m" if halves[0] else spell(texts[0]))
        if self.number is not None and len(texts) == 1:
            number = normalize_number(texts[0])
            if number is not None:
                return correct if number == self.number else Verdict(False, "wrong", number)
        gold = _try_read(self.gold)
        if gold is not None and gold.kind in _ARITHMETIC and not letters(gold):
            texts = [_without_bare_unit(text) for text in texts]
        nodes = [_try_read(text) for text in texts]
        last = nodes[0]
        if last is None:
            if any(
                node is not None or not self._same_text(text) for node, text in zip(nodes[1:], texts[1:], strict=True)
            ):
                return Verdict(False, "ambiguous", None)
            return self._by_worker(texts[0])
        try:
            rivals = [last]
            for node in nodes[1:]:
                if node is not None and not any(_equal_or_none(node, other) for other in rivals):
                    rivals.append(node)
            if len(rivals) > 1:
                together = Node("list", tuple(rivals[::-1]), ",")
                if gold is not None and gold.kind in ("list", "set") and _equal(together, gold, strict=True):
                    return correct
                return Verdict(False, "ambiguous", None)
            if gold is None:
                return self._by_worker(texts[0])
            if _equal(last, gold, strict=True):
                return correct
            found = spell(texts[0])
            # An expression that comes to the gold answer, but is none, has no vote.
            no_number = found is None and last.kind in _ARITHMETIC
            return _UNPARSED if no_number or found == spell(self.gold) else Verdict(False, "wrong", found)
        except (Unreadable, ZeroDivisionError):
            return _UNPARSED

    def _choice(self, letter: str, texts: Sequence[str], correct: Verdict) -> Verdict:
        chosen = []
        for text in texts:
            match = _CHOSEN.fullmatch(_plain(text))
            chosen.append(next(filter(None, match.groups())) if match else None)
        found = {choice for choice in chosen if choice}
        if chosen[0] is None:
            return Verdict(False, "unparsed" if not found else "ambiguous", None)
        if len(found) > 1:
            return Verdict(False, "ambiguous", None)
        return correct if chosen[0] == letter else Verdict(False, "wrong", chosen[0])

    def _same_text(self, text: str) -> bool:
        return _without_spaces(text) == _without_spaces(self.gold)

    def _by_worker(self, text: str) -> Verdict:
        """Compares texts outside the grammar; if the gold answer is a number or words, no such text is the answer."""
        if self._same_text(text):
            return Verdict(True, "correct", self.number or self.given)
        gold = _try_read(self.gold)
        if gold is not None and (gold.kind == "words" or not letters(gold)):
            return _UNPARSED
        if not text.isascii() or _is_prose(_plain(self.gold)) or _is_prose(_plain(text)):
            return _UNPARSED
        reason, found = self.worker.compare(self.gold, [text])
        return Verdict(reason == "correct", reason, self.given if reason == "correct" else found)


def _without_spaces(text: str) -> str:
    """The text without white space, but between letters or digits."""
    return re.sub(r"\s+(?![A-Za-z0-9])|(?<![A-Za-z0-9])\s+", "", text)


def _without_bare_unit(text: str) -> str:
    """The text without letters at its end that can only be a unit, where the gold answer has no letters."""
    unit = _BARE_UNIT.search(text)
    return text[: unit.start()] if unit is not None and is_unit(unit[1]) else text


def _is_prose(text: str) -> bool:
    """True if it has more than three words outside of commands."""
    return len(re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", text)) > 3


def _squeeze(text: str) -> str:
    return re.sub(r"\s+|\\(?:text|mbox|mathrm)(?=\{)", "", text).replace("{", "").replace("}", "")


def _plain(text: str) -> str:
    r"""The text with what \text{} holds put in its place."""
    return _TEXT.sub(r"\1", text).replace("{", "").replace("}", "")


def _half_of_day(text: str) -> tuple[str, str]:
    """The letter a or p of a time before or after noon, else "", and the rest of the text."""
    plain = _plain(text)
    match = _HALF_DAY.search(plain)
    if match is None or match.end() < len(plain) or not plain[:1].isdigit():
        return "", text
    return match[1].lower(), plain[: match.start()].strip()


def _try_read(text: str) -> Node | None:
    try:
        return read(text)
    except (Unreadable, ValueError):
        return None


def _is_plain(node: Node) -> bool:
    """True if it is a number with nothing to do, in lowest terms, or a letter."""
    while node.kind in ("group", "negative", "degrees"):
        node = node.parts[0]
    if node.kind in ("number", "symbol", "constant"):
        return True
    if node.kind != "quotient" or not all(part.kind == "number" for part in node.parts):
        return False
    top, bottom = (part.value for part in node.parts)
    return top.denominator == bottom.denominator == 1 and bottom > 1 and (top / bottom).denominator == bottom


def _equal_or_none(a: Node, b: Node) -> bool:
    try:
        return _equal(a, b, strict=False)
    except (Unreadable, ZeroDivisionError):
        return a == b


# ------------------------------------------------------------------------------------------------------------ meaning


def _meaning(node: Node) -> Node:
    """The node with what says nothing about the value taken off: groups, x= before a value, x in before a set."""
    if node.kind == "group":
        return _meaning(node.parts[0])
    if node.kind == "list":
        return _without_conditions(node)
    if node.kind == "relation":
        if node.value == ("in",) and node.parts[0].kind == "symbol":
            return node.parts[1]
        if set(node.value) == {"="}:
            *names, value = node.parts
            if value.kind not in ("relation", "list") and _is_definition(names, value):
                return _meaning(value)
            if value.kind == "symbol" and len(names) == 1 and _is_definition([value], names[0]):
                return _meaning(names[0])
    return node


def _is_definition(names: Sequence[Node], value: Node) -> bool:
    own = letters(value)
    for name in names:
        if name.kind in ("symbol", "words"):
            if name.value in own:
                return False
        elif name.kind == "product" and len(name.parts) == 2 and name.parts[0].value in _FUNCTION_NAMES:
            if name.parts[1].kind not in ("symbol", "number"):
                return False
        elif name.kind in _ARITHMETIC and not letters(name) and value.kind in _ARITHMETIC:
            try:
                if not equal_expressions(name, value):
                    return False
            except (Unreadable, ZeroDivisionError):
                return False
        else:
            return False
    return True


def _without_conditions(node: Node) -> Node:
    r"""2k\pi, k \in \mathbb{Z}: the letter of the condition may be any."""
    conditions = [part for part in node.parts if _is_condition(part)]
    rest = tuple(part for part in node.parts if part not in conditions)
    if not conditions or not rest:
        return node
    for i, condition in enumerate(conditions):
        rest = tuple(_rename(part, condition.parts[0].value, f"any_{i}") for part in rest)
    return _meaning(rest[0]) if len(rest) == 1 else Node("list", rest, node.value)


def _is_condition(node: Node) -> bool:
    return (
        node.kind == "relation"
        and node.value == ("in",)
        and node.parts[0].kind == "symbol"
        and node.parts[1].kind == "numbers"
    )


def _rename(node: Node, old: str, new: str) -> Node:
    if node == Node("symbol", (), old):
        return Node("symbol", (), new)
    return node._replace(parts=tuple(_rename(part, old, new) for part in node.parts))


def _members(node: Node) -> list[Node] | None:
    """The members of a list or a set, None for anything else; a value with a plus-minus sign has two."""
    if node.kind in ("list", "set"):
        found: list[Node] = []
        for part in node.parts:
            inner = _meaning(part)
            found += _members(inner) or [inner] if inner.kind == "plus_minus" else [inner]
        if len(found) > _MAX_MEMBERS:
            raise Unreadable("too many members")
        return found
    return _both_signs(node)


def _both_signs(node: Node) -> list[Node] | None:
    """The two values of an expression with one plus-minus sign."""
    if sum(part.kind == "plus_minus" for part in node.walk()) != 1:
        return None

    def choose(part: Node, minus: bool) -> Node:
        if part.kind != "plus_minus":
            return part._replace(parts=tuple(choose(inner, minus) for inner in part.parts))
        if len(part.parts) == 1:
            return Node("negative", part.parts) if minus else part.parts[0]
        left, right = part.parts
        return Node("sum", (left, Node("negative", (right,)) if minus else right))

    return [choose(node, False), choose(node, True)]


def _symbols_of(members: Sequence[Node]) -> list[str] | None:
    """The letters that a list gives values to, each of them once; None if it does not."""
    names = [
        member.parts[0].value
        for member in members
        if member.kind == "relation" and member.value == ("=",) and member.parts[0].kind == "symbol"
    ]
    return names if len(names) == len(members) > 1 and len(set(names)) == len(names) else None


def _equal(answer: Node, gold: Node, strict: bool) -> bool:
    """True if an answer equals the gold answer; if `strict`, with nothing left to do.

    Raises:
        Unreadable: The values cannot be compared.
        ZeroDivisionError: A value divides by zero.
    """
    if answer == gold:
        return True
    if gold.kind == "list" and (names := _symbols_of(gold.parts)):
        return _equal_values(answer, gold, names, strict)
    if answer.kind == "list" and gold.kind == "tuple" and _symbols_of(answer.parts):
        answer = Node("tuple", tuple(part.parts[1] for part in answer.parts))
    if "relation" in (answer.kind, gold.kind) and _is_equation(gold) and _is_equation(answer):
        defines = _meaning(gold) is not gold, _meaning(answer) is not answer
        # x=5 is no 2x=10: the equation is solved, where it was asked for.
        if not all(defines) and (defines[0] or not defines[1] or letters(_meaning(answer))):
            return _equal_equations(answer, gold)
    a, g = _meaning(answer), _meaning(gold)
    if a == g:
        return True
    if _is_region(a) or _is_region(g):
        return _equal_regions(a, g)
    a_members, g_members = _members(a), _members(g)
    if a_members is not None or g_members is not None:
        return _equal_members(a_members or [a], g_members or [g], strict)
    if g.kind in ("tuple", "matrix") or a.kind in ("tuple", "matrix"):
        return _equal_rows(a, g, strict)
    if g.kind == "words" or a.kind == "words":
        return a.kind == g.kind and a.value == g.value
    if g.kind == "numeral" or a.kind == "numeral":
        return _equal_numerals(a, g)
    if g.kind == "ratio" or a.kind == "ratio":
        return _equal_ratios(a, g, strict)
    if g.kind == a.kind == "relation":
        return _equal_equations(a, g)
    if g.kind == a.kind == "constant" and "infinity" in (g.value, a.value):
        return g.value == a.value
    if g.kind not in _ARITHMETIC or a.kind not in _ARITHMETIC:
        return _is_infinite(a) is not None and _is_infinite(a) == _is_infinite(g)
    if _is_infinite(a) is not None or _is_infinite(g) is not None:
        return _is_infinite(a) == _is_infinite(g)
    if strict and not letters(g) and not letters(a) and not is_simple_enough(a, g):
        return False
    return equal_expressions(a, g)


def _is_equation(node: Node) -> bool:
    return node.kind == "relation" and node.value == ("=",)


def _equal_equations(a: Node, g: Node) -> bool:
    """True if both say the same: one is a multiple of the other, by a positive number for inequalities."""
    if len(a.parts) != 2 or len(g.parts) != 2:
        return False
    signs = a.value[0], g.value[0]

    def difference(node: Node, flip: bool) -> Node:
        left, right = node.parts[::-1] if flip else node.parts
        return Node("sum", (left, Node("negative", (right,))))

    if signs in (("=", "="), ("!=", "!=")):
        return sign_of_ratio(difference(a, False), difference(g, False)) != 0
    if any(sign not in ("<", ">", "<=", ">=") for sign in signs) or len(signs[0]) != len(signs[1]):
        return False
    flips = [sign[0] == "<" for sign in signs]
    return sign_of_ratio(difference(a, flips[0]), difference(g, flips[1])) == 1


def _equal_values(answer: Node, gold: Node, names: list[str], strict: bool) -> bool:
    """x=1, y=2 by letter, or a tuple of the values in the order given."""
    values = {part.parts[0].value: part.parts[1] for part in gold.parts}
    if answer.kind == "tuple" and len(answer.parts) == len(names):
        return all(_equal(a, values[name], strict) for a, name in zip(answer.parts, names, strict=True))
    if answer.kind != "list" or (given := _symbols_of(answer.parts)) is None or set(given) != set(names):
        return False
    return all(_equal(part.parts[1], values[part.parts[0].value], strict) for part in answer.parts)


def _equal_members(answers: list[Node], golds: list[Node], strict: bool) -> bool:
    """True if each member of one is among those of the other, in any order, however often."""
    return all(any(_matches(a, g, strict) for g in golds) for a in answers) and all(
        any(_matches(a, g, strict) for a in answers) for g in golds
    )


def _matches(a: Node, g: Node, strict: bool) -> bool:
    try:
        return _equal(a, g, strict)
    except (Unreadable, ZeroDivisionError):
        return False


def _equal_rows(a: Node, g: Node, strict: bool) -> bool:
    """Tuples and matrices, in order; a column is a tuple, and a row is not."""
    for node in (a, g):
        if node.kind not in ("tuple", "matrix") or (node.kind == "matrix" and a.kind != g.kind and node.value[1] != 1):
            return False
    if a.kind == g.kind == "matrix" and a.value != g.value:
        return False
    return len(a.parts) == len(g.parts) and all(_equal(x, y, strict) for x, y in zip(a.parts, g.parts, strict=True))


def _equal_numerals(a: Node, g: Node) -> bool:
    """Numerals with a base: the same digits, and the same base or none where the gold answer has one, or base ten."""
    if a.kind == g.kind:
        return a.value == g.value
    numeral, other, is_gold = (g, a, True) if g.kind == "numeral" else (a, g, False)
    digits, base = numeral.value
    if other.kind != "number" or not (is_gold or base == 10):
        return False
    return other.value.denominator == 1 and str(int(other.value)) == digits if digits.isdigit() else False


def _clock(node: Node) -> tuple[str, ...] | None:
    """Hour and minute, if a ratio can be a time."""
    if node.kind != "ratio" or len(node.parts) != 2 or not all(text.isdigit() for text in node.value):
        return None
    hour, minute = node.value
    if len(minute) != 2 or len(hour) > 2 or int(hour) > 24 or int(minute) > 59:
        return None
    return hour.lstrip("0") or "0", minute


def _equal_ratios(a: Node, g: Node, strict: bool) -> bool:
    time = _clock(g)
    if time is not None:
        return _clock(a) == time
    if a.kind == g.kind:
        if len(a.parts) != len(g.parts):
            return False
        first, *others = zip(a.parts, g.parts, strict=True)
        return all(equal_expressions(Node("product", (x, first[1])), Node("product", (y, first[0]))) for x, y in others)
    ratio, other = (a, g) if a.kind == "ratio" else (g, a)
    if len(ratio.parts) != 2 or other.kind not in _ARITHMETIC:
        return False
    quotient = Node("quotient", ratio.parts, "frac")
    pair = (quotient, other) if a.kind == "ratio" else (other, quotient)
    return (not strict or is_simple_enough(*pair)) and equal_expressions(*pair)


def _is_infinite(node: Node) -> int | None:
    """1 or -1 for an infinity."""
    sign = 1
    while node.kind in ("negative", "group"):
        sign = -sign if node.kind == "negative" else sign
        node = node.parts[0]
    return sign if node.kind == "constant" and node.value == "infinity" else None


# ----------------------------------------------------------------------------------------- intervals and inequalities


@dataclass(frozen=True)
class _End:
    """An end of an interval: its value (None where infinite), and a number to sort by."""

    node: Node | None
    order: float

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _End):
            return NotImplemented
        if self.node is None or other.node is None:
            return self.order == other.order
        return self.node == other.node or equal_expressions(self.node, other.node)

    __hash__: Any = None


_Piece = tuple[_End, _End, bool, bool]
_LEAST, _GREATEST = _End(None, float("-inf")), _End(None, float("inf"))
_LINE: _Piece = (_LEAST, _GREATEST, False, False)


def _is_region(node: Node) -> bool:
    """True if it is a set of real numbers beyond a list."""
    if node.kind == "relation":
        return bool(set(node.value) & {"<", ">", "<=", ">=", "!="}) and len(letters(node)) == 1
    if node.kind == "list":
        return all(_is_region(part) or _is_equation(part) for part in node.parts) and any(map(_is_region, node.parts))
    return node.kind in _SETS or (node.kind == "set" and not node.parts)


def _equal_regions(a: Node, g: Node) -> bool:
    if a.kind == "numbers" and g.kind == "numbers":
        return a.value == g.value
    if not {a.kind, g.kind} <= _SETS | _ARITHMETIC | {"set", "list", "tuple", "relation"}:
        return False
    try:
        left, right = _pieces(a), _pieces(g)
    except Unreadable:
        if a.kind == g.kind == "relation":
            return _equal_equations(a, g)
        raise
    return len(left) == len(right) and all(x == y for x, y in zip(left, right, strict=True))


def _end(node: Node) -> _End:
    infinite = _is_infinite(node)
    if infinite is not None:
        return _GREATEST if infinite > 0 else _LEAST
    if node.kind not in _ARITHMETIC:
        raise Unreadable("no end of an interval")
    names = letters(node)
    value = Evaluator(dict.fromkeys(names, Fraction(1, 2)))(node)
    try:
        return _End(node, float(value.real))
    except OverflowError:
        raise Unreadable("too large") from None


def _pieces(node: Node) -> list[_Piece]:
    """The intervals of a region, apart from each other and in order.

    Raises:
        Unreadable: The text is not a list of values.
    """
    node = _meaning(node)
    match node.kind:
        case "interval" | "tuple" if len(node.parts) == 2:
            left, right = map(_end, node.parts)
            if left.order >= right.order and not (left == right and node.value == (True, True)):
                raise Unreadable("an interval the wrong way around")
            closed = node.value or (False, False)
            return [(left, right, closed[0] and left.node is not None, closed[1] and right.node is not None)]
        case "numbers" if node.value == "R":
            return [_LINE]
        case "set":
            return _join([(end, end, True, True) for end in map(_end, node.parts)])
        case "union":
            return _join([piece for part in node.parts for piece in _pieces(part)])
        case "intersection":
            return _meet(*map(_pieces, node.parts))
        case "difference":
            return _meet(_pieces(node.parts[0]), _outside(_pieces(node.parts[1])))
        case "relation":
            return _solve(node)
        case "list":
            parts = [_pieces(part) for part in node.parts]
            either = _join([piece for part in parts for piece in part])
            if node.value == "and" or (either == [_LINE] and len(parts) > 1):
                both = parts[0]
                for part in parts[1:]:
                    both = _meet(both, part)
                return both
            return either
    if node.kind in _ARITHMETIC:
        end = _end(node)
        return [(end, end, True, True)]
    raise Unreadable("no region")


def _solve(node: Node) -> list[_Piece]:
    """The solutions of a chain of inequalities in which a letter, or its absolute value, is compared with constants."""
    found = [_LINE]
    for left, sign, right in zip(node.parts, node.value, node.parts[1:], strict=False):
        unknown, bound, flipped = (left, right, False) if letters(left) else (right, left, True)
        if letters(bound):
            raise Unreadable("no single letter")
        if flipped:
            sign = sign.translate(str.maketrans("<>", "><"))
        end, closed = _end(bound), sign.endswith("=") and sign != "!="
        if unknown.kind == "symbol":
            pieces = _half_line(sign, end, closed)
        elif unknown.kind == "absolute" and unknown.parts[0].kind == "symbol" and end.node is not None:
            low = _end(Node("negative", (end.node,)))
            if sign in ("=", "!="):
                points = _join([(low, low, True, True), (end, end, True, True)]) if end.order >= 0 else []
                pieces = points if sign == "=" else _outside(points)
            else:
                inside: list[_Piece] = [(low, end, closed, closed)]
                pieces = inside if sign[0] == "<" else _outside([(low, end, not closed, not closed)])
        else:
            raise Unreadable("no single letter")
        found = _meet(found, pieces)
    return found


def _half_line(sign: str, end: _End, closed: bool) -> list[_Piece]:
    if sign == "=":
        return [(end, end, True, True)]
    if sign == "!=":
        return [(_LEAST, end, False, False), (end, _GREATEST, False, False)]
    return [(_LEAST, end, False, closed)] if sign[0] == "<" else [(end, _GREATEST, closed, False)]


def _join(pieces: list[_Piece]) -> list[_Piece]:
    joined: list[_Piece] = []
    for piece in sorted(pieces, key=lambda item: (item[0].order, not item[2])):
        if joined:
            low, high, low_closed, high_closed = joined[-1]
            touches = piece[0] == high and (piece[2] or high_closed)
            if touches or (piece[0].order < high.order and piece[0] != high):
                if piece[1] == high:
                    joined[-1] = (low, high, low_closed, high_closed or piece[3])
                elif piece[1].order > high.order:
                    joined[-1] = (low, piece[1], low_closed, piece[3])
                continue
        joined.append(piece)
    return joined


def _outside(pieces: list[_Piece]) -> list[_Piece]:
    found: list[_Piece] = []
    low, closed = _LEAST, False
    for left, right, left_closed, right_closed in pieces:
        if left.node is not None:
            found.append((low, left, closed, not left_closed))
        low, closed = right, not right_closed
    if not pieces or low.node is not None:
        found.append((low, _GREATEST, closed, False))
    return found


def _meet(a: list[_Piece], b: list[_Piece]) -> list[_Piece]:
    found: list[_Piece] = []
    for left in a:
        for right in b:
            low, low_closed = max(
                ((left[0], left[2]), (right[0], right[2])), key=lambda end: (end[0].order, not end[1])
            )
            high, high_closed = min(((left[1], left[3]), (right[1], right[3])), key=lambda end: (end[0].order, end[1]))
            if low.order < high.order or (low == high and low_closed and high_closed):
                found.append((low, high, low_closed, high_closed))
    return _join(found)


# ----------------------------------------------------------------------------------------------------------- spelling


@lru_cache(maxsize=8192)
def spell(text: str) -> str | None:
    """One spelling for all answers that are equal, so that votes for them count together; None if there is none."""
    node = _try_read(clean(text))
    try:
        return None if node is None else _spell(node)
    except (Unreadable, ZeroDivisionError):
        return None


def _spell(node: Node) -> str:
    node = _meaning(node)
    if _is_region(node):
        return _spell_region(node)
    members = _members(node)
    if members is not None:
        spelled = sorted({_spell(member) for member in members}, key=lambda item: (len(item), item))
        return spelled[0] if len(spelled) == 1 else f"{{{', '.join(spelled)}}}"
    if node.kind in ("tuple", "matrix"):
        shape = f" {node.value[0]}x{node.value[1]}" if node.kind == "matrix" and node.value[1] != 1 else ""
        return f"({', '.join(map(_spell, node.parts))}){shape}"
    if node.kind == "words":
        return str(node.value)
    if node.kind == "numeral":
        return f"{node.value[0]}_{node.value[1]}"
    if (time := _clock(node)) is not None:
        return ":".join(time)
    if node.kind == "relation":
        return _spell_relation(node)
    if (infinite := _is_infinite(node)) is not None:
        return "oo" if infinite > 0 else "-oo"
    return spell_expression(node)


def _spell_region(node: Node) -> str:
    def end(value: _End) -> str:
        return spell_expression(value.node) if value.node is not None else "oo" if value.order > 0 else "-oo"

    pieces = [
        f"{'[' if left_closed else '('}{end(left)}, {end(right)}{']' if right_closed else ')'}"
        for left, right, left_closed, right_closed in _pieces(node)
    ]
    return " u ".join(pieces) or "{}"


def _spell_relation(node: Node) -> str:
    if len(node.parts) == 2 and node.value == ("=",):
        left, right = node.parts
        return f"{spell_multiple(Node('sum', (left, Node('negative', (right,)))))} = 0"
    parts = [_spell(part) for part in node.parts]
    return "".join(f"{part} {sign} " for part, sign in zip(parts, node.value, strict=False)) + parts[-1]
