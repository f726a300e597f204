r"""Reading an answer in LaTeX, or in plain notation, into a small tree. Nothing is evaluated here.

The grammar is bounded: texts of at most `MAX_LENGTH` characters, nested at most `MAX_DEPTH` deep. It holds what final
answers are made of: numbers in all their notations, constants, roots, fractions, powers, functions, letters; tuples,
lists, sets, intervals and their unions; equations and inequalities; matrices; ratios and clock times; words. Sums over
an index, integrals and limits are outside of it.
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

from .numbers import LEAD, MAX_LENGTH, is_unit

MAX_DEPTH = 40


class Unreadable(ValueError):
    """The text is outside the grammar."""


class Node(NamedTuple):
    """A part of an answer: what it is, its parts, and what is no part (a value, a name)."""

    kind: str
    parts: tuple["Node", ...] = ()
    value: Any = None

    def walk(self) -> "Iterator[Node]":
        """The node itself and all below it."""
        yield self
        for part in self.parts:
            yield from part.walk()


class _Token(NamedTuple):
    kind: str  # "number", "letter", "word", "command" or "sign"
    text: str
    is_text: bool = False  # from inside \text{}
    spaced: bool = False  # after white space


_FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"}
    | {"log", "ln", "lg", "exp", "gcd", "lcm", "max", "min"}
)
TRIGONOMETRIC = frozenset({"sin", "cos", "tan", "cot", "sec", "csc"})
_GREEK = frozenset(
    {"alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota", "kappa"}
    | {"lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "varphi", "chi", "psi", "omega", "Gamma"}
    | {"Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega", "ell"}
)
_RELATIONS = {
    "=": "=", "<": "<", ">": ">", r"\lt": "<", r"\gt": ">", r"\le": "<=", r"\leq": "<=", r"\leqslant": "<=",
    r"\ge": ">=", r"\geq": ">=", r"\geqslant": ">=", r"\ne": "!=", r"\neq": "!=", r"\in": "in",
}  # fmt: skip
_UNICODE = {
    "\u2212": "-", "\u00d7": r"\times ", "\u00f7": r"\div ", "\u22c5": r"\cdot ", "\u03c0": r"\pi ",
    "\u00b0": r"^{\circ}", "\u221e": r"\infty ", "\u2264": r"\le ", "\u2265": r"\ge ", "\u2260": r"\ne ",
    "\u222a": r"\cup ", "\u2229": r"\cap ", "\u2208": r"\in ", "\u2205": r"\emptyset ", "\u00b1": r"\pm ",
    "\u211d": r"\mathbb{R}", "\u00a0": " ", "\u20ac": r"\$", "\u00a3": r"\$", "\u00a5": r"\$",
}  # fmt: skip
_SYMBOLS = str.maketrans(_UNICODE)
_STYLE = re.compile(
    r"\\(?:color|textcolor|hspace|vspace)\s*\{[^{}]*\}|\\phantom\s*\{[^{}]*\}|\\phantom(?![A-Za-z])"
    r"|\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|bf|rm|it|boldsymbol|bm|mathit|mathsf|mathbf"
    r"|quad|qquad)(?![A-Za-z])"
)
_DELIMITERS = re.compile(r"(?<!\\)\\[()\[\]]|(?<!\\)\$|\\\$|\\%|(?<!\\)%")
_LINE_END = re.compile(r"(?:\\\\|\\newline)$")
_BOX = re.compile(r"(?:\\(?:boxed|fbox)\s*)?\{")
_EMPHASIS = re.compile(r"(?P<sign>\*{1,3}|_{1,3}|`{1,3}|[\"'])(?P<inside>(?:(?!(?P=sign)).)+)(?P=sign)", re.DOTALL)
_LEAD = re.compile(rf"{LEAD}(?=\S)", re.ASCII | re.IGNORECASE)
_SPACES = re.compile(r"(?<!\\)\\[,;:!\ ]|~")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?=(,\\!|\{,\}|\\[,!\ ;]|~|\ )\d{3})(?:\1\d{3})+(?![\d]|,?\d)", re.ASCII)
_COMMAS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d]|,\d)", re.ASCII)
_TEXT = r"\\(?:text(?:normal|rm|bf|it|sf)?|mbox|mathrm|operatorname)\s*\*?\s*\{(?P<text>[^{}]*)\}"
_TOKEN = re.compile(
    rf"(?P<space>\s+)|{_TEXT}|(?P<command>\\(?:[A-Za-z]+|.))"
    r"|(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3}(?![\dA-Za-z.]))?)|(?P<letters>[A-Za-z]+'*)|(?P<sign>.)",
    re.ASCII | re.DOTALL,
)
_IN_TEXT = re.compile(r"\s+|(?P<number>\d+(?:\.\d+)?)|(?P<word>[A-Za-z][A-Za-z']*)|(?P<sign>.)", re.ASCII)
_LETTER_LIMIT = 3  # as many letters side by side are a product, more are a word


def clean(text: str) -> str:
    r"""The text without what does not change it: style, emphasis, a box around it, "The answer is", signs of thousands.

    Dollar and percent signs are taken off, too: 20% is 20 here, as in `numbers` by default.
    """
    text = text.translate(_SYMBOLS)
    text = _THOUSANDS.sub(lambda match: re.sub(r"\D", "", match[0]), text)
    text = _STYLE.sub(" ", _DELIMITERS.sub(" ", text))
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = _SPACES.sub(" ", text)
    text = re.sub(r"\\text\s*\{\s*\.?\s*\}", "", text)
    dressed = ""
    while text != dressed:  # in whatever order boxes, groups, line ends and full stops were put around it
        dressed = text
        text = _LINE_END.sub("", text.strip()).strip()
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1].rstrip()
        if lead := _LEAD.match(text):
            text = text[lead.end() :]
        if emphasis := _EMPHASIS.fullmatch(text):
            text = emphasis["inside"]
        box = _BOX.match(text)
        if box and _is_one_group(text[box.end() - 1 :]):
            text = text[box.end() : -1]
    return text


def _is_one_group(text: str) -> bool:
    depth = 0
    for i, sign in enumerate(text):
        if sign in "{}" and (i == 0 or text[i - 1] != "\\"):
            depth += 1 if sign == "{" else -1
            if depth == 0:
                return i == len(text) - 1
    return False


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    spaced = False
    for match in _TOKEN.finditer(_join_commas(text)):
        kind = match.lastgroup or ""
        found = match[kind]
        if kind == "space":
            spaced = True
            continue
        if kind == "text":
            tokens += _text_tokens(found)
        elif kind == "letters":
            tokens += _letter_tokens(found, spaced)
        else:
            if not found.isascii():
                raise Unreadable(f"{found!r} is no sign of the grammar")
            tokens.append(_Token(kind, found, spaced=spaced))
        spaced = False
    return tokens


def _join_commas(text: str) -> str:
    """Thousands commas taken out, outside of brackets: inside they are between the members of a tuple or set."""
    if "," not in text:
        return text
    depth, pieces, start = 0, [], 0
    for i, sign in enumerate(text):
        step = (sign in "([") - (sign in ")]")
        if sign in "{}" and i and text[i - 1] == "\\":
            step = 1 if sign == "{" else -1
        if step:
            piece = text[start:i]
            pieces.append(_COMMAS.sub(lambda m: m[0].replace(",", ""), piece) if depth == 0 else piece)
            depth, start = depth + step, i
    piece = text[start:]
    pieces.append(_COMMAS.sub(lambda m: m[0].replace(",", ""), piece) if depth == 0 else piece)
    return "".join(pieces)


def _text_tokens(text: str) -> Iterator[_Token]:
    if text.strip() in ("e", "i", "d"):  # upright constants
        yield _Token("letter", text.strip())
        return
    for match in _IN_TEXT.finditer(text):
        if match["number"]:
            yield _Token("number", match["number"], True)
        elif match["word"]:
            name = match["word"]
            kind = "command" if name in _FUNCTIONS - {"max", "min"} else "letter" if len(name) == 1 else "word"
            yield _Token(kind, f"\\{name}" if kind == "command" else name, True, match.start() > 0)
        elif match["sign"]:
            if not match["sign"].isascii():
                raise Unreadable(f"{match['sign']!r} is no sign of the grammar")
            yield _Token("sign", match["sign"], True)


def _letter_tokens(text: str, spaced: bool) -> list[_Token]:
    name = text.rstrip("'")
    if name in _FUNCTIONS or name in ("sqrt", "pi"):
        return [_Token("command", f"\\{name}", spaced=spaced)]
    if name.lower() in ("infinity", "inf"):
        return [_Token("command", r"\infty", spaced=spaced)]
    if name.lower() in ("and", "or") or len(name) > _LETTER_LIMIT or (len(name) > 1 and not name.islower()):
        return [_Token("word", name, spaced=spaced)]
    if len(name) == 1:
        return [_Token("letter", text, spaced=spaced)]
    return [_Token("letter", letter, spaced=spaced and i == 0) for i, letter in enumerate(text)]


@lru_cache(maxsize=8192)
def read(text: str) -> Node:
    """The tree of a text that `clean` has cleaned.

    Raises:
        Unreadable: The text is outside the grammar.
    """
    if len(text) > MAX_LENGTH:
        raise Unreadable("too long")
    try:
        return _Parser(_tokens(text)).answer()
    except RecursionError:
        raise Unreadable("too deep") from None


class _Parser:
    """Recursive descent over tokens."""

    def __init__(self, tokens: list[_Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0

    # ----------------------------------------------------------------------------------------------------- tokens

    def peek(self, ahead: int = 0) -> str:
        """The text of a token to come; "" at the end."""
        return self.tokens[self.at + ahead].text if self.at + ahead < len(self.tokens) else ""

    def token(self) -> _Token:
        return self.tokens[self.at] if self.at < len(self.tokens) else _Token("end", "")

    def take(self, *texts: str) -> str:
        """Goes past the next token if it is one of these, and returns it, or else ""."""
        if self.peek() in texts and self.at < len(self.tokens):
            self.at += 1
            return self.tokens[self.at - 1].text
        return ""

    def expect(self, *texts: str) -> str:
        found = self.take(*texts)
        if not found:
            raise Unreadable(f"{' or '.join(texts)} expected before {self.peek()!r}")
        return found

    # ---------------------------------------------------------------------------------------------- lists, relations

    def answer(self) -> Node:
        node = self.items(())
        if self.at < len(self.tokens):
            raise Unreadable(f"{self.peek()!r} is left over")
        return node

    def items(self, closing: tuple[str, ...]) -> Node:
        """One item, or several with commas or "and" or "or" between them: a "list"."""
        found = [self.relation()]
        separators: list[str] = []
        while separator := self.take(",", ";", "and", "or"):
            if separator == ",":
                self.take("and", "or")
            separators.append(separator)
            found.append(self.relation())
        if closing and self.peek() not in closing:
            raise Unreadable(f"{self.peek()!r} where a list ends")
        return found[0] if len(found) == 1 else Node("list", tuple(found), "and" if "and" in separators else ",")

    def relation(self) -> Node:
        parts, signs = [self.union()], []
        while self.peek() in _RELATIONS:
            signs.append(_RELATIONS[self.take(self.peek())])
            parts.append(self.union())
        return Node("relation", tuple(parts), tuple(signs)) if signs else parts[0]

    def union(self) -> Node:
        node = self.sum()
        while sign := self.take(r"\cup", r"\cap", r"\setminus", r"\backslash"):
            node = Node({r"\cup": "union", r"\cap": "intersection"}.get(sign, "difference"), (node, self.sum()))
        return node

    # ---------------------------------------------------------------------------------------------------- arithmetic

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("too deep")
        sign = self.take("+", "-", r"\pm", r"\mp")
        node = self.ratio()
        if sign in ("-", r"\pm", r"\mp"):
            node = Node("negative" if sign == "-" else "plus_minus", (node,))
        terms = [node]
        while sign := self.take("+", "-", r"\pm", r"\mp"):
            term = self.ratio()
            if sign in (r"\pm", r"\mp"):
                left = terms[0] if len(terms) == 1 else Node("sum", tuple(terms))
                terms = [Node("plus_minus", (left, term))]
            else:
                terms.append(Node("negative", (term,)) if sign == "-" else term)
        self.depth -= 1
        if len(terms) > 1 and any(term.kind == "words" for term in terms):
            raise Unreadable("words in a sum")
        return terms[0] if len(terms) == 1 else Node("sum", tuple(terms))

    def ratio(self) -> Node:
        parts, texts = [self.product()], [self._last_number()]
        while self.peek() == ":" and self.peek(1):
            self.at += 1
            parts.append(self.product())
            texts.append(self._last_number())
        return parts[0] if len(parts) == 1 else Node("ratio", tuple(parts), tuple(texts))

    def _last_number(self) -> str:
        """The digits of the token just read, as clock times need them."""
        token = self.tokens[self.at - 1]
        return token.text if token.kind == "number" else ""

    def product(self) -> Node:
        node = self.signed_factor(first=True)
        while True:
            if sign := self.take("*", r"\cdot", r"\times", r"\ast"):
                node = _times(node, self.signed_factor())
            elif sign := self.take("/", r"\div"):
                node = Node("quotient", (node, self._denominator()), sign)
            elif self._unit():
                return node
            elif self._begins_factor():
                before = self.tokens[self.at - 1]
                following = self.token()
                if before.kind == "number" and following.kind == "number":
                    node = self._mixed(node)
                    continue
                factor = self.factor()
                if _is_whole(node) and before.kind == "number" and _is_proper(factor):
                    node = Node("number", (), node.value + factor.parts[0].value / factor.parts[1].value)
                else:
                    node = _times(node, factor)
            else:
                return node

    def _mixed(self, whole: Node) -> Node:
        """3 1/2 in plain text."""
        tokens = self.tokens[self.at : self.at + 3]
        if (
            _is_whole(whole)
            and [token.kind for token in tokens] == ["number", "sign", "number"]
            and tokens[1][1] == "/"
        ):
            top, bottom = (Fraction(token.text) for token in (tokens[0], tokens[2]))
            if 0 < top < bottom and top.denominator == bottom.denominator == 1:
                self.at += 3
                return Node("number", (), whole.value + top / bottom)
        raise Unreadable("two numbers side by side")

    def _denominator(self) -> Node:
        # a/bc is taken for a over bc by some readers, for ac over b by others: only 1/2 x, and 1/2x, are the latter.
        return self.signed_factor()

    def signed_factor(self, first: bool = False) -> Node:
        if not first and self.take("-"):
            return Node("negative", (self.factor(),))
        return self.factor()

    def _begins_factor(self) -> bool:
        token = self.token()
        if token.kind in ("number", "letter"):
            return True
        if token.kind == "command":
            return token.text.removeprefix("\\") in _FUNCTIONS | _GREEK or token.text in _ATOMS
        return token.text in ("(", "{")

    def _unit(self) -> bool:
        r"""Goes past a unit after a value: words, or letters in \text{}, with powers and slashes."""
        start, words = self.at, []
        while True:
            token = self.token()
            is_letter = token.kind == "letter" and token.is_text
            if is_letter or (token.kind == "word" and token.text not in ("and", "or")):
                words.append(token.text)
            elif words and token.text in ("/", "-", ".") and token.is_text:
                words += [] if token.text == "." else [token.text]
            elif words and token.text == "^" and self.peek(1) in ("2", "3", "{"):
                self.at += 1
                if self.take("{"):
                    self.at += 1
                    self.expect("}")
                    continue
            elif words and token.text == "/" and self.tokens[self.at + 1 : self.at + 2]:
                following = self.tokens[self.at + 1]
                if following.kind != "word" and not following.is_text:
                    break
                words.append("/")
            else:
                break
            self.at += 1
        if not words:
            return False
        if not is_unit(" ".join(words).replace(" / ", "/").replace(" - ", "-").strip("/- ")):
            raise Unreadable(f"{' '.join(words)} is no unit")
        if self._begins_factor() and self.at > start:
            raise Unreadable("a value after a unit")
        return True

    def factor(self) -> Node:
        node = self.atom()
        while True:
            if self.peek() == "^":
                node = self._power(node)
            elif self.peek() == "!" and self.peek(1) != "!":
                self.at += 1
                node = Node("factorial", (node,))
            elif self.take("'"):
                raise Unreadable("a prime")
            elif self.take(r"\degree", r"\degrees"):
                node = Node("degrees", (node,))
            else:
                return node

    def _power(self, base: Node) -> Node:
        self.expect("^")
        if self.take(r"\circ"):
            return Node("degrees", (base,))
        if self.peek() == "{" and self.peek(1) == r"\circ" and self.peek(2) == "}":
            self.at += 3
            return Node("degrees", (base,))
        if base.kind == "power":
            raise Unreadable("two exponents")
        sign = self.take("-")
        exponent = self.argument(whole_number=True)
        return Node("power", (base, Node("negative", (exponent,)) if sign else exponent))

    def argument(self, whole_number: bool = False) -> Node:
        r"""Argument of a command: a group, or the next sign, which of a number is one digit, as in \frac12."""
        if self.take("{"):
            node = self.sum()
            self.expect("}")
            return _grouped(node)
        token = self.token()
        if token.kind == "number" and len(token.text) > 1 and not whole_number:
            if not token.text.isdigit():
                raise Unreadable(f"{token.text} without braces")
            self.tokens[self.at] = token._replace(text=token.text[1:])
            return Node("number", (), Fraction(int(token.text[0])))
        return self.atom()

    # --------------------------------------------------------------------------------------------------------- atoms

    def atom(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("too deep")
        token = self.token()
        self.at += 1
        match token.kind:
            case "number":
                node = self._number(token)
            case "letter":
                node = self._letter(token)
            case "word":
                node = self._words(token)
            case "command":
                node = self._command(token.text)
            case _:
                node = self._bracket(token.text)
        self.depth -= 1
        return node

    def _number(self, token: _Token) -> Node:
        if token.text.endswith(".") and self.peek() != r"\overline":
            raise Unreadable("a point without decimals")
        if self.peek() in (r"\overline", r"\bar", r"\dot") and "." in token.text and "e" not in token.text.lower():
            self.at += 1
            self.expect("{")
            digits = self.token()
            self.at += 1
            self.expect("}")
            if not digits.text.isdigit() or digits.kind != "number":
                raise Unreadable("no repeating decimals")
            places = len(token.text.partition(".")[2])
            period = Fraction(int(digits.text), (10 ** len(digits.text) - 1) * 10**places)
            return Node("number", (), Fraction(token.text.removesuffix(".") or "0") + period)
        if self.peek() == "_":
            self.at += 1
            base = self.argument(whole_number=True)
            if base.kind != "number" or not token.text.isdigit():
                raise Unreadable("no base")
            return Node("numeral", (), (token.text.lstrip("0") or "0", int(base.value)))
        return Node("number", (), Fraction(token.text))

    def _letter(self, token: _Token) -> Node:
        name = token.text + self._subscript()
        if name in ("e", "i"):
            return Node("constant", (), name)
        return Node("symbol", (), name)

    def _subscript(self) -> str:
        if not self.take("_"):
            return ""
        if not self.take("{"):
            token = self.token()
            self.at += 1
            if token.kind not in ("number", "letter"):
                raise Unreadable("no subscript")
            return f"_{token.text}"
        name = ""
        while self.peek() != "}":
            token = self.token()
            if token.kind == "end":
                raise Unreadable("an open subscript")
            name += token.text
            self.at += 1
        self.at += 1
        return f"_{name}"

    def _words(self, token: _Token) -> Node:
        words = [token.text]
        while self.token().kind == "word" and self.peek() not in ("and", "or"):
            words.append(self.token().text)
            self.at += 1
        return Node("words", (), " ".join(words).casefold())

    def _command(self, command: str) -> Node:
        name = command.removeprefix("\\")
        if name in _FUNCTIONS:
            return self._function(name)
        if name in _GREEK:
            return Node("symbol", (), name + self._subscript())
        match name:
            case "frac":
                return Node("quotient", (self.argument(), self.argument()), "frac")
            case "binom" | "dbinom" | "tbinom":
                return Node("binomial", (self.argument(), self.argument()))
            case "sqrt":
                index: tuple[Node, ...] = ()
                if self.take("["):
                    index = (self.sum(),)
                    self.expect("]")
                return Node("root", (self.argument(whole_number=True), *index))
            case "pi":
                return Node("constant", (), "pi")
            case "infty":
                return Node("constant", (), "infinity")
            case "emptyset" | "varnothing":
                return Node("set")
            case "mathbb":
                self.expect("{")
                letter = self.token().text
                self.at += 1
                self.expect("}")
                return Node("numbers", (), letter)
            case "{":
                return self._set()
            case "lvert" | "vert":
                return self._between("absolute", (r"\rvert", r"\vert"))
            case "lfloor":
                return self._between("floor", (r"\rfloor",))
            case "lceil":
                return self._between("ceiling", (r"\rceil",))
            case "langle":
                node = self.items((r"\rangle",))
                self.expect(r"\rangle")
                return Node("tuple", node.parts if node.kind == "list" else (node,))
            case "begin":
                return self._matrix()
        raise Unreadable(f"{command} is outside the grammar")

    def _function(self, name: str) -> Node:
        base: tuple[Node, ...] = ()
        if name == "log" and self.take("_"):
            base = (self.argument(whole_number=True),)
        exponent = None
        if self.take("^"):
            exponent = self.argument(whole_number=True)
        if self.peek() in ("(", "["):
            inner = self.atom()
            arguments = inner.parts if inner.kind == "tuple" else (inner,)
        else:
            node = self.factor()
            while self._begins_factor() and self.peek().removeprefix("\\") not in _FUNCTIONS and self.peek() != "(":
                node = _times(node, self.factor())
            arguments = (node,)
        if name not in ("gcd", "lcm", "max", "min") and len(arguments) != 1:
            raise Unreadable(f"{name} of several")
        if exponent is not None and exponent == Node("group", (Node("negative", (Node("number", (), Fraction(1)),)),)):
            if name not in TRIGONOMETRIC:
                raise Unreadable(f"the inverse of {name}")
            return Node("function", arguments, f"arc{name}")
        node = Node("function", (*arguments, *base), name)
        return node if exponent is None else Node("power", (node, exponent))

    def _between(self, kind: str, closing: tuple[str, ...]) -> Node:
        node = self.sum()
        self.expect(*closing)
        return Node(kind, (node,))

    def _bracket(self, sign: str) -> Node:
        match sign:
            case "{":
                node = self.sum()
                self.expect("}")
                return _grouped(node)
            case "|":
                return self._between("absolute", ("|",))
            case "(" | "[":
                inner = self.items((")", "]"))
                closing = self.expect(")", "]")
                if inner.kind != "list":
                    if sign + closing != "()":
                        raise Unreadable("one value in a bracket")
                    return _grouped(inner)
                if sign + closing == "()":
                    return Node("tuple", inner.parts)
                if len(inner.parts) != 2:
                    raise Unreadable("an interval has two ends")
                return Node("interval", inner.parts, (sign == "[", closing == "]"))
        raise Unreadable(f"{sign!r} where a value begins")

    def _set(self) -> Node:
        if self.take(r"\}"):
            return Node("set")
        start = self.at
        try:
            inner = self.items((r"\}",))
        except Unreadable:
            self.at = start  # {x | x > 2}
            self.union()
            if self.take(r"\in"):
                self.union()
            self.expect("|", r"\mid", ":", r"\vert")
            inner = self.items((r"\}",))
            self.expect(r"\}")
            return inner
        self.expect(r"\}")
        return Node("set", inner.parts if inner.kind == "list" else (inner,))

    def _matrix(self) -> Node:
        def environment() -> str:
            self.expect("{")
            name = "".join(iter(lambda: self.take(self.peek()) if self.peek() not in ("}", "") else "", ""))
            self.expect("}")
            return name

        name = environment()
        if name not in ("pmatrix", "bmatrix", "matrix"):
            raise Unreadable(f"{name} is outside the grammar")
        rows = [[self.sum()]]
        while sign := self.take("&", "\\\\"):
            if sign == "&":
                rows[-1].append(self.sum())
            elif self.peek() != r"\end":
                rows.append([self.sum()])
        self.expect(r"\end")
        if environment() != name or len({len(row) for row in rows}) != 1:
            raise Unreadable("no matrix")
        return Node("matrix", tuple(entry for row in rows for entry in row), (len(rows), len(rows[0])))


_ATOMS = frozenset(
    {r"\frac", r"\binom", r"\dbinom", r"\tbinom", r"\sqrt", r"\pi", r"\infty", r"\lfloor", r"\lceil", r"\lvert"}
)


def _grouped(node: Node) -> Node:
    """Content of brackets or braces, marked where that makes a difference to what comes after it."""
    return Node("group", (node,)) if node.kind in ("sum", "negative", "power") else node


def _times(left: Node, right: Node) -> Node:
    if "words" in (left.kind, right.kind):
        raise Unreadable("words in a product")
    parts = left.parts if left.kind == "product" else (left,)
    return Node("product", (*parts, right))


def _is_whole(node: Node) -> bool:
    return node.kind == "number" and node.value.denominator == 1


def _is_proper(node: Node) -> bool:
    """True if it is the fraction of a mixed number."""
    if node.kind != "quotient" or node.value != "frac":
        return False
    top, bottom = node.parts
    return _is_whole(top) and _is_whole(bottom) and 0 < top.value < bottom.value
