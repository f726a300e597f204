"""Value of a tree of `reader`: exactly where it is rational, else to `PRECISION` bits, with bounded work.

An expression with letters is a function of them, known by its values at fixed points. Two that are equal at all points
where both are real are equal: rational functions of bounded degree that differ do so at nearly all points, and the
points were chosen without looking at any answer.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

from .numbers import MAX_LENGTH, normalize_fraction
from .reader import TRIGONOMETRIC, Node, Unreadable

PRECISION = 640
"""Bits of values that are not rational: 190 digits. [choice]"""
NOISE = 560
"""Values whose first so many bits agree, counted from the largest number on the way to them, are equal. [choice]"""
MAX_BITS = 1 << 15
"""Bits of an exact numerator or denominator: 2006! has 19,000. [choice]"""
MAX_POINTS, MIN_POINTS = 12, 4
"""Points at which expressions are compared, and at how many of them they must both be real. [choice]"""
MAX_TERMS = 60
"""Terms of a polynomial that is spelled out. [choice]"""
DIGITS = 30
"""Significant digits in the spelling of a value that is not rational. [choice]"""

Value = Any
"""A Fraction, or a real or complex number of mpmath."""


@cache
def _context() -> Any:
    import mpmath

    context = mpmath.MPContext()
    context.prec = PRECISION
    return context


class Evaluator:
    """Evaluates a tree at a point.

    Args:
        point: Values of the letters.
        decimal_log: True if a logarithm without a base has base 10 instead of e.

    Attributes:
        scale: Bits before the point of the largest number on the way.
    """

    def __init__(self, point: Mapping[str, Fraction], decimal_log: bool = False) -> None:
        self.point = point
        self.decimal_log = decimal_log
        self.scale = 0

    def __call__(self, node: Node, angle: bool = False) -> Value:
        """The value.

        Raises:
            Unreadable: The expression has no value, or is too large for exact work.
            ZeroDivisionError: The expression divides by zero.
        """
        try:
            value = self._value(node, angle)
        except (OverflowError, TypeError, ValueError) as error:  # a function outside of its domain
            raise error if isinstance(error, Unreadable) else Unreadable(str(error)) from None
        if isinstance(value, Fraction):
            if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
                raise Unreadable("too large")
        elif not _context().isfinite(value):
            raise Unreadable("not finite")
        elif value:
            magnitude = int(_context().mag(value))
            if abs(magnitude) > MAX_BITS:
                raise Unreadable("too large")
            self.scale = max(self.scale, magnitude)
        return value

    def _value(self, node: Node, angle: bool) -> Value:
        parts = node.parts
        match node.kind:
            case "number":
                return node.value
            case "symbol":
                return self.point[node.value]
            case "constant":
                return self._constant(node.value)
            case "group":
                return self(parts[0], angle)
            case "negative":
                return -self(parts[0], angle)
            case "sum":
                return self._fold(lambda a, b: a + b, parts, angle)
            case "product":
                return self._fold(lambda a, b: a * b, parts, angle)
            case "quotient":
                top, bottom = (self(part, angle) for part in parts)
                if not bottom:
                    raise ZeroDivisionError
                return _pair(lambda a, b: a / b, top, bottom)
            case "ratio":
                if len(parts) != 2:
                    raise Unreadable("a ratio of three")
                return self(Node("quotient", node.parts))
            case "power":
                return self._power(self(parts[0]), self(parts[1]))
            case "root":
                index = self(parts[1]) if parts[1:] else Fraction(2)
                return _root(self(parts[0]), index)
            case "degrees":
                value = self(parts[0])
                return _real(value) * _context().pi / 180 if angle else value
            case "absolute":
                return abs(self(parts[0]))
            case "floor" | "ceiling":
                value = self(parts[0])
                if not isinstance(value, Fraction):
                    value = _real(value)
                rounded = math.floor(value) if node.kind == "floor" else math.ceil(value)
                return Fraction(int(rounded))
            case "factorial":
                return Fraction(math.factorial(self._small(parts[0])))
            case "binomial":
                n, k = self._small(parts[0]), self._small(parts[1])
                return Fraction(math.comb(n, k))
            case "function":
                return self._function(node.value, parts)
        raise Unreadable(f"{node.kind} has no single value")

    def _fold(self, operation: Callable[[Value, Value], Value], parts: Sequence[Node], angle: bool) -> Value:
        total = self(parts[0], angle)
        for part in parts[1:]:
            total = _pair(operation, total, self(part, angle))
            if isinstance(total, Fraction):
                if max(total.numerator.bit_length(), total.denominator.bit_length()) > MAX_BITS:
                    raise Unreadable("too large")
            elif total:
                self.scale = max(self.scale, int(_context().mag(total)))
        return total

    @staticmethod
    def _constant(name: str) -> Value:
        context = _context()
        if name == "pi":
            return +context.pi
        if name == "e":
            return +context.e
        if name == "i":
            return context.mpc(0, 1)
        raise Unreadable(f"{name} is no number")

    def _small(self, node: Node) -> int:
        """A whole number that a factorial can be taken of."""
        value = self(node)
        if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 3000:
            raise Unreadable("a factorial of no small whole number")
        return int(value)

    @staticmethod
    def _power(base: Value, exponent: Value) -> Value:
        context = _context()
        if isinstance(base, Fraction) and isinstance(exponent, Fraction):
            if exponent.denominator == 1:
                bits = max(base.numerator.bit_length(), base.denominator.bit_length())
                if abs(base) not in (0, 1) and bits * abs(exponent) > 2 * MAX_BITS:
                    raise Unreadable("too large")
                return base ** (int(exponent) % 2 if abs(base) == 1 else int(exponent))
            if exponent.denominator < 64 and abs(exponent.numerator) < 1000:
                root = _root(base, Fraction(exponent.denominator))
                return Evaluator._power(root, Fraction(exponent.numerator))
        if not base:
            if isinstance(exponent, Fraction) and exponent > 0:
                return Fraction(0)
            raise Unreadable("a power of zero")
        b, e = _real(base), _real(exponent)
        if isinstance(exponent, Fraction) and exponent.denominator == 1 and abs(exponent) < 1000:
            return b ** int(exponent)
        if context.mag(e) > 15:
            raise Unreadable("too large")
        return b**e

    def _function(self, name: str, parts: Sequence[Node]) -> Value:
        context = _context()
        values = [self(part, angle=name in TRIGONOMETRIC) for part in parts]
        if name in ("gcd", "lcm"):
            numbers = [int(value) for value in values if isinstance(value, Fraction) and value.denominator == 1]
            if len(numbers) != len(values):
                raise Unreadable(f"{name} of no whole numbers")
            return Fraction(getattr(math, name)(*numbers))
        if name in ("max", "min"):
            if not all(isinstance(value, Fraction) for value in values):
                raise Unreadable(f"{name} of no rational numbers")
            return {"max": max, "min": min}[name](values)
        value = _real(values[0])
        if value and abs(int(context.mag(value))) > 2 * PRECISION:
            raise Unreadable("too large")
        if name in ("log", "ln", "lg"):
            if not value:
                raise ZeroDivisionError
            if isinstance(values[0], Fraction) and values[0] == 1:
                return Fraction(0)
            if len(values) > 1:
                return context.log(value) / context.log(_real(values[1]))
            return context.log10(value) if name == "lg" or (name == "log" and self.decimal_log) else context.log(value)
        names = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}
        if name == "exp" and context.mag(value) > 15:
            raise Unreadable("too large")
        result = getattr(context, names.get(name, name))(value)
        # sin(pi) and the like are zero, up to rounding.
        return Fraction(0) if result and context.mag(result) < -NOISE else result


def _real(value: Value) -> Value:
    if isinstance(value, Fraction):
        return _context().mpf(value.numerator) / value.denominator
    return value


def _pair(operation: Callable[[Value, Value], Value], a: Value, b: Value) -> Value:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return operation(a, b)
    return operation(_real(a), _real(b))


def _root(value: Value, index: Value) -> Value:
    if not isinstance(index, Fraction) or index.denominator != 1 or not 1 < index < 64:
        raise Unreadable("no root")
    n = int(index)
    if isinstance(value, Fraction):
        if not value:
            return value
        negative = value < 0
        top, bottom = (_whole_root(part, n) for part in (abs(value.numerator), value.denominator))
        if top is not None and bottom is not None and not (negative and n % 2 == 0):
            return Fraction(-top if negative else top, bottom)
        if negative and n % 2:
            return -_context().root(_real(-value), n)
    value = _real(value)
    return _context().sqrt(value) if n == 2 else _context().root(value, n)


def _whole_root(number: int, n: int) -> int | None:
    if n == 2:
        root = math.isqrt(number)
    else:
        root = round(number ** (1 / n)) if number < 1 << 50 else int(_context().nint(_context().root(number, n)))
    return root if root**n == number else None


# ----------------------------------------------------------------------------------------------------------- equality


def letters(node: Node) -> frozenset[str]:
    """The letters that an expression is a function of."""
    return frozenset(part.value for part in node.walk() if part.kind == "symbol")


@lru_cache(maxsize=4096)
def _coordinate(name: str, index: int) -> Fraction:
    stream = random.Random(f"{name} {index}")
    whole = Fraction(stream.randint(2, 40))
    if index < 4:
        return whole
    fraction = Fraction(stream.randint(1, 60), stream.choice((7, 11, 13, 17)))
    return fraction if index < 8 else -fraction if index < 10 else -whole


def _point(names: frozenset[str], index: int) -> dict[str, Fraction]:
    return {name: _coordinate(name, index) for name in names}


def _is_real(value: Value) -> bool:
    return isinstance(value, Fraction) or not _context().im(value)


def _same(a: Value, b: Value, scale: int) -> bool:
    """True if two values are equal up to rounding.

    Raises:
        Unreadable: The values are so much smaller than what they were made of that nothing is left of them.
    """
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    context = _context()
    a, b = _real(a), _real(b)
    sizes = [int(context.mag(value)) for value in (a, b) if value]
    noise = max([scale, *sizes]) - NOISE
    if sizes and noise < max(sizes) < noise + 100:
        raise Unreadable("differences of numbers that are nearly equal")
    difference = a - b
    return not difference or int(context.mag(difference)) < noise


def equal_expressions(a: Node, b: Node) -> bool:
    """True if two expressions are equal for all values of their letters.

    Raises:
        Unreadable: An expression has no value.
    """
    names = letters(a) | letters(b)
    bases = (
        (False, True) if any(n.kind == "function" and n.value == "log" for n in (*a.walk(), *b.walk())) else (False,)
    )
    return any(_equal(a, b, names, decimal_log) for decimal_log in bases)


def _equal(a: Node, b: Node, names: frozenset[str], decimal_log: bool) -> bool:
    imaginary = any(part.kind == "constant" and part.value == "i" for part in (*a.walk(), *b.walk()))
    compared = 0
    for index in range(MAX_POINTS if names else 1):
        evaluate = Evaluator(_point(names, index), decimal_log)
        try:
            values = [evaluate(a), evaluate(b)]
        except (ZeroDivisionError, Unreadable):
            if not names:
                raise Unreadable("no value") from None
            continue
        if names and not imaginary and not all(map(_is_real, values)):
            continue
        if not _same(values[0], values[1], evaluate.scale):
            return False
        compared += 1
    if names and compared < MIN_POINTS:
        raise Unreadable("hardly any values to compare")
    return True


def sign_of_ratio(a: Node, b: Node) -> int:
    """1 or -1 if one expression is the other times a positive or negative constant, else 0.

    Raises:
        Unreadable: The sign cannot be determined.
    """
    names = letters(a) | letters(b)
    ratio: Value = None
    compared = 0
    for index in range(MAX_POINTS):
        evaluate = Evaluator(_point(names, index))
        try:
            top, bottom = evaluate(a), evaluate(b)
        except (ZeroDivisionError, Unreadable):
            continue
        if not bottom or not all(map(_is_real, (top, bottom))):
            continue
        found = _pair(lambda x, y: x / y, top, bottom)
        ratio = found if ratio is None else ratio
        if not found or not _same(found, ratio, evaluate.scale):
            return 0
        compared += 1
        if not names:
            break
    if compared < (MIN_POINTS if names else 1):
        raise Unreadable("hardly any values to compare")
    return 1 if ratio > 0 else -1


# ----------------------------------------------------------------------------------------------------------- spelling

Monomial = tuple[tuple[str, int], ...]
Polynomial = dict[Monomial, Fraction]


def spell_expression(node: Node) -> str:
    """One spelling for all expressions that are equal.

    A rational number is spelled in its normal form of `numbers`; a polynomial over the rational numbers, with pi, e and
    i among its letters, by its terms; anything else by its value to 30 digits, at a point if it has letters.

    Raises:
        Unreadable: The expression has no value.
    """
    polynomial = _polynomial(node)
    if polynomial is not None:
        return _spell_polynomial(polynomial)
    names = letters(node)
    for index in range(MAX_POINTS):
        evaluate = Evaluator(_point(names, index))
        try:
            value = evaluate(node)
        except (ZeroDivisionError, Unreadable):
            if not names:
                raise Unreadable("no value") from None
            continue
        if names and not _is_real(value):
            continue
        at = ", ".join(f"{name}={_coordinate(name, index)}" for name in sorted(names))
        return _spell_value(value) + (f" at {at}" if at else "")
    raise Unreadable("no value")


def spell_multiple(node: Node) -> str:
    """One spelling for all expressions that are a constant times this one.

    Raises:
        Unreadable: The expression has no values.
    """
    polynomial = _polynomial(node)
    if polynomial:
        lead = polynomial[min(polynomial.items(), key=_order)[0]]
        return _spell_polynomial({monomial: coefficient / lead for monomial, coefficient in polynomial.items()})
    names = letters(node)
    values: list[Value] = []
    for index in range(MAX_POINTS):
        try:
            value = Evaluator(_point(names, index))(node)
        except (ZeroDivisionError, Unreadable):
            continue
        if value and _is_real(value):
            values.append(value)
    if len(values) < 2:
        raise Unreadable("hardly any values")
    return f"{_spell_value(_pair(lambda a, b: a / b, values[0], values[1]))} of {', '.join(sorted(names))}"


def _spell_value(value: Value) -> str:
    if isinstance(value, Fraction):
        return _spell_fraction(value)
    context = _context()
    real, imaginary = context.re(value), context.im(value)
    noise = context.mpf(2) ** -NOISE
    if abs(imaginary) <= noise * abs(value):
        return _spell_real(real)
    sign = "-" if imaginary < 0 else "+"
    return f"{'0' if abs(real) <= noise * abs(value) else _spell_real(real)} {sign} {_spell_real(abs(imaginary))}*i"


def _spell_real(value: Value) -> str:
    context = _context()
    nearest = context.nint(value)
    if value == nearest or (nearest and int(context.mag(value - nearest)) < int(context.mag(value)) - NOISE):
        return _spell_fraction(Fraction(int(nearest)))
    return str(context.nstr(value, DIGITS))


def _spell_fraction(value: Fraction) -> str:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > 4 * MAX_LENGTH:
        return f"{_context().nstr(_real(value), DIGITS)}..."
    return normalize_fraction(value) or "0"


def _polynomial(node: Node) -> Polynomial | None:
    try:
        return _expand(node)
    except (Unreadable, ZeroDivisionError):
        return None


def _expand(node: Node) -> Polynomial:
    """The terms of a polynomial over the rational numbers.

    Raises:
        Unreadable: The expression is not a polynomial, or has too many terms.
    """
    parts = node.parts
    match node.kind:
        case "number":
            return {(): node.value} if node.value else {}
        case "symbol" | "constant" if node.value != "infinity":
            return {((str(node.value), 1),): Fraction(1)}
        case "group":
            return _expand(parts[0])
        case "negative":
            return _product(_expand(parts[0]), {(): Fraction(-1)})
        case "sum":
            total: Polynomial = {}
            for part in parts:
                for monomial, coefficient in _expand(part).items():
                    total[monomial] = total.get(monomial, Fraction(0)) + coefficient
            return {monomial: coefficient for monomial, coefficient in total.items() if coefficient}
        case "product":
            result: Polynomial = {(): Fraction(1)}
            for part in parts:
                result = _product(result, _expand(part))
            return result
        case "quotient":
            return _divide(_expand(parts[0]), _expand(parts[1]))
        case "power":
            exponent = _expand(parts[1])
            count = exponent.get((), Fraction(0))
            base = _expand(parts[0])
            if set(exponent) <= {()} and count.denominator == 1 and (set(base) - {()}) and 0 <= count <= MAX_TERMS:
                result = {(): Fraction(1)}
                for _ in range(int(count)):
                    result = _product(result, base)
                return result
    if letters(node) or any(part.kind == "constant" for part in node.walk()):
        raise Unreadable("no polynomial")
    value = Evaluator({})(node)
    if not isinstance(value, Fraction):
        raise Unreadable("not rational")
    return {(): value} if value else {}


def _product(a: Polynomial, b: Polynomial) -> Polynomial:
    total: Polynomial = {}
    for left, x in a.items():
        for right, y in b.items():
            powers = dict(left)
            for name, power in right:
                powers[name] = powers.get(name, 0) + power
            sign = 1
            if "i" in powers:
                sign, powers["i"] = 1 - (powers["i"] & 2), powers["i"] & 1
            monomial = tuple(sorted((name, power) for name, power in powers.items() if power))
            total[monomial] = total.get(monomial, Fraction(0)) + sign * x * y
    if len(total) > MAX_TERMS or any(c.numerator.bit_length() > MAX_BITS for c in total.values()):
        raise Unreadable("too many terms")
    return {monomial: coefficient for monomial, coefficient in total.items() if coefficient}


def _divide(top: Polynomial, bottom: Polynomial) -> Polynomial:
    """The quotient where it is a polynomial."""
    if not bottom:
        raise ZeroDivisionError
    names = {name for monomial in (*top, *bottom) for name, _ in monomial}
    if "i" in {name for monomial in bottom for name, _ in monomial}:
        conjugate = {m: -c if ("i", 1) in m else c for m, c in bottom.items()}
        return _divide(_product(top, conjugate), _product(bottom, conjugate))
    order = sorted(names)

    def key(monomial: Monomial) -> tuple[int, ...]:
        powers = dict(monomial)
        return tuple(powers.get(name, 0) for name in order)

    lead = max(bottom, key=key)
    quotient: Polynomial = {}
    rest = dict(top)
    for _ in range(MAX_TERMS):
        if not rest:
            return quotient
        first = max(rest, key=key)
        powers = [x - y for x, y in zip(key(first), key(lead), strict=True)]
        if min(powers, default=0) < 0:
            break
        monomial = tuple((name, power) for name, power in zip(order, powers, strict=True) if power)
        term: Polynomial = {monomial: rest[first] / bottom[lead]}
        quotient |= term
        for other, coefficient in _product(term, bottom).items():
            left = rest.get(other, Fraction(0)) - coefficient
            rest = {**rest, other: left} if left else {m: c for m, c in rest.items() if m != other}
    raise Unreadable("no polynomial")


def _order(item: tuple[Monomial, Fraction]) -> tuple[int, list[tuple[str, int]]]:
    """Sort key: falling degree, then letters."""
    return -sum(power for _, power in item[0]), [(name, -power) for name, power in item[0]]


def _spell_polynomial(polynomial: Polynomial) -> str:
    text = ""
    for monomial, coefficient in sorted(polynomial.items(), key=_order):
        factors = [name if power == 1 else f"{name}^{power}" for name, power in monomial]
        size = abs(coefficient)
        if size != 1 or not factors:
            factors.insert(0, _spell_fraction(size))
        sign = "-" if coefficient < 0 else "+"
        text += f" {sign} {'*'.join(factors)}" if text else ("-" if coefficient < 0 else "") + "*".join(factors)
    return text or "0"


# --------------------------------------------------------------------------------------------- is it a number, or work


def operations(node: Node) -> dict[str, int]:
    r"""Operations left to do in a constant expression, by kind, until it is a number.

    Nothing is in an integer, a decimal, a fraction of these, a mixed number, a power of ten or a multiple of one, or in
    a multiple of pi, e or i. A sum, a product of numbers, a power, a root and so on each count where they stand.
    """
    count: dict[str, int] = {}
    _count(node, count)
    return count


def _add(count: dict[str, int], kind: str, by: int = 1) -> None:
    if by:
        count[kind] = count.get(kind, 0) + by


def _count(node: Node, count: dict[str, int]) -> None:
    parts = node.parts
    match node.kind:
        case "number" | "constant" | "symbol":
            return
        case "negative":
            if parts[0].kind == "negative" or (parts[0].kind == "group" and parts[0].parts[0].kind == "negative"):
                _add(count, "sign")
            _count(parts[0], count)
        case "group":
            _count(parts[0], count)
        case "sum" | "plus_minus":
            _add(count, "sum", len(parts) - 1)
            for part in parts:
                _count(part, count)
        case "product":
            plain = [part for part in parts if not is_power_of_ten(part)]
            rational = [part for part in plain if _is_rational(part)]
            sums = [part for part in plain if _strip(part).kind == "sum"]
            _add(count, "product", max(0, len(rational) - 1) + max(0, len(sums) - 1))
            for part in plain:
                _count(part, count)
        case "quotient":
            _add(count, "division", int(node.value == r"\div"))
            _add(count, "division", sum(_strip(part).kind == "quotient" and _is_rational(part) for part in parts))
            _count(parts[0], count)
            below: dict[str, int] = {}
            _count(parts[1], below)
            for kind, times in below.items():
                _add(count, f"{kind} below" if kind == "root" else kind, times)
        case "power":
            if not is_power_of_ten(node):
                _add(count, "power")
                for part in parts:
                    _count(part, count)
        case "degrees":
            _count(parts[0], count)
        case _:
            _add(count, node.kind)
            for part in parts:
                _count(part, count)


def _strip(node: Node) -> Node:
    while node.kind in ("group", "negative"):
        node = node.parts[0]
    return node


def is_power_of_ten(node: Node) -> bool:
    """True if it is 10 to a whole number."""
    if node.kind != "power" or node.parts[0] != Node("number", (), Fraction(10)):
        return False
    return _strip(node.parts[1]).kind == "number"


def _is_rational(node: Node) -> bool:
    node = _strip(node)
    if node.kind == "quotient":
        return all(map(_is_rational, node.parts))
    return node.kind == "number"


def is_simple_enough(answer: Node, gold: Node) -> bool:
    """True if a constant has nothing left to do that is not left to do in the gold answer, too.

    Roots below a fraction bar may be left where the gold answer has any root.
    """
    allowed, found = operations(gold), operations(answer)
    if "root" in allowed or "root below" in allowed:
        found.pop("root below", None)
        allowed["root"] = allowed.get("root", 0) + allowed.get("root below", 0)
    return all(times <= allowed.get(kind, 0) for kind, times in found.items())
