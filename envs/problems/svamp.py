"""SVAMP: 1,000 word problems made by varying simpler ones (Patel et al., 2021)."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from ...rewards.grading.expressions import evaluate
from .base import Problem, PublishedSource
from .tables import Row, carve, convert, read_file, read_hub

HUB_NAME = "ChilleD/SVAMP"
VALIDATION_ROWS, TEST_ROWS = 100, 300


class SVAMP(PublishedSource):
    """SVAMP, with solutions made from its equations.

    The original file is one table of 1,000 rows: a fixed hash of the questions makes 600 of them "train", 100
    "validation" and 300 "test". The hub's data set comes as 700 and 300 rows: its test split is "test" (not the same
    300 as the file's), and the same hash makes 100 of its train rows "validation". Ids are the data set's own:
    "svamp-chal-17".

    A solution has one line per operation ("76-25 = <<76-25=51>>51") and then the answer; it is the answer's line
    alone where the data's equation has no operation or another value than the answer (one row each).

    Args:
        split: Split of the problems: "train", "validation" or "test".
        data: Original `SVAMP.json`, or its folder; read on construction, without any network. By default
            `ChilleD/SVAMP` on the hub, when the first problem is asked for.
        answer_format: Format of the answers of attempts, and of the end of each solution: "marker" by default, which is
            "#### 72"; or "boxed", "tag", "last_number", ...

    Raises:
        UnknownNameError: There is no such split or format.
        FileNotFoundError: `data` does not exist.
        ValueError: A row is malformed, which the message names.
        OSError: The data must be downloaded and the hub cannot be reached (at first use).
    """

    def load(self) -> Sequence[Problem]:
        if self.data is None:
            if self.split == "test":
                return convert(read_hub(HUB_NAME, None, "test"), self._problem)
            rows, test_rows = read_hub(HUB_NAME, None, "train"), 0
        else:
            path = Path(self.data)
            rows, test_rows = read_file(path / "SVAMP.json" if path.is_dir() else path), TEST_ROWS
        if len(rows) <= VALIDATION_ROWS + test_rows:
            raise ValueError(
                f"{self.data or HUB_NAME} has {len(rows)} rows, of which {VALIDATION_ROWS + test_rows} are held out of "
                "train; for other files than SVAMP's own use the Dataset source"
            )
        problems = convert(rows, self._problem)
        splits = carve([problem.question for problem in problems], VALIDATION_ROWS, test_rows)
        return [problem for problem, split in zip(problems, splits, strict=True) if split == self.split]

    def _problem(self, row: Row) -> Problem:
        body, question, answer = row.text("Body"), row.text("Question"), row.text("Answer")
        if body[-1] in ".?!":
            question = f"{body} {question}"
        else:  # "If there is a discount of 25 dollars on each pack" goes on in the question
            question = f"{body.removesuffix(',')}, {question[0].lower()}{question[1:]}"
        number = _spell(_number(row, answer))
        return self.make_problem(f"svamp-{row.text('ID')}", row.place, question, number, _solution(row, answer))


def _solution(row: Row, answer: str) -> str:
    try:
        value, steps = evaluate(row.text("Equation"))
    except ValueError as error:
        raise ValueError(f"{row.place}: field 'Equation': {error}") from error
    lines: list[str] = []
    if value == _number(row, answer):
        for a, operation, b, result in steps:
            expression = f"{_spell(a)}{operation}{_spell(b)}"
            lines.append(f"{expression} = <<{expression}={_spell(result)}>>{_spell(result)}")
    lines.append(f"#### {_spell(_number(row, answer))}")
    return "\n".join(lines)


def _number(row: Row, text: str) -> Fraction:
    try:
        return evaluate(text)[0]
    except ValueError as error:
        raise ValueError(f"{row.place}: field 'Answer' is {text[:60]!r}, not a number") from error


def _spell(number: Fraction) -> str:
    """A number without a needless ".0": "51", "0.5", and "1/3" where no decimal is exact."""
    exact = number * 10**9
    if exact.denominator != 1:
        return str(number)
    whole, decimals = divmod(abs(int(exact)), 10**9)
    return f"{'-' if number < 0 else ''}{whole}" + f".{decimals:09d}".rstrip("0").rstrip(".")
