"""Reading arithmetic expressions in data and solutions, such as "( 26.0 - 9.0 ) / 2": never evaluated as code."""

import re
from fractions import Fraction

MAX_CHARACTERS = 256
MAX_DEPTH = 32

# All digits are among the characters of the expression, so no product of them gets out of hand.
_TOKEN = re.compile(r"\s*(?:(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)|(?P<symbol>[-+*/()%]))")

Step = tuple[Fraction, str, Fraction, Fraction]  # a, operation, b, result


def evaluate(expression: str) -> tuple[Fraction, list[Step]]:
    """Exact value of an expression of numbers, + - * / and parentheses, and its operations in the order of computation.

    A number or a parenthesis may have signs before it and a "%" after it, which makes it its hundredth: 100/20% is 500.

    Raises:
        ValueError: The text is not such an expression, is longer than 256 characters, or divides by zero.
    """
    return _Parser(expression).parse()


class _Parser:
    def __init__(self, expression: str) -> None:
        if len(expression) > MAX_CHARACTERS:
            raise ValueError(f"the expression {expression[:40]!r}... has more than {MAX_CHARACTERS} characters")
        self.expression = expression
        self.steps: list[Step] = []
        self.tokens: list[str] = []
        place, text = 0, expression.rstrip()
        while place < len(text):
            match = _TOKEN.match(text, place)
            if match is None:
                raise self.error()
            self.tokens.append(match["number"] or match["symbol"])
            place = match.end()
        self.tokens.reverse()  # a stack, the next token last

    def parse(self) -> tuple[Fraction, list[Step]]:
        value = self.sum(0)
        if self.tokens:
            raise self.error()
        return value, self.steps

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while self.next_is("+-"):
            value = self.apply(value, self.tokens.pop(), self.product(depth))
        return value

    def product(self, depth: int) -> Fraction:
        value = self.atom(depth)
        while self.next_is("*/"):
            value = self.apply(value, self.tokens.pop(), self.atom(depth))
        return value

    def atom(self, depth: int) -> Fraction:
        if not self.tokens or depth > MAX_DEPTH:
            raise self.error()
        piece = self.tokens.pop()
        if piece in "+-":
            value = self.atom(depth + 1)
            return -value if piece == "-" else value
        if piece in "*/)%":
            raise self.error()
        if piece == "(":
            value = self.sum(depth + 1)
            if not self.next_is(")"):
                raise self.error()
            self.tokens.pop()
        else:
            value = Fraction(piece)
        if self.next_is("%"):
            self.tokens.pop()
            value /= 100
        return value

    def apply(self, a: Fraction, operation: str, b: Fraction) -> Fraction:
        if operation == "/" and b == 0:
            raise self.error()
        result = a + b if operation == "+" else a - b if operation == "-" else a * b if operation == "*" else a / b
        self.steps.append((a, operation, b, result))
        return result

    def next_is(self, symbols: str) -> bool:
        return bool(self.tokens) and self.tokens[-1] in symbols

    def error(self) -> ValueError:
        return ValueError(f"{self.expression!r} is not an expression of numbers, + - * / and parentheses with a value")
